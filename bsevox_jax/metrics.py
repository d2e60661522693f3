"""How well a predicted Cu volume agrees with the true one, and predicted images with counts.

`sample_sums` counts per specimen on the device; `summarise` turns the counts of any number of specimens,
concatenated from batches, devices and processes, into the reported numbers. `count_sums` and
`summarise_counts` do the same for images.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bsevox_jax import losses


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


def iou_by_depth(probability, labels, threshold: float = 0.5) -> np.ndarray:
    """Intersection over union of Cu in every plane, pooled over the specimens, `[z]`; arguments as above."""
    predicted, cu, axes = np.asarray(probability) > threshold, np.asarray(labels) > 0, (0, 1, 2)
    return _iou((predicted & cu).sum(axes), (predicted | cu).sum(axes))


def count_sums(log_odds, excess, counted, electrons_per_pixel, valid) -> dict[str, jax.Array]:
    """Sums over the valid pixels of every specimen; arguments as of `losses.counts`.

    Returns:
      `deviance` and `binomial_chi2`, both relative to binomial counts, and `chi2`, relative to the predicted
      variance, each `[b, e]`; `pixels` `[b]`.
    """
    counted, seen = counted.astype(jnp.float32), valid[..., None]
    squared = losses.pearson(log_odds, counted, electrons_per_pixel)
    deviance = losses.deviance(log_odds, counted, electrons_per_pixel)
    terms = {"deviance": deviance, "binomial_chi2": squared, "chi2": squared / (1 + excess)}
    return {name: (term * seen).sum((1, 2)) for name, term in terms.items()} | {"pixels": valid.sum((1, 2))}


def summarise_counts(sums, mask=None) -> dict[str, float]:
    """Means per degree of freedom, one per pixel and energy, and `chi2_per_dof` of the worst energy."""
    keep = np.full(len(sums["pixels"]), True) if mask is None else np.asarray(mask) > 0
    pixels = np.asarray(sums["pixels"], np.float64)[keep].sum()
    per_energy = {
        name: np.asarray(value, np.float64)[keep].sum(0) / pixels
        for name, value in sums.items()
        if name != "pixels"
    }
    means = {f"{name}_per_dof": float(value.mean()) for name, value in per_energy.items()}
    return means | {"chi2_per_dof_worst": float(per_energy["chi2"].max())}


def agreement(yields, excess, errors, found, electrons_per_pixel, seen) -> dict[str, np.ndarray | int]:
    """How predicted images agree with counts, per energy.

    Args:
      yields, excess, errors: of `forward.Expected`, `[n, y, x, e]`.
      found: counts over electrons per pixel, `[n, y, x, e]`.
      electrons_per_pixel: of all energies, or of every energy, `[e]`.
      seen: `[n, y, x]`, the pixels that count: those whose column holds matter.

    Returns:
      Each `[e]`: `chi2_per_dof` with the variance of the counts, `chi2_per_dof_with_errors` with that of the
      model as well, `binomial_chi2_per_dof`; `mean_error_percent` of all electrons together;
      `rms_error_percent` of a pixel, its noise subtracted, over the root mean square yield,
      `rms_error_resolved_percent` below which noise hides it, and `predicted_rms_error_percent`; `within_one`
      and `within_two`, the shares of the residuals within one and two standard errors, of counts and model
      together. And the number of `pixels`.
    """
    y, excess, errors, found = (
        np.asarray(array, np.float64)[seen] for array in (yields, excess, errors, found)
    )
    binomial, square = y * (1 - y) / electrons_per_pixel, (found - y) ** 2
    noise = binomial * (1 + excess)
    z = np.abs(found - y) / np.sqrt(noise + errors**2)
    power = (y**2).sum(0)
    return {
        "chi2_per_dof": (square / noise).mean(0),
        "chi2_per_dof_with_errors": (z**2).mean(0),
        "binomial_chi2_per_dof": (square / binomial).mean(0),
        "mean_error_percent": 100 * (y.sum(0) / found.sum(0) - 1),
        "rms_error_percent": 100 * np.sqrt(np.maximum((square - noise).sum(0), 0) / power),
        "rms_error_resolved_percent": 100 * np.sqrt(np.sqrt(2 * (noise**2).sum(0)) / power),
        "predicted_rms_error_percent": 100 * np.sqrt((errors**2).sum(0) / power),
        "within_one": (z < 1).mean(0),
        "within_two": (z < 2).mean(0),
        "pixels": len(y),
    }


def _iou(intersection, union):
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def _mean(values):
    return float(values.mean()) if values.size else float("nan")
