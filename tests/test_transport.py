import jax.numpy as jnp
import numpy as np
import pytest
from random_electrons import electrons, random_bits

from bsevox_jax.sim import tables
from bsevox_jax.sim.specimen import tracking_words
from bsevox_jax.sim.transport import Flight, aim, cross, fly, medium

SI = 1


def slab(labels=None):
    labels = np.ones((20, 20, 20), np.uint8) if labels is None else labels
    cross_sections = tables.shipped()
    everywhere = jnp.full(len(cross_sections.energies_kev), jnp.inf)
    return medium(jnp.asarray(tracking_words(labels[None])), cross_sections, everywhere, 1.0)


@pytest.mark.slow
def test_free_paths_in_a_uniform_solid_are_exponential():
    rng = np.random.default_rng(3)
    n = 100_000
    block = slab()
    electron = electrons(rng, n)._replace(z=jnp.full(n, 10.0), x=jnp.full(n, 10.0), y=jnp.full(n, 10.0))
    row = jnp.full(n, 40, jnp.int32)
    flight = aim(block, electron, 0, row, random_bits(rng, n))
    path = np.asarray(flight.path_nm)
    rate = float(block.total_rate_per_nm[SI * block.num_rows + 40])
    near = path < 9.0
    assert not np.asarray(flight.face)[near].any()
    fraction = 1 - np.exp(-rate * 9.0)
    assert abs(near.mean() - fraction) < 5 * np.sqrt(fraction * (1 - fraction) / n)


def test_vacuum_is_crossed_without_collisions():
    rng = np.random.default_rng(4)
    empty = slab(np.zeros((20, 20, 20), np.uint8))
    flight = aim(empty, electrons(rng, 1000), 0, jnp.zeros(1000, jnp.int32), random_bits(rng, 1000))
    assert bool((flight.face > 0).all())


def test_mirrors_fold_a_path_like_an_unfolded_specimen():
    rng = np.random.default_rng(5)
    n = 20_000
    labels = np.ones((20, 20, 20), np.uint8)
    labels[2:7, 15:, 5:] = 2
    row_of_four = np.concatenate([labels, labels[:, ::-1]], axis=1)
    unfolded = np.concatenate([row_of_four, row_of_four[::-1]], axis=0)
    electron = electrons(rng, n)
    electron = electron._replace(ux=jnp.abs(electron.ux), uy=jnp.abs(electron.uy))  # towards the far mirrors
    ends = []
    for block in (slab(labels), slab(unfolded)):
        flight = aim(
            block, electron, 0, jnp.full(n, 60, jnp.int32), random_bits(np.random.default_rng(55), n)
        )
        ends.append(fly(block, electron, flight, 0))
    (inside, flight), (outside, flight_unfolded) = ends
    crossed = np.asarray(outside.x > 20)
    assert crossed.sum() > 1000
    np.testing.assert_array_equal(flight.label_end, flight_unfolded.label_end)
    np.testing.assert_allclose(inside.x, jnp.where(crossed, 40 - outside.x, outside.x), atol=1e-4)
    np.testing.assert_allclose(inside.ux, jnp.where(crossed, -outside.ux, outside.ux))
    np.testing.assert_allclose(inside.y, jnp.where(outside.y > 20, 40 - outside.y, outside.y), atol=1e-4)


def surface_flight(n, label_start, label_end):
    labels = [jnp.full(n, value, jnp.int32) for value in (label_start, label_end)]
    return Flight(*labels, jnp.zeros(n), jnp.zeros(n), jnp.full(n, 3), jnp.zeros(n))


def test_surface_conserves_tangential_momentum_and_reflects_only_slow_normals():
    rng = np.random.default_rng(6)
    n = 50_000
    block = slab()
    electron = electrons(rng, n, energy_kev=0.06)
    out, passes = cross(block, electron, surface_flight(n, SI, 0))
    barrier = float(block.barrier_kev[SI])
    kinetic = 0.06 + barrier
    normal = kinetic * np.asarray(electron.uz, float) ** 2
    np.testing.assert_array_equal(np.asarray(passes), normal > barrier)
    after = np.where(passes, 0.06, kinetic)
    for old, new in ((electron.ux, out.ux), (electron.uy, out.uy)):
        np.testing.assert_allclose(np.sqrt(kinetic) * old, np.sqrt(after) * new, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(out.ux**2 + out.uy**2 + out.uz**2, 1, atol=1e-5)
    np.testing.assert_allclose(out.uz[~passes], -electron.uz[~passes], atol=1e-6)


def test_entering_matter_always_succeeds_and_bends_towards_the_normal():
    rng = np.random.default_rng(7)
    electron = electrons(rng, 10_000, energy_kev=0.06)
    inside, passes = cross(slab(), electron, surface_flight(10_000, 0, SI))
    assert bool(passes.all())
    assert bool((jnp.abs(inside.uz) >= jnp.abs(electron.uz) - 1e-6).all())
