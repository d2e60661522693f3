import numpy as np
import pytest

from bsevox_jax.sim.specimen import (
    MAX_CLEARANCE,
    MAX_VOXELS_PER_AXIS,
    Specimen,
    check_specimen,
    tracking_words,
)
from bsevox_jax.sim.transport import NUDGE


def brute_force_half_width(values, y, x, z, beyond):
    padded = np.pad(values, [(MAX_CLEARANCE,) * 2] * 2 + [(0, 0)], mode=beyond)
    y, x = y + MAX_CLEARANCE, x + MAX_CLEARANCE
    for r in range(1, MAX_CLEARANCE + 1):
        cube = padded[y - r : y + r + 1, x - r : x + r + 1, max(z - r, 0) : z + r + 1]
        if cube.min() != cube.max():
            return r - 1
    return MAX_CLEARANCE


@pytest.mark.parametrize(
    ("side_walls", "beyond"), [("mirror", "symmetric"), ("periodic", "wrap"), ("open", "constant")]
)
def test_clearance_is_the_largest_uniform_cube_also_beyond_the_side_walls(side_walls, beyond):
    rng = np.random.default_rng(0)
    labels = np.ones((20, 20, 20), np.uint8)
    labels[3:9, 4:15, 0:7] = 2
    labels[12:, :2, 10:] = 0
    words = tracking_words(labels[None], side_walls)[0]
    assert np.array_equal(words & 15, labels)
    for y, x, z in rng.integers(0, 20, (200, 3)):
        assert words[y, x, z] >> 4 & 15 == brute_force_half_width(labels, y, x, z, beyond)
        assert words[y, x, z] >> 8 & 15 == brute_force_half_width(labels > 0, y, x, z, beyond)


@pytest.mark.parametrize(
    ("labels", "rule"),
    [
        (np.ones((4, 4, 4), np.int32), "uint8"),
        (np.ones((4, 4), np.uint8), "axes"),
        (np.ones((0, 4, 4), np.uint8), "none empty"),
        (np.full((4, 4, 4), 3, np.uint8), "0 .vacuum. to 2"),
        (np.ones((1, 1, 1001), np.uint8), r"1000 voxels or fewer .*got \(1, 1, 1001\). Cut it into tiles"),
    ],
)
def test_broken_specimens_are_refused_with_the_rule(labels, rule):
    with pytest.raises(ValueError, match=rule):
        check_specimen(Specimen(labels))


@pytest.mark.parametrize("voxel_nm", [0.0, -1.0, np.inf, np.nan])
def test_voxels_of_no_size_are_refused(voxel_nm):
    with pytest.raises(ValueError, match=f"voxel_nm must be positive and finite; got {voxel_nm}"):
        check_specimen(Specimen(np.ones((4, 4, 4), np.uint8), voxel_nm))


def test_longest_specimen_has_many_batch_axes():
    labels = np.ones((2, 3, 1, 1, MAX_VOXELS_PER_AXIS), np.uint8)
    assert check_specimen(Specimen(labels)).labels.shape == labels.shape


@pytest.mark.parametrize("voxel_nm", [0.37, 1.0, 1.023, 1.1, 1.4, 50.0])
def test_step_across_a_face_is_not_lost_in_rounding(voxel_nm):
    """Positions and sizes in float32, as the walk has them, at every face of the longest specimen."""
    size, face = np.float32(voxel_nm), np.arange(1, MAX_VOXELS_PER_AXIS, dtype=np.float32)
    step = np.float32(NUDGE) * size
    assert (np.floor((face * size + step) / size) == face).all()
    assert (np.floor((face * size - step) / size) == face - 1).all()
