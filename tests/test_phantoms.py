"""Specimens: the published geometries, and what the random ones promise."""

import jax
import numpy as np
import pytest

from bsevox_jax.sim import phantoms
from bsevox_jax.sim.phantoms import COPPER, FAMILIES, SILICON, VACUUM

draw = jax.jit(jax.vmap(phantoms.random_specimen_with_family))


@pytest.fixture(scope="module")
def drawn():
    labels, family = draw(jax.random.split(jax.random.key(0), 2000))
    return np.asarray(labels), np.asarray(family)


@pytest.mark.parametrize("position", [1, 2, 3, 4])
def test_nanocube_is_five_voxels_wide_on_the_body_diagonal(position):
    labels = np.asarray(phantoms.nanocube(position))
    expected = np.full((20, 20, 20), SILICON, np.uint8)
    expected[(slice(5 * position - 5, 5 * position),) * 3] = COPPER
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint8


@pytest.mark.parametrize("radius_nm", [2, 4, 6, 8, 10])
def test_nanowire_is_an_upright_core_in_a_shell_in_vacuum(radius_nm):
    labels = np.asarray(phantoms.nanowire(radius_nm))
    y, x = np.mgrid[:20, :20] - 9.5
    distance_nm = np.hypot(y, x)
    expected = np.where(distance_nm < radius_nm, COPPER, np.where(distance_nm < 10, SILICON, VACUUM))
    np.testing.assert_array_equal(labels, np.repeat(expected[..., None], 20, axis=2))
    assert (SILICON in labels) == (radius_nm < 10)


def test_lying_nanowires_are_the_upright_one_turned():
    upright = np.asarray(phantoms.nanowire(4.0))
    np.testing.assert_array_equal(phantoms.nanowire(4.0, "x"), upright.transpose(0, 2, 1))
    np.testing.assert_array_equal(phantoms.nanowire(4.0, "y"), upright.transpose(2, 1, 0))


def test_wrong_test_structures_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="position must be 1 to 4; got 5"):
        phantoms.nanocube(5)
    with pytest.raises(ValueError, match="axis must be .* got 'w'"):
        phantoms.nanowire(4, "w")
    with pytest.raises(ValueError, match="radius_nm must be 0 to 10"):
        phantoms.nanowire(11)


def test_same_key_same_specimen_alone_or_in_a_batch(drawn):
    labels, family = drawn
    alone, alone_family = jax.jit(phantoms.random_specimen_with_family)(
        jax.random.split(jax.random.key(0), 2000)[43]
    )
    np.testing.assert_array_equal(alone, labels[43])
    assert alone_family == family[43]


def test_specimens_hardly_ever_repeat(drawn):
    distinct = {specimen.tobytes() for specimen in drawn[0]}
    assert len(distinct) >= 1998


def test_labels_are_vacuum_silicon_or_copper_and_vacuum_only_around_wires(drawn):
    labels, family = drawn
    assert labels.dtype == np.uint8 and labels.shape == (2000, 20, 20, 20)
    assert set(np.unique(labels)) == {VACUUM, SILICON, COPPER}
    with_vacuum = {FAMILIES[f].name for f in family[(labels == VACUUM).any((1, 2, 3))]}
    assert with_vacuum == {"core-shell wire"}


def test_copper_fraction_stays_within_its_limits_and_averages_eight_percent(drawn):
    fraction = (drawn[0] == COPPER).mean((1, 2, 3))
    lowest, highest = phantoms.CU_FRACTION
    assert lowest <= fraction.min() and fraction.max() <= highest
    assert 0.06 < fraction.mean() < 0.10
    assert np.mean(fraction < 0.03) > 0.1 and np.mean(fraction > 0.15) > 0.05


def test_families_occur_with_their_weights(drawn):
    weights = np.array([family.weight for family in FAMILIES])
    expected = 2000 * weights / weights.sum()
    counts = np.bincount(drawn[1], minlength=len(FAMILIES))
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))
    assert np.isclose(weights.sum(), 1)


def test_copper_lies_at_every_depth_about_equally_often(drawn):
    copper = drawn[0] == COPPER
    per_depth = copper.mean((0, 1, 2))
    assert per_depth.min() > 0.7 * per_depth.mean() and per_depth.max() < 1.3 * per_depth.mean()
    assert 0.2 < copper[..., 0].any((1, 2)).mean() < 0.8
    assert 0.2 < copper[..., -1].any((1, 2)).mean() < 0.8


def test_every_family_varies_in_every_direction(drawn):
    labels, family = drawn
    for index, member in enumerate(FAMILIES):
        extent = (labels[family == index] == COPPER).any(0)
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            assert extent.any(others).mean() > 0.85, (member.name, axis)


def test_shells_are_hollow(drawn):
    labels, family = drawn
    shells = labels[family == [f.name for f in FAMILIES].index("shell")] == COPPER
    begun = np.maximum.accumulate(shells, axis=1)
    ends_later = np.maximum.accumulate(shells[:, ::-1], axis=1)[:, ::-1]
    hollow = (begun & ends_later & ~shells).any((1, 2, 3))
    assert hollow.mean() > 0.3  # the others are cut open by the box, or have no room inside


def test_fallback_is_within_the_limits():
    fraction = np.mean(np.asarray(phantoms._middle_box(phantoms.SHAPE)) == COPPER)
    assert phantoms.CU_FRACTION[0] < fraction < phantoms.CU_FRACTION[1]
