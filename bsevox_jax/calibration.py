"""What a network's probabilities are worth, and which images it knows; kept beside its weights.

Probabilities are bent so that of all voxels at p a share p is copper (Kull, Silva Filho, Flach 2017,
Electron. J. Statist. 11, 5052): logit q = a ln p - b ln(1 - p) + c. With a = b and c = 0, 1/a is a
temperature.
"""

import dataclasses
import json
import os

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from bsevox_jax import check, checkpoint, imageio

FILE = "calibration.npz"  # in the folder of an export
BINS = 20  # of equal width, of the reliability
LEAST = 1e-6  # probability


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Of one network.

    Attributes:
        curve: a, b, c of the module.
        margins: of the intervals of measured bodies, see `intervals`.
        threshold: calibrated probability above which a voxel is best called copper (greatest mean IoU).
        reference: of the images, see `check.Reference`.
        about: what it was measured with.
    """

    curve: tuple[float, float, float]
    margins: dict[str, float]
    threshold: float
    reference: check.Reference
    about: dict

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Calibrated probability, float32, of the network's own."""
        return bent(probability, self.curve).astype(np.float32)


def bent(probability: np.ndarray, curve: tuple[float, float, float]) -> np.ndarray:
    """The probability on the curve of the module."""
    p = np.clip(probability, LEAST, 1 - LEAST)
    a, b, c = curve
    return expit(a * np.log(p) - b * np.log1p(-p) + c)


def fit_curve(probability: np.ndarray, is_cu: np.ndarray) -> tuple[float, float, float]:
    """The curve of greatest likelihood, of probabilities and truth of any one shape; it never falls."""
    p = np.clip(probability.ravel().astype(np.float64), LEAST, 1 - LEAST)
    terms, truth = np.stack([np.log(p), -np.log1p(-p), np.ones_like(p)]), is_cu.ravel().astype(np.float64)

    def misfit(curve):
        odds = curve @ terms
        return np.logaddexp(0, odds).mean() - (odds * truth).mean(), (expit(odds) - truth) @ terms.T / len(p)

    bounds = ((0, None), (0, None), (None, None))
    return tuple(minimize(misfit, (1.0, 1.0, 0.0), jac=True, bounds=bounds, method="L-BFGS-B").x.tolist())


def reliability(probability: np.ndarray, is_cu: np.ndarray, bins: int = BINS) -> dict:
    """Stated and true share of copper in so many bins, their voxels, and the expected calibration error."""
    place = np.minimum((probability.ravel() * bins).astype(int), bins - 1)
    voxels = np.bincount(place, minlength=bins)
    some = np.maximum(voxels, 1)
    stated = np.bincount(place, probability.ravel(), bins) / some
    share = np.bincount(place, is_cu.ravel(), bins) / some
    error = float((np.abs(share - stated) * voxels).sum() / voxels.sum())
    return {"stated": stated, "share": share, "voxels": voxels, "expected_calibration_error": error}


def save(folder: str, found: Calibration) -> None:
    """Writes `calibration.npz` to the folder of an export."""
    with imageio.whole_files(folder) as temporary:
        np.savez_compressed(
            os.path.join(temporary, FILE),
            curve=found.curve,
            threshold=found.threshold,
            margins=json.dumps(found.margins),
            features=found.reference.features.astype(np.float32),
            chi2=found.reference.chi2.astype(np.float32),
            about=json.dumps(found.about),
        )


def load(folder: str, export: checkpoint.Export) -> Calibration | None:
    """That of an exported network; None if it has none.

    Raises:
        OSError: the file is damaged, or belongs to other weights.
    """
    path = os.path.join(os.path.expanduser(folder), FILE)
    if not os.path.exists(path):
        return None
    try:
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            sha256 = about["sha256"]
            reference = check.Reference(file["features"].astype(np.float64), file["chi2"].astype(np.float64))
            margins = json.loads(str(file["margins"]))
            curve, threshold = tuple(file["curve"].tolist()), float(file["threshold"])
            found = Calibration(curve, margins, threshold, reference, about)
    except Exception as error:
        raise OSError(f"the calibration must be readable; got a damaged {path}. Calibrate again.") from error
    if sha256 != export.sha256:
        raise OSError(f"the calibration must be that of the weights; got another in {path}. Calibrate again.")
    return found
