import jax.numpy as jnp
import numpy as np
import pytest
from random_electrons import electrons, random_bits

from bsevox_jax.sim import tables
from bsevox_jax.sim.elements import HARTREE_KEV, MATERIALS, SPEED_OF_LIGHT_AU
from bsevox_jax.sim.scattering import (
    Collision,
    EnergyLoss,
    scatter,
    single_pole_loss,
    smallest_momentum_transfer,
    strike,
    unit_length,
    unit_vector_across,
)
from bsevox_jax.sim.transport import medium

SI = MATERIALS["Si"]


def test_scattering_keeps_unit_length_and_turns_by_the_polar_angle():
    rng = np.random.default_rng(1)
    n = 20_000
    electron = electrons(rng, n)
    mu = jnp.asarray(rng.uniform(0, 1, n), jnp.float32)
    across = unit_vector_across(electron, random_bits(rng, n))
    collision = Collision(jnp.ones(n, bool), jnp.zeros(n, bool), mu)
    event = EnergyLoss(*(jnp.zeros(n) for _ in range(4)), jnp.zeros(n, bool))
    scattered = scatter(electron, collision, event, across)
    new = np.stack(unit_length(scattered)[3:6])
    old, across = np.stack(electron[3:6]), np.stack(across)
    np.testing.assert_allclose((new * new).sum(0), 1, atol=1e-6)
    np.testing.assert_allclose((old * new).sum(0), 1 - 2 * mu, atol=2e-6)
    np.testing.assert_allclose((old * across).sum(0), 0, atol=1e-6)
    np.testing.assert_array_equal(scattered.energy_kev, electron.energy_kev)


def test_azimuths_are_uniform():
    n = 100_000
    straight = electrons(np.random.default_rng(9), n)._replace(
        ux=jnp.zeros(n), uy=jnp.zeros(n), uz=jnp.ones(n)
    )
    px, py, _ = unit_vector_across(straight, random_bits(np.random.default_rng(8), n))
    counts = np.histogram(np.arctan2(py, px), bins=20, range=(-np.pi, np.pi))[0]
    assert ((counts - n / 20) ** 2 / (n / 20)).sum() < 19 + 5 * np.sqrt(38)


def kinematics(kinetic_kev, pole_kev):
    t, w0 = kinetic_kev / HARTREE_KEV, pole_kev / HARTREE_KEV
    v = SPEED_OF_LIGHT_AU * np.sqrt(1 - 1 / (1 + t / SPEED_OF_LIGHT_AU**2) ** 2)
    return v, (3 * np.pi * w0**2 / 4) ** (2 / 3) / 3, w0


@pytest.mark.parametrize("kinetic_kev", [0.08, 0.3, 1.0, 10.0])
def test_smallest_momentum_transfer_in_float32_matches_the_closed_form_in_float64(kinetic_kev):
    """Roots of v q^3 - (v^2 - b) q^2 + w0^2 = 0 in trigonometric form, safe against cancellation."""
    pole_kev = np.geomspace(3e-4, (kinetic_kev - 0.0125) / 2.2, 200)
    v, b, w0 = kinematics(kinetic_kev, pole_kev)
    p = (v * v - b) / (3 * v)
    y = w0**2 / (4 * v * np.maximum(p, 1e-9) ** 3)
    a = 2 / 3 * np.arcsin(np.sqrt(np.minimum(y, 1)))
    exact = p * (2 * np.sin(a / 2) ** 2 + np.sqrt(3) * np.sin(a))
    w_max = (kinetic_kev - 0.0125) / 2 / HARTREE_KEV
    largest = 2 * (np.sqrt(b**2 + w_max**2 - w0**2) - b)
    possible = (y < 1) & (exact**2 < largest)
    assert possible.sum() > 60
    ours = smallest_momentum_transfer(*(jnp.asarray(q, jnp.float32) for q in (np.full(200, v), b, w0)))
    np.testing.assert_allclose(np.asarray(ours)[possible], exact[possible], rtol=2e-5)


@pytest.mark.parametrize(
    ("kinetic_kev", "pole_kev"), [(0.15, 0.017), (1.0, 0.017), (1.0, 0.11), (10.0, 0.017)]
)
def test_losses_follow_the_single_pole_probability(kinetic_kev, pole_kev):
    """Mean loss against quadrature of W dq / (q w_q) between the limits of q."""
    fermi_kev, n = 0.0125, 200_000
    u = jnp.asarray((np.arange(n) + 0.5) / n, jnp.float32)
    full = [jnp.full(n, value, jnp.float32) for value in (kinetic_kev, fermi_kev, pole_kev)]
    event = single_pole_loss(*full, u)
    v, b, w0 = kinematics(kinetic_kev, pole_kev)
    q = np.geomspace(1e-4, 3 * v, 400_001)
    w = np.sqrt(w0**2 + b * q**2 + q**4 / 4)
    allowed = (v * q - q**2 / 2 >= w) & (w <= (kinetic_kev - fermi_kev) / 2 / HARTREE_KEV)
    weight = np.where(allowed, 1 / w, 0.0)  # dq/q is even on this grid
    expected = (weight * w).sum() / weight.sum() * HARTREE_KEV
    assert bool(event.possible.all())
    np.testing.assert_allclose(np.asarray(event.loss_kev, float).mean(), expected, rtol=2e-3)
    assert event.loss_kev.min() >= pole_kev * 0.9999
    assert event.loss_kev.max() <= (kinetic_kev - fermi_kev) / 2 * 1.001


def test_struck_electron_takes_the_lost_momentum():
    """k = k' + q as vectors: the part of q along k is k - k' cos, and |q|^2 the cosine rule."""
    n = 50_000
    rng = np.random.default_rng(2)
    event = single_pole_loss(*(jnp.full(n, value, jnp.float32) for value in (1.0, 0.0125, 0.02)),
                        jnp.asarray(rng.uniform(0, 1, n), jnp.float32))  # fmt: skip
    t = 1.0 / HARTREE_KEV
    k, k_after = np.sqrt(2 * t), np.sqrt(2 * (t - np.asarray(event.loss_kev, float) / HARTREE_KEV))
    cos = 1 - np.asarray(event.one_minus_cos, float)
    q = np.sqrt(k**2 + k_after**2 - 2 * k * k_after * cos)
    np.testing.assert_allclose(event.along, k - k_after * cos, atol=3e-3)
    np.testing.assert_allclose(np.hypot(event.along, event.aside), q, atol=3e-3)


def struck(pole_kev, momentum, loss_kev, n=100_000):
    """Electrons struck in silicon with a momentum transfer along z, and what struck them."""
    rng = np.random.default_rng(3)
    cross_sections = tables.shipped(("Si",))
    words = jnp.ones((1, 2, 2, 2), jnp.uint16)
    matter = medium(words, cross_sections, jnp.zeros(len(cross_sections.energies_kev)), 1.0)
    zero, one = jnp.zeros(n), jnp.ones(n)
    electron = electrons(rng, n)._replace(ux=zero, uy=zero, uz=one)
    event = EnergyLoss(loss_kev * one, zero, momentum * one, zero, jnp.ones(n, bool))
    collision = Collision(jnp.zeros(n, bool), jnp.ones(n, bool), pole_kev * one)
    across = unit_vector_across(electron, random_bits(rng, n))
    bits = [random_bits(rng, n) for _ in range(3)]
    return strike(matter, electron, jnp.ones(n, jnp.int32), collision, event, across, bits)


def test_struck_electron_of_the_sea_has_the_loss_and_what_it_had():
    electron = struck(pole_kev=0.02, momentum=1.0, loss_kev=0.09)
    start_kev = np.asarray(electron.energy_kev, float) + SI.barrier_kev - 0.09
    assert start_kev.min() >= -1e-6 and start_kev.max() <= SI.fermi_kev + 1e-6
    assert start_kev.mean() == pytest.approx(0.6 * SI.fermi_kev, rel=0.01)  # density of states ~ sqrt(E)
    assert not electron.is_primary.any()


@pytest.mark.parametrize("pole_kev, binding_kev", [(0.12, 0.0998), (0.16, 0.1497)])
def test_struck_electron_of_a_core_level_has_the_loss_less_the_binding(pole_kev, binding_kev):
    electron = struck(pole_kev, momentum=1.0, loss_kev=0.3)
    expected = 0.3 - binding_kev + SI.fermi_kev - SI.barrier_kev
    np.testing.assert_allclose(electron.energy_kev, expected, rtol=1e-4)


def test_struck_electron_leaves_anywhere_after_a_soft_event_and_along_the_momentum_after_a_hard_one():
    n = 100_000
    soft, hard = struck(0.12, 1e-3, 0.15, n), struck(0.12, 100.0, 0.15, n)
    for cosine in (soft.ux, soft.uy, soft.uz):
        assert abs(float(cosine.mean())) < 5 / np.sqrt(3 * n)
        assert abs(float((cosine**2).mean()) - 1 / 3) < 5 * np.sqrt(4 / 45 / n)
    assert float(hard.uz.min()) > 0.99
    between = struck(0.12, 2.0, 0.15, n)
    assert 0.1 < float(between.uz.mean()) < 0.9
    np.testing.assert_allclose(between.ux**2 + between.uy**2 + between.uz**2, 1, atol=1e-5)
