"""Textures: specimens of no family, to teach what copper does anywhere, not what bodies look like.

Cu where a sum of plane waves of random directions exceeds a level: tilted slabs from two waves, sponges
and islands from many, single voxels from the noise that is added to some. A part has a rough surface or a
thinner film. Stacks, beside them, teach that copper may lie below copper. Volumes are uint8 [y, x, z] with
voxels of 1 nm: 0 vacuum, 1 Si, 2 Cu.
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
STACKED = (2, 4)  # bodies of a stack
STACKED_NM, GAP_NM, TOP_NM = (1.0, 5.0), (1.0, 6.0), (0.0, 8.0)  # thickness, distance, depth of the first
OUTLINE_NM = (2.0, 11.0)  # half width
ALIKE, ROUND = 0.5, 0.4  # shares of the stacks with one outline for all bodies, and with elliptic ones
SHRUNK, OFF_CENTRE_NM = (0.4, 1.0), (-4.0, 4.0)  # how the outlines of the other stacks differ


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


def random_stack(key: jax.Array, shape: Shape = SHAPE) -> jax.Array:
    """Returns the labels, uint8 [y, x, z], of Cu bodies below each other in Si; a key gives the same ones."""
    of_stack, of_bodies = jax.random.split(key)
    u, v = jax.random.uniform(of_stack, (8,)), jax.random.uniform(of_bodies, (STACKED[1], 6))
    number = jnp.floor(between(u[0], (STACKED[0], STACKED[1] + 1)))
    thickness_nm, gap_nm = between(v[:, 0], STACKED_NM), between(v[:, 1], GAP_NM)
    bottom_nm = between(u[1], TOP_NM) + jnp.cumsum(thickness_nm + gap_nm) - gap_nm
    alike = u[2] < ALIKE
    half_nm = between(u[3:5], OUTLINE_NM) * jnp.where(alike, 1, between(v[:, 2:4], SHRUNK))
    centre_nm = u[5:7] * jnp.array(shape[:2]) + jnp.where(alike, 0, between(v[:, 4:6], OFF_CENTRE_NM))
    y, x, z = (jnp.arange(n) + 0.5 for n in shape)
    across_y = jnp.abs(y[:, None] - centre_nm[:, 0, None, None]) / half_nm[:, 0, None, None]
    across_x = jnp.abs(x - centre_nm[:, 1, None, None]) / half_nm[:, 1, None, None]
    outline = jnp.where(u[7] < ROUND, across_y**2 + across_x**2, jnp.maximum(across_y, across_x)) < 1
    level = (z > (bottom_nm - thickness_nm)[:, None]) & (z < bottom_nm[:, None])
    level &= (jnp.arange(STACKED[1]) < number)[:, None]
    copper = (outline[..., None] & level[:, None, None]).any(0)
    return jnp.where(copper, COPPER, SILICON).astype(jnp.uint8)


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
