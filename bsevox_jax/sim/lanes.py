"""Lanes: a fixed number of electrons in flight at once, their stacks, and the work they take from.

The work is cut into cells, one for each (energy, specimen, pixel), of the same number of primary electrons.
A lane walks the primaries of its cell one after another, each with the secondaries it frees, then takes the
next cell that nobody has. What a cell counts depends on its own keys alone, so the result is the same bits
for any number of lanes, chunks, devices or processes.
"""

import dataclasses

import jax
import jax.numpy as jnp

from bsevox_jax.sim.biasing import Scores, closed, no_scores
from bsevox_jax.sim.random import pcg3d
from bsevox_jax.sim.transport import Electron, Medium

FATES = ("detected_primary", "detected_secondary", "missed", "transmitted", "absorbed", "unfinished")

STEPS_PER_SERVICE = 12  # how often the stacks and finished cells are looked after
TALLY_BITS = 5  # count to 31, more than the steps between two services; six fates fit into a word

# Of the two electrons that leave an ionisation the slower goes on and the faster waits, so energies at least
# halve from one waiting electron to the next: log2(11 keV / 50 eV) = 7.8 of them at most.
STACK_DEPTH = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cells:
    """The work: energies x `num_specimens` x `num_pixels` cells of `electrons` primaries each."""

    num_specimens: jax.Array  # int32; the first ones of the batch, the rest is padding
    first_pixel: jax.Array  # int32; counted along x, then y
    num_pixels: jax.Array  # int32; from the first one on
    beam_energies_kev: jax.Array  # [e]
    keys: jax.Array  # uint32 [e, specimen, 3]: names the random stream of an energy and specimen
    first_electron: jax.Array  # uint32; index of the first primary of each cell
    electrons: jax.Array  # int32; primaries of each cell

    @property
    def number(self) -> jax.Array:
        """How many cells there are, without the padding."""
        return self.keys.shape[0] * self.num_specimens * self.num_pixels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanes:
    """State of all lanes; every array is [lanes] unless it says otherwise."""

    electron: Electron  # in flight, if `flying`
    flying: jax.Array
    waiting: Electron  # the top of the stack, if `has_waiting`
    has_waiting: jax.Array
    blocked: jax.Array  # frees a second electron before the service has moved the waiting one
    stack: Electron  # [STACK_DEPTH, lanes]
    depth: jax.Array
    history: tuple[jax.Array, jax.Array]  # uint32 words that name the random numbers of the primary in work
    draw: jax.Array  # uint32, how many of them are used
    cell: jax.Array  # int32
    cell_key: tuple[jax.Array, jax.Array, jax.Array]
    cell_x: jax.Array  # nm, corner of the pixel
    cell_y: jax.Array
    cell_energy_kev: jax.Array
    specimen_start: jax.Array
    next_electron: jax.Array  # uint32
    electrons_left: jax.Array
    ended: jax.Array  # uint32, how many ended since the last service: TALLY_BITS for each of FATES
    tally: tuple[jax.Array, ...]  # int32, one for each of FATES, up to the last service
    steps: jax.Array
    scores: Scores | None = None  # of a walk with biasing


def serve_tallies(lanes: Lanes) -> Lanes:
    """Counts the electrons that ended since the last service."""
    mask = jnp.uint32(2**TALLY_BITS - 1)
    new = ((lanes.ended >> (TALLY_BITS * n)) & mask for n in range(len(FATES)))
    tally = tuple(count + n.astype(jnp.int32) for count, n in zip(lanes.tally, new, strict=True))
    return dataclasses.replace(lanes, tally=tally, ended=jnp.zeros_like(lanes.ended))


def serve_stacks(lanes: Lanes) -> Lanes:
    """Moves the waiting electron of blocked lanes to the stack, and back into lanes that ran empty."""
    slots = jnp.arange(STACK_DEPTH, dtype=jnp.int32)[:, None]
    overflow = lanes.blocked & (lanes.depth == STACK_DEPTH)
    stack = select(lanes.blocked & (slots == lanes.depth), lanes.waiting, lanes.stack)
    depth = lanes.depth + (lanes.blocked & ~overflow)
    pop = ~lanes.flying & (depth > 0)
    depth = depth - pop
    top = jax.tree.map(lambda field: jnp.where(slots == depth, field, 0).sum(0).astype(field.dtype), stack)
    lost = len(FATES) - 1
    return dataclasses.replace(
        lanes,
        electron=select(pop, top, lanes.electron),
        flying=lanes.flying | pop,
        has_waiting=lanes.has_waiting & ~lanes.blocked,
        blocked=jnp.zeros_like(lanes.blocked),
        stack=stack,
        depth=depth,
        tally=lanes.tally[:lost] + (lanes.tally[lost] + overflow,),
    )


def serve_cells(medium: Medium, cells: Cells, lanes: Lanes, next_cell, counts):
    """Stores the counts of finished cells and hands out the next ones, in the order of the lanes.

    `counts` is [cell, fate], or [cell, sum] with biasing; its cells are those of `walk`, padding included.
    """
    num_energies, specimens = cells.keys.shape[:2]
    done = ~lanes.flying & (lanes.electrons_left == 0)
    counts = store(counts, lanes, done)
    cell = next_cell + jnp.cumsum(done.astype(jnp.int32)) - 1
    take = done & (cell < cells.number)
    next_cell = jnp.minimum(next_cell + done.sum(dtype=jnp.int32), cells.number)

    ny, nx, nz = medium.shape
    in_chunk = cell % cells.num_pixels
    pixel = cells.first_pixel + in_chunk
    specimen = (cell // cells.num_pixels) % cells.num_specimens
    energy = jnp.minimum(cell // (cells.num_pixels * cells.num_specimens), num_energies - 1)
    key = cells.keys[energy, specimen]
    cell_key = pcg3d(key[:, 0] + pixel.astype(jnp.uint32), key[:, 1], key[:, 2])
    stored = (energy * specimens + specimen) * (counts.shape[0] // (num_energies * specimens)) + in_chunk
    kept = lanes.cell_x, lanes.cell_y, lanes.cell_energy_kev, lanes.specimen_start
    fresh = (
        (pixel % nx) * medium.voxel_nm,
        (pixel // nx) * medium.voxel_nm,
        cells.beam_energies_kev[energy],
        specimen * (ny * nx * nz),
    )
    cell_x, cell_y, cell_energy_kev, specimen_start = select(take, fresh, kept)
    lanes = dataclasses.replace(
        lanes,
        cell=jnp.where(take, stored, jnp.where(done, counts.shape[0], lanes.cell)),
        cell_key=select(take, cell_key, lanes.cell_key),
        cell_x=cell_x,
        cell_y=cell_y,
        cell_energy_kev=cell_energy_kev,
        specimen_start=specimen_start,
        next_electron=jnp.where(take, cells.first_electron, lanes.next_electron),
        electrons_left=jnp.where(take, cells.electrons, lanes.electrons_left),
        tally=tuple(jnp.where(done, 0, count) for count in lanes.tally),
        scores=lanes.scores and select(done, no_scores(done.shape[0]), lanes.scores),
    )
    return lanes, next_cell, counts


def store(counts, lanes: Lanes, done):
    """Writes what the lanes that are done have counted; a lane without a cell points past the end."""
    cell = jnp.where(done, lanes.cell, counts.shape[0])
    sums = closed(lanes.scores, done)[2:] if lanes.scores else lanes.tally
    return counts.at[cell].set(jnp.stack(sums, axis=-1), mode="drop")


def select(condition, chosen, other):
    """`jnp.where` over two trees of equal structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


def idle_lanes(num_lanes: int, biased: bool = False) -> Lanes:
    """Lanes that have no cell yet; for a walk with biasing or without."""

    def zeros(dtype, *shape):
        return jnp.zeros((*shape, num_lanes), dtype)

    def electrons(*shape):
        real = [zeros(jnp.float32, *shape) for _ in range(6)]
        ones = jnp.ones((*shape, num_lanes), jnp.float32)
        weight = ones if biased else None
        return Electron(*real, energy_kev=ones, is_primary=zeros(bool, *shape), weight=weight)

    return Lanes(
        electron=electrons(),
        flying=zeros(bool),
        waiting=electrons(),
        has_waiting=zeros(bool),
        blocked=zeros(bool),
        stack=electrons(STACK_DEPTH),
        depth=zeros(jnp.int32),
        history=(zeros(jnp.uint32), zeros(jnp.uint32)),
        draw=zeros(jnp.uint32),
        cell=jnp.full(num_lanes, jnp.iinfo(jnp.int32).max, jnp.int32),
        cell_key=(zeros(jnp.uint32), zeros(jnp.uint32), zeros(jnp.uint32)),
        cell_x=zeros(jnp.float32),
        cell_y=zeros(jnp.float32),
        cell_energy_kev=zeros(jnp.float32),
        specimen_start=zeros(jnp.int32),
        next_electron=zeros(jnp.uint32),
        electrons_left=zeros(jnp.int32),
        ended=zeros(jnp.uint32),
        tally=tuple(zeros(jnp.int32) for _ in FATES),
        steps=zeros(jnp.int32),
        scores=no_scores(num_lanes) if biased else None,
    )
