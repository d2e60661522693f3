"""Textures: what the random specimens of no family promise."""

import jax
import numpy as np
import pytest
import scipy.stats

from bsevox_jax.sim import shapes, textures
from bsevox_jax.sim.phantoms import COPPER, SHAPE, SILICON, VACUUM
from tfds_bse import sets

NUMBER = 400
KEYS = jax.random.split(jax.random.key(0), NUMBER)
alone = jax.jit(textures.random_texture)


@jax.jit
def draw(with_noise):
    """Labels of many textures, of which a share has noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textures, "WITH_NOISE", with_noise)
        return jax.vmap(textures.random_texture)(KEYS)


@pytest.fixture(scope="module")
def drawn():
    return np.asarray(draw(textures.WITH_NOISE))


def share_of_copper(labels):
    """Of the matter of each texture."""
    return (labels == COPPER).sum((1, 2, 3)) / (labels != VACUUM).sum((1, 2, 3))


def standard_error(share, number=NUMBER):
    return np.sqrt(share * (1 - share) / number)


def test_same_key_same_texture_alone_or_in_a_batch(drawn):
    for k in (7, 43):
        np.testing.assert_array_equal(alone(KEYS[k]), drawn[k])
    assert len({texture.tobytes() for texture in drawn}) >= NUMBER - 2  # one may be all copper


def test_labels_are_vacuum_silicon_or_copper(drawn):
    assert drawn.dtype == np.uint8 and drawn.shape == (NUMBER, *SHAPE)
    assert set(np.unique(drawn)) == {VACUUM, SILICON, COPPER}


def test_share_of_copper_is_that_of_the_levels(drawn):
    """The field is nearly normal, so a level drawn evenly leaves the mean of its tail."""
    share = share_of_copper(drawn)
    low, high = textures.LEVEL
    expected = scipy.stats.norm.sf(np.linspace(low, high, 2001)).mean()
    assert abs(share.mean() - expected) < 4 * share.std() / np.sqrt(NUMBER)
    assert share.min() < 0.01 and share.max() > 0.85


def test_matter_of_a_column_is_whole_with_vacuum_only_above_its_relief_and_below_the_film(drawn):
    matter = drawn != VACUUM
    starts = (np.diff(matter.astype(np.int8), axis=-1, prepend=0) == 1).sum(-1)
    assert starts.max() == 1
    assert (starts == 0).mean() < 1e-3, "a relief seldom reaches through a film"
    depth = np.where(matter, np.arange(SHAPE[2]) + 1, 0).max(-1)
    thickness = depth.max((1, 2))
    assert ((depth == thickness[:, None, None]) | (depth == 0)).all(), "films are flat below"
    assert thickness.min() >= textures.THICKNESS_NM[0]


def test_rough_surfaces_and_thinner_films_occur_as_often_as_stated(drawn):
    rough, thinner = ((drawn[..., z] == VACUUM).any((1, 2)).mean() for z in (0, -1))
    lowest, highest = textures.THICKNESS_NM
    half_a_voxel = 0.5 / (highest - lowest)  # as thin a gap does not show
    for found, expected in ((rough, textures.WITH_RELIEF), (thinner, textures.THINNER * (1 - half_a_voxel))):
        assert abs(found - expected) < 4 * standard_error(expected)


def test_noise_occurs_as_often_as_stated_and_leaves_the_share_of_copper(drawn):
    """Those textures have it that change when it is switched off."""
    quiet = np.asarray(draw(0.0))
    noisy = (drawn != quiet).any((1, 2, 3))
    expected = textures.WITH_NOISE
    assert abs(noisy.mean() - expected) < 4 * standard_error(expected)
    before, after = (share_of_copper(labels[noisy]) for labels in (quiet, drawn))
    slope, _ = np.polyfit(before, after, 1)
    assert abs(slope - 1) < 0.1 and abs(after.mean() - before.mean()) < 0.02


def test_copper_lies_at_every_depth_about_equally_often(drawn):
    per_depth = (drawn == COPPER).sum((0, 1, 2)) / (drawn != VACUUM).sum((0, 1, 2))
    assert per_depth.min() > 0.9 * per_depth.mean() and per_depth.max() < 1.1 * per_depth.mean()


def test_no_texture_is_a_test_shape(drawn):
    """Not even nearly, however it is turned about the beam."""
    copper = (drawn == COPPER).reshape(NUMBER, -1).astype(np.float32)
    for name, make in shapes.SHAPES.items():
        shape = make() == COPPER
        forms = [np.rot90(form, k) for form in (shape, shape[:, ::-1]) for k in range(4)]
        forms = np.stack(forms).reshape(8, -1).astype(np.float32)
        both = copper @ forms.T
        iou = both / (copper.sum(1, keepdims=True) + forms.sum(1) - both)
        assert iou.max() < 0.7, name
    listed = {make().tobytes() for make in shapes.SHAPES.values()}
    assert not listed & {texture.tobytes() for texture in drawn}


def test_textures_of_the_data_set_are_drawn_by_their_numbers():
    config = sets.find("textures")
    labels, family = sets.draw(config, sets.TEXTURES, range(5, 8))
    numbers = sets.numbers(sets.TEXTURES, range(5, 8))
    assert [sets.FAMILIES[f] for f in family] == ["textures"] * 3
    for number, texture in zip(numbers, labels, strict=True):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        np.testing.assert_array_equal(texture, alone(key))


@pytest.mark.slow
def test_stacks_have_silicon_between_copper_above_and_below():
    stacks = np.asarray(jax.jit(jax.vmap(textures.random_stack))(KEYS))
    assert stacks.dtype == np.uint8 and set(np.unique(stacks)) == {SILICON, COPPER}
    copper = stacks == COPPER
    assert copper.any((1, 2, 3)).all()
    begins = np.diff(copper.astype(int), axis=3, prepend=0) == 1
    bodies = begins.sum(3).max((1, 2))  # that one column passes through
    # One in four lies so deep or at such places that a column meets a single body.
    assert (bodies >= 2).mean() > 0.7 and bodies.max() == textures.STACKED[1]
    for family in sets.draw(sets.find("paper"), "train", range(NUMBER)):
        if family.ndim == 4:
            begins = np.diff((family == COPPER).astype(int), axis=3, prepend=0) == 1
            assert (begins.sum(3).max((1, 2)) >= 2).mean() < 0.4


@pytest.mark.slow
def test_same_key_same_stack_alone_or_in_a_batch():
    stacks = np.asarray(jax.jit(jax.vmap(textures.random_stack))(KEYS[:20]))
    np.testing.assert_array_equal(jax.jit(textures.random_stack)(KEYS[3]), stacks[3])
