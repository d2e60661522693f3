import numpy as np
import pytest

from bsevox_jax.sim.specimen import MAX_CLEARANCE, Specimen, check_specimen, tracking_words


def brute_force_half_width(values, y, x, z):
    padded = np.pad(values, [(MAX_CLEARANCE,) * 2] * 2 + [(0, 0)], mode="symmetric")
    y, x = y + MAX_CLEARANCE, x + MAX_CLEARANCE
    for r in range(1, MAX_CLEARANCE + 1):
        cube = padded[y - r : y + r + 1, x - r : x + r + 1, max(z - r, 0) : z + r + 1]
        if cube.min() != cube.max():
            return r - 1
    return MAX_CLEARANCE


def test_clearance_is_the_largest_uniform_cube_of_the_mirrored_specimen():
    rng = np.random.default_rng(0)
    labels = np.ones((20, 20, 20), np.uint8)
    labels[3:9, 4:15, 0:7] = 2
    labels[12:, :2, 10:] = 0
    words = tracking_words(labels[None])[0]
    assert np.array_equal(words & 15, labels)
    for y, x, z in rng.integers(0, 20, (200, 3)):
        assert words[y, x, z] >> 4 & 15 == brute_force_half_width(labels, y, x, z)
        assert words[y, x, z] >> 8 & 15 == brute_force_half_width(labels > 0, y, x, z)


@pytest.mark.parametrize(
    ("labels", "rule"),
    [
        (np.ones((4, 4, 4), np.int32), "uint8"),
        (np.ones((4, 4), np.uint8), "axes"),
        (np.ones((0, 4, 4), np.uint8), "none empty"),
        (np.full((4, 4, 4), 3, np.uint8), "0 .vacuum. to 2"),
    ],
)
def test_broken_specimens_are_refused_with_the_rule(labels, rule):
    with pytest.raises(ValueError, match=rule):
        check_specimen(Specimen(labels))
