"""One event of every electron in flight: it flies, meets something, and goes on or ends."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bsevox_jax.sim.biasing import closed, scored
from bsevox_jax.sim.biasing import meet as biased_meet
from bsevox_jax.sim.instrument import Instrument, accepts, primary
from bsevox_jax.sim.lanes import FATES, TALLY_BITS, Lanes, select
from bsevox_jax.sim.random import pcg3d, uniform
from bsevox_jax.sim.scattering import (
    lose_energy,
    meet,
    scatter,
    strike,
    unit_length,
    unit_vector_across,
)
from bsevox_jax.sim.transport import Medium, aim, at_side_walls, beside, cross, fly, look_up

DRAWS_PER_STEP = 2
MAX_STEPS_PER_HISTORY = 1_000_000


def step(medium: Medium, lanes: Lanes, instrument: Instrument, secondaries, biasing=None):
    """One event of every electron in flight; a lane whose electron ended takes its next one.

    Returns:
        The lanes, and which of them detected an electron, with that electron.

    Each phase is computed once and kept, see `_once`.
    """
    once = functools.partial(_once, lanes.steps[0] >= 0)
    electron, child, ends = _event(once, medium, lanes, instrument, biasing)
    fate, follow, blocked = once(_decide, lanes, instrument, child, ends, secondaries)
    born = follow == 3
    history, fresh = once(_next_primary, medium, lanes, instrument)
    start = follow == 1
    walked = lanes.flying & ~blocked
    candidates = (electron, fresh, lanes.waiting, child, lanes.electron)
    after = dataclasses.replace(
        lanes,
        electron=jax.tree.map(lambda *choices: jax.lax.select_n(follow, *choices), *candidates),
        waiting=select(born, electron, lanes.waiting),
        has_waiting=(lanes.has_waiting & (follow != 2)) | born,
        blocked=blocked,
        flying=(lanes.flying & ((fate == len(FATES)) | (follow == 2))) | start,
        history=select(start, history, lanes.history),
        draw=jnp.where(
            start, jnp.uint32(1), jnp.where(walked, lanes.draw + jnp.uint32(DRAWS_PER_STEP), lanes.draw)
        ),
        next_electron=lanes.next_electron + start.astype(jnp.uint32),
        electrons_left=lanes.electrons_left - start,
        ended=lanes.ended
        + jnp.where(fate < len(FATES), jnp.uint32(1) << (TALLY_BITS * fate).astype(jnp.uint32), 0),
        steps=lanes.steps + walked,
        scores=lanes.scores and closed(scored(lanes.scores, electron, fate < 2), start),
    )
    return after, (fate < 2, electron)


def _event(once, medium: Medium, lanes: Lanes, instrument: Instrument, biasing):
    """Flies every electron to its next event: the electron after it, the one it struck, and how it ended."""
    bits = once(_draw, lanes.history, lanes.draw)
    row = once(_energy_row, medium, lanes.electron.energy_kev, bits.row)
    flight = once(aim, medium, lanes.electron, lanes.specimen_start, row, bits.path)
    electron, flight = once(fly, medium, lanes.electron, flight, lanes.specimen_start)
    electron, passes = once(cross, medium, electron, flight)
    label = flight.label_end
    if biasing is None:
        collision = once(meet, medium, flight, row, bits.kind, bits.quantile)
    else:
        collision, electron = once(
            biased_meet, medium, electron, flight, row, bits.kind, bits.quantile, biasing
        )
    event = once(lose_energy, medium, electron, label, collision.drawn, bits.momentum)
    across = once(unit_vector_across, electron, bits.azimuth)
    child = once(strike, medium, electron, label, collision, event, across, bits.struck)
    electron = unit_length(once(scatter, electron, collision, event, across))

    left = (flight.face > 0) & passes
    lost = flight.buried_nm > look_up(medium.reach_nm, row)
    return electron, child, once(_fate, medium, lanes, instrument, electron, left, lost)


def _decide(lanes: Lanes, instrument, child, fate, secondaries):
    """How electrons ended, what each lane flies next, and which lanes must wait for the service.

    Returns:
        Index into FATES (len(FATES): not ended); next in flight, 0 the same electron, 1 a fresh primary, 2
        the one that waited, 3 the freed one, 4 nothing, the state stays; and whether the lane is blocked.
    """
    ended = fate < len(FATES)
    born = (child.energy_kev > instrument.lowest_energy_kev) & secondaries & ~ended
    blocked = lanes.flying & born & lanes.has_waiting
    idle = ~lanes.flying | (ended & ~lanes.has_waiting)
    start = idle & ~blocked & (lanes.depth == 0) & (lanes.electrons_left > 0)
    follow = jnp.where(start, 1, jnp.where(ended & lanes.has_waiting, 2, jnp.where(born, 3, 0)))
    follow = jnp.where(blocked | (~lanes.flying & ~start), 4, follow)
    return jnp.where(lanes.flying & ~blocked, fate, len(FATES)), follow, blocked


def _fate(medium, lanes, instrument, electron, left, lost):
    """Index into FATES of electrons that ended; len(FATES) for the others."""
    above = electron.z < 0
    below = electron.z >= medium.shape[2] * medium.voxel_nm
    fate = jnp.where(lanes.draw > DRAWS_PER_STEP * MAX_STEPS_PER_HISTORY, 5, len(FATES))
    fate = jnp.where((electron.energy_kev <= instrument.lowest_energy_kev) | lost, 4, fate)
    aside = beside(medium, electron)
    fate = jnp.where(left & (below | aside), 3, fate)
    detected = jnp.where(electron.is_primary, 0, 1)
    upwards = above | (aside & (electron.uz < 0))  # beyond an open side nothing is in the way
    return jnp.where(left & upwards, jnp.where(accepts(instrument, electron), detected, 2), fate)


class Bits(NamedTuple):
    """Random words of one step. Those that share a word take it from another bit on."""

    path: jax.Array
    kind: jax.Array
    quantile: jax.Array
    momentum: jax.Array
    azimuth: jax.Array
    row: jax.Array
    struck: tuple[jax.Array, jax.Array, jax.Array]


def _draw(history, draw) -> Bits:
    path, kind, quantile = pcg3d(*history, draw)
    momentum, turn, start = pcg3d(*history, draw + jnp.uint32(1))
    return Bits(path, kind, quantile, momentum, turn, turn << 16, (start, start << 11, start << 21))


def _energy_row(medium, energy_kev, random_bits):
    """Row of the tables next to an energy; the nearer of two in log energy is the more probable."""
    position = (jnp.log(energy_kev) - medium.log_energy_start) * medium.rows_per_log_energy
    return jnp.clip(jnp.floor(position + uniform(random_bits)).astype(jnp.int32), 0, medium.num_rows - 1)


def _next_primary(medium: Medium, lanes: Lanes, instrument: Instrument):
    """The next primary of each lane's cell and the words of its random numbers."""
    key = lanes.cell_key
    hx, hy, _ = pcg3d(key[0] + lanes.next_electron, key[1], key[2])
    bits = pcg3d(hx, hy, jnp.zeros_like(hx))
    ny, nx, _ = medium.shape
    size = medium.voxel_nm
    electron = primary(instrument, lanes.cell_x, lanes.cell_y, lanes.cell_energy_kev, size, bits)
    if lanes.scores:
        electron = electron._replace(weight=jnp.ones_like(electron.x))
    x, ux = at_side_walls(medium.side_walls, electron.x, electron.ux, nx * size)
    y, uy = at_side_walls(medium.side_walls, electron.y, electron.uy, ny * size)
    return (hx, hy), electron._replace(x=x, y=y, ux=ux, uy=uy)


def _once(live, function, *args):
    """`function(*args)` with its results kept in memory, not computed anew inside every later expression.

    XLA on CPU duplicates cheap producers into each consumer, here 40 consumers, and drops optimization
    barriers before it does so. It does not look through a branch; `live` is true, but only at run time.
    """

    def behind_a_branch(*args):
        given, results = jax.tree.leaves(args), {}

        def changed(*given):
            tree = jax.tree.unflatten(jax.tree.structure(args), given)
            leaves, results["tree"] = jax.tree.flatten(function(*tree))
            # What a function hands through would be copied.
            results["through"] = [
                next((n for n, g in enumerate(given) if g is leaf), None) for leaf in leaves
            ]
            return [leaf for leaf, n in zip(leaves, results["through"], strict=True) if n is None]

        def nothing(*given):
            return [jnp.zeros(a.shape, a.dtype) for a in jax.eval_shape(changed, *given)]

        new = iter(jax.lax.cond(live, changed, nothing, *given))
        leaves = [next(new) if n is None else given[n] for n in results["through"]]
        return jax.tree.unflatten(results["tree"], leaves)

    return jax.lax.platform_dependent(*args, cpu=behind_a_branch, default=function)
