"""The work of a simulation: checked, cut into chunks that fit the devices, and walked.

A chunk is a few whole specimens, or some pixels of one large specimen. All chunks of a simulation share their
shapes, so one compiled program walks them all. What is held at once is bounded: the labels and the counts of
the batch, and for each chunk in work, of which there is one for each core or device, 700 bytes for each lane,
24 for each cell and 2 for each voxel of its specimens; with the lanes chosen here 2 MB on a core of a CPU and
0.3 GB on an accelerator, and the voxels.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np

from bsevox_jax.sim import tables
from bsevox_jax.sim.biasing import Biasing, check_biasing
from bsevox_jax.sim.instrument import Instrument, check_energies, check_instrument, check_whole
from bsevox_jax.sim.lanes import FATES, Cells
from bsevox_jax.sim.random import pcg3d
from bsevox_jax.sim.reach import reach_nm
from bsevox_jax.sim.specimen import Specimen, check_ids, check_specimen, tracking_words
from bsevox_jax.sim.transport import medium
from bsevox_jax.sim.walk import walk

# Electrons in flight: on a CPU they stay in the cache of one core, an accelerator wants many.
LANES_CPU = 1_024
LANES_ACCELERATOR = 262_144
CELLS_PER_LANE = 16  # (energy, specimen, pixel) triples in one compiled call, so that no lane idles for long
# XLA's default is half of the widest vectors; the walk has no other work to slow down.
CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512}
LARGEST_INDEX = 2**31 - 1  # of the voxels and the cells of a chunk, and of the electrons of a cell


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be simulated, checked, and how it is to be cut."""

    specimen: Specimen  # labels [..., y, x, z]
    energies_kev: tuple[float, ...]
    electrons: int  # primaries for each pixel and energy
    cells: Cells  # of all specimens of the batch
    matter: tuple  # cross sections, and the reach
    instrument: Instrument
    secondaries: np.bool_
    biasing: Biasing | None
    cut: dict  # lanes, specimens_per_chunk, devices; see `_cut`

    @property
    def batch(self) -> np.ndarray:
        """Labels [specimen, y, x, z]."""
        return self.specimen.labels.reshape(-1, *self.specimen.labels.shape[-3:])


def prepare(
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
    biasing=None,
    **cut,
) -> Work:
    """Checks the arguments of `imaging.simulate_bse`; ValueError in one line."""
    specimen = check_specimen(labels if isinstance(labels, Specimen) else Specimen(labels))
    tabulated = (cross_sections or tables.shipped(specimen.materials)).select(specimen.materials)
    energies = check_energies(beam_energies_kev, float(tabulated.energies_kev[-1]))
    electrons = check_whole("electrons_per_pixel", electrons_per_pixel, 1)
    seed = check_whole("seed", seed, 0)
    first_electron = check_whole("first_electron", first_electron, 0, LARGEST_INDEX - electrons)
    ids = check_ids(specimen_ids, math.prod(specimen.labels.shape[:-3]))
    check_instrument(instrument)
    biasing = biasing and check_biasing(biasing)
    reach = np.full(len(tabulated.energies_kev), np.inf)
    if not follow_all:
        reach = reach_nm(tabulated, instrument.lowest_energy_kev)
    pixels = math.prod(specimen.labels.shape[-3:-1])
    cells = _cells(energies, ids, seed, first_electron, electrons, pixels)
    matter = tabulated, reach.astype(np.float32)
    return Work(specimen, energies, electrons, cells, matter, instrument, np.bool_(secondaries), biasing, cut)


def run(work: Work, *, with_spectrum: bool = False, progress=None):
    """Walks all electrons.

    Args:
        progress: called with the number of primaries of every chunk that is done, from several threads.

    Returns:
        Counts int32 [e, specimen, y, x, fate], or with biasing float32 scores as of `walk`; the number of
        steps; and the spectrum if asked for.
    """
    batch = work.batch
    specimens, num_pixels = len(batch), math.prod(batch.shape[1:3])
    devices, workers, lanes, size, pixels = _cut(batch.shape, len(work.energies_kev), **work.cut)
    kinds, dtype = (3, np.float32) if work.biasing else (len(FATES), np.int32)
    counts = np.zeros((len(work.energies_kev), specimens, num_pixels, kinds), dtype)

    @functools.lru_cache(2 * workers)
    def words_from(first, device):
        labels = batch[first : first + size]
        words = np.zeros((size, *batch.shape[1:]), np.uint16)
        words[: len(labels)] = tracking_words(labels, work.specimen.side_walls)
        return jax.device_put(words, device)

    def walk_chunk(number, first, first_pixel):
        device = devices[number % len(devices)]
        cells = _part_of(work.cells, first, size, first_pixel, pixels)
        placed = jax.device_put(
            (*work.matter, cells, work.instrument, work.secondaries, work.biasing), device
        )
        static = (work.specimen.voxel_nm, work.specimen.side_walls, lanes, pixels, with_spectrum)
        here, steps, spectrum = compiled_for(device.platform)(words_from(first, device), *placed, *static)
        n, p = int(cells.num_specimens), int(cells.num_pixels)
        counts[:, first : first + n, first_pixel : first_pixel + p] = np.asarray(here)[:, :n, :p]
        if progress:
            progress(n * p * len(work.energies_kev) * work.electrons)
        return np.asarray(steps).sum(dtype=np.int64), np.asarray(spectrum)

    chunks = itertools.product(range(0, specimens, size), range(0, num_pixels, pixels))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        done = pool.map(lambda chunk: walk_chunk(chunk[0], *chunk[1]), enumerate(chunks))
        steps, spectra = zip(*done, strict=True)
    spectrum = np.sum(spectra, axis=0, dtype=np.int64) if with_spectrum else None
    return counts.reshape(*counts.shape[:2], *batch.shape[1:3], -1), int(sum(steps)), spectrum


def _cut(shape, num_energies, *, lanes, specimens_per_chunk, devices) -> tuple[list, int, int, int, int]:
    """Devices, chunks walked at once, lanes, specimens and pixels of each chunk, for a batch of a shape.

    A walk on a CPU runs on one core, so as many chunks run at once as there are cores.
    """
    devices = devices or jax.local_devices()
    on_cpu = devices[0].platform == "cpu"
    workers = (os.cpu_count() or 1) if on_cpu else len(devices)
    lanes = lanes or (LANES_CPU if on_cpu else LANES_ACCELERATOR)
    num_pixels = math.prod(shape[1:3])
    cells_per_specimen, cells = num_energies * num_pixels, CELLS_PER_LANE * lanes
    size = min(specimens_per_chunk or cells // cells_per_specimen, -(-shape[0] // workers))
    size = max(1, min(size, LARGEST_INDEX // max(math.prod(shape[1:]), cells_per_specimen)))
    parts = 1 if size > 1 or specimens_per_chunk else max(cells_per_specimen // cells, workers // shape[0], 1)
    pixels = -(-num_pixels // min(parts, num_pixels))
    return devices, workers, min(lanes, size * pixels * num_energies), size, pixels


@functools.cache
def compiled_for(platform: str):
    """The walk of one chunk on a platform; see `_walk`."""
    options = CPU_OPTIONS if platform == "cpu" else None
    static = ("voxel_nm", "side_walls", "lanes", "pixels", "with_spectrum")
    return jax.jit(_walk, static_argnames=static, compiler_options=options)


def _walk(
    words,
    cross_sections,
    reach,
    cells,
    instrument,
    secondaries,
    biasing,
    voxel_nm,
    side_walls,
    lanes,
    pixels,
    with_spectrum,
):
    matter = medium(words, cross_sections, reach, voxel_nm, side_walls)
    return walk(
        matter,
        cells,
        instrument,
        secondaries,
        num_lanes=lanes,
        pixels=pixels,
        with_spectrum=with_spectrum,
        biasing=biasing,
    )


def _cells(energies, ids, seed, first_electron, electrons, pixels) -> Cells:
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
        first_pixel=np.int32(0),
        num_pixels=np.int32(pixels),
        beam_energies_kev=np.asarray(energies, np.float32),
        keys=np.stack(key, axis=-1),
        first_electron=np.uint32(first_electron),
        electrons=np.int32(electrons),
    )


def _part_of(cells: Cells, first: int, size: int, first_pixel: int, pixels: int) -> Cells:
    """Work of `size` specimens and `pixels` pixels from the first ones on; beyond the end lies padding."""
    keys = cells.keys[:, first : first + size]
    missing = size - keys.shape[1]
    return dataclasses.replace(
        cells,
        num_specimens=np.int32(size - missing),
        first_pixel=np.int32(first_pixel),
        num_pixels=np.int32(min(pixels, cells.num_pixels - first_pixel)),
        keys=np.pad(keys, ((0, 0), (0, missing), (0, 0))),
    )
