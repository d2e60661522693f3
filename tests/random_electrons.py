"""Electrons of random position and direction, and random words, for the tests of the walk."""

import jax.numpy as jnp
import numpy as np

from bsevox_jax.sim.transport import Electron


def electrons(rng, n, energy_kev=1.0, size_nm=20.0):
    direction = rng.normal(size=(3, n))
    direction /= np.linalg.norm(direction, axis=0)
    position = rng.uniform(0, size_nm, (3, n))
    fields = [jnp.asarray(field, jnp.float32) for field in (*position, *direction)]
    return Electron(*fields, jnp.full(n, energy_kev, jnp.float32), jnp.ones(n, bool))


def random_bits(rng, n):
    return jnp.asarray(rng.integers(0, 2**32, n, dtype=np.uint32))
