import jax
import jax.numpy as jnp
import numpy as np

from bsevox_jax.sim.random import cos_sin_turns, pcg3d, uniform


def test_uniforms_stay_inside_the_open_unit_interval():
    ends = uniform(jnp.asarray([0, 2**32 - 1], jnp.uint32))
    assert 0 < ends[0] < ends[1] < 1


def test_hash_draws_are_uniform_and_uncorrelated_along_a_history():
    n = 200_000
    zero, one = jnp.uint32(12345), jnp.uint32(678)
    draws = np.stack(
        [uniform(w) for w in pcg3d(jnp.full(n, zero), jnp.full(n, one), jnp.arange(n, dtype=jnp.uint32))]
    )
    assert np.all(np.abs(draws.mean(1) - 0.5) < 5 * np.sqrt(1 / 12 / n))
    neighbours = np.corrcoef(np.vstack([draws[:, :-1], draws[:, 1:]]))
    assert np.all(np.abs(neighbours - np.eye(6)) < 5 / np.sqrt(n))


def test_polynomial_cosine_and_sine_match_the_library():
    turns = jnp.linspace(0, 1, 10_001)
    cos, sin = cos_sin_turns(turns)
    np.testing.assert_allclose(cos, np.cos(2 * np.pi * np.asarray(turns, float)), atol=5e-7)
    np.testing.assert_allclose(sin, np.sin(2 * np.pi * np.asarray(turns, float)), atol=5e-7)


def test_jit_equals_eager_for_shared_matrix(n=40_000):
    """JAX 0.10.2 on CPU fails this (jax-ml/jax#39103); results of such a version cannot be trusted."""
    with jax.default_device(jax.devices("cpu")[0]):
        rows = jnp.zeros((n, 3)).at[:, 0].set(jnp.arange(n))
        f = jax.vmap(lambda r: jnp.sum((jnp.eye(3) @ r) ** 2))
        np.testing.assert_array_equal(jax.jit(f)(rows), f(rows))
