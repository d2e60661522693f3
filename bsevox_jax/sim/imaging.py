"""Backscattered-electron images of specimens: what the microscope counts, and where all electrons went."""

import dataclasses

import numpy as np

from bsevox_jax.sim import tables
from bsevox_jax.sim.biasing import Biasing
from bsevox_jax.sim.instrument import Instrument, check_whole
from bsevox_jax.sim.lanes import FATES
from bsevox_jax.sim.work import prepare, run

PAPER_ENERGIES_KEV = tuple(0.5 * n for n in range(1, 21))  # 0.5 to 10 keV in steps of 0.5 keV

# Raised whenever the same seed gives other counts; data sets are tied to it.
SIMULATOR_VERSION = "3.0.0"


@dataclasses.dataclass(frozen=True)
class BseImages:
    """Counted electrons of one specimen or a batch (leading axes as in the labels).

    Attributes:
        counts: int32 [..., y, x, e], electrons the detector counts, of any kind.
        primary_counts: int32 [..., y, x, e], those of them that came from the beam (of two electrons that
            leave an ionisation, the faster is called the primary).
        electrons_per_pixel: primary electrons sent into each pixel at each energy.
        beam_energies_kev: energies of the last axis.
        fates: int64 [..., e] for each of detected_primary, detected_secondary, missed (left upwards past the
            detector), transmitted, absorbed (too slow or too deep to be counted) and unfinished (too many
            steps, or a full stack); they sum to all electrons followed, the primaries and the secondaries
            freed above the lowest energy counted.
        steps: lane steps the walk took, a measure of its work.
    """

    counts: np.ndarray
    primary_counts: np.ndarray
    electrons_per_pixel: int
    beam_energies_kev: tuple[float, ...]
    fates: dict[str, np.ndarray]
    steps: int

    @property
    def yields(self) -> np.ndarray:
        """Detected electrons per primary, float32 [..., y, x, e]."""
        return (self.counts / self.electrons_per_pixel).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class BseYields:
    """Expected yields of one specimen or a batch (leading axes as in the labels), estimated with biasing.

    Attributes:
        yields: float64 [..., y, x, e], detected electrons per primary.
        primary_yields: [..., y, x, e], those of them that came from the beam.
        standard_errors: [..., y, x, e], of `yields`, from the scatter of the primaries of the pixel.
        electrons_per_pixel, beam_energies_kev, steps: as of `BseImages`.
    """

    yields: np.ndarray
    primary_yields: np.ndarray
    standard_errors: np.ndarray
    electrons_per_pixel: int
    beam_energies_kev: tuple[float, ...]
    steps: int


@dataclasses.dataclass(frozen=True)
class BseSpectrum:
    """Detected electrons of a specimen or a batch, all pixels together, by energy and direction.

    Attributes:
        counts: int64 [e, energy, cosine, kind]; energy in equal parts of the beam energy, cosine of the angle
            to the outward normal in equal parts of 0 to 1, kind 0 from the beam and 1 freed.
        electrons: primary electrons sent in at each energy.
        beam_energies_kev: energies of the first axis.
    """

    counts: np.ndarray
    electrons: int
    beam_energies_kev: tuple[float, ...]


def simulate_bse(
    labels,
    *,
    electrons_per_pixel: int,
    beam_energies_kev=PAPER_ENERGIES_KEV,
    instrument: Instrument = Instrument(),  # noqa: B008, frozen
    seed: int = 0,
    specimen_ids=None,
    first_electron: int = 0,
    secondaries: bool = True,
    follow_all: bool = False,
    cross_sections: tables.CrossSections | None = None,
    lanes: int | None = None,
    specimens_per_chunk: int | None = None,
    devices=None,
    progress=None,
) -> BseImages:
    """Simulates the images of specimens, one per beam energy.

    The counts depend on the specimen, its id, the seed, the energies one by one and the electrons one by one;
    not on how the work is cut into lanes, chunks, devices or processes.

    Args:
        labels: uint8 [..., y, x, z] (0 vacuum, 1 Si, 2 Cu; 1 nm voxels) or a `Specimen`.
        electrons_per_pixel: primaries per pixel and energy, spread evenly over the pixel.
        beam_energies_kev: energies, each within the range of the cross sections.
        instrument: probe, tilt and detector.
        seed: names the random streams together with `specimen_ids`.
        specimen_ids: integers, one per specimen of the batch; 0, 1, ... if not given.
        first_electron: index of the first primary of each pixel; the counts of [0, n) and [n, m) add up.
        secondaries: whether electrons freed above the lowest energy counted are followed.
        follow_all: whether to follow also electrons too deep to come out (`reach`). The counts need it not;
            the fate `transmitted` is complete only with it.
        cross_sections: tables; the shipped ones of the specimen's materials if not given.
        lanes, specimens_per_chunk, devices: how the work is cut; chosen for the devices if not given.
        progress: called with the number of primaries of every chunk that is done, from several threads.

    Raises:
        ValueError: for a broken specimen, energy or number; one line.
    """
    work = prepare(
        labels,
        electrons_per_pixel=electrons_per_pixel,
        beam_energies_kev=beam_energies_kev,
        instrument=instrument,
        seed=seed,
        specimen_ids=specimen_ids,
        first_electron=first_electron,
        secondaries=secondaries,
        follow_all=follow_all,
        cross_sections=cross_sections,
        lanes=lanes,
        specimens_per_chunk=specimens_per_chunk,
        devices=devices,
    )
    counts, steps, _ = run(work, progress=progress)
    return _images(counts, work, steps)


def simulate_yields(
    labels,
    *,
    electrons_per_pixel: int,
    biasing: Biasing = Biasing(),  # noqa: B008, frozen
    **options,
) -> BseYields:
    """Expected yields by the same walk with variance reduction; arguments as of `simulate_bse`.

    Not counts: the noise is less than that of so many electrons in a microscope, and of another kind.

    Args:
        biasing: what is drawn more often.
    """
    options = simulate_bse.__kwdefaults__ | options
    progress = options.pop("progress")
    electrons = check_whole("electrons_per_pixel", electrons_per_pixel, 2)
    work = prepare(labels, electrons_per_pixel=electrons, biasing=biasing, **options)
    scores, steps, _ = run(work, progress=progress)
    scores = np.moveaxis(scores, 0, 3).astype(float)
    scores = scores.reshape(*work.specimen.labels.shape[:-1], *scores.shape[-2:]) / electrons
    from_beam, freed, squares = np.moveaxis(scores, -1, 0)
    variance = np.maximum(squares - (from_beam + freed) ** 2, 0) / (electrons - 1)
    return BseYields(from_beam + freed, from_beam, np.sqrt(variance), electrons, work.energies_kev, steps)


def simulate_spectrum(labels, *, electrons_per_pixel: int, **options) -> BseSpectrum:
    """Simulates energies and directions of the detected electrons; arguments as of `simulate_bse`."""
    options = simulate_bse.__kwdefaults__ | options
    progress = options.pop("progress")
    work = prepare(labels, electrons_per_pixel=electrons_per_pixel, **options)
    counts, _, spectrum = run(work, with_spectrum=True, progress=progress)
    return BseSpectrum(spectrum, work.electrons * int(np.prod(counts.shape[1:4])), work.energies_kev)


def _images(counts, work, steps) -> BseImages:
    """Orders counts [e, specimen, y, x, fate] into images and fates."""
    counts = np.moveaxis(counts, 0, 3)
    counts = counts.reshape(*work.specimen.labels.shape[:-3], *counts.shape[1:])
    primary, secondary = counts[..., 0], counts[..., 1]
    totals = counts.sum(axis=(-4, -3), dtype=np.int64)
    return BseImages(
        counts=primary + secondary,
        primary_counts=primary,
        electrons_per_pixel=work.electrons,
        beam_energies_kev=work.energies_kev,
        fates={fate: totals[..., n] for n, fate in enumerate(FATES)},
        steps=steps,
    )
