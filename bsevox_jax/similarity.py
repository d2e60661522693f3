"""A shift, rotation and magnification between two images of one structure in different contrast.

Points are complex numbers, y + i x in pixels from the centre; a similarity is w -> scale w + shift, with the
magnification |scale| and the rotation arg(scale).

A fit starts from the largest absolute cross-correlation. Then Gauss-Newton steps in the frame of the first
image (Baker and Matthews, 2004) find a similarity, a gain, which may be negative, and an offset. Pixels that
fit badly, as where a structure comes up, count less (Black and Anandan, 1996). The derivatives of one image
are weighted with those of the other: the noise of one is not that of the other, so it makes no bias.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from bsevox_jax.sem_metadata import Refusal

SMOOTHING_PIXELS = 1.0  # with more, structures that come up pull at the edges of others
SHADING_SHARE = 1 / 6  # of the smaller side: what changes more slowly is shading or charging
NOISE_AREA_PIXELS = 4 * math.pi * SMOOTHING_PIXELS**2  # over which smoothed white noise is correlated
STEPS, LONGEST_STEP, LAST_STEP = 20, 2.0, 0.003  # of Gauss-Newton, the lengths in pixels rms over the field
SMALLEST_OVERLAP = 1 / 4
SIGNIFICANCE = 6.0  # correlation in standard errors; the largest of chance among all shifts is about 4
LARGEST_ERROR_PIXELS = 0.5  # standard error of a fit, rms over the field
HALF_WEIGHT = 2.0  # standard deviations at which something counts half
BLOCKS = 3  # per side


class Fit(NamedTuple):
    """The similarity from one image to another.

    Attributes:
        scale, shift: complex.
        information: [4, 4], inverse covariance of (Re d, Im d, Re c, Im c), where the true similarity is the
            one found after w -> w + c w + d.
    """

    scale: complex
    shift: complex
    information: np.ndarray


def feature(image: np.ndarray) -> np.ndarray:
    """What is compared of an image [y, x]: noise and shading filtered out, mean 0, variance 1."""
    smooth = ndimage.gaussian_filter(image, SMOOTHING_PIXELS, output=np.float64)
    found = smooth - ndimage.gaussian_filter(image, min(image.shape) * SHADING_SHARE, output=np.float64)
    found -= found.mean()
    return found / max(found.std(), np.finfo(np.float32).tiny)


def start(first: np.ndarray, second: np.ndarray) -> complex:
    """Shift from one feature to another, in whole pixels.

    Raises:
        ValueError: scikit-image is missing; one line.
    """
    try:
        from skimage.registration import phase_cross_correlation
    except ImportError as error:
        raise Refusal(
            "registration needs scikit-image; got none. Run pip install -r requirements-io.txt."
        ) from error
    if not (first.any() and second.any()):  # nothing but one grey value
        return 0j
    window = np.outer(*(np.hanning(size) for size in first.shape))
    # Dividing by the amplitudes would count each wavelength alike, and most hold noise only.
    shift, *_ = phase_cross_correlation(second * window, first * window, normalization=None)
    return complex(*shift)


def fit(design: np.ndarray, spline: np.ndarray, scale: complex, shift: complex) -> Fit | None:
    """The similarity from one feature to another, close to a given one; None where nothing fixes it.

    Args:
        design: `derivatives` of the first feature.
        spline: `ndimage.spline_filter` of the second one.
        scale, shift: where to start, to within about the width of the structures.
    """
    radius = math.sqrt(np.mean(np.abs(_points(spline.shape)) ** 2))
    solution = None
    for _ in range(STEPS):
        inside, moved = _moved(spline, scale, shift)
        if inside.mean() < SMALLEST_OVERLAP:
            return None
        seen = moved[inside], design[inside], derivatives(moved)[inside]
        solution, covariance, significance = _step(*seen, solution)
        d, c = solution[:4].reshape(2, 2) @ (1, 1j)
        length = math.hypot(abs(d), abs(c) * radius) + 1e-12
        d, c = (part * min(1, LONGEST_STEP / length) for part in (d, c))
        scale, shift = scale / (1 + c), shift - scale * d / (1 + c)
        if length < LAST_STEP:
            break
    variance = np.diag(covariance) @ (1, 1, radius**2, radius**2)
    if not (significance > SIGNIFICANCE and 0 < variance < LARGEST_ERROR_PIXELS**2):
        return None
    return Fit(scale, shift, np.linalg.inv(covariance))


def derivatives(feature: np.ndarray) -> np.ndarray:
    """Of a feature, by (Re d, Im d, Re c, Im c) of w -> w + c w + d, by gain and by offset: [y, x, 6]."""
    along_y, along_x = np.gradient(feature)
    w = _points(feature.shape)
    larger = along_y * w.real + along_x * w.imag
    turned = along_x * w.real - along_y * w.imag
    return np.stack([along_y, along_x, larger, turned, feature, np.ones_like(feature)], axis=-1)


def block_shifts(
    design: np.ndarray, spline: np.ndarray, scale: complex, shift: complex
) -> tuple[np.ndarray, np.ndarray]:
    """What a similarity leaves: shift, complex [block], of the blocks of the field, and its variance [block].

    Arguments are as of `fit`. Each block has a gain and an offset of its own.
    """
    inside, moved = _moved(spline, scale, shift)
    slopes = derivatives(moved)
    rows, columns = (np.arange(size) * BLOCKS // size for size in inside.shape)
    block = np.where(inside, rows[:, None] * BLOCKS + columns, -1)
    shifts, variances = np.zeros(BLOCKS**2, complex), np.full(BLOCKS**2, np.inf)
    for k in range(BLOCKS**2):
        own = block == k
        seen = moved[own], design[own][:, [0, 1, 4, 5]], slopes[own][:, [0, 1, 4, 5]]
        solution = None
        for _ in range(2):
            solution, covariance, _ = _step(*seen, solution)
        shifts[k], variances[k] = solution[:2] @ (1, 1j), np.trace(covariance)
    return shifts, variances


def weights(squares: np.ndarray) -> np.ndarray:
    """Of squared misfits, by their median: 1, and one half at `HALF_WEIGHT` standard deviations."""
    return 1 / (1 + squares / (HALF_WEIGHT**2 * 2.2 * np.median(squares) + 1e-12))


def _points(shape):
    y, x = (np.arange(size) - (size - 1) / 2 for size in shape)
    return y[:, None] + 1j * x


def _moved(spline, scale, shift):
    """Which pixels [y, x] a similarity leaves inside an image, and the image as seen from all of them."""
    at = scale * _points(spline.shape) + shift
    places = [along + (size - 1) / 2 for along, size in zip((at.real, at.imag), at.shape, strict=True)]
    inside = np.all([(0 <= of) & (of <= n - 1) for of, n in zip(places, at.shape, strict=True)], axis=0)
    return inside, ndimage.map_coordinates(spline, places, mode="mirror", prefilter=False)


def _step(values, first, second, before):
    """One step of what moves `first` onto `second`, each [pixel, parameter], gain and offset last.

    Returns the solution [parameter], the covariance of all but gain and offset, and the correlation in
    standard errors.
    """
    weight = np.ones(len(values))
    if before is not None:
        weight = weights((values - first[:, -2:] @ before[-2:]) ** 2)
    regressors = np.concatenate([second[:, :-2], first[:, -2:]], axis=1)
    instruments = first * weight[:, None]
    normal = instruments.T @ regressors
    inverse = np.linalg.pinv(normal)
    solution = inverse @ (instruments.T @ values)
    variance = np.average((values - first[:, -2:] @ solution[-2:]) ** 2, weights=weight) + 1e-12
    spread = np.average((values - np.average(values, weights=weight)) ** 2, weights=weight) + 1e-12
    covariance = inverse @ (instruments.T @ first) @ inverse.T * variance * NOISE_AREA_PIXELS
    if np.linalg.matrix_rank(normal) < len(normal):
        covariance = np.full_like(covariance, np.inf)
    significance = math.sqrt(max(0, 1 - variance / spread) * len(values) / NOISE_AREA_PIXELS)
    return solution, covariance[:-2, :-2], significance
