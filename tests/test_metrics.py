"""The metrics against a hand-counted specimen, and their conventions for empty and padded ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from bsevox_jax import losses, metrics

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


DOSE = 100


def drawn_counts(shape):
    """Log-odds, excess, and counts that have them: some primaries are counted with an electron they freed."""
    rng = np.random.default_rng(0)
    share, pairs = rng.uniform(0.05, 0.3, shape), rng.uniform(0, 0.3, shape)
    primaries = rng.binomial(DOSE, share)
    yields = share * (1 + pairs)
    excess = (share * (1 + 3 * pairs) - yields**2) / (yields * (1 - yields)) - 1
    return np.log(yields / (1 - yields)), excess, primaries + rng.binomial(primaries, pairs)


def test_chi2_of_counts_drawn_from_the_model_is_one_and_the_binomial_one_their_excess():
    log_odds, excess, counted = drawn_counts((6, 40, 40, 3))
    valid = jnp.ones(counted.shape[:3], bool)
    report = metrics.summarise_counts(metrics.count_sums(log_odds, excess, counted, DOSE, valid))
    squares = np.asarray(losses.pearson(log_odds, counted, DOSE))
    for name, terms, expected in (
        ("chi2_per_dof", squares / (1 + excess), 1.0),
        ("binomial_chi2_per_dof", squares, 1 + excess.mean()),
    ):
        error = terms.std() / np.sqrt(terms.size)
        assert abs(report[name] - expected) < 4 * error < 0.05, name
    error = (squares / (1 + excess)).std() / np.sqrt(counted.size / 3)
    assert report["chi2_per_dof"] <= report["chi2_per_dof_worst"] < 1 + 5 * error


def test_counts_have_their_hand_counted_figures():
    log_odds = np.log(np.array([0.2, 0.5]) / np.array([0.8, 0.5])) * np.ones((1, 1, 2, 2))
    counted = np.array([[24, 50], [20, 60]]).reshape(1, 1, 2, 2)
    excess = np.array([1.0, 3.0]) * np.ones((1, 1, 2, 2))
    report = metrics.summarise_counts(
        metrics.count_sums(log_odds, excess, counted, DOSE, jnp.ones((1, 1, 2), bool))
    )
    deviance = [2 * sum(c * np.log(c / (DOSE * p)) for c, p in ((k, q), (DOSE - k, 1 - q)))
                for k, q in ((24, 0.2), (60, 0.5))]  # fmt: skip
    expected = {
        "binomial_chi2_per_dof": (1 + 0 + 0 + 4) / 4,
        "chi2_per_dof": (1 / 2 + 4 / 4) / 4,
        "chi2_per_dof_worst": 4 / 4 / 2,
        "deviance_per_dof": sum(deviance) / 4,
    }
    assert report == pytest.approx(expected, abs=1e-4)


def test_masked_specimens_and_pixels_do_not_change_the_figures_of_counts():
    log_odds, excess, counted = drawn_counts((3, 5, 4, 3))
    valid = np.ones((3, 5, 4), bool)
    valid[0, :2] = False
    sums = metrics.count_sums(log_odds, excess, counted, DOSE, valid)
    masked = metrics.summarise_counts(sums, mask=np.array([1, 0, 1]))
    counted = np.where(valid[..., None], counted, 99)
    counted[1] = 0
    again = metrics.count_sums(log_odds, excess, counted, DOSE, valid)
    assert metrics.summarise_counts(again, mask=np.array([1, 0, 1])) == masked
    kept = [np.concatenate([a[0, 2:], a[2]])[None] for a in (log_odds, excess, counted)]
    alone = metrics.summarise_counts(metrics.count_sums(*kept, DOSE, np.ones((1, 8, 4), bool)))
    assert masked == pytest.approx(alone, rel=1e-5)


def test_sums_of_counts_of_two_batches_concatenate():
    arguments = drawn_counts((4, 5, 4, 3))
    whole = metrics.count_sums(*arguments, DOSE, np.ones((4, 5, 4), bool))
    parts = [metrics.count_sums(*(a[k : k + 2] for a in arguments), DOSE, np.ones((2, 5, 4), bool))
             for k in (0, 2)]  # fmt: skip
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    assert metrics.summarise_counts(joined) == pytest.approx(metrics.summarise_counts(whole), rel=1e-6)


def test_agreement_finds_the_error_of_a_model_behind_the_noise():
    """Of yields that are off by 5 % everywhere, as the model says; and by nothing at the last energy."""
    log_odds, excess, _ = drawn_counts((4, 40, 40, 3))
    rng, dose = np.random.default_rng(1), np.array([1000, 500, 400])
    true = 1 / (1 + np.exp(-log_odds))
    off = np.array([0.05, 0.05, 0])
    yields = true * (1 + off * rng.normal(size=true.shape))
    found = true + np.sqrt(true * (1 - true) * (1 + excess) / dose) * rng.normal(size=true.shape)
    seen = np.ones(true.shape[:3], bool)
    seen[0] = False
    found[0] = 7
    report = metrics.agreement(yields, excess, yields * off, found, dose, seen)
    assert report["pixels"] == 3 * 40 * 40
    chi2_error = np.sqrt(2 / report["pixels"])
    np.testing.assert_allclose(report["chi2_per_dof_with_errors"], 1, atol=5 * chi2_error)
    np.testing.assert_allclose(report["chi2_per_dof"][2], 1, atol=5 * chi2_error)
    assert (report["chi2_per_dof"][:2] > 1 + 5 * chi2_error).all()
    np.testing.assert_allclose(report["within_one"], 0.683, atol=0.03)
    np.testing.assert_allclose(report["within_two"], 0.954, atol=0.015)
    np.testing.assert_allclose(report["rms_error_percent"][:2], 5, atol=0.5)
    np.testing.assert_allclose(report["predicted_rms_error_percent"], 100 * off, rtol=0.02, atol=1e-6)
    assert report["rms_error_percent"][2] < 3 * report["rms_error_resolved_percent"][2]
    np.testing.assert_allclose(report["mean_error_percent"], 0, atol=0.5)
