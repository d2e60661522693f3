"""What images say of a volume: the likelihood of their counts, and how precisely they can tell its shape.

All is computed with the image model (`forward`) and is a pure function of arrays. `log_likelihood` is what to
climb, with any optimiser or sampler; `chi2_map` shows where a volume does not explain the images;
`fisher_information` says before a single electron is spent what errors a shape can be measured with.

    gradient = jax.grad(log_likelihood, argnums=2)(model, counts, forward.soft_volume(labels), dose)

Everywhere `electrons_per_pixel`, the dose, is a number or [e]; an energy of dose 0 says nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bsevox_jax import forward

# Information, as a fraction of the greatest, that cannot be told from the rounding of float32.
ROUNDING = 1e-6
FEWEST_ELECTRONS = 1e-6  # instead of none, where a dose is divided by
# Instead of none, where the beam meets nothing; a count there still speaks against the volume, by 20 or so.
LEAST_YIELD = 1e-9
# Standard deviation of a number of which nothing is known but that it lies between 0 and 1.
IGNORANCE = 12**-0.5


def log_likelihood(
    model: forward.ImageModel,
    counts: jax.Array,
    volume: jax.Array,
    electrons_per_pixel: jax.Array | float,
    *,
    side_walls: str = "mirror",
) -> jax.Array:
    """Log quasi-likelihood of counts, relative to its value at the best yield of every pixel; at most 0.

    Counts scatter more than a binomial, so its log-likelihood is divided by their excess variance (Wedderburn
    1974; McCullagh and Nelder 1989, Ch. 9). The excess is a constant for gradients, as is usual.

    Args:
        model: see `forward.load`.
        counts: detected electrons [..., y, x, e].
        volume: labels or fractions, as of `forward.expect`; leading axes broadcast against those of `counts`.
        electrons_per_pixel: see the module.
        side_walls: as of `forward.expect`.

    Returns:
        float32 [...].

    Raises:
        ValueError: as of `forward.expect`.
    """
    expected, dose = _expected_at(model, volume, electrons_per_pixel, side_walls)
    detected, lost = dose * expected.yields, dose * (1 - expected.yields)
    difference = counts - detected
    loss = _half_deviance(counts, difference, detected, lost)
    loss += _half_deviance(dose - counts, -difference, lost, detected)
    return -(loss / (1 + lax.stop_gradient(expected.excess))).sum((-3, -2, -1))


def chi2_map(
    model: forward.ImageModel,
    counts: jax.Array,
    volume: jax.Array,
    electrons_per_pixel: jax.Array | float,
    *,
    side_walls: str = "mirror",
) -> jax.Array:
    """Squared residual of every count in units of its variance, the model's own error included.

    Arguments and errors as of `log_likelihood`.

    Returns:
        float32 [..., y, x, e]; about 1 where the volume explains the images.
    """
    expected, dose = _expected_at(model, volume, electrons_per_pixel, side_walls)
    variance = expected.variance(dose) + (dose * expected.errors) ** 2
    return (counts - dose * expected.yields) ** 2 / variance


def fisher_information(
    model: forward.ImageModel,
    volume_of: Callable[[jax.Array], jax.Array],
    parameters: jax.Array,
    *,
    side_walls: str = "mirror",
) -> jax.Array:
    """Information of one electron per pixel about the parameters of a volume, for each energy.

    The information of images is the sum over their energies, each times its dose.

    Args:
        model: see `forward.load`.
        volume_of: parameters [p] -> fractions [y, x, z, material]; differentiable.
        parameters: float [p], where to differentiate.
        side_walls: as of `forward.expect`.

    Returns:
        float32 [e, p, p].

    Raises:
        ValueError: as of `forward.expect`.
    """

    @jax.jit
    def information(parameters):
        jacobian, expected = _jacobian(model, volume_of, parameters, side_walls)
        return jnp.einsum("yxep,yxe,yxeq->epq", jacobian, 1 / expected.variance(1.0), jacobian)

    return information(jnp.asarray(parameters, jnp.float32))


def model_scatter(
    model: forward.ImageModel,
    volume_of: Callable[[jax.Array], jax.Array],
    parameters: jax.Array,
    *,
    side_walls: str = "mirror",
) -> jax.Array:
    """Covariance of the score of one electron per pixel due to the errors of the model, for each energy.

    The score is the gradient of the log-likelihood. This scatter grows with the square of the dose, what is
    known only with the dose: no dose lowers the errors that follow (`standard_errors`). What varies are the
    weights of the last layer, so the errors of pixels go together as they should, which Expected.errors do
    not tell; those of different energies are independent. Zero if the model was not calibrated.

    Arguments and errors as of `fisher_information`.

    Returns:
        float32 [e, p, p].
    """

    @jax.jit
    def scatter(parameters):
        jacobian, expected = _jacobian(model, volume_of, parameters, side_walls)
        volume, pull = volume_of(parameters), jacobian / expected.variance(1.0)[..., None]

        def score(head):
            weights = model.weights | {"params": model.weights["params"] | {"head": head}}
            varied = dataclasses.replace(model, weights=weights)
            return jnp.einsum(
                "yxep,yxe->p", pull, forward.expect(varied, volume, side_walls=side_walls).yields
            )

        slopes = jax.jacrev(score)(model.weights["params"]["head"])
        slopes = jnp.concatenate([slopes["kernel"], slopes["bias"][:, None]], axis=1)  # [p, f, outputs]
        slopes = slopes.reshape(*slopes.shape[:2], -1, 2)[
            ..., 0
        ]  # outputs are [e, 2], the first the log-odds
        return jnp.einsum("pfe,efg,qge->epq", slopes, model.covariance, slopes)

    return scatter(jnp.asarray(parameters, jnp.float32))


def standard_errors(information: np.ndarray, score_covariance: np.ndarray | None = None) -> np.ndarray:
    """Standard errors of parameters that are all unknown, float64 [p]; infinite where nothing is known.

    Args:
        information: [p, p], of images: sum over energies of dose times `fisher_information`.
        score_covariance: [p, p], of the score if it does not scatter as the counts do: sum over energies of
            squared dose times `model_scatter`.

    Raises:
        ValueError: the information is not a finite square matrix.
    """
    information = np.asarray(information, np.float64)
    if information.ndim != 2 or len(set(information.shape)) > 1 or not np.isfinite(information).all():
        raise ValueError(
            f"information must be a finite matrix [p, p]; got shape {information.shape} and sum "
            f"{information.sum():g}. Add up the energies, and check the volume and the model."
        )
    diagonal = np.diag(information)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1))
    known, directions = np.linalg.eigh(information / np.outer(scale, scale))
    lost = known <= ROUNDING * len(known)
    inverse = (directions[:, ~lost] / known[~lost]) @ directions[:, ~lost].T / np.outer(scale, scale)
    covariance = inverse if score_covariance is None else inverse @ score_covariance @ inverse
    blind = (directions[:, lost] ** 2).sum(1) > ROUNDING
    return np.where(blind, np.inf, np.sqrt(np.maximum(np.diag(covariance), 0)))


class DepthModes(NamedTuple):
    """Depth profiles of Cu that images tell apart, the best known first.

    Attributes:
        profiles: float64 [mode, z], orthogonal and of length 1: fractions of Cu.
        standard_errors: [mode], of the amplitude of each; infinite if below the rounding of the model.
    """

    profiles: np.ndarray
    standard_errors: np.ndarray

    @property
    def resolved(self) -> int:
        """How many the images tell better than knowing only that a fraction lies between 0 and 1."""
        return int((self.standard_errors < IGNORANCE).sum())


def depth_modes(
    model: forward.ImageModel,
    electrons_per_pixel: np.ndarray | float,
    *,
    width_nm: float,
    shape: tuple[int, int, int] = (20, 20, 20),
    side_walls: str = "mirror",
) -> DepthModes:
    """What images tell of the Cu, a little of it, at each depth of a square column in the middle of Si.

    Args:
        model: see `forward.load`.
        electrons_per_pixel: see the module.
        width_nm: of the column.
        shape: (y, x, z) of the block, nm.
        side_walls: as of `forward.expect`.

    Raises:
        ValueError: as of `forward.expect`.
    """
    *sides, depth = shape
    y, x = (_coverage(n / 2, width_nm, n) for n in sides)

    def volume_of(fractions):
        return _in_silicon(y[:, None, None] * x[:, None] * fractions)

    information = fisher_information(model, volume_of, jnp.zeros(depth), side_walls=side_walls)
    dose = np.broadcast_to(np.asarray(electrons_per_pixel, np.float64), information.shape[:1])
    known, profiles = np.linalg.eigh(np.tensordot(dose, np.asarray(information, np.float64), 1))
    lost = known <= ROUNDING * depth * max(known.max(), 0)
    errors = np.where(lost, np.inf, 1 / np.sqrt(np.where(lost, 1, known)))
    return DepthModes(profiles.T[::-1], errors[::-1])


def box(centre_nm: jax.Array, size_nm: jax.Array, shape: tuple[int, int, int] = (20, 20, 20)) -> jax.Array:
    """A box of Cu along the axes in a block of Si, with the exact share of every voxel that it covers.

    Differentiable in position and size. A face between two voxels has the mean of the derivatives on its two
    sides. What lies outside the block is cut off.

    Args:
        centre_nm: (y, x, z) of the centre, z from the surface.
        size_nm: edges along (y, x, z), from 0.
        shape: (y, x, z) of the block, voxels of 1 nm.

    Returns:
        Fractions of Si and Cu, float32 [y, x, z, material].
    """
    y, x, z = (_coverage(centre_nm[k], size_nm[k], shape[k]) for k in range(3))
    return _in_silicon(y[:, None, None] * x[:, None] * z)


def _coverage(centre_nm, size_nm, voxels):
    """Share [voxels] of each voxel of a row that an interval covers."""
    start = jnp.arange(voxels, dtype=jnp.float32)
    # The difference of two ramps, since its derivatives add up to 1 even where a face lies between voxels.
    below_end, below_start = (jnp.clip(centre_nm + s * size_nm / 2 - start, 0, 1) for s in (1, -1))
    return below_end - below_start


def _in_silicon(copper):
    return jnp.stack([1 - copper, copper], axis=-1)


def _expected_at(model, volume, electrons_per_pixel, side_walls):
    """`forward.Expected` and a dose, both of which may be divided by."""
    dose = jnp.maximum(jnp.asarray(electrons_per_pixel, jnp.float32), FEWEST_ELECTRONS)
    return _expected(model, volume, side_walls), dose


def _expected(model, volume, side_walls):
    """`forward.Expected`, with yields whose variance may be divided by."""
    expected = forward.expect(model, volume, side_walls=side_walls)
    return expected._replace(yields=jnp.maximum(expected.yields, LEAST_YIELD))


def _half_deviance(part, difference, expected, rest):
    """part log(part / expected) - difference, of the electrons that went one of two ways.

    Accurate to rounding at any dose, and with a derivative also where `part` is nothing. More electrons than
    primaries may be counted, rarely, so `part` may be negative or beyond all; then the best is all.

    Args:
        part: electrons that went this way.
        difference: part - expected.
        expected, rest: electrons expected to go this way and the other.
    """
    best = jnp.where(part > ROUNDING * expected, jnp.minimum(difference, rest), rest)
    return part * jnp.log1p(best / expected) - difference


def _jacobian(model, volume_of, parameters, side_walls):
    """Derivatives of the yields [y, x, e, p], and `forward.Expected`."""

    def images(parameters):
        expected = _expected(model, volume_of(parameters), side_walls)
        return expected.yields, expected

    return jax.jacfwd(images, has_aux=True)(parameters)
