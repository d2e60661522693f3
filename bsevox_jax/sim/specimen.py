"""The specimen: a block of voxels, what each is made of, and how far one may fly in it unchecked."""

import dataclasses
import functools
import math

import jax
import numpy as np

MAX_MATERIALS = 8
# Positions are float32: farther out the step across a face (`transport.NUDGE`) could be lost in rounding.
MAX_VOXELS_PER_AXIS = 1000
SIDE_WALLS = ("mirror", "periodic", "open")
MAX_CLEARANCE = 15  # voxels; four bits of a tracking word


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Specimen:
    """A voxel block with vacuum above (z < 0) and a perfect absorber below.

    Attributes:
        labels: uint8 [..., y, x, z]; 0 vacuum, 1.. the materials in order; leading axes are a batch.
        voxel_nm: edge of the cubic voxels, nm; also the pixel of the images.
        materials: names of the materials 1, 2, ...; each needs cross sections.
        side_walls: what lies beside the block. "mirror": its mirror image; "periodic": the block again;
            "open": vacuum, where an electron flies on straight and is counted if that leads upwards.
    """

    labels: np.ndarray
    voxel_nm: float = dataclasses.field(default=1.0, metadata={"static": True})
    materials: tuple[str, ...] = dataclasses.field(default=("Si", "Cu"), metadata={"static": True})
    side_walls: str = dataclasses.field(default="mirror", metadata={"static": True})


def check_specimen(specimen: Specimen) -> Specimen:
    """Returns the specimen with its labels as a numpy array, or raises ValueError for a broken rule."""
    labels = np.asarray(specimen.labels)
    if labels.dtype != np.uint8:
        raise ValueError(f"labels must be uint8; got {labels.dtype}. Use labels.astype(np.uint8).")
    if labels.ndim < 3 or 0 in labels.shape:
        raise ValueError(
            f"labels must have axes [..., y, x, z], none empty; got shape {labels.shape}. Reshape."
        )
    if max(labels.shape[-3:]) > MAX_VOXELS_PER_AXIS:
        raise ValueError(
            f"a specimen must have {MAX_VOXELS_PER_AXIS} voxels or fewer along each axis; got "
            f"{labels.shape[-3:]}. Cut it into tiles."
        )
    if not 1 <= len(specimen.materials) <= MAX_MATERIALS:
        raise ValueError(
            f"a specimen must hold 1 to {MAX_MATERIALS} materials; got {specimen.materials}. Name those "
            "of its labels."
        )
    if labels.max() > len(specimen.materials):
        raise ValueError(
            f"labels must be 0 (vacuum) to {len(specimen.materials)} ({', '.join(specimen.materials)}); "
            f"got {labels.max()}. Name the missing material in Specimen.materials."
        )
    if not 0 < specimen.voxel_nm < math.inf:
        raise ValueError(
            f"voxel_nm must be positive and finite; got {specimen.voxel_nm}. Give the edge of a voxel in nm."
        )
    if specimen.side_walls not in SIDE_WALLS:
        raise ValueError(
            f"side_walls must be one of {', '.join(SIDE_WALLS)}; got {specimen.side_walls!r}. Use mirror."
        )
    return dataclasses.replace(specimen, labels=labels)


def check_ids(specimen_ids, specimens: int) -> np.ndarray:
    """Ids of the specimens of a batch, 0, 1, ... if not given; ValueError unless 32 bits hold each."""
    ids = np.arange(specimens) if specimen_ids is None else np.asarray(specimen_ids).reshape(-1)
    if len(ids) != specimens:
        raise ValueError(
            f"specimen_ids must name each specimen; got {len(ids)} ids for {specimens} specimens. Give one "
            "for each."
        )
    if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= 2**32:
        raise ValueError(
            f"specimen_ids must be whole numbers from 0 to 2**32 - 1; got {ids.min()} to {ids.max()}. Count "
            "the specimens from 0."
        )
    return ids


def tracking_words(labels: np.ndarray, side_walls: str = "mirror") -> np.ndarray:
    """Packs what a flight must know about its voxel into 16 bits.

    Around every voxel lies a cube of voxels of the same label, and a larger or equal cube on the same side
    of the vacuum surface. Inside the first an electron meets one material only; inside the second it meets
    no surface. The cubes see beyond the side walls, and the faces z = 0 and z = depth do not limit them.

    Args:
        labels: uint8 [specimen, y, x, z].
        side_walls: one of `SIDE_WALLS`.

    Returns:
        uint16 [specimen, y, x, z]: label (bits 0-3), half-width in voxels of the cube of equal label
        (bits 4-7) and of the cube without a vacuum surface (bits 8-11).
    """
    same_label = _half_width_of_uniform_cube(labels, side_walls)
    same_side = _half_width_of_uniform_cube((labels > 0).astype(np.uint8), side_walls)
    return (labels | same_label.astype(np.uint16) << 4 | same_side.astype(np.uint16) << 8).astype(np.uint16)


def _half_width_of_uniform_cube(values: np.ndarray, side_walls: str) -> np.ndarray:
    """Largest r <= MAX_CLEARANCE such that all voxels within r (Chebyshev) have the same value; uint8."""
    lowest = highest = values
    half_width = np.zeros_like(values)
    for _ in range(MAX_CLEARANCE):
        lowest = _over_neighbours(np.minimum, lowest, side_walls)
        highest = _over_neighbours(np.maximum, highest, side_walls)
        uniform = lowest == highest
        if not uniform.any():
            break
        half_width += uniform
    return half_width


def _over_neighbours(extremum, values: np.ndarray, side_walls: str) -> np.ndarray:
    """Extremum over the 3 x 3 x 3 neighbourhood; repeating the edge voxel is what a mirror shows."""
    beyond = {"mirror": "edge", "periodic": "wrap", "open": "constant"}  # 0, vacuum
    for axis in range(1, 4):
        width = [(int(a == axis),) * 2 for a in range(4)]
        padded = np.pad(values, width, "edge" if axis == 3 else beyond[side_walls])
        ways = (np.arange(n, n + values.shape[axis]) for n in range(3))
        values = functools.reduce(extremum, (padded.take(way, axis) for way in ways))
    return values
