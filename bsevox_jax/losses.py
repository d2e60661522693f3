"""Losses on the logits: weighted cross-entropy, and the Lovasz extension of the intersection over union.

`counts` is the loss of the image model and has arguments of its own. All others take logits `[b, y, x, z,
2]` (class 1 is Cu), labels `[b, y, x, z]` (1 or True where Cu) and return a scalar over the batch they are
given. `mask` `[b]` takes padded samples out.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import xlogy

VARIANCE_WEIGHT = 0.02  # of the term that teaches the variance, beside the one that teaches the mean
LARGEST_SQUARE = 50.0  # residual in standard deviations, squared; one rare count must not set a variance


def weighted_cross_entropy(logits, labels, *, mode: str, lam: float, normalise: str, mask=None):
    """The four readings of the paper's Eq. (1), -[lam y log h + (1 - lam) (1 - y) log(1 - h)].

    Args:
      logits, labels, mask: see the module.
      mode: `class_weighted` weighs the softmax cross-entropy by 1 - lam on Cu and lam elsewhere, which
        balances the classes at a Cu fraction of lam; `literal_sigmoid` is the equation as printed with y = 1
        for Cu, lam on Cu; `onehot_softmax` sums it over both softmax channels, where lam cancels;
        `onehot_sigmoid` over two independent sigmoids.
      lam: the paper's lambda, in (0, 1).
      normalise: `n` divides by the voxels, `weight_sum` by the sum of the applied weights.

    Raises:
      ValueError: unknown `mode` or `normalise`.
    """
    if normalise not in ("n", "weight_sum"):
        raise ValueError(f"normalise must be n or weight_sum; got {normalise!r}. Use weight_sum.")
    cu = labels.astype(jnp.float32)
    log_odds = logits[..., 1] - logits[..., 0]
    cross_entropy = jax.nn.softplus(jnp.where(cu > 0, -log_odds, log_odds))
    if mode == "class_weighted":
        weight = jnp.where(cu > 0, 1 - lam, lam)
    elif mode == "literal_sigmoid":
        weight = jnp.where(cu > 0, lam, 1 - lam)
    elif mode in ("onehot_softmax", "onehot_sigmoid"):
        weight = jnp.ones_like(cu)
    else:
        modes = "class_weighted, literal_sigmoid, onehot_softmax or onehot_sigmoid"
        raise ValueError(f"mode must be {modes}; got {mode!r}. Use class_weighted.")
    loss = weight * cross_entropy
    if mode == "onehot_sigmoid":
        target = jnp.stack([1 - cu, cu], axis=-1)
        positive, negative = jax.nn.softplus(-logits), jax.nn.softplus(logits)
        loss = (lam * target * positive + (1 - lam) * (1 - target) * negative).sum(-1)
    valid = _valid(mask, cu.shape)
    counted = weight * valid if normalise == "weight_sum" else valid
    return _ratio((loss * valid).sum(), counted.sum())


def lovasz(
    logits, labels, *, kind: str, classes: str, per_sample: bool, cross_entropy: float = 0.0, mask=None
):
    """Lovasz-Softmax or Lovasz hinge: equals 1 - IoU at hard predictions and has a gradient elsewhere.

    Source: Berman, Triki and Blaschko (2018), Algorithm 1 and Eqs. (8) to (11).

    Args:
      logits, labels, mask: see the module.
      kind: `softmax` takes errors |y - p|; `hinge` takes 1 - (2 y - 1) (z_Cu - z_Si), clipped at zero.
      classes: `present` averages over the classes that occur in the labels, `cu` is Cu alone. The hinge is
        a loss of Cu alone under both.
      per_sample: one loss per volume, averaged over the volumes in which a class of `classes` occurs;
        otherwise the voxels of the batch are pooled.
      cross_entropy: weight of the plain cross-entropy that is added. The Lovasz loss alone settles for a
        probability of one half all over where a body may be; the cross-entropy goes on looking for it.

    Raises:
      ValueError: unknown `kind` or `classes`.
    """
    if kind not in ("softmax", "hinge") or classes not in ("present", "cu"):
        raise ValueError(
            f"kind must be softmax or hinge and classes present or cu; got {kind!r} and {classes!r}. "
            "Use softmax and cu."
        )
    rows = labels.shape[0] if per_sample else 1
    log_odds = (logits[..., 1] - logits[..., 0]).reshape(rows, -1)
    cu = labels.astype(jnp.int32).reshape(rows, -1)
    valid = _valid(mask, labels.shape).reshape(rows, -1) > 0
    errors = jnp.abs(cu - jax.nn.sigmoid(log_odds)) if kind == "softmax" else 1 - (2 * cu - 1) * log_odds
    both = kind == "softmax" and classes == "present"
    weights, present = _lovasz_weights(lax.stop_gradient(errors), jnp.where(valid, cu, 2), both)
    loss = jnp.where(valid, jax.nn.relu(errors) * weights, 0.0).sum(axis=1)
    loss = _ratio((loss * present).sum(), present.sum().astype(jnp.float32))
    if not cross_entropy:
        return loss
    return loss + cross_entropy * weighted_cross_entropy(
        logits, labels, mode="class_weighted", lam=0.5, normalise="weight_sum", mask=mask
    )


def counts(log_odds, excess, counted, electrons_per_pixel, valid):
    """Quasi-likelihood of counts: binomial deviance for the mean, and a gamma deviance for the variance.

    A primary may free several electrons that are counted, so counts scatter more than a binomial; its
    deviance still has the right mean. The variance is learnt from the squared residuals at the given mean.
    Source: Smyth (1989), Sec. 3, double generalised linear models.

    Args:
      log_odds: `[b, y, x, e]`, logarithm of yield / (1 - yield).
      excess: `[b, y, x, e]`, variance over that of a binomial, minus one.
      counted: `[b, y, x, e]`.
      electrons_per_pixel: the dose.
      valid: `[b, y, x]`, pixels that count.

    Returns:
      Mean over the valid pixels and all energies.
    """
    counted = counted.astype(jnp.float32)
    squared = jnp.minimum(lax.stop_gradient(pearson(log_odds, counted, electrons_per_pixel)), LARGEST_SQUARE)
    variance = squared / (1 + excess) + jnp.log1p(excess)
    loss = deviance(log_odds, counted, electrons_per_pixel) + VARIANCE_WEIGHT * variance
    return _ratio((loss * valid[..., None]).sum(), valid.sum() * loss.shape[-1])


def deviance(log_odds, counted, electrons_per_pixel):
    """Binomial deviance of every count, twice the log-likelihood ratio to the best possible yield."""
    n, c = electrons_per_pixel, counted
    share = jnp.minimum(c / n, 1)  # more electrons than primaries may be counted, rarely
    best = n * (xlogy(share, share) + xlogy(1 - share, 1 - share))
    return 2 * (best + n * jax.nn.softplus(log_odds) - c * log_odds)


def pearson(log_odds, counted, electrons_per_pixel):
    """Squared residual of every count in binomial standard deviations."""
    p, q = jax.nn.sigmoid(log_odds), jax.nn.sigmoid(-log_odds)
    variance = jnp.maximum(electrons_per_pixel * p * q, jnp.finfo(jnp.float32).tiny)  # or 0 / 0
    return (counted - electrons_per_pixel * p) ** 2 / variance


def _lovasz_weights(errors, labels, both_classes):
    """The weight of every error `[rows, n]`, constant for the gradient, and whether a row counts `[rows]`.

    Labels are 1 for Cu, 0 for not, 2 for voxels that do not exist, which are sorted last. With two classes
    the errors of both are the same numbers, so one sort serves both.
    """
    order = _descending(jnp.where(labels == 2, -1.0, jax.nn.relu(errors)))
    labels = jnp.take_along_axis(labels, order, axis=1)
    total, present = 0.0, 0.0
    for c in (1, 0) if both_classes else (1,):
        is_class = labels == c
        hits = jnp.cumsum(is_class, axis=1)
        count = hits[:, -1:]
        # Floats, since the product below would overflow; exact to 2^24 voxels.
        intersection = (count - hits).astype(jnp.float32)
        union = (count + 1 + jnp.arange(hits.shape[1]) - hits).astype(jnp.float32)
        # J_i - J_(i-1) in closed form, since the difference of two numbers near one loses its digits.
        other = intersection / (union * jnp.maximum(union - 1, 1))
        total = total + jnp.where(is_class, 1 / union, other) * (count > 0)
        present = present + (count[:, 0] > 0)
    weights = total / jnp.maximum(present, 1)[:, None]
    unsorted = jnp.put_along_axis(jnp.zeros_like(weights), order, weights, axis=1, inplace=False)
    return unsorted, present > 0


def _descending(values):
    """Indices that sort every row of values from -1 `[rows, n]`, the greatest first.

    Short rows are sorted as whole numbers, value above index, which on a CPU is eight times as fast as a
    sort with a payload. Values that differ by less than a millionth of the greatest may then change places;
    the loss is continuous, so it does not feel that.
    """
    bits = (values.shape[1] - 1).bit_length()
    if bits > 13:
        return jnp.argsort(-values, axis=1, stable=False)
    greatest = values.max(axis=1, keepdims=True)
    levels = 2 ** min(32 - bits, 23) - 1  # which float32 still counts one by one
    rank = ((greatest - values) * (levels / jnp.maximum(greatest + 1, 1))).astype(jnp.uint32)
    keys = (rank << bits) | jnp.arange(values.shape[1], dtype=jnp.uint32)
    return (jnp.sort(keys, axis=1) & (2**bits - 1)).astype(jnp.int32)


def _valid(mask, shape):
    mask = jnp.ones(shape[0]) if mask is None else mask.astype(jnp.float32)
    return jnp.broadcast_to(mask[:, None, None, None], shape)


def _ratio(numerator, denominator):
    return numerator / jnp.maximum(denominator, 1e-6)
