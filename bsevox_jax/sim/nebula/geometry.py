"""The geometry file of Nebula (`.tri`) from a block of voxels.

The block lies under a detector, above a terminator and between four mirrors, as in `Specimen`. Voxel z = 0
begins at `GAP_ABOVE_NM`. Text, one triangle per line: material inside, material outside, three corners in nm;
the normal (r2 - r1) x (r3 - r1) points outside.
"""

import os

import numpy as np

from bsevox_jax.sim.files import whole_file
from bsevox_jax.sim.specimen import Specimen, check_specimen

MIRROR, VACUUM, DETECTOR, TERMINATOR = -122, -123, -124, -127  # the detector takes 50 eV and more
GAP_ABOVE_NM = 5.0  # vacuum between the detector, z = 0, and the specimen
GAP_BELOW_NM = 1.0  # vacuum between the specimen and the terminator

# Long thin triangles leave black patches in images of the GPU build (its users report).
MAX_ASPECT = 4


def write_geometry(path: str | os.PathLike, specimen: Specimen) -> None:
    """Writes the triangles of one specimen; material k of the command line is its label k + 1."""
    with whole_file(path) as temporary, open(temporary, "w", newline="\n") as file:
        for (inside, outside), corners in zip(*triangles(specimen), strict=True):
            file.write(f"{inside} {outside} " + " ".join(f"{x:.9g}" for x in corners.ravel()) + "\n")


def triangles(specimen: Specimen) -> tuple[np.ndarray, np.ndarray]:
    """Triangles around every region of one specimen, and of the box it stands in.

    Faces between voxels of different labels are joined into rectangles no more than `MAX_ASPECT` times as
    long as wide, each two triangles. No two of them overlap, none lies on a mirror, and every edge lies on
    the voxel grid. The corner of one rectangle may lie on the edge of another: as both lie exactly on one
    line of the grid no gap opens, and joining divides the number of triangles by about ten.

    Args:
        specimen: labels [y, x, z]; vacuum may be anywhere.

    Returns:
        Materials inside and outside, int [n, 2], and corners (x, y, z) in nm, float64 [n, 3, 3].

    Raises:
        ValueError: a broken specimen, or more than one.
    """
    specimen = check_specimen(specimen)
    if specimen.labels.ndim != 3:
        raise ValueError(
            f"Nebula takes one specimen [y, x, z] per file; got shape {specimen.labels.shape}. Give one."
        )
    rectangles = [*_faces(specimen), *_box(specimen)]
    materials = np.array([pair for pair, _ in rectangles]).repeat(2, axis=0)
    corners = np.array([corners for _, corners in rectangles])  # in the order around the rectangle
    return materials, corners[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 3)


def _faces(specimen):
    """Rectangles between voxels of different labels: (inside, outside) and four corners."""
    size = specimen.voxel_nm
    # The larger id counts as inside. Axes x, y, z; the vacuum above and below belongs to the block.
    ids = np.where(specimen.labels > 0, specimen.labels.astype(int) - 1, VACUUM).transpose(1, 0, 2)
    ids = np.pad(ids, ((0, 0), (0, 0), (1, 1)), constant_values=VACUUM)
    for axis in range(3):
        stack = np.moveaxis(ids, axis, 0)
        for plane, (before, after) in enumerate(zip(stack[:-1], stack[1:], strict=True), start=1):
            code = np.where(before == after, 0, before * 1000 + after)
            for u, v in _rectangles(code):
                pair = before[u.start, v.start], after[u.start, v.start]
                corners = np.empty((4, 3))
                across = [a for a in range(3) if a != axis]
                corners[:, axis] = plane
                corners[:, across[0]] = u.start, u.stop, u.stop, u.start
                corners[:, across[1]] = v.start, v.start, v.stop, v.stop
                corners = (corners - [0, 0, 1]) * size + [0, 0, GAP_ABOVE_NM]
                # Around x and z this order turns about the positive axis, around y about the negative one.
                if (pair[0] > pair[1]) != (axis != 1):
                    corners = corners[::-1]
                yield (max(pair), min(pair)), corners


def _rectangles(code: np.ndarray):
    """Disjoint rectangles (two slices) that cover the cells of equal code other than 0."""
    code = code.copy()
    for i, j in np.argwhere(code):
        value = code[i, j]
        if value == 0:  # already covered
            continue
        rest = np.flatnonzero(code[i, j:] != value)
        width = rest[0] if len(rest) else code.shape[1] - j
        rest = np.flatnonzero((code[i:, j : j + width] != value).any(1))
        height = rest[0] if len(rest) else code.shape[0] - i
        code[i : i + height, j : j + width] = 0
        for u in _pieces(i, height, width):
            for v in _pieces(j, width, height):
                yield u, v


def _pieces(start, length, across):
    """Cuts a side of a rectangle that is too long for its other side."""
    count = -(-length // (MAX_ASPECT * across))
    cuts = start + np.arange(count + 1) * length // count
    return [slice(int(a), int(b)) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def _box(specimen):
    """Detector, terminator and mirrors: (id, id) and four corners."""
    ny, nx, nz = specimen.labels.shape
    size = np.array([nx, ny, nz]) * specimen.voxel_nm + [0, 0, GAP_ABOVE_NM + GAP_BELOW_NM]
    for axis, ends in enumerate(((MIRROR, MIRROR), (MIRROR, MIRROR), (DETECTOR, TERMINATOR))):
        across = [a for a in range(3) if a != axis]
        cuts = []
        for a, b in (across, across[::-1]):
            cuts.append(np.linspace(0, size[a], 1 + int(np.ceil(size[a] / (MAX_ASPECT * size[b])))))
        for at, material in zip((0.0, size[axis]), ends, strict=True):
            for u0, u1 in zip(cuts[0][:-1], cuts[0][1:], strict=True):
                for v0, v1 in zip(cuts[1][:-1], cuts[1][1:], strict=True):
                    corners = np.full((4, 3), at)
                    corners[:, across[0]] = u0, u1, u1, u0
                    corners[:, across[1]] = v0, v0, v1, v1
                    yield (material, material), corners
