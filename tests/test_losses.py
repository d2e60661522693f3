"""The losses against hand-computed values, their decision thresholds and their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
