"""How well a predicted Cu volume agrees with the true one.

`sample_sums` counts per specimen on the device; `summarise` turns the counts of any number of specimens,
concatenated from batches, devices and processes, into the reported numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np


def cu_probability(logits):
    """The probability of Cu `[b, y, x, z]` from logits `[b, y, x, z, 2]`; above 1/2 exactly where Cu wins."""
    return jax.nn.sigmoid(logits[..., 1] - logits[..., 0])


def sample_sums(probability, labels, threshold: float = 0.5) -> dict[str, jax.Array]:
    """Counts of every specimen, each `[b]`.

    Args:
      probability: of Cu, `[b, y, x, z]`.
      labels: `[b, y, x, z]`, 1 or True where Cu.
      threshold: Cu is predicted above it. 1/2 is the argmax; 1 - lambda takes back the bias that the class
        weights (lambda, 1 - lambda) of the loss put on the odds.

    Returns:
      `intersection` and `union` of true and predicted Cu, `cu` true Cu voxels, `absolute_error` the sum of
      |p - y|, `voxels` their number.
    """
    cu, predicted, axes = labels > 0, probability > threshold, (1, 2, 3)
    return {
        "intersection": (cu & predicted).sum(axes),
        "union": (cu | predicted).sum(axes),
        "cu": cu.sum(axes),
        "absolute_error": jnp.abs(probability - cu).sum(axes),
        "voxels": jnp.full(cu.shape[0], cu[0].size),
    }


def summarise(sums, mask=None) -> dict[str, float]:
    """The reported numbers of a set of specimens.

    `iou_cu_mean` is the mean over specimens of Cu's intersection over union (1 if both are empty),
    `iou_cu_pooled` that of the pooled voxels, `miou_2class` the mean over specimens and both classes. `mre`
    is the mean over specimens of the Frobenius norm of the difference of the one-hot volumes over that of the
    true one, sqrt(2 wrong / voxels). The paper does not define its mean relative error; this definition is
    ours and fits its numbers. Relative to the true Cu of specimens that have any: `mre_l1_cu` wrong voxels,
    `mre_l1_cu_soft` the same with probabilities, `mre_l2_cu` the square root of the first.

    Args:
      sums: what `sample_sums` returned, each `[n]`.
      mask: `[n]`, zero or False for padded specimens.

    Raises:
      ValueError: no specimen is left.
    """
    keep = np.full(len(sums["cu"]), True) if mask is None else np.asarray(mask) > 0
    if not keep.any():
        raise ValueError(f"metrics need at least one specimen; got 0 of {keep.size}. Check split and mask.")
    s = {name: np.asarray(value, np.float64)[keep] for name, value in sums.items()}
    wrong = s["union"] - s["intersection"]
    iou_cu = _iou(s["intersection"], s["union"])
    iou_other = _iou(s["voxels"] - s["union"], s["voxels"] - s["intersection"])
    relative = {name: value[s["cu"] > 0] / s["cu"][s["cu"] > 0]
                for name, value in (("hard", wrong), ("soft", s["absolute_error"]))}  # fmt: skip
    return {
        "iou_cu_mean": float(iou_cu.mean()),
        "iou_cu_pooled": float(_iou(s["intersection"].sum(), s["union"].sum())),
        "miou_2class": float((iou_cu + iou_other).mean() / 2),
        "mre": float(np.sqrt(2 * wrong / s["voxels"]).mean()),
        "mre_l1_cu": _mean(relative["hard"]),
        "mre_l1_cu_soft": _mean(relative["soft"]),
        "mre_l2_cu": _mean(np.sqrt(relative["hard"])),
    }


def _iou(intersection, union):
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def _mean(values):
    return float(values.mean()) if values.size else float("nan")
