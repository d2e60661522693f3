"""Specimens that are not drawn: the published structures, and twelve shapes unlike any random specimen.

A network that has learnt the families of `phantoms` has seen none of the twelve; how well it does on them
tells whether it looks or remembers. Each is a formula on the centres of the voxels, y, x and z in nm, of a
box of 20 x 20 x 20 nm. Volumes are uint8 [y, x, z]: 1 Si, 2 Cu.
"""

import functools
from collections.abc import Callable

import numpy as np

from bsevox_jax.sim import phantoms

SHAPES_VERSION = "1.0.0"  # raised whenever a shape changes; data sets are tied to it
MIDDLE_NM = 10.0  # of the box, on each axis


def torus(y, x, z):
    """A ring of 4.4 nm thickness that lies 6 nm deep."""
    return (_from_axis(y, x) - 6) ** 2 + (z - 6) ** 2 <= 2.2**2


def diagonal_bar(y, x, z):
    """A bar of 4 x 6 nm that descends along x at 45 degrees."""
    return (abs(x - z) <= 2 * np.sqrt(2)) & (abs(y - 8) <= 3)


def cone(y, x, z):
    """A cone with its point 3 nm below the surface, 14 nm high."""
    return (_from_axis(y, x) <= (z - 3) / 2) & (z <= 17)


def inverted_pyramid(y, x, z):
    """A square pit of 16 nm at the surface, filled, that ends in a point 10 nm deep."""
    return np.maximum(abs(y - MIDDLE_NM), abs(x - MIDDLE_NM)) <= 8 * (1 - z / 10)


def helix(y, x, z):
    """A wire of 4 nm that winds around the vertical, one turn in 10 nm."""
    turns = np.arctan2(y - MIDDLE_NM, x - MIDDLE_NM) / (2 * np.pi)
    above = (z - 10 * turns + 5) % 10 - 5
    return (_from_axis(y, x) - 5.5) ** 2 + above**2 <= 2**2


def gyroid(y, x, z):
    """One half-space of a gyroid of 20 nm, thinned to about a quarter of the box."""
    y, x, z = (2 * np.pi / 20 * axis for axis in (y, x, z))
    return np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x) > 0.75


def stairs(y, x, z):
    """Four steps of 5 x 12 x 4 nm that go down along x from a depth of 2 nm."""
    top = 2 + 4 * (x // 5)
    return (z >= top) & (z < top + 4) & (abs(y - MIDDLE_NM) < 6)


def cross(y, x, z):
    """Three bars of 4 x 4 x 16 nm, one along each axis, that meet 9 nm deep."""
    along = [abs(y - MIDDLE_NM), abs(x - MIDDLE_NM), abs(z - 9)]
    shortest, middle, longest = np.sort(np.broadcast_arrays(*along), axis=0)
    return (middle < 2) & (longest < 8)


def octahedron(y, x, z):
    """A regular octahedron of 16 nm from point to point, 12 nm deep."""
    return abs(y - MIDDLE_NM) + abs(x - MIDDLE_NM) + abs(z - 12) <= 8


def tilted_slab(y, x, z):
    """A slab of 3 nm that descends across the box, more along y than along x."""
    return abs(z - 4 - 0.5 * y - 0.25 * x) <= 1.5 * np.sqrt(1 + 0.5**2 + 0.25**2)


def letter(y, x, z):
    """The letter F, with strokes of 3 nm, 4 nm thick and 4 nm deep."""
    stem = (abs(x - 6.5) < 1.5) & (abs(y - MIDDLE_NM) < 7)
    arms = (x >= 5) & (((abs(y - 4.5) < 1.5) & (x < 16)) | ((abs(y - 9.5) < 1.5) & (x < 13)))
    return (stem | arms) & (z >= 4) & (z < 8)


def v_groove(y, x, z):
    """A sheet folded along y into a V with its edge 16 nm deep."""
    return (abs(z - 14 + abs(x - MIDDLE_NM)) <= 2) & (abs(y - MIDDLE_NM) < 8)


def _from_axis(y, x):
    """Distance to the vertical through the middle of the box."""
    return np.hypot(y - MIDDLE_NM, x - MIDDLE_NM)


def _labels(is_cu: Callable) -> np.ndarray:
    y, x, z = np.meshgrid(*(np.arange(n) + 0.5 for n in phantoms.SHAPE), indexing="ij")
    return np.where(is_cu(y, x, z), phantoms.COPPER, phantoms.SILICON).astype(np.uint8)


SHAPES: dict[str, Callable[[], np.ndarray]] = {
    shape.__name__.replace("_", " "): functools.partial(_labels, shape)
    for shape in (
        torus,
        diagonal_bar,
        cone,
        inverted_pyramid,
        helix,
        gyroid,
        stairs,
        cross,
        octahedron,
        tilted_slab,
        letter,
        v_groove,
    )
}
"""Name -> function that makes the labels."""

POSITIONS = (1, 2, 3, 4)  # of the nanocube, from a corner at the surface to the bottom
RADII_NM = (2, 4, 6, 8, 10)  # of the nanowire's core
STRUCTURES: dict[str, dict[str, Callable]] = {
    "nanocube": {str(p): functools.partial(phantoms.nanocube, p) for p in POSITIONS},
    "nanowire": {str(r): functools.partial(phantoms.nanowire, r, "z") for r in RADII_NM},
    "nanowire_lying": {str(r): functools.partial(phantoms.nanowire, r, "x") for r in RADII_NM},
}
"""Series -> name -> function that makes the labels: Tables 3 and 4 of Zheng et al., IEEE Access."""
