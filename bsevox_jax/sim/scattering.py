"""One collision: what an electron meets, where it turns, what it loses, and the electron it frees.

As in transport.py every function is elementwise, E counts from the vacuum level and T = E + U0 from the
bottom of the band. Momentum transfers are in atomic units.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bsevox_jax.sim.elements import HARTREE_KEV, SPEED_OF_LIGHT_AU
from bsevox_jax.sim.random import cos_sin_turns, uniform
from bsevox_jax.sim.transport import Electron, Flight, Medium, look_up, of_material


class Collision(NamedTuple):
    """What an electron meets at the end of its flight: nothing if neither elastic nor inelastic.

    `drawn` is mu = (1 - cos)/2 of an elastic event, or the pole energy w0 (keV) of an inelastic one.
    """

    elastic: jax.Array
    inelastic: jax.Array
    drawn: jax.Array


def meet(medium: Medium, flight: Flight, row, kind_bits, quantile_bits) -> Collision:
    """Decides what happens at the end of a flight: a real collision of some kind, or a null collision."""
    elastic, inelastic = kind_of(medium, flight, row, kind_bits)
    drawn = drawn_at(medium, flight.label_end, row, elastic, uniform(quantile_bits))
    return Collision(elastic, inelastic, drawn)


def kind_of(medium: Medium, flight: Flight, row, kind_bits):
    """Whether the collision at the end of a flight is elastic, and whether it is inelastic; see `meet`."""
    at_row = flight.label_end * medium.num_rows + row
    elastic_rate = look_up(medium.elastic_rate_per_nm, at_row)
    inelastic_rate = look_up(medium.inelastic_rate_per_nm, at_row)
    choice = uniform(kind_bits) * flight.rate_per_nm
    real = (flight.face == 0) & (choice < elastic_rate + inelastic_rate)
    elastic = real & (choice < elastic_rate)
    return elastic, real & ~elastic


def drawn_at(medium: Medium, label, row, elastic, share):
    """What the given share of the elastic, or else the inelastic, events exceeds; see `Collision`."""
    table = jnp.where(elastic, 0, medium.barrier_kev.shape[0] * medium.num_rows) + (
        label * medium.num_rows + row
    )
    position = -jnp.log(share) * medium.points_per_log_quantile
    position = jnp.minimum(position, medium.num_points - 1.001)
    point = position.astype(jnp.int32)
    index = table * medium.num_points + point
    low, high = look_up(medium.quantiles, index), look_up(medium.quantiles, index + 1)
    return low + (position - point) * (high - low)


def scatter(electron: Electron, collision: Collision, event, across) -> Electron:
    """Deflects an electron and takes its energy loss.

    Args:
        event: the `EnergyLoss` of the collision, used if it is inelastic.
        across: unit vector across the direction of flight, towards which the electron turns.
    """
    inelastic = collision.inelastic & event.possible
    one_minus_cos = jnp.where(
        collision.elastic, 2 * collision.drawn, jnp.where(inelastic, event.one_minus_cos, 0.0)
    )
    loss_kev = jnp.where(inelastic, event.loss_kev, 0.0)
    sin = jnp.sqrt(jnp.maximum(one_minus_cos * (2 - one_minus_cos), 0.0))
    old = (electron.ux, electron.uy, electron.uz)
    ux, uy, uz = (u + (sin * p - one_minus_cos * u) for u, p in zip(old, across, strict=True))
    return electron._replace(ux=ux, uy=uy, uz=uz, energy_kev=electron.energy_kev - loss_kev)


def strike(medium: Medium, electron: Electron, label, collision: Collision, event, across, bits) -> Electron:
    """The electron that an inelastic event struck, in the Fermi sea or in the deepest open core level.

    Its energy is W + E_i from the sea, W - B + E_F from a core level; its direction that of q + k_i, where
    the momentum k_i it had before points anywhere: k_i^2/2 is E_i in the sea, and B, by the virial theorem,
    in a core level (E. Kieft, E. Bosch, J. Phys. D 41, 215310 (2008)).

    Args:
        electron: that struck it, before the event.
        across: unit vector across its direction, towards which it turns.
        bits: three uint32.

    Returns:
        The struck electron; its energy (vacuum terms) is zero or less if there is none or it cannot leave.
    """
    barrier_kev, fermi_kev = of_material(medium.barrier_kev, label), of_material(medium.fermi_kev, label)
    binding_kev = jnp.zeros_like(barrier_kev)
    for edges_kev in medium.core_edges_kev.T:
        edge_kev = of_material(edges_kev, label)
        binding_kev = jnp.where(collision.drawn >= edge_kev, edge_kev, binding_kev)
    sea_kev = fermi_kev * jnp.exp(jnp.log(uniform(bits[0])) * (2 / 3))  # density of states ~ sqrt(E)
    from_core = binding_kev > 0
    start_kev = jnp.where(from_core, fermi_kev - binding_kev, sea_kev)
    inelastic = collision.inelastic & event.possible
    energy_kev = jnp.where(inelastic, event.loss_kev + start_kev - barrier_kev, 0.0)

    momentum = jnp.sqrt(2 / HARTREE_KEV * jnp.where(from_core, binding_kev, sea_kev))
    cos, turn = 2 * uniform(bits[1]) - 1, cos_sin_turns(uniform(bits[2]))
    sin = jnp.sqrt(1 - cos * cos)
    before = (sin * turn[0], sin * turn[1], cos)
    old = (electron.ux, electron.uy, electron.uz)
    given = (event.along * u - event.aside * p for u, p in zip(old, across, strict=True))
    after = [q + momentum * k for q, k in zip(given, before, strict=True)]
    per_length = jax.lax.rsqrt(jnp.maximum(sum(c * c for c in after), 1e-12))
    ux, uy, uz = (c * per_length for c in after)
    born = jnp.zeros_like(electron.is_primary)
    return electron._replace(ux=ux, uy=uy, uz=uz, energy_kev=energy_kev, is_primary=born)


class EnergyLoss(NamedTuple):
    """An inelastic event: loss W, deflection, momentum q given away (atomic units), whether it can happen.

    `along` is the part of q along the direction of flight; `aside` the rest, against the deflection.
    """

    loss_kev: jax.Array
    one_minus_cos: jax.Array
    along: jax.Array
    aside: jax.Array
    possible: jax.Array


def lose_energy(medium: Medium, electron: Electron, label, pole_kev, random_bits) -> EnergyLoss:
    """The inelastic event of an electron in a material; see `single_pole_loss`."""
    kinetic_kev = electron.energy_kev + of_material(medium.barrier_kev, label)
    return single_pole_loss(kinetic_kev, of_material(medium.fermi_kev, label), pole_kev, uniform(random_bits))


def single_pole_loss(kinetic_kev, fermi_kev, pole_kev, u) -> EnergyLoss:
    """Draws the momentum transfer q of an event with pole energy w0, and with it the loss W = w_q.

    Single-pole Penn model (Penn, Phys. Rev. B 35, 482, 1987) with w_q^2 = w0^2 + b q^2 + q^4/4 in atomic
    units and b = v_F(w0)^2 / 3. The probability ~ dq/(q w_q) has the closed integral ln H(q^2) / (2 w0),
    H(x) = x / (2 w0 w_q + b x + 2 w0^2), which is inverted exactly. q lies between the smallest root of the
    kinematics, v q - q^2/2 = w_q, and the q at which W reaches (T - E_F)/2: the two electrons that leave the
    event are alike, and the faster is called the primary.
    """
    t, w0 = kinetic_kev / HARTREE_KEV, pole_kev / HARTREE_KEV
    w0 = jnp.maximum(w0, 1e-4)
    b = (3 * math.pi / 4) ** (2 / 3) / 3 * jnp.exp(jnp.log(w0) * (4 / 3))
    k = jnp.sqrt(2 * t)
    v = k * _slowed(t / SPEED_OF_LIGHT_AU**2)
    w_max = (kinetic_kev - fermi_kev) / (2 * HARTREE_KEV)

    q_min = smallest_momentum_transfer(v, b, w0)
    x_min = q_min * q_min
    beyond = w_max * w_max - w0 * w0
    x_max = 2 * beyond / (jnp.sqrt(b * b + jnp.maximum(beyond, 0)) + b)
    possible = (beyond > 0) & (x_max > x_min)

    def x_over_h(x):
        return 2 * w0 * jnp.sqrt(w0 * w0 + x * (b + x / 4)) + b * x + 2 * w0 * w0

    from_min = x_over_h(x_min)
    ratio = jnp.where(possible, x_max * from_min / (x_min * x_over_h(jnp.maximum(x_max, x_min))), 1.0)
    h = x_min / from_min * jnp.exp(u * jnp.log(ratio))
    x = 4 * w0 * w0 * h / ((1 - h * b - h * w0) * (1 - h * b + h * w0))
    loss = jnp.sqrt(w0 * w0 + x * (b + x / 4))

    k_after = jnp.sqrt(2 * jnp.maximum(t - loss, 1e-6))
    change = 2 * loss / (k + k_after)
    one_minus_cos = jnp.clip((x - change * change) / (2 * k * k_after), 0.0, 2.0)
    along = k - k_after * (1 - one_minus_cos)
    aside = k_after * jnp.sqrt(one_minus_cos * (2 - one_minus_cos))
    return EnergyLoss(loss * HARTREE_KEV, one_minus_cos, along, aside, possible)


def _slowed(gamma_minus_1):
    """v / sqrt(2 T) = sqrt(1 + g/2) / (1 + g) of the relativistic speed, to fourth order in g = T/c^2."""
    g = gamma_minus_1
    return 1 + g * (-3 / 4 + g * (23 / 32 + g * (-91 / 128 + g * 1451 / 2048)))


def smallest_momentum_transfer(v, b, w0):
    """Smallest root q of v q^3 - (v^2 - b) q^2 + w0^2 = 0 (atomic units).

    The kinematic limit v q - q^2/2 = w_q squared. The textbook form with arccos loses all digits in float32.
    With a = v^2 - b it is q = w0 a^-1/2 g, where g^2 (1 - e g) = 1 and e = v w0 a^-3/2: two Newton steps from
    the power series of g(e).
    """
    per_root = jax.lax.rsqrt(jnp.maximum(v * v - b, 1e-6))
    scale = w0 * per_root
    e = jnp.minimum(v * scale * per_root * per_root, 0.3849)  # the largest for which there is a root
    g = 1 + e * (1 / 2 + e * (5 / 8 + e * (1 + e * (231 / 128 + e * 3.5))))
    for _ in range(2):
        slope = g * (2 - 3 * e * g)
        g = g - (g * g * (1 - e * g) - 1) / jnp.maximum(slope, 1e-3)
    return scale * g


def unit_vector_across(electron: Electron, azimuth_bits):
    """A unit vector at right angles to the direction of flight, at a random azimuth.

    The basis is that of Duff et al., JCGT 6(1), 1 (2017).
    """
    ux, uy, uz = electron.ux, electron.uy, electron.uz
    cos, sin = cos_sin_turns(uniform(azimuth_bits))
    sign = jnp.copysign(jnp.ones_like(uz), uz)
    a = -1.0 / (sign + uz)
    c = ux * uy * a
    px = cos * (1 + sign * ux * ux * a) + sin * c
    py = cos * (sign * c) + sin * (sign + uy * uy * a)
    return px, py, -cos * (sign * ux) - sin * uy


def unit_length(electron: Electron) -> Electron:
    """Takes the rounding off the length of the direction."""
    ux, uy, uz = electron.ux, electron.uy, electron.uz
    scale = 1.5 - 0.5 * (ux * ux + uy * uy + uz * uz)
    return electron._replace(ux=ux * scale, uy=uy * scale, uz=uz * scale)
