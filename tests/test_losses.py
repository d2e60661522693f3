"""The losses against hand-computed values, their decision thresholds and their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from bsevox_jax import losses

LAM = 1 / 12
LABELS = jnp.array([1, 0, 0, 1]).reshape(1, 1, 1, 4)


def logits_of(probability):
    """Symmetric logits, z_Si = -z_Cu, whose softmax gives Cu `probability`."""
    half = 0.5 * jnp.log(probability / (1 - probability))
    return jnp.stack([-half, half], axis=-1)


GOLDEN = logits_of(jnp.array([0.9, 0.2, 0.6, 0.4]).reshape(1, 1, 1, 4))


@functools.partial(jax.jit, static_argnames=("mode", "normalise"))
def cross_entropy(logits, labels, mode, normalise="n", **more):
    return losses.weighted_cross_entropy(logits, labels, mode=mode, lam=LAM, normalise=normalise, **more)


@functools.partial(jax.jit, static_argnames=("kind", "classes", "per_sample"))
def lovasz(logits, labels, kind="softmax", classes="cu", per_sample=False, **more):
    return losses.lovasz(logits, labels, kind=kind, classes=classes, per_sample=per_sample, **more)


@pytest.fixture(scope="module")
def batch():
    """Four volumes, the last without Cu."""
    logits = jax.random.normal(jax.random.key(0), (4, 3, 3, 3, 2))
    labels = jax.random.bernoulli(jax.random.key(1), 0.3, (4, 3, 3, 3)).at[3].set(False)
    return logits, labels


@pytest.mark.parametrize(
    "mode, normalise, expected",
    [
        ("onehot_softmax", "n", 0.540271),
        ("onehot_sigmoid", "n", None),
        ("class_weighted", "n", 0.257867),
        ("class_weighted", "weight_sum", 0.515733),
        ("literal_sigmoid", "n", 0.282405),
    ],
)
def test_cross_entropies_have_their_golden_values(mode, normalise, expected):
    if expected is None:  # z_Cu = logit(p), z_Si = -z_Cu: the two sigmoids are the softmax
        np.testing.assert_allclose(cross_entropy(2 * GOLDEN, LABELS, mode), 0.540271, atol=1e-6)
    else:
        np.testing.assert_allclose(cross_entropy(GOLDEN, LABELS, mode, normalise), expected, atol=1e-6)


@pytest.mark.parametrize(
    "mode, posterior",
    [
        ("class_weighted", LAM),
        ("onehot_softmax", 0.5),
        ("onehot_sigmoid", 0.5),
        ("literal_sigmoid", 1 - LAM),
    ],
)
def test_cross_entropy_predicts_cu_above_its_threshold(mode, posterior):
    def expected_loss(z, p):
        cu, si = (cross_entropy(z.reshape(1, 1, 1, 1, 2), jnp.full((1, 1, 1, 1), y), mode) for y in (1, 0))
        return p * cu + (1 - p) * si

    def best_logits(p):
        return jax.lax.fori_loop(0, 200, lambda _, z: z - jax.grad(expected_loss)(z, p), jnp.zeros(2))

    below, above = jax.jit(jax.vmap(best_logits))(posterior + jnp.array([-0.03, 0.03]))
    assert below[1] < below[0] and above[1] > above[0]


@pytest.mark.parametrize(
    "kind, classes, expected",
    [("softmax", "cu", 0.441667), ("softmax", "present", 0.454167), ("hinge", "cu", 0.936977)],
)
def test_lovasz_has_its_golden_values(kind, classes, expected):
    np.testing.assert_allclose(lovasz(GOLDEN, LABELS, kind, classes), expected, atol=1e-6)


def test_lovasz_gradient_is_the_published_weights():
    probability = jnp.array([0.9, 0.2, 0.6, 0.4]).reshape(1, 1, 1, 4)
    slope = jax.jit(jax.grad(lambda p: lovasz(logits_of(p), LABELS)))(probability)
    np.testing.assert_allclose(slope.ravel(), [-1 / 4, 1 / 12, 1 / 3, -1 / 3], atol=1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
def test_lovasz_of_a_hard_prediction_is_one_minus_iou(batch, per_sample):
    logits, labels = batch
    predicted = logits[..., 1] > logits[..., 0]
    hard = 100.0 * jnp.stack([~predicted, predicted], axis=-1)
    axes = (1, 2, 3) if per_sample else None
    iou = (predicted & labels).sum(axes) / (predicted | labels).sum(axes)
    expected = 1 - (iou[:3].mean() if per_sample else iou)
    np.testing.assert_allclose(lovasz(hard, labels, per_sample=per_sample), expected, atol=1e-6)


def test_lovasz_of_two_classes_is_the_mean_of_each(batch):
    logits, labels = batch
    cu, si = lovasz(logits, labels), lovasz(logits[..., ::-1], ~labels)
    np.testing.assert_allclose(lovasz(logits, labels, classes="present"), (cu + si) / 2, atol=1e-6)


def test_cross_entropy_beside_the_lovasz_loss_is_the_plain_one_by_its_weight(batch):
    logits, labels = batch
    kind = dict(kind="softmax", classes="cu", per_sample=True)
    plain = losses.weighted_cross_entropy(
        logits, labels, mode="onehot_softmax", lam=0.3, normalise="weight_sum"
    )
    both = losses.lovasz(logits, labels, cross_entropy=2.0, **kind)
    np.testing.assert_allclose(both, losses.lovasz(logits, labels, **kind) + 2 * plain, rtol=1e-6)


def test_lovasz_skips_what_is_absent(batch):
    logits, labels = (part[3:] for part in batch)
    si = lovasz(logits[..., ::-1], ~labels)
    np.testing.assert_allclose(lovasz(logits, labels, classes="present"), si, atol=1e-6)
    assert lovasz(logits, labels, per_sample=True) == 0


LOSSES = {
    "class_weighted": lambda *a, **k: cross_entropy(*a, "class_weighted", "weight_sum", **k),
    "onehot_sigmoid": lambda *a, **k: cross_entropy(*a, "onehot_sigmoid", **k),
    "lovasz_cu": lambda *a, **k: lovasz(*a, per_sample=True, **k),
    "lovasz_pooled": lambda *a, **k: lovasz(*a, classes="present", **k),
    "lovasz_hinge": lambda *a, **k: lovasz(*a, kind="hinge", **k),
}


@pytest.mark.parametrize("name", LOSSES)
def test_masked_specimens_do_not_count(batch, name):
    logits, labels = batch
    mask = jnp.array([1, 1, 0, 0])
    value, slope = jax.jit(jax.value_and_grad(lambda z: LOSSES[name](z, labels, mask=mask)))(logits)
    np.testing.assert_allclose(value, LOSSES[name](logits[:2], labels[:2]), rtol=1e-5)
    assert np.all(slope[2:] == 0) and np.any(slope[:2] != 0)


def test_large_logits_stay_finite(batch):
    _, labels = batch
    logits = jnp.stack([jnp.where(labels, 1e4, -1e4), jnp.where(labels, -1e4, 1e4)], axis=-1)
    for loss in LOSSES.values():
        value, slope = jax.jit(jax.value_and_grad(lambda z, f=loss: f(z, labels)))(logits)
        assert np.isfinite(value) and np.isfinite(slope).all()


def test_unknown_options_are_named():
    for call, message in (
        (lambda: cross_entropy(GOLDEN, LABELS, "focal"), "got 'focal'"),
        (lambda: cross_entropy(GOLDEN, LABELS, "class_weighted", "mean"), "got 'mean'"),
        (lambda: lovasz(GOLDEN, LABELS, "square"), "got 'square' and 'cu'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


DOSE = 100


def logit(share):
    return np.log(share / (1 - share))


def freed_counts(rng, shape, share, pairs):
    """Counts of `DOSE` primaries, each counted with a chance, some together with an electron they freed.

    Returns:
        Counts of a shape, and the mean and excess variance they have.
    """
    primaries = rng.binomial(DOSE, share, shape)
    mean = share * (1 + pairs)
    excess = (share * (1 + 3 * pairs) - mean**2) / (mean * (1 - mean)) - 1
    return primaries + rng.binomial(primaries, pairs), mean, excess


def test_deviance_is_twice_the_log_likelihood_ratio_to_the_observed_share():
    counted, share = np.arange(DOSE + 1)[:, None], np.array([0.02, 0.3, 0.9])
    binomial = scipy.stats.binom(DOSE, counted / DOSE).logpmf(counted)
    expected = 2 * (binomial - scipy.stats.binom(DOSE, share).logpmf(counted))
    found = losses.deviance(logit(share), counted.astype(np.float32), DOSE)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-5)


def test_deviance_is_least_at_the_observed_share_and_zero_there():
    counted = np.arange(1, DOSE, dtype=np.float32)
    best = logit(counted / DOSE)
    at_best, slope = deviance_and_slope(best, counted)
    np.testing.assert_allclose(at_best, 0, atol=2e-4)
    np.testing.assert_allclose(slope, 0, atol=1e-4)
    for step in (-0.2, 0.2):
        assert (deviance_and_slope(best + step, counted)[0] > at_best + 0.01).all()
    none_and_all, _ = deviance_and_slope(np.array([-30.0, 30.0]), np.array([0.0, DOSE]))
    np.testing.assert_allclose(none_and_all, 0, atol=1e-6)


def test_squared_residuals_are_those_of_binomial_counts():
    np.testing.assert_allclose(
        losses.pearson(logit(0.2), jnp.array([20.0, 24.0, 12.0]), DOSE), [0, 1, 4], atol=1e-4
    )


def test_fit_to_overdispersed_counts_finds_their_mean_and_excess():
    counted, mean, excess = freed_counts(np.random.default_rng(0), (1, 150, 200, 1), 0.15, 0.2)
    squares = (counted - DOSE * mean) ** 2 / (DOSE * mean * (1 - mean))
    start = jnp.array([0.0, 0.0])
    optimiser = optax.adam(optax.cosine_decay_schedule(0.1, 300), b2=0.9)

    def loss(fitted):
        shape = counted.shape
        guess = jnp.broadcast_to(fitted[0], shape), jnp.broadcast_to(jax.nn.softplus(fitted[1]), shape)
        return losses.counts(*guess, jnp.asarray(counted), DOSE, jnp.ones(shape[:3], bool))

    def descend(_, state):
        fitted, optimiser_state = state
        updates, optimiser_state = optimiser.update(jax.grad(loss)(fitted), optimiser_state)
        return optax.apply_updates(fitted, updates), optimiser_state

    fit = jax.jit(lambda fitted: jax.lax.fori_loop(0, 300, descend, (fitted, optimiser.init(fitted)))[0])
    log_odds, raw = fit(start)
    root = np.sqrt(counted.size)
    assert abs(jax.nn.sigmoid(log_odds) - mean) < 4 * counted.std() / DOSE / root
    error = squares.std() / root
    assert abs(jax.nn.softplus(raw) - excess) < 4 * error < excess, "binomial counts must lie outside"


@jax.jit
def deviance_and_slope(log_odds, counted):
    value, pullback = jax.vjp(lambda z: losses.deviance(z, counted, DOSE), log_odds)
    return value, *pullback(jnp.ones_like(value))


@jax.jit
def loss_and_slope(log_odds, counted):
    """Of the counts of one row of pixels and one energy."""
    valid, shape = jnp.ones((1, 1, len(counted)), bool), (1, 1, len(counted), 1)

    def loss(z):
        return losses.counts(z.reshape(shape), jnp.full(shape, 0.1), counted.reshape(shape), DOSE, valid)

    return jax.value_and_grad(loss)(jnp.broadcast_to(log_odds, counted.shape))


ANY_COUNTS = np.array([0, 7, DOSE, DOSE + 5, 3 * DOSE], np.float32)


@pytest.mark.parametrize("log_odds", [-3.0, 0.0, 3.0])
def test_counts_above_the_dose_stay_finite_and_pull_the_mean_like_any_other(log_odds):
    value, slope = deviance_and_slope(np.full(5, log_odds, np.float32), ANY_COUNTS)
    expected = 2 * (DOSE / (1 + np.exp(-log_odds)) - ANY_COUNTS)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-3)
    assert np.isfinite(value).all() and np.isfinite(loss_and_slope(log_odds, ANY_COUNTS)[0])


@pytest.mark.parametrize("log_odds", [-1e4, -95.0, 95.0, 1e4])
def test_counts_at_large_log_odds_stay_finite(log_odds):
    loss, slope = loss_and_slope(log_odds, ANY_COUNTS)
    assert np.isfinite(loss) and np.isfinite(slope).all()


def test_counts_of_masked_pixels_do_not_count():
    rng = np.random.default_rng(1)
    outputs = rng.normal(-2, 0.5, (2, 3, 4, 5, 6)).astype(np.float32)
    counted = rng.binomial(DOSE, 0.1, (3, 4, 5, 6))
    valid = rng.random((3, 4, 5)) < 0.6
    valid[2] = False  # a padded row; the others are empty columns

    @jax.jit
    @jax.value_and_grad
    def loss(outputs, counted, valid):
        return losses.counts(outputs[0], jax.nn.softplus(outputs[1]), counted, DOSE, valid)

    value, slope = (np.asarray(part) for part in loss(outputs, counted, valid))
    same, _ = loss(outputs, np.where(valid[..., None], counted, 77), valid)
    kept = outputs[:, valid][:, None, None], counted[valid][None, None]
    alone, _ = loss(*kept, np.ones((1, 1, valid.sum()), bool))
    assert value == same
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    assert (slope[:, ~valid] == 0).all() and (slope[:, valid] != 0).all()
