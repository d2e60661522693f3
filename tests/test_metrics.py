"""The metrics against a hand-counted specimen, and their conventions for empty and padded ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from bsevox_jax import metrics

# Two Cu voxels, one found; one wrong; eight voxels in all. Then a specimen without Cu, predicted so.
LABELS = jnp.zeros((2, 2, 2, 2), bool).at[0, 0].set(jnp.array([[True, True], [False, False]]))
PROBABILITY = jnp.full((2, 2, 2, 2), 0.1).at[0, 0].set(jnp.array([[0.9, 0.4], [0.8, 0.1]]))


def test_metrics_have_their_hand_counted_values():
    report = metrics.summarise(metrics.sample_sums(PROBABILITY, LABELS))
    error = 0.1 + 0.6 + 0.8 + 5 * 0.1
    expected = {
        "iou_cu_mean": (1 / 3 + 1) / 2,  # both empty counts as full agreement
        "iou_cu_pooled": 1 / 3,
        "miou_2class": (1 / 3 + 5 / 7 + 1 + 1) / 4,
        "mre": np.sqrt(2 * 2 / 8) / 2,
        "mre_l1_cu": 1.0,  # of the specimen that has Cu
        "mre_l1_cu_soft": error / 2,
        "mre_l2_cu": 1.0,
    }
    assert report == pytest.approx(expected, abs=1e-6)


def test_mre_is_the_relative_frobenius_norm_of_the_one_hot_volumes():
    truth, predicted = (
        np.stack([~cu, cu], -1).astype(float) for cu in np.array([LABELS[0], PROBABILITY[0] > 0.5])
    )
    norm = np.linalg.norm(predicted - truth) / np.linalg.norm(truth)
    report = metrics.summarise(metrics.sample_sums(PROBABILITY[:1], LABELS[:1]))
    assert report["mre"] == pytest.approx(norm)


def test_padded_specimens_do_not_count():
    sums = metrics.sample_sums(PROBABILITY, LABELS)
    alone = metrics.summarise(metrics.sample_sums(PROBABILITY[:1], LABELS[:1]))
    assert metrics.summarise(sums, mask=np.array([1, 0])) == pytest.approx(alone)
    with pytest.raises(ValueError, match="at least one specimen; got 0 of 2"):
        metrics.summarise(sums, mask=np.zeros(2))


def test_sums_of_two_batches_concatenate():
    whole = metrics.sample_sums(PROBABILITY, LABELS)
    parts = [metrics.sample_sums(PROBABILITY[k : k + 1], LABELS[k : k + 1]) for k in range(2)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    assert metrics.summarise(joined) == pytest.approx(metrics.summarise(whole))


def test_no_cu_anywhere_leaves_the_relative_errors_undefined():
    report = metrics.summarise(metrics.sample_sums(PROBABILITY[1:], LABELS[1:]))
    assert report["iou_cu_mean"] == 1 and np.isnan(report["mre_l1_cu"])


def test_threshold_takes_back_the_bias_of_the_class_weights():
    lam = 1 / 12
    logits = jnp.stack([jnp.zeros((1, 2, 2, 2)), jnp.linspace(-4, 4, 8).reshape(1, 2, 2, 2)], axis=-1)
    unbiased = logits[..., 1] - np.log((1 - lam) / lam) > logits[..., 0]
    sums = metrics.sample_sums(metrics.cu_probability(logits), unbiased, threshold=1 - lam)
    assert sums["intersection"] == sums["union"] == unbiased.sum() > 0


def test_a_tie_is_not_cu():
    assert metrics.sample_sums(metrics.cu_probability(jnp.zeros((1, 2, 2, 2, 2))), LABELS[1:])["union"] == 0
