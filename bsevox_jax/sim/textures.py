"""Textures: specimens of no family, to teach what copper does anywhere, not what bodies look like.

Cu where a sum of plane waves of random directions exceeds a level: tilted slabs from two waves, sponges
and islands from many, single voxels from the noise that is added to some. A part has a rough surface or a
thinner film. Volumes are uint8 [y, x, z] with voxels of 1 nm: 0 vacuum, 1 Si, 2 Cu.
"""

import jax
import jax.numpy as jnp

from bsevox_jax.sim.phantoms import COPPER, SHAPE, SILICON, VACUUM, Shape, between

TEXTURES_VERSION = "1.0.0"  # raised whenever a key gives another texture; data sets are tied to it
WAVES = 24
WAVELENGTH_NM = (4.0, 40.0)
LEVEL = (-0.7, 1.9)  # standard deviations of the waves: three quarters to a thirtieth of the voxels are Cu
NOISE = (0.4, 1.5)  # standard deviations of the waves per voxel, in the share of the textures that have it
WITH_NOISE, WITH_RELIEF, THINNER = 0.4, 0.25, 0.2  # shares of the textures
RELIEF_NM = (0.5, 4.0)  # standard deviation of the surface is half of it
THICKNESS_NM = (6.0, 20.0)


def random_texture(key: jax.Array, shape: Shape = SHAPE) -> jax.Array:
    """Returns the labels, uint8 [y, x, z], of a random texture; the same key gives the same one."""
    waves, noise, relief, draws = jax.random.split(key, 4)
    u = jax.random.uniform(draws, (9,))
    amplitude = jnp.where(u[0] < WITH_NOISE, between(u[1], NOISE), 0.0)
    field = _waves(waves, shape, flat=False) + amplitude * jax.random.normal(noise, shape)
    labels = jnp.where(field > between(u[2], LEVEL) * jnp.sqrt(1 + amplitude**2), COPPER, SILICON)
    relief_nm = jnp.where(u[3] < WITH_RELIEF, between(u[4], RELIEF_NM), 0.0)
    thickness_nm = jnp.where(u[5] < THINNER, between(u[6], THICKNESS_NM), shape[2])
    return carved(relief, labels.astype(jnp.uint8), relief_nm, thickness_nm)


def carved(
    key: jax.Array, labels: jax.Array, relief_nm: jax.Array | float, thickness_nm: jax.Array | float
) -> jax.Array:
    """Labels [y, x, z] with vacuum above a rough surface and below a film.

    Args:
        key: of the surface.
        labels: of the specimen.
        relief_nm: twice the mean depth of the surface and its standard deviation; 0: flat.
        thickness_nm: depth of the lower side of the film.
    """
    depth_nm = jnp.arange(labels.shape[2]) + 0.5
    height_nm = relief_nm / 2 * (1 + _waves(key, (*labels.shape[:2], 1), flat=True))
    return jnp.where((depth_nm < height_nm) | (depth_nm > thickness_nm), VACUUM, labels).astype(labels.dtype)


def _waves(key, shape, *, flat):
    """A sum of waves of variance one; of one wavelength within 30 %, along y and x only if flat."""
    u = jax.random.uniform(key, (WAVES, 3))
    direction = (
        jax.random.normal(jax.random.fold_in(key, 1), (WAVES, 3)).at[:, 2].multiply(0.0 if flat else 1.0)
    )
    direction /= jnp.linalg.norm(direction, axis=1, keepdims=True)
    low, high = WAVELENGTH_NM
    wavelength_nm = low * (high / low) ** u[0, 0] * between(u[:, 1], (0.7, 1.3))
    number = jnp.ceil(WAVES ** u[1, 0])  # two to all; half of the textures have five or fewer
    turns = [
        (jnp.arange(n) + 0.5)[:, None] * direction[:, axis] / wavelength_nm for axis, n in enumerate(shape)
    ]
    phases = turns[0][:, None, None] + turns[1][:, None] + turns[2] + u[:, 2]
    there = jnp.arange(WAVES) < number
    return (there * jnp.cos(2 * jnp.pi * phases)).sum(-1) * jnp.sqrt(2 / number)
