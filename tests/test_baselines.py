import jax
import numpy as np
import pytest

from bsevox_jax import baselines, data
from bsevox_jax.examples import Examples

DOSE, ENERGIES_KEV = 1000, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
N, FIELD, DEPTH = 60, 6, 4


def boxes(seed=0):
    """Labels of boxes of Cu (2) in Si (1)."""
    rng = np.random.default_rng(seed)
    labels = np.ones((N, FIELD, FIELD, DEPTH), np.uint8)
    for volume in labels:
        (y, x), z = rng.integers(0, FIELD - 2, 2), rng.integers(0, DEPTH - 1)
        volume[y : y + 2, x : x + 3, z : z + 2] = 2
    return labels


def seen(labels):
    """Counts without noise: every energy sees the depths of its column in another proportion."""
    weights = np.random.default_rng(1).uniform(0.02, 0.1, (len(ENERGIES_KEV), DEPTH))
    weights[2:] = 0.05  # high energies see all depths alike
    return np.round(DOSE * (0.1 + (labels == 2) @ weights.T)).astype(np.int32)


@pytest.fixture(scope="module")
def pairs():
    labels = boxes()
    return Examples(seen(labels), labels, DOSE, ENERGIES_KEV, "boxes")


def turned(fields, k):
    return np.asarray(jax.vmap(data.transform, (0, None))(fields, k))


def test_mean_volume_has_the_mean_and_all_symmetries(pairs):
    found = baselines.mean_volume(pairs)(pairs.counts[:2])
    assert found.shape == (2, FIELD, FIELD, DEPTH)
    for one in found:
        np.testing.assert_allclose(one.mean((0, 1)), (pairs.labels == 2).mean((0, 1, 2)), rtol=1e-5)
    for k in range(8):
        np.testing.assert_allclose(turned(found, k), found, atol=1e-6)


def test_extruded_mask_is_that_of_the_copper_below(pairs):
    labels = boxes(seed=2)
    found = baselines.extrusion(pairs)(seen(labels))
    assert (found == found[..., :1]).all()
    np.testing.assert_array_equal(found[..., 0] > 0.5, (labels == 2).any(-1))


def test_linear_decoder_undoes_a_linear_projection():
    """Four energies that weigh the four depths independently, and no noise."""
    weights = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0][:, :DEPTH]
    labels, dose = boxes(), 10**7
    counts = np.round(dose * (0.5 + 0.1 * (labels == 2) @ weights.T)).astype(np.int64)
    pairs = Examples(counts, labels, dose, ENERGIES_KEV, "boxes")
    found = baselines.linear_decoder(pairs, ridge=1e-9)(counts)
    np.testing.assert_allclose(found, labels == 2, atol=1e-3)


def test_nearest_neighbour_finds_a_training_specimen_in_any_attitude(pairs):
    reconstruct = baselines.nearest_neighbour(pairs)
    for k in range(8):
        found = reconstruct(turned(pairs.counts[:5], k))
        again = seen(found + 1)  # equal images may belong to several specimens
        np.testing.assert_array_equal(again, turned(pairs.counts[:5], k))


def test_trees_learn_what_one_column_tells():
    """Copper down to the depth that the first energy tells, the others are noise."""
    rng = np.random.default_rng(4)
    counts = rng.integers(0, 100, (40, FIELD, FIELD, len(ENERGIES_KEV)))
    labels = 1 + (counts[..., :1] // 20 > np.arange(DEPTH)).astype(np.uint8)
    pairs = Examples(counts, labels, DOSE, ENERGIES_KEV, "columns")
    found = baselines.boosted_trees(pairs, voxels=4000, trees=30, seed=0)(counts[:3])
    assert ((found > 0.5) == (labels[:3] == 2)).mean() > 0.98
