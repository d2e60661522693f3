"""The lane loop: a fixed number of electrons in flight at once, each lane always busy.

The work is cut into cells, one for each (energy, specimen, pixel), of the same number of primary electrons.
A lane walks the primaries of its cell one after another, each with the secondaries it frees, then takes the
next cell that nobody has. What a cell counts depends on its own keys alone, so the result is the same bits
for any number of lanes, chunks, devices or processes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bsevox_jax.sim.random import pcg3d, uniform
from bsevox_jax.sim.scattering import (
    lose_energy,
    meet,
    scatter,
    struck_energy_kev,
    unit_length,
    unit_vector_across,
)
from bsevox_jax.sim.transport import CUTOFF_KEV, NUDGE, Electron, Medium, aim, cross, fly

FATES = ("detected_primary", "detected_secondary", "transmitted", "absorbed", "unfinished")

# Of the two electrons that leave an ionisation the slower goes on and the faster waits, so energies at least
# halve from one waiting electron to the next: log2(11 keV / 50 eV) = 7.8 of them at most.
STACK_DEPTH = 8
STEPS_PER_SERVICE = 16  # how often the stacks and finished cells are looked after
DRAWS_PER_STEP = 3
MAX_STEPS_PER_HISTORY = 1_000_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cells:
    """The work: `num_specimens` x energies x pixels cells of `electrons` primaries each."""

    num_specimens: jax.Array  # int32; the first ones of the batch, the rest is padding
    beam_energies_kev: jax.Array  # [e]
    keys: jax.Array  # uint32 [e, specimen, 3]: names the random stream of an energy and specimen
    first_electron: jax.Array  # uint32; index of the first primary of each cell
    electrons: jax.Array  # int32; primaries of each cell


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
    tally: tuple[jax.Array, ...]  # int32, one for each of FATES
    steps: jax.Array


def walk(medium: Medium, cells: Cells, secondaries, num_lanes: int):
    """Walks all electrons of all cells.

    Args:
        secondaries: whether freed electrons above the cut-off are followed.
        num_lanes: electrons in flight.

    Returns:
        Counts of electrons by FATES, int32 [e, specimen, y, x, fate], and steps of each lane, int32 [lanes].
    """
    ny, nx, _ = medium.shape
    num_energies, num_specimens = cells.keys.shape[:2]
    counts = jnp.zeros((num_energies * num_specimens * ny * nx, len(FATES)), jnp.int32)
    num_cells = num_energies * cells.num_specimens * ny * nx

    def unfinished(carry):
        lanes, next_cell, _ = carry
        return jnp.any(lanes.flying | (lanes.electrons_left > 0) | (lanes.depth > 0)) | (
            next_cell < num_cells
        )

    def body(carry):
        lanes, next_cell, counts = carry
        lanes = _serve_stacks(lanes)
        lanes, next_cell, counts = _serve_cells(medium, cells, num_cells, lanes, next_cell, counts)
        lanes = jax.lax.fori_loop(
            0, STEPS_PER_SERVICE, lambda _, lanes: _step(medium, lanes, secondaries), lanes
        )
        return lanes, next_cell, counts

    lanes, _, counts = jax.lax.while_loop(unfinished, body, (_idle_lanes(num_lanes), jnp.int32(0), counts))
    counts = _store(counts, lanes, ~lanes.flying)
    return counts.reshape(num_energies, num_specimens, ny, nx, len(FATES)), lanes.steps


def _step(medium: Medium, lanes: Lanes, secondaries) -> Lanes:
    """One event of every electron in flight; a lane whose electron ended takes its next one.

    Each phase is computed once and kept, see `_once`.
    """
    once = functools.partial(_once, lanes.steps[0] >= 0)
    draws = once(_draw, lanes.history, lanes.draw)
    row = once(_energy_row, medium, lanes.electron.energy_kev, draws[0][0])
    flight = once(aim, medium, lanes.electron, lanes.specimen_start, row, draws[0][1])
    electron, flight = once(fly, medium, lanes.electron, flight, lanes.specimen_start)
    electron, passes = once(cross, medium, electron, flight)
    label = flight.label_end
    collision = once(meet, medium, flight, row, draws[0][2], draws[1][0])
    event = once(lose_energy, medium, electron, label, collision.drawn, draws[1][1])
    across = once(unit_vector_across, electron, draws[1][2])
    electron, child = once(scatter, electron, collision, event, across)
    child_kev = once(struck_energy_kev, medium, label, collision, event, draws[2][0])
    electron, child = unit_length(electron), child._replace(energy_kev=child_kev)

    left = (flight.face > 0) & passes
    fate, follow, blocked = once(_decide, medium, lanes, electron, child, left, secondaries)
    born = follow == 3
    history, primary = once(_next_primary, medium, lanes)
    start = follow == 1
    walked = lanes.flying & ~blocked
    candidates = zip(electron, primary, lanes.waiting, child, lanes.electron, strict=True)
    return dataclasses.replace(
        lanes,
        electron=Electron(*(jax.lax.select_n(follow, *choices) for choices in candidates)),
        waiting=_select(born, electron, lanes.waiting),
        has_waiting=(lanes.has_waiting & (follow != 2)) | born,
        blocked=blocked,
        flying=(lanes.flying & ((fate == len(FATES)) | (follow == 2))) | start,
        history=_select(start, history, lanes.history),
        draw=jnp.where(
            start, jnp.uint32(1), jnp.where(walked, lanes.draw + jnp.uint32(DRAWS_PER_STEP), lanes.draw)
        ),
        next_electron=lanes.next_electron + start.astype(jnp.uint32),
        electrons_left=lanes.electrons_left - start,
        tally=tuple(count + (fate == n) for n, count in enumerate(lanes.tally)),
        steps=lanes.steps + walked,
    )


def _decide(medium, lanes: Lanes, electron, child, left, secondaries):
    """How electrons ended, what each lane flies next, and which lanes must wait for the service.

    Returns:
        Index into FATES (len(FATES): not ended); next in flight, 0 the same electron, 1 a fresh primary, 2
        the one that waited, 3 the freed one, 4 nothing, the state stays; and whether the lane is blocked.
    """
    fate = _fate(medium, lanes, electron, left)
    ended = fate < len(FATES)
    born = (child.energy_kev > CUTOFF_KEV) & secondaries
    blocked = lanes.flying & born & lanes.has_waiting
    idle = ~lanes.flying | (ended & ~lanes.has_waiting)
    start = idle & ~blocked & (lanes.depth == 0) & (lanes.electrons_left > 0)
    follow = jnp.where(start, 1, jnp.where(ended & lanes.has_waiting, 2, jnp.where(born, 3, 0)))
    follow = jnp.where(blocked | (~lanes.flying & ~start), 4, follow)
    return jnp.where(lanes.flying & ~blocked, fate, len(FATES)), follow, blocked


def _fate(medium, lanes, electron, left):
    """Index into FATES of electrons that ended; len(FATES) for the others."""
    above = electron.z < 0
    below = electron.z >= medium.shape[2] * medium.voxel_nm
    fate = jnp.where(lanes.draw > DRAWS_PER_STEP * MAX_STEPS_PER_HISTORY, 4, len(FATES))
    fate = jnp.where(electron.energy_kev <= CUTOFF_KEV, 3, fate)
    fate = jnp.where(left & below, 2, fate)
    return jnp.where(left & above, jnp.where(electron.is_primary, 0, 1), fate)


def _draw(history, draw):
    """Random words of one step, DRAWS_PER_STEP times three."""
    return [pcg3d(*history, draw + jnp.uint32(n)) for n in range(DRAWS_PER_STEP)]


def _energy_row(medium, energy_kev, random_bits):
    """Row of the tables next to an energy; the nearer of two in log energy is the more probable."""
    position = (jnp.log(energy_kev) - medium.log_energy_start) * medium.rows_per_log_energy
    return jnp.clip(jnp.floor(position + uniform(random_bits)).astype(jnp.int32), 0, medium.num_rows - 1)


def _next_primary(medium: Medium, lanes: Lanes):
    """The next primary of each lane's cell and the words of its random numbers.

    Normal incidence: the step of the potential at the surface does not turn the electron.
    """
    key = lanes.cell_key
    hx, hy, _ = pcg3d(key[0] + lanes.next_electron, key[1], key[2])
    bits_x, bits_y, _ = pcg3d(hx, hy, jnp.zeros_like(hx))
    size = medium.voxel_nm
    zero, one = jnp.zeros_like(lanes.cell_x), jnp.ones_like(lanes.cell_x)
    primary = Electron(
        x=lanes.cell_x + uniform(bits_x) * size,
        y=lanes.cell_y + uniform(bits_y) * size,
        z=zero + NUDGE * size,
        ux=zero,
        uy=zero,
        uz=one,
        energy_kev=lanes.cell_energy_kev,
        is_primary=jnp.ones_like(lanes.flying),
    )
    return (hx, hy), primary


def _serve_stacks(lanes: Lanes) -> Lanes:
    """Moves the waiting electron of blocked lanes to the stack, and back into lanes that ran empty."""
    slots = jnp.arange(STACK_DEPTH, dtype=jnp.int32)[:, None]
    overflow = lanes.blocked & (lanes.depth == STACK_DEPTH)
    stack = _select(lanes.blocked & (slots == lanes.depth), lanes.waiting, lanes.stack)
    depth = lanes.depth + (lanes.blocked & ~overflow)
    pop = ~lanes.flying & (depth > 0)
    depth = depth - pop
    top = jax.tree.map(lambda field: jnp.where(slots == depth, field, 0).sum(0).astype(field.dtype), stack)
    lost = len(FATES) - 1
    return dataclasses.replace(
        lanes,
        electron=_select(pop, top, lanes.electron),
        flying=lanes.flying | pop,
        has_waiting=lanes.has_waiting & ~lanes.blocked,
        blocked=jnp.zeros_like(lanes.blocked),
        stack=stack,
        depth=depth,
        tally=lanes.tally[:lost] + (lanes.tally[lost] + overflow,),
    )


def _serve_cells(medium: Medium, cells: Cells, num_cells, lanes: Lanes, next_cell, counts):
    """Stores the counts of finished cells and hands out the next ones, in the order of the lanes."""
    done = ~lanes.flying & (lanes.electrons_left == 0)
    counts = _store(counts, lanes, done)
    cell = next_cell + jnp.cumsum(done.astype(jnp.int32)) - 1
    take = done & (cell < num_cells)
    next_cell = jnp.minimum(next_cell + done.sum(dtype=jnp.int32), num_cells)

    ny, nx, nz = medium.shape
    pixel = cell % (ny * nx)
    specimen = (cell // (ny * nx)) % cells.num_specimens
    energy = jnp.minimum(cell // (ny * nx * cells.num_specimens), cells.keys.shape[0] - 1)
    key = cells.keys[energy, specimen]
    cell_key = pcg3d(key[:, 0] + pixel.astype(jnp.uint32), key[:, 1], key[:, 2])
    stored = (energy * cells.keys.shape[1] + specimen) * (ny * nx) + pixel
    kept = lanes.cell_x, lanes.cell_y, lanes.cell_energy_kev, lanes.specimen_start
    fresh = (
        (pixel % nx) * medium.voxel_nm,
        (pixel // nx) * medium.voxel_nm,
        cells.beam_energies_kev[energy],
        specimen * (ny * nx * nz),
    )
    cell_x, cell_y, cell_energy_kev, specimen_start = _select(take, fresh, kept)
    lanes = dataclasses.replace(
        lanes,
        cell=jnp.where(take, stored, jnp.where(done, counts.shape[0], lanes.cell)),
        cell_key=_select(take, cell_key, lanes.cell_key),
        cell_x=cell_x,
        cell_y=cell_y,
        cell_energy_kev=cell_energy_kev,
        specimen_start=specimen_start,
        next_electron=jnp.where(take, cells.first_electron, lanes.next_electron),
        electrons_left=jnp.where(take, cells.electrons, lanes.electrons_left),
        tally=tuple(jnp.where(done, 0, count) for count in lanes.tally),
    )
    return lanes, next_cell, counts


def _store(counts, lanes: Lanes, done):
    """Writes the tallies of the lanes that are done; a lane without a cell points past the end."""
    cell = jnp.where(done, lanes.cell, counts.shape[0])
    return counts.at[cell].set(jnp.stack(lanes.tally, axis=-1), mode="drop")


def _once(live, function, *args):
    """`function(*args)` with its results kept in memory, not computed anew inside every later expression.

    XLA on CPU duplicates cheap producers into each consumer, here 40 consumers, and drops optimization
    barriers before it does so. It does not look through a branch; `live` is true, but only at run time.
    """

    def nothing(*args):
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, *args))

    def behind_a_branch(*args):
        return jax.lax.cond(live, function, nothing, *args)

    return jax.lax.platform_dependent(*args, cpu=behind_a_branch, default=function)


def _select(condition, chosen, other):
    """`jnp.where` over two trees of equal structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


def _idle_lanes(num_lanes: int) -> Lanes:
    """Lanes that have no cell yet."""

    def zeros(dtype, *shape):
        return jnp.zeros((*shape, num_lanes), dtype)

    def electrons(*shape):
        real = [zeros(jnp.float32, *shape) for _ in range(6)]
        return Electron(
            *real, energy_kev=jnp.ones((*shape, num_lanes), jnp.float32), is_primary=zeros(bool, *shape)
        )

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
        tally=tuple(zeros(jnp.int32) for _ in FATES),
        steps=zeros(jnp.int32),
    )
