"""Variance reduction: what seldom happens is drawn more often and counts less. Off unless it is asked for.

A fast electron in a thin film goes through; what comes back owes it to one large angle, or to an electron
freed near the surface. So an electron on its way down takes one of the p largest of all angles with a chance
s > p, and close to the surface one of the p largest losses. What happens is weighted with its share over its
chance, p/s or else (1 - p)/(1 - s), and what is freed inherits the weight, so every expected value stays the
same (H. Kahn, T. E. Harris, NBS Appl. Math. Ser. 12, 27, 1951). What one primary and all it frees score is
added up before it is squared, so the standard error knows that they belong together.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bsevox_jax.sim.random import uniform
from bsevox_jax.sim.scattering import Collision, drawn_at, kind_of
from bsevox_jax.sim.transport import Electron, Flight, Medium


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Biasing:
    """What is drawn more often.

    Attributes:
        above_kev: slower electrons are left as they are.
        angle_share, angle_chance: p and s of the largest angles of elastic events.
        surface_nm: losses are biased down to this depth.
        loss_share, loss_chance: p and s of the largest losses.
    """

    above_kev: float = 5.0
    angle_share: float = 0.02
    angle_chance: float = 0.08
    surface_nm: float = 2.0
    loss_share: float = 0.1
    loss_chance: float = 0.4


def check_biasing(biasing: Biasing) -> Biasing:
    """Returns the biasing, or raises ValueError for a broken rule."""
    names = ("angle_share", "angle_chance", "loss_share", "loss_chance")
    shares = [getattr(biasing, name) for name in names]
    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"{', '.join(names)} must lie between 0 and 1; got {shares}. Give shares.")
    if not biasing.above_kev >= 0:
        raise ValueError(f"above_kev must be 0 or more; got {biasing.above_kev}. Use 5.")
    return biasing


class Scores(NamedTuple):
    """What was detected, float32 [lanes]: of the primary in work so far, and sums over those before."""

    from_beam: jax.Array
    freed: jax.Array
    sum_from_beam: jax.Array
    sum_freed: jax.Array
    sum_squares: jax.Array


def no_scores(num_lanes: int) -> Scores:
    return Scores(*(jnp.zeros(num_lanes, jnp.float32) for _ in Scores._fields))


def scored(scores: Scores, electron: Electron, is_detected) -> Scores:
    """Adds the detected electrons."""
    weight = jnp.where(is_detected, electron.weight, 0.0)
    return scores._replace(
        from_beam=scores.from_beam + jnp.where(electron.is_primary, weight, 0.0),
        freed=scores.freed + jnp.where(electron.is_primary, 0.0, weight),
    )


def closed(scores: Scores, primary_is_over) -> Scores:
    """Adds what the primaries that are over have scored to the sums."""
    from_beam = jnp.where(primary_is_over, scores.from_beam, 0.0)
    freed = jnp.where(primary_is_over, scores.freed, 0.0)
    return Scores(
        scores.from_beam - from_beam,
        scores.freed - freed,
        scores.sum_from_beam + from_beam,
        scores.sum_freed + freed,
        scores.sum_squares + jnp.square(from_beam + freed),
    )


def meet(medium: Medium, electron: Electron, flight: Flight, row, kind_bits, quantile_bits, biasing: Biasing):
    """As `scattering.meet`: the collision, and the electron with its weight."""
    elastic, inelastic = kind_of(medium, flight, row, kind_bits)
    turned = elastic & (electron.uz > 0)
    p = jnp.where(turned, biasing.angle_share, biasing.loss_share)
    s = jnp.where(turned, biasing.angle_chance, biasing.loss_chance)
    biased = (turned | (inelastic & (electron.z < biasing.surface_nm))) & (
        electron.energy_kev > biasing.above_kev
    )
    s = jnp.where(biased, s, p)
    u = uniform(quantile_bits)
    largest = u < s
    share = jnp.where(largest, u * (p / s), p + (u - s) * ((1 - p) / (1 - s)))
    weight = jnp.where(largest, p / s, (1 - p) / (1 - s))
    collision = Collision(elastic, inelastic, drawn_at(medium, flight.label_end, row, elastic, share))
    return collision, electron._replace(weight=electron.weight * weight)
