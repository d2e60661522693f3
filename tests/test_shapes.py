"""The shapes that no random specimen has: what a fair test of a network asks of them."""

import itertools

import numpy as np
import pytest

from bsevox_jax.sim.phantoms import COPPER, SHAPE, SILICON
from bsevox_jax.sim.shapes import SHAPES, STRUCTURES


def symmetries(labels):
    """The volume turned and mirrored in all 48 ways of a cube."""
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            yield labels.transpose(axes)[tuple(slice(None, None, step) for step in flips)]


def test_there_are_twelve_and_each_is_the_same_every_time():
    assert len(SHAPES) == 12
    for make in SHAPES.values():
        np.testing.assert_array_equal(make(), make())


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_copper_in_silicon_with_a_share_as_in_training(name):
    labels = SHAPES[name]()
    assert labels.shape == SHAPE and labels.dtype == np.uint8 and set(np.unique(labels)) == {SILICON, COPPER}
    assert 0.01 <= (labels == COPPER).mean() <= 0.40


def test_no_shape_is_another_one_turned_or_mirrored():
    seen = {}
    for name, make in SHAPES.items():
        forms = {form.tobytes() for form in symmetries(make())}
        assert not any(forms & other for other in seen.values()), name
        seen[name] = forms


@pytest.mark.parametrize("name", SHAPES)
def test_copper_is_at_least_two_voxels_thick(name):
    """Nearly every Cu voxel belongs to a cube of 2 x 2 x 2: nothing hangs on single voxels."""
    cu = SHAPES[name]() == COPPER
    padded = np.pad(cu, 1)
    offsets = list(itertools.product((0, 1), repeat=3))
    cubes = np.all([padded[tuple(slice(o, o + n + 1) for o, n in zip(off, SHAPE, strict=True))]
                    for off in offsets], axis=0)  # fmt: skip
    n = SHAPE[0]
    member = np.any([cubes[a : a + n, b : b + n, c : c + n] for a, b, c in offsets], axis=0)
    assert (cu & member).sum() >= 0.9 * cu.sum()


def test_shapes_reach_from_the_surface_to_the_bottom():
    first = [np.flatnonzero((make() == COPPER).any((0, 1)))[0] for make in SHAPES.values()]
    last = [np.flatnonzero((make() == COPPER).any((0, 1)))[-1] for make in SHAPES.values()]
    assert min(first) == 0 and max(first) >= 4 and min(last) <= 9 and max(last) == 19


def test_published_structures_are_four_cubes_and_five_wires_each_way():
    assert {series: len(members) for series, members in STRUCTURES.items()} == {
        "nanocube": 4,
        "nanowire": 5,
        "nanowire_lying": 5,
    }
    upright, lying = (np.asarray(STRUCTURES[s]["4"]()) for s in ("nanowire", "nanowire_lying"))
    assert (upright == upright[:, :, :1]).all() and (lying == lying[:, :1]).all()
