"""The walk through the specimens of a family, and the volume that is best for given probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bound
from bsevox_jax.sim import phantoms
from tfds_bse import sets


def test_best_volume_has_the_greatest_ratio_of_expected_intersection_and_union_of_all_thresholds():
    p = np.random.default_rng(0).beta(0.3, 1.0, (4, 5, 6))

    def score(found):
        inside = p[found].sum()
        return inside / (found.sum() + p.sum() - inside)

    assert score(bound.best_volume(p)) == pytest.approx(max(score(p >= level) for level in p.ravel()))
    certain = (p > 0.5).astype(float)
    np.testing.assert_array_equal(bound.best_volume(certain), certain > 0)


@pytest.mark.slow
def test_numbers_of_a_test_specimen_make_it():
    config = sets.find("standard-test")
    for index in (0, 7):
        u, family = bound.numbers_of(config, index)
        (labels,), (drawn,) = sets.draw(config, "test", range(index, index + 1))
        assert family == drawn
        np.testing.assert_array_equal(phantoms.specimen_of(u, family), labels)


@pytest.mark.slow
def test_moves_are_symmetric_and_stay_between_0_and_1():
    """Uniform numbers stay uniform, so that a walk without images draws from the prior."""
    keys = jax.random.split(jax.random.key(0), 4000)
    mask = jnp.zeros((phantoms.MAX_BODIES, 9), bool).at[0].set(True)
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), mask.shape))(keys)
    moved = np.asarray(jax.vmap(bound.moved, (0, 0, None))(keys, u, mask))
    assert (moved[:, 1:] == u[:, 1:]).all() and (moved >= 0).all() and (moved <= 1).all()
    found = np.histogram(moved[:, 0], 10, (0, 1))[0]
    expected = found.sum() / 10
    assert ((found - expected) ** 2 / expected).sum() < 27.9, "chi^2 of 9 degrees of freedom, 1 in 1000"
    assert 1 < (moved[:, 0] != u[:, 0]).sum(-1).mean() < 2
