"""Backscattered-electron images of specimens: what the microscope counts, and where all electrons went."""

import concurrent.futures
import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from bsevox_jax.sim import tables
from bsevox_jax.sim.instrument import Instrument, check_instrument
from bsevox_jax.sim.lanes import FATES, Cells
from bsevox_jax.sim.random import pcg3d
from bsevox_jax.sim.reach import reach_nm
from bsevox_jax.sim.specimen import Specimen, check_specimen, tracking_words
from bsevox_jax.sim.transport import medium
from bsevox_jax.sim.walk import walk

PAPER_ENERGIES_KEV = tuple(0.5 * n for n in range(1, 21))  # 0.5 to 10 keV in steps of 0.5 keV

# Raised whenever the same seed gives other counts; data sets are tied to it.
SIMULATOR_VERSION = "2.0.0"

# Electrons in flight, 700 bytes each: on a CPU they stay in the cache of one core, an accelerator wants many.
LANES_CPU = 8_192
LANES_ACCELERATOR = 262_144
CELLS_PER_LANE = 16  # (energy, specimen, pixel) triples in one compiled call, so that no lane idles for long


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

    Raises:
        ValueError: for a broken specimen, energy or number; one line.
    """
    options = {name: value for name, value in locals().items() if name != "labels"}
    leading, energies, counts, steps, _ = _simulate(labels, with_spectrum=False, **options)
    return _images(counts, leading, electrons_per_pixel, energies, steps)


def simulate_spectrum(labels, *, electrons_per_pixel: int, **options) -> BseSpectrum:
    """Simulates energies and directions of the detected electrons; arguments as of `simulate_bse`."""
    options = simulate_bse.__kwdefaults__ | options | {"electrons_per_pixel": electrons_per_pixel}
    _, energies, counts, _, spectrum = _simulate(labels, with_spectrum=True, **options)
    return BseSpectrum(spectrum, electrons_per_pixel * int(np.prod(counts.shape[1:4])), energies)


def _simulate(
    labels,
    *,
    electrons_per_pixel,
    beam_energies_kev,
    instrument,
    seed,
    specimen_ids,
    first_electron,
    secondaries,
    follow_all,
    cross_sections,
    lanes,
    specimens_per_chunk,
    devices,
    with_spectrum,
):
    """Leading axes, energies, counts [e, specimen, y, x, fate], steps and spectrum; see `simulate_bse`."""
    specimen = check_specimen(labels if isinstance(labels, Specimen) else Specimen(labels))
    cross_sections = cross_sections or tables.shipped(specimen.materials)
    energies = _check_energies(beam_energies_kev, cross_sections)
    _check_whole("electrons_per_pixel", electrons_per_pixel, 1)
    _check_whole("seed", seed, 0)
    leading, volume = specimen.labels.shape[:-3], specimen.labels.shape[-3:]
    batch = specimen.labels.reshape(-1, *volume)
    ids = _check_ids(specimen_ids, len(batch))
    cross_sections = cross_sections.select(specimen.materials)
    instrument = check_instrument(instrument)
    reach = np.full(len(cross_sections.energies_kev), np.inf)
    if not follow_all:
        reach = reach_nm(cross_sections, instrument.lowest_energy_kev)
    devices = devices or jax.local_devices()
    workers, lanes, size = _cut(
        devices, len(batch), len(energies) * volume[0] * volume[1], lanes, specimens_per_chunk
    )

    def walk_chunk(number):
        chosen = slice(number * size, (number + 1) * size)
        cells = _cells(energies, ids[chosen], size, seed, first_electron, electrons_per_pixel)
        words = np.zeros((size, *volume), np.uint16)
        words[: len(ids[chosen])] = tracking_words(batch[chosen])
        placed = (words, cross_sections, reach.astype(np.float32), cells, instrument, np.bool_(secondaries))
        placed = jax.device_put(placed, devices[number % len(devices)])
        counts, steps, spectrum = _walk(*placed, specimen.voxel_nm, lanes, with_spectrum)
        return np.asarray(counts), np.asarray(steps).sum(dtype=np.int64), np.asarray(spectrum)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        chunks = pool.map(walk_chunk, range(-(-len(batch) // size)))
        counts, steps, spectra = zip(*chunks, strict=True)
    counts = np.concatenate(counts, axis=1)[:, : len(batch)]
    spectrum = np.sum(spectra, axis=0, dtype=np.int64) if with_spectrum else None
    return leading, energies, counts, int(sum(steps)), spectrum


def _cut(devices, specimens, cells_per_specimen, lanes, specimens_per_chunk) -> tuple[int, int, int]:
    """Chunks walked at once, lanes of each, and specimens of each.

    A walk on a CPU runs on one core, so as many chunks run at once as there are cores.
    """
    on_cpu = devices[0].platform == "cpu"
    workers = (os.cpu_count() or 1) if on_cpu else len(devices)
    lanes = lanes or (LANES_CPU if on_cpu else LANES_ACCELERATOR)
    size = specimens_per_chunk or max(1, CELLS_PER_LANE * lanes // cells_per_specimen)
    size = min(size, -(-specimens // workers))
    return workers, min(lanes, size * cells_per_specimen), size


@functools.partial(jax.jit, static_argnums=(6, 7, 8))
def _walk(words, cross_sections, reach, cells, instrument, secondaries, voxel_nm, num_lanes, with_spectrum):
    matter = medium(words, cross_sections, reach, voxel_nm)
    return walk(matter, cells, instrument, secondaries, num_lanes, with_spectrum)


def _check_whole(name: str, value, low: int) -> None:
    if value != int(value) or not low <= value < 2**31:
        raise ValueError(f"{name} must be a whole number from {low} to 2**31 - 1; got {value}.")


def _check_ids(specimen_ids, specimens: int) -> np.ndarray:
    ids = np.arange(specimens) if specimen_ids is None else np.asarray(specimen_ids).reshape(-1)
    if len(ids) != specimens:
        raise ValueError(
            f"specimen_ids must name each specimen; got {len(ids)} ids for {specimens} specimens."
        )
    if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= 2**32:
        raise ValueError(
            f"specimen_ids must be whole numbers from 0 to 2**32 - 1; got {ids.min()} to {ids.max()}."
        )
    return ids


def _check_energies(beam_energies_kev, cross_sections) -> tuple[float, ...]:
    energies = tuple(float(energy) for energy in beam_energies_kev)
    low, high = 0.1, float(cross_sections.energies_kev[-1])
    if not energies or not all(low <= energy <= high for energy in energies):
        raise ValueError(f"beam_energies_kev must lie in {low} to {high:g} keV; got {energies}.")
    if any(a >= b for a, b in zip(energies, energies[1:], strict=False)):
        raise ValueError(f"beam_energies_kev must ascend; got {energies}. Sort them and drop repeats.")
    return energies


def _cells(energies, ids, size, seed, first_electron, electrons) -> Cells:
    """Work of one chunk of `size` specimens, of which the first `len(ids)` are real."""
    padded = np.zeros(size, np.uint32)
    padded[: len(ids)] = ids
    millielectronvolts = np.round(np.asarray(energies) * 1e6).astype(np.uint32)
    shape = (len(energies), size)
    key = pcg3d(
        jnp.full(shape, seed, jnp.uint32),
        jnp.broadcast_to(jnp.asarray(padded)[None, :], shape),
        jnp.broadcast_to(jnp.asarray(millielectronvolts)[:, None], shape),
    )
    return Cells(
        num_specimens=jnp.int32(len(ids)),
        beam_energies_kev=jnp.asarray(energies, jnp.float32),
        keys=jnp.stack(key, axis=-1),
        first_electron=jnp.uint32(first_electron),
        electrons=jnp.int32(electrons),
    )


def _images(counts, leading, electrons_per_pixel, energies, steps) -> BseImages:
    """Orders counts [e, specimen, y, x, fate] into images and fates."""
    counts = np.moveaxis(counts, 0, 3)
    counts = counts.reshape(*leading, *counts.shape[1:])
    primary, secondary = counts[..., 0], counts[..., 1]
    totals = counts.sum(axis=(-4, -3), dtype=np.int64)
    return BseImages(
        counts=primary + secondary,
        primary_counts=primary,
        electrons_per_pixel=int(electrons_per_pixel),
        beam_energies_kev=energies,
        fates={fate: totals[..., n] for n, fate in enumerate(FATES)},
        steps=steps,
    )
