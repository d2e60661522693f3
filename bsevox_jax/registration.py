"""Lays the images of one field, taken at several beam energies, over each other.

    found = registration.register(recording.images, recording.pixel_nm)
    laid = registration.resample(recording.images, found, recording.pixel_nm)

Refocusing shifts, turns and magnifies an image: what is looked for is a similarity per energy, from the mean
frame of all. Contrast changes with energy, and structures come up as electrons reach deeper. So each image is
registered with the next few (`similarity`), and all pairs together give the similarities by weighted least
squares: errors do not add up along the chain, and a pair that disagrees with the others counts less. Only
differences matter: a drift that all images share remains.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array, csgraph

from bsevox_jax import similarity
from bsevox_jax.sem_metadata import Refusal

PAIR_STEPS = 3  # an image is registered with so many next ones
SMALLEST_SIDE, FINEST_SIDE = 32, 1024  # pixels compared along the smaller and the larger side
PHASES = 64  # between two pixels, for which the noise left by interpolation is computed
SPLINE_REACH = 12  # pixels, behind which a cubic spline gives 1e-7 of a pixel
ROUNDS = 10  # in which pairs that disagree lose weight


@dataclasses.dataclass(frozen=True)
class Registration:
    """Where the mean frame of the determined images lies in each image: at m R u + shift, from the centre.

    Attributes:
        shift_nm: float64 [e, 2], y and x.
        rotation_rad: [e]; positive from y towards x, counter-clockwise where y points down.
        magnification: [e]; more than 1: the image shows things larger.
        residual_nm: [e], what disagrees with the neighbours: rms shift of the 3 x 3 blocks of the field
            between registered images, weighted by how much structure fixes it, noise included; NaN where not
            determined.
        determined: bool [e]; others are interpolated between their neighbours, or as the nearest one.
        assumptions: what was taken for granted, one sentence each.
    """

    shift_nm: np.ndarray
    rotation_rad: np.ndarray
    magnification: np.ndarray
    residual_nm: np.ndarray
    determined: np.ndarray
    assumptions: tuple[str, ...]


class Resampled(NamedTuple):
    """Images on a common grid.

    Attributes:
        images: float32 [y, x, e].
        offset_nm: (y, x) of the corner of their field in that of the images given.
        electrons_factor: electrons per new pixel over those per old one, the ratio of their areas.
        noise: float32 [y, x, e], variance of a pixel over that of so many electrons counted.
    """

    images: np.ndarray
    offset_nm: tuple[float, float]
    electrons_factor: float
    noise: np.ndarray


def register(images: np.ndarray, pixel_nm: float) -> Registration:
    """Finds shift, rotation and magnification of each image against the mean of all.

    Gain, offset and sign of the contrast of an image do not matter; slow shading is filtered out. The
    structure must fix a similarity: parallel lines alone do not.

    Args:
        images: grey values [y, x, e], neighbours in energy beside each other.
        pixel_nm: edge of a pixel.

    Raises:
        ValueError: images or pixels are impossible, no two images share structure, or scikit-image is
            missing; one line.
    """
    images = _checked(images, pixel_nm)
    finest = max(1, math.ceil(max(images.shape[:2]) / FINEST_SIDE))
    coarser = [k * finest for k in (4, 2) if min(images.shape[:2]) >= k * finest * SMALLEST_SIDE]
    pyramid = [_level(images, binning) for binning in (*coarser, finest)]
    pairs = _pairs(pyramid, images.shape[-1])
    determined = _connected(pairs, images.shape[-1])
    pairs = {pair: fit for pair, fit in pairs.items() if determined[pair[0]]}
    scale, shift = _joined(pairs, determined)
    residual = _residuals(pyramid[-1], pairs, scale, shift)
    # The corner of binned images is that of the images, their centre may not be.
    rows, columns = (size // finest * finest - size for size in images.shape[:2])
    shift = shift * finest + complex(rows, columns) / 2 * (1 - scale)
    return Registration(
        shift_nm=np.stack([shift.real, shift.imag], axis=-1) * pixel_nm,
        rotation_rad=np.angle(scale),
        magnification=np.abs(scale),
        residual_nm=residual * finest * pixel_nm,
        determined=determined,
        assumptions=(
            "Images of neighbouring energies differ by shift, rotation and magnification only.",
            "The mean of the images has the true pixel size, and is not turned.",
            "The beam is at one angle to the specimen at all energies: deep structures do not move.",
        ),
    )


def resample(
    images: np.ndarray, registration: Registration, pixel_nm: float, to_pixel_nm: float = 1.0
) -> Resampled:
    """Registered images on one grid, cropped to the field that all of them cover; one interpolation.

    A new pixel is the mean of a cubic spline through the old ones, at as many points as make them no coarser
    than the old pixels: between pixels of like size it is interpolated, smaller ones are averaged by area.
    Its edges lie on multiples of the new size from the corner of the images.

    Noise (see `Resampled`): at equal pixel size the variance of a pixel falls to 0.76 of what it was, on the
    mean of all fractional shifts, and to 0.57 at least (linear interpolation: 0.44 and 0.25); it stays where
    pixels fall on pixels. Neighbours become correlated instead. Averaging n x n pixels divides it by n^2
    besides. Pixels finer than those given share their noise; `electrons_factor` counts it once. A spline
    overshoots: a yield near zero may become negative.

    Args:
        images: grey values [y, x, e], those that were registered.
        registration: see `register`.
        pixel_nm: edge of their pixels.
        to_pixel_nm: edge of the new ones.

    Raises:
        ValueError: arguments are impossible or do not fit, or the images have no common field; one line.
    """
    images = _checked(images, pixel_nm)
    if not to_pixel_nm > 0 or images.shape[-1] != len(registration.magnification):
        raise Refusal(
            f"images must be those registered, to_pixel_nm positive; got {images.shape[-1]} images, "
            f"{len(registration.magnification)} registered, {to_pixel_nm}. Register these images."
        )
    scale = registration.magnification * np.exp(1j * registration.rotation_rad)
    shift = registration.shift_nm @ (1, 1j)
    size_nm = np.array(images.shape[:2]) * pixel_nm
    first, last = _common_field(size_nm, scale, shift, to_pixel_nm)
    points = max(1, math.ceil(to_pixel_nm / pixel_nm - 1e-6))  # per new pixel and side
    count = (last - first) * points
    start_nm = first * to_pixel_nm - size_nm / 2 + to_pixel_nm / points / 2  # of the first point
    left = _variance_left(points, to_pixel_nm / points / pixel_nm)
    resampled, noise = np.empty((2, *(last - first), images.shape[-1]), np.float32)
    for k, (s, t) in enumerate(zip(scale, shift, strict=True)):
        turn = _matrix(s)
        place = (turn @ start_nm + (t.real, t.imag)) / pixel_nm + (np.array(images.shape[:2]) - 1) / 2
        step = turn * (to_pixel_nm / points / pixel_nm)
        values = ndimage.affine_transform(
            images[..., k], step, place, output_shape=tuple(count), output=np.float32, mode="mirror"
        )
        resampled[..., k] = _binned(values, points)
        begun = np.tensordot(points * step, np.indices(last - first), 1) + place[:, None, None]
        noise[..., k] = np.prod([left[np.rint(axis * PHASES).astype(int) % PHASES] for axis in begun], axis=0)
    offset_nm = tuple(float(edge) for edge in first * to_pixel_nm)
    electrons_factor = (to_pixel_nm / pixel_nm) ** 2
    return Resampled(resampled, offset_nm, electrons_factor, noise * np.float32(electrons_factor))


def report_lines(
    registration: Registration, pixel_nm: float, beam_energies_kev: Sequence[float]
) -> list[str]:
    """What was applied to each image, and warnings: not determined, or a residual above half a pixel."""
    lines, warnings = [], []
    for k, energy in enumerate(beam_energies_kev):
        y, x = registration.shift_nm[k]
        residual = registration.residual_nm[k]
        lines.append(
            f"{energy:g} keV: shift (y, x) {y:+.2f}, {x:+.2f} nm; rotation "
            f"{math.degrees(registration.rotation_rad[k]):+.3f} degrees; magnification "
            f"{registration.magnification[k]:.4f}; residual {residual:.2f} nm"
        )
        if not registration.determined[k]:
            warnings.append(f"Warning: at {energy:g} keV no structure fixes the image; it is interpolated.")
        elif residual > pixel_nm / 2:
            warnings.append(
                f"Warning: at {energy:g} keV the residual, {residual:.2f} nm, is above half a pixel of "
                f"{pixel_nm:g} nm."
            )
    return lines + warnings


def _checked(images, pixel_nm):
    images = np.asarray(images)
    if images.ndim != 3 or min(images.shape[:2]) < SMALLEST_SIDE or images.shape[-1] < 2:
        raise Refusal(
            f"images must be [y, x, e], at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels at two energies; "
            f"got {images.shape}. Give the images of a recording."
        )
    if not np.isfinite(images).all() or not (math.isfinite(pixel_nm) and pixel_nm > 0):
        raise Refusal(f"images must be finite and pixel_nm positive; got {pixel_nm}. Correct them.")
    return images.astype(np.float32)


def _variance_left(points, step):
    """Variance of the mean of a row of points on a cubic spline, a step apart, over that of a pixel.

    For `PHASES` places of the first point between two pixels; of an image, that along y times that along x.
    """
    pixels = np.zeros(2 * SPLINE_REACH + 1 + math.ceil(points * step))
    pixels[SPLINE_REACH] = 1  # what this pixel gives to points all around is what all give to one
    spline = ndimage.spline_filter1d(pixels)
    phases, along = np.arange(PHASES) / PHASES, np.arange(points) * step
    shares = np.zeros(PHASES)
    for pixel in range(-SPLINE_REACH, len(pixels) - SPLINE_REACH):
        places = SPLINE_REACH + phases[:, None] + along - pixel
        given = ndimage.map_coordinates(spline, [places.ravel()], prefilter=False).reshape(places.shape)
        shares += given.mean(1) ** 2
    return shares


def _binned(image, binning):
    rows, columns = (size // binning for size in image.shape)
    cut = image[: rows * binning, : columns * binning]
    return cut.reshape(rows, binning, columns, binning).mean((1, 3))


class _Level(NamedTuple):
    """The features of all images at one binning, and splines through them."""

    binning: int
    features: list[np.ndarray]
    splines: list[np.ndarray]


def _level(images, binning):
    features = [similarity.feature(_binned(image, binning)) for image in np.moveaxis(images, -1, 0)]
    return _Level(binning, features, [ndimage.spline_filter(feature) for feature in features])


def _pairs(pyramid, count):
    """Fits {(first, second): fit}, where structure fixes them, in pixels of the finest level."""
    found = {}
    for i in range(count):
        designs = [similarity.derivatives(level.features[i]) for level in pyramid]
        for j in range(i + 1, min(i + 1 + PAIR_STEPS, count)):
            scale = 1.0
            shift = similarity.start(pyramid[0].features[i], pyramid[0].features[j]) * pyramid[0].binning
            for level, design in zip(pyramid, designs, strict=True):
                fit = similarity.fit(design, level.splines[j], scale, shift / level.binning)
                if fit is not None:
                    scale, shift = fit.scale, fit.shift * level.binning
            if fit is not None:
                found[i, j] = fit
    return found


def _connected(pairs, count):
    """Which images hang together by pairs, bool [e]; the most if there are several groups."""
    if not pairs:
        raise Refusal(
            "images must share structure that fixes shift, rotation and magnification; got no such pair. "
            "Leave registration out, or record with more electrons."
        )
    graph = coo_array((np.ones(len(pairs)), tuple(zip(*pairs, strict=True))), shape=(count, count))
    _, group = csgraph.connected_components(graph, directed=False)
    return group == np.bincount(group).argmax()


def _matrix(z):
    """The product with a complex number, as a matrix on (real, imaginary)."""
    return np.array([[z.real, -z.imag], [z.imag, z.real]])


def _joined(pairs, determined):
    """Scales and shifts, complex [e], with mean 1 and 0 over the determined images."""
    # Of pair (i, j): scale_j = scale scale_i and shift_j = scale shift_i + shift are linear in the unknowns.
    rows = np.zeros((len(pairs), 4, len(determined), 4))
    right = np.zeros((len(pairs), 4))
    for row, value, ((i, j), fit) in zip(rows, right, pairs.items(), strict=True):
        root = np.linalg.cholesky(fit.information).T
        row[:, j] = root
        row[:, i] = -root @ np.kron(np.eye(2), _matrix(fit.scale))
        value[:] = root @ (fit.shift.real, fit.shift.imag, 0, 0)
    rows = rows.reshape(len(pairs), 4, -1)
    mean = np.kron(determined, np.eye(4)) * np.abs(rows).max()
    mean_right = mean.max() * determined.sum() * np.array([0, 0, 1, 0])
    root_weight = np.ones((len(pairs), 1))
    for _ in range(ROUNDS):
        left = np.concatenate([(root_weight[..., None] * rows).reshape(-1, rows.shape[-1]), mean])
        unknown = np.linalg.lstsq(left, np.concatenate([(root_weight * right).ravel(), mean_right]))[0]
        root_weight = np.sqrt(similarity.weights(((rows @ unknown - right) ** 2).sum(1, keepdims=True)))
    shift, scale = unknown.reshape(-1, 2, 2).swapaxes(0, 1) @ (1, 1j)
    places = np.arange(len(determined))
    return tuple(np.interp(places, places[determined], known[determined]) for known in (scale, shift))


def _residuals(level, pairs, scale, shift):
    """Rms shift [e] of the blocks of registered images against their neighbours, in pixels."""
    squares, weight = np.zeros(len(scale)), np.zeros(len(scale))
    for i, j in pairs:
        between = scale[j] / scale[i]
        design = similarity.derivatives(level.features[i])
        left, variance = similarity.block_shifts(
            design, level.splines[j], between, shift[j] - between * shift[i]
        )
        for k in (i, j):
            squares[k] += np.sum(np.abs(left) ** 2 / variance)
            weight[k] += np.sum(1 / variance)
    return np.sqrt(np.divide(squares, weight, out=np.full(len(scale), np.nan), where=weight > 0))


def _common_field(size_nm, scale, shift, to_pixel_nm):
    """First pixel and last + 1, int (y, x), of the rectangle of the mean frame that lies in all images."""
    y, x = size_nm / 2
    corners = (np.array([[-y - 1j * x, -y + 1j * x], [y - 1j * x, y + 1j * x]])[..., None] - shift) / scale
    least = np.array([corners[0].real.max(), corners[:, 0].imag.max()])
    most = np.array([corners[1].real.min(), corners[:, 1].imag.min()])
    first = np.ceil((least + size_nm / 2) / to_pixel_nm - 1e-6).astype(int)
    last = np.floor((most + size_nm / 2) / to_pixel_nm + 1e-6).astype(int)
    if (last <= first).any():
        raise Refusal(
            f"images must have a field in common; got shifts up to {np.abs(shift).max():.3g} nm. Leave out "
            "the image that lies elsewhere."
        )
    return first, last
