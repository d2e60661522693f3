"""Backscattered-electron images of specimens: what the microscope counts, and where all electrons went."""

import concurrent.futures
import dataclasses
import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np

from bsevox_jax.sim import tables
from bsevox_jax.sim.instrument import Instrument, check_energies, check_instrument, check_whole
from bsevox_jax.sim.lanes import FATES, Cells
from bsevox_jax.sim.random import pcg3d
from bsevox_jax.sim.reach import reach_nm
from bsevox_jax.sim.specimen import Specimen, check_ids, check_specimen, tracking_words
from bsevox_jax.sim.transport import medium
from bsevox_jax.sim.walk import walk

PAPER_ENERGIES_KEV = tuple(0.5 * n for n in range(1, 21))  # 0.5 to 10 keV in steps of 0.5 keV

# Raised whenever the same seed gives other counts; data sets are tied to it.
SIMULATOR_VERSION = "2.0.0"

# Electrons in flight, 700 bytes each: on a CPU they stay in the cache of one core, an accelerator wants many.
LANES_CPU = 8_192
LANES_ACCELERATOR = 262_144
CELLS_PER_LANE = 16  # (energy, specimen, pixel) triples in one compiled call, so that no lane idles for long
LARGEST_INDEX = 2**31 - 1  # of the voxels and the cells of a chunk, and of the electrons of a cell


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
    work = _prepare(
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
    counts, steps, _ = _simulate(work, with_spectrum=False)
    return _images(counts, work, steps)


def simulate_spectrum(labels, *, electrons_per_pixel: int, **options) -> BseSpectrum:
    """Simulates energies and directions of the detected electrons; arguments as of `simulate_bse`."""
    options = simulate_bse.__kwdefaults__ | options
    work = _prepare(labels, electrons_per_pixel=electrons_per_pixel, **options)
    counts, _, spectrum = _simulate(work, with_spectrum=True)
    return BseSpectrum(spectrum, work.electrons * int(np.prod(counts.shape[1:4])), work.energies_kev)


@dataclasses.dataclass(frozen=True)
class _Work:
    """The arguments of `simulate_bse`, checked."""

    specimen: Specimen  # labels [..., y, x, z]
    energies_kev: tuple[float, ...]
    electrons: int
    cells: Cells  # of all specimens of the batch
    matter: tuple  # cross sections, and the reach
    instrument: Instrument
    secondaries: np.bool_
    cut: dict  # how the work is to be cut; see `_cut`


def _prepare(
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
    **cut,
) -> _Work:
    specimen = check_specimen(labels if isinstance(labels, Specimen) else Specimen(labels))
    tabulated = (cross_sections or tables.shipped(specimen.materials)).select(specimen.materials)
    energies = check_energies(beam_energies_kev, float(tabulated.energies_kev[-1]))
    electrons = check_whole("electrons_per_pixel", electrons_per_pixel, 1)
    seed = check_whole("seed", seed, 0)
    first_electron = check_whole("first_electron", first_electron, 0, LARGEST_INDEX - electrons)
    ids = check_ids(specimen_ids, math.prod(specimen.labels.shape[:-3]))
    check_instrument(instrument)
    reach = np.full(len(tabulated.energies_kev), np.inf)
    if not follow_all:
        reach = reach_nm(tabulated, instrument.lowest_energy_kev)
    cells = _cells(energies, ids, seed, first_electron, electrons)
    matter = tabulated, reach.astype(np.float32)
    return _Work(specimen, energies, electrons, cells, matter, instrument, np.bool_(secondaries), cut)


def _simulate(work: _Work, with_spectrum: bool):
    """Counts [e, specimen, y, x, fate], steps, and the spectrum if asked for."""
    batch = work.specimen.labels.reshape(-1, *work.specimen.labels.shape[-3:])
    cells_per_specimen = len(work.energies_kev) * math.prod(batch.shape[1:3])
    devices, workers, lanes, size = _cut(batch.shape, cells_per_specimen, **work.cut)

    def walk_chunk(number):
        labels = batch[number * size : (number + 1) * size]
        words = np.zeros((size, *batch.shape[1:]), np.uint16)
        words[: len(labels)] = tracking_words(labels)
        cells = _chunk_of(work.cells, number, size)
        placed = (words, *work.matter, cells, work.instrument, work.secondaries)
        placed = jax.device_put(placed, devices[number % len(devices)])
        counts, steps, spectrum = _walk(*placed, work.specimen.voxel_nm, lanes, with_spectrum)
        return np.asarray(counts), np.asarray(steps).sum(dtype=np.int64), np.asarray(spectrum)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        chunks = pool.map(walk_chunk, range(-(-len(batch) // size)))
        counts, steps, spectra = zip(*chunks, strict=True)
    counts = np.concatenate(counts, axis=1)[:, : len(batch)]
    spectrum = np.sum(spectra, axis=0, dtype=np.int64) if with_spectrum else None
    return counts, int(sum(steps)), spectrum


def _cut(shape, cells_per_specimen, *, lanes, specimens_per_chunk, devices) -> tuple[list, int, int, int]:
    """Devices, chunks walked at once, lanes of each, and specimens of each, for a batch of a shape.

    A walk on a CPU runs on one core, so as many chunks run at once as there are cores.
    """
    devices = devices or jax.local_devices()
    on_cpu = devices[0].platform == "cpu"
    workers = (os.cpu_count() or 1) if on_cpu else len(devices)
    lanes = lanes or (LANES_CPU if on_cpu else LANES_ACCELERATOR)
    size = specimens_per_chunk or CELLS_PER_LANE * lanes // cells_per_specimen
    size = min(size, -(-shape[0] // workers), LARGEST_INDEX // max(math.prod(shape[1:]), cells_per_specimen))
    size = max(1, size)
    return devices, workers, min(lanes, size * cells_per_specimen), size


@functools.partial(jax.jit, static_argnums=(6, 7, 8))
def _walk(words, cross_sections, reach, cells, instrument, secondaries, voxel_nm, num_lanes, with_spectrum):
    matter = medium(words, cross_sections, reach, voxel_nm)
    return walk(matter, cells, instrument, secondaries, num_lanes, with_spectrum)


def _cells(energies, ids, seed, first_electron, electrons) -> Cells:
    """Work of all specimens."""
    millielectronvolts = np.round(np.asarray(energies) * 1e6).astype(np.uint32)
    shape = (len(energies), len(ids))
    key = pcg3d(
        jnp.full(shape, seed, jnp.uint32),
        jnp.broadcast_to(jnp.asarray(ids.astype(np.uint32))[None, :], shape),
        jnp.broadcast_to(jnp.asarray(millielectronvolts)[:, None], shape),
    )
    return Cells(
        num_specimens=np.int32(len(ids)),
        beam_energies_kev=np.asarray(energies, np.float32),
        keys=np.stack(key, axis=-1),
        first_electron=np.uint32(first_electron),
        electrons=np.int32(electrons),
    )


def _chunk_of(cells: Cells, number: int, size: int) -> Cells:
    """Work of one chunk of `size` specimens, of which the last may be padding."""
    keys = cells.keys[:, number * size : (number + 1) * size]
    missing = size - keys.shape[1]
    padded = np.pad(keys, ((0, 0), (0, missing), (0, 0)))
    return dataclasses.replace(cells, num_specimens=np.int32(size - missing), keys=padded)


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
