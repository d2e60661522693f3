"""The classical methods: images as a blur of the copper below, depth by depth, and ways to undo it.

To first order in the copper, an image is that of pure silicon plus the copper of each depth, spread by a
point-spread function of that depth and beam energy. Between mirror walls such a blur is diagonal in the
cosine transform (DCT-II) along y and x: one small matrix from depths to energies per frequency. From it come
the operator, its adjoint, its singular values, and a Gaussian posterior in closed form.

`blind` follows the published idea of separating the images of several landing energies into depths, with
point-spread functions that are estimated on the way (Boughorbel et al. 2012; de Goede et al. 2017; the field
is patented, e.g. EP 2557584 and US 9,711,325): our implementation of it, not the software of its authors.
`em` and `tv` know the physics, as point-spread functions that were fitted to simulated images.

Volumes are fractions of Cu [..., y, x, z] in Si, images yields [..., y, x, e]; nothing knows of vacuum.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bsevox_jax import data, forward, likelihood
from bsevox_jax.examples import Examples

SMALL = 1e-6  # instead of nothing, where it is divided by
ROUNDING = 1e-4  # of kernels in float32, relative to the largest
START = 0.2  # fraction of Cu that iterations begin with
SILICON_RANGE_NM = 31.7  # at 1 keV, growing with energy^1.67 (Kanaya and Okayama 1972, Eq. 12)
PRIOR_FRACTION = 0.35  # standard deviation of a fraction before the images are seen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operator:
    """What a blur does to each frequency.

    Attributes:
        transfer: [v, u, e, z], from the cosine transform of depths to that of energies.
        background: [e], yields of silicon.
    """

    transfer: jax.Array
    background: jax.Array


def apply(operator: Operator, copper: jax.Array) -> jax.Array:
    """The contrast [..., y, x, e], yields beyond those of silicon, of volumes [..., y, x, z]."""
    return _filtered(operator.transfer, copper)


def adjoint(operator: Operator, contrast: jax.Array) -> jax.Array:
    """The transpose of `apply`: [..., y, x, e] to [..., y, x, z]."""
    return _filtered(operator.transfer.swapaxes(2, 3), contrast)


def of_kernels(kernels: np.ndarray, background: np.ndarray, shape: tuple[int, int]) -> Operator:
    """The operator of point-spread functions.

    Args:
        kernels: [y, x, e, z] of odd sizes y and x, symmetric in both: contrast around a voxel full of Cu.
        background: [e], yields of silicon.
        shape: pixels (y, x) of the field.

    Raises:
        ValueError: a size is even, or a kernel is not symmetric.
    """
    kernels = np.asarray(kernels, np.float64)
    if kernels.shape[0] % 2 == 0 or kernels.shape[1] % 2 == 0:
        raise ValueError(
            f"kernels must have a middle, so odd sizes; got {kernels.shape[:2]}. Cut or extend them."
        )
    if not all(
        np.allclose(kernels, np.flip(kernels, axis), atol=ROUNDING * np.abs(kernels).max()) for axis in (0, 1)
    ):
        raise ValueError("kernels must be symmetric in y and x; got others. Average them with their mirrors.")
    # Mirrors at the sides continue the field symmetrically about its edge, so a symmetric kernel acts on each
    # cosine by its own cosine series.
    series = [
        np.cos(np.pi * np.outer(np.arange(n), np.arange(-(k // 2), k // 2 + 1)) / n)
        for n, k in zip(shape, kernels.shape[:2], strict=True)
    ]
    transfer = np.einsum("vi,uj,ijez->vuez", *series, kernels)
    return Operator(jnp.asarray(transfer, jnp.float32), jnp.asarray(background, jnp.float32))


def of_pairs(examples: Examples, *, ridge: float) -> Operator:
    """The linear operator that fits pairs of volumes and images best on average, frequency by frequency.

    Args:
        examples: without vacuum; `of_silicon_and_copper` takes those of a set.
        ridge: added to the covariance of the copper, in units of its mean.
    """
    copper = data.copper(examples.labels).astype(np.float64)
    yields = examples.counts / examples.electrons_per_pixel
    ny, nx = copper.shape[1:3]
    mean_copper, mean_yields = copper.mean((0, 1, 2)), yields.mean((0, 1, 2))
    of_copper, of_yields = (
        np.einsum("vy,ux,nyxc->vunc", _cosines(ny), _cosines(nx), fields - mean)
        for fields, mean in ((copper, mean_copper), (yields, mean_yields))
    )
    covariance = of_copper.swapaxes(2, 3) @ of_copper
    together = of_yields.swapaxes(2, 3) @ of_copper
    nz = covariance.shape[-1]
    strength = ridge * np.trace(covariance, axis1=2, axis2=3).mean() / nz
    transfer = np.linalg.solve(covariance + strength * np.eye(nz), together.swapaxes(2, 3)).swapaxes(2, 3)
    background = mean_yields - transfer[0, 0] @ mean_copper
    return Operator(jnp.asarray(transfer, jnp.float32), jnp.asarray(background, jnp.float32))


def of_model(model: forward.ImageModel, shape: tuple[int, int]) -> Operator:
    """The derivative of an image model at pure silicon.

    Args:
        model: see `forward.load`.
        shape: pixels (y, x) of the field.
    """
    reach, depth = forward.reach(model.network), forward.depth(model)
    side = 2 * reach + 1  # the mirrored voxels lie just out of reach

    def yields(copper):
        return forward.expect(model, jnp.stack([1 - copper, copper], axis=-1)).yields

    silicon = jnp.zeros((side, side, depth))
    voxels = (
        jnp.zeros((depth, side, side, depth)).at[jnp.arange(depth), reach, reach, jnp.arange(depth)].set(1)
    )
    background, kernels = jax.jit(jax.vmap(lambda voxel: jax.jvp(yields, (silicon,), (voxel,))))(voxels)
    return of_kernels(np.moveaxis(kernels, 0, -1), background[0, reach, reach], shape)


def of_silicon_and_copper(examples: Examples) -> Examples:
    """The specimens without vacuum."""
    full = np.flatnonzero((examples.labels > 0).all((1, 2, 3)))
    return dataclasses.replace(
        examples,
        counts=examples.counts[full],
        labels=examples.labels[full],
        families=None if examples.families is None else tuple(examples.families[k] for k in full),
    )


def non_negative(operator: Operator) -> Operator:
    """The operator without the negative parts of its point-spread functions."""
    transfer = np.asarray(operator.transfer, np.float64)
    # A symmetric kernel has as many numbers as there are frequencies: its middle, and pairs of others.
    series = [
        np.where(np.arange(n), 2, 1) * np.cos(np.pi * np.outer(np.arange(n), np.arange(n)) / n)
        for n in transfer.shape[:2]
    ]
    kernels = np.einsum("iv,ju,vuez->ijez", *map(np.linalg.inv, series), transfer, optimize=True)
    transfer = np.einsum("vi,uj,ijez->vuez", *series, np.maximum(kernels, 0), optimize=True)
    return dataclasses.replace(operator, transfer=jnp.asarray(transfer, jnp.float32))


class Posterior(NamedTuple):
    """Gaussian posterior of the copper.

    Attributes:
        mean: [..., y, x, z].
        standard_deviation: [z], the same in every pixel.
        modes: [v, u], depth profiles of a frequency that the images tell better than the prior does.
    """

    mean: jax.Array
    standard_deviation: jax.Array
    modes: jax.Array


def wiener(operator: Operator, yields: jax.Array, electrons_per_pixel: float) -> Posterior:
    """Mean and spread where copper and noise are Gaussian; the noise is that of silicon everywhere."""
    noise = operator.background * (1 - operator.background) / electrons_per_pixel
    seen = operator.transfer / jnp.sqrt(noise)[:, None]
    known = jnp.einsum("vuez,vuew->vuzw", seen, seen)
    covariance = jnp.linalg.inv(known + jnp.eye(known.shape[-1]) / PRIOR_FRACTION**2)
    decoder = jnp.einsum("vuzw,vuew,e->vuze", covariance, seen, noise**-0.5)
    mean = _filtered(decoder, yields - operator.background)
    variance = jnp.diagonal(covariance, axis1=2, axis2=3).mean((0, 1))
    modes = (jnp.linalg.eigvalsh(known) > PRIOR_FRACTION**-2).sum(-1)
    return Posterior(mean, jnp.sqrt(variance), modes)


@functools.partial(jax.jit, static_argnames=("beam_energies_kev", "depth", "iterations"))
def blind(
    yields: jax.Array, beam_energies_kev: tuple[float, ...], *, depth: int, iterations: int
) -> jax.Array:
    """Separation of depths with nothing known of the specimen; [..., y, x, z] from 0 to 1.

    Images are sums of as many depths as wanted, all positive, each blurred by a Gaussian that widens with
    depth and narrows with energy. Amplitudes of depths and energies, and the volume, are estimated in turn
    by multiplicative steps that raise the likelihood of counts (Lee and Seung 2001, Eq. 5). There is no
    scale: the result is stretched to the range from 0 to 1.
    """
    images = yields / jnp.maximum(yields.mean((-3, -2), keepdims=True), SMALL)
    depth_nm = np.arange(depth) + 0.5
    range_nm = SILICON_RANGE_NM * np.asarray(beam_energies_kev)[:, None] ** 1.67
    sigma_nm = np.maximum(0.8, 0.2 * np.minimum(depth_nm, range_nm / 2))
    v, u = (np.pi * np.arange(n) / n for n in yields.shape[-3:-1])
    blur = jnp.asarray(np.exp(-(v[:, None, None, None] ** 2 + u[:, None, None] ** 2) * sigma_nm**2 / 2))

    def blurred(volume):
        """[..., y, x, e, z], every depth as each energy sees it."""
        return _filtered_each(blur, volume[..., None, :])

    def step(_, state):
        volume, amplitude = state
        ratio = images / jnp.maximum((amplitude * blurred(volume)).sum(-1), SMALL)
        up = (amplitude * _filtered_each(blur, ratio[..., None])).sum(-2)
        volume = volume * up / jnp.maximum(amplitude.sum(-2), SMALL)
        parts = blurred(volume)
        ratio = images / jnp.maximum((amplitude * parts).sum(-1), SMALL)
        over = (parts * ratio[..., None]).sum((-4, -3), keepdims=True)
        amplitude = amplitude * over / jnp.maximum(parts.sum((-4, -3), keepdims=True), SMALL)
        return volume, amplitude / jnp.maximum(amplitude.sum(-1, keepdims=True), SMALL)

    amplitude = np.exp(-((depth_nm / (0.3 * range_nm)) ** 2)) + SMALL
    amplitude = jnp.asarray(amplitude / amplitude.sum(-1, keepdims=True), jnp.float32)
    amplitude = jnp.broadcast_to(amplitude, (*yields.shape[:-3], 1, 1, *amplitude.shape))
    volume = jnp.ones((*yields.shape[:-1], depth), jnp.float32)
    volume, _ = lax.fori_loop(0, iterations, step, (volume, amplitude))
    least, most = (limit(volume, axis=(-3, -2, -1), keepdims=True) for limit in (jnp.min, jnp.max))
    return (volume - least) / jnp.maximum(most - least, SMALL)


@functools.partial(jax.jit, static_argnames="iterations")
def em(operator: Operator, yields: jax.Array, *, iterations: int) -> jax.Array:
    """Expectation maximisation for counts between those of silicon and of copper; fractions [..., y, x, z].

    Byrne (1998), algorithm ABEMML: the likelihood of the counts above the lowest possible ones times that of
    those missing to the highest possible ones, which keeps every fraction between 0 and 1. It stops early,
    which is its regularisation. The operator must be `non_negative`.
    """
    contrast = yields - operator.background
    most = apply(operator, jnp.ones_like(_depths(operator, contrast)))
    # A contrast beyond both ends is noise: none of the two logarithms would exist.
    contrast = jnp.clip(contrast, SMALL, jnp.maximum(most, 2 * SMALL) - SMALL)

    def step(_, f):
        made = apply(operator, f)
        up = adjoint(operator, contrast / jnp.maximum(made, SMALL))
        down = adjoint(operator, (most - contrast) / jnp.maximum(most - made, SMALL))
        return f * up / (f * up + (1 - f) * down)

    return lax.fori_loop(0, iterations, step, START * jnp.ones_like(_depths(operator, contrast)))


@functools.partial(jax.jit, static_argnames=("iterations", "refreshes"))
def tv(
    operator: Operator,
    yields: jax.Array,
    electrons_per_pixel: float,
    *,
    strength: float,
    model_error: float,
    iterations: int,
    refreshes: int = 2,
) -> jax.Array:
    """Least squares with total variation between 0 and 1; fractions [..., y, x, z].

    Minimises |W (A f - contrast)|^2 / 2 + strength TV(f) by the primal-dual method of Chambolle and Pock
    (2011), Algorithm 1. The variance 1 / W^2 is binomial at the yields of the operator, not at the counted
    ones, plus the square of `model_error` times the contrast, for what is not linear.

    Args:
        operator: see `of_pairs`.
        yields: [..., y, x, e].
        electrons_per_pixel: the dose.
        strength: of the total variation, per voxel face.
        model_error: relative error of the operator.
        iterations: of each solution.
        refreshes: solutions after the first, each with the variance of the one before.
    """
    contrast = yields - operator.background
    f = jnp.zeros_like(_depths(operator, contrast))
    for _ in range(refreshes + 1):
        made = jnp.maximum(apply(operator, f), 0)
        mean = jnp.clip(operator.background + made, SMALL, 1 - SMALL)
        variance = mean * (1 - mean) / electrons_per_pixel + (model_error * made) ** 2
        f = _primal_dual(operator, contrast, variance**-0.5, f, strength, iterations)
    return f


@functools.partial(jax.jit, static_argnames="iterations")
def map_estimate(
    model: forward.ImageModel,
    counts: jax.Array,
    electrons_per_pixel: float,
    start: jax.Array,
    *,
    strength: float,
    learning_rate: float,
    iterations: int,
) -> jax.Array:
    """The most likely volume by the image model, with total variation; fractions [n, y, x, z] of Cu in Si.

    Climbs `likelihood.log_likelihood` minus strength TV(f), where f is the logistic function of what Adam
    (Kingma and Ba 2015) changes, with a learning rate that falls to nothing as a cosine.

    Args:
        model: see `forward.load`.
        counts: [n, y, x, e].
        electrons_per_pixel: the dose.
        start: fractions [n, y, x, z] to begin with.
        strength: of the total variation, per voxel face.
        learning_rate: of Adam, at the start.
        iterations: of Adam.
    """

    def loss(log_odds):
        f = jax.nn.sigmoid(log_odds)
        volume = jnp.stack([1 - f, f], axis=-1)
        variation = jnp.sqrt((_gradient(f) ** 2).sum(-1) + SMALL).sum()
        return (
            strength * variation - likelihood.log_likelihood(model, counts, volume, electrons_per_pixel).sum()
        )

    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, iterations))

    def step(_, state):
        log_odds, moments = state
        updates, moments = adam.update(jax.grad(loss)(log_odds), moments)
        return log_odds + updates, moments

    f = jnp.clip(start, 0.05, 0.95)
    log_odds = jnp.log(f / (1 - f))
    return jax.nn.sigmoid(lax.fori_loop(0, iterations, step, (log_odds, adam.init(log_odds)))[0])


def _primal_dual(operator, contrast, weight, f, strength, iterations):
    def seen(f):
        return weight * apply(operator, f)

    def back(r):
        return adjoint(operator, weight * r)

    norm = _norm(lambda f: back(seen(f)), f)
    t = 0.5 / norm
    s_images, s_faces = 0.5 / norm, 0.5 / (12 * t)  # 12 bounds the squared norm of the gradient
    wanted = weight * contrast

    def step(_, state):
        f, ahead, p, q = state
        p = (p + s_images * (seen(ahead) - wanted)) / (1 + s_images)
        q = q + s_faces[..., None] * _gradient(ahead)
        q = q / jnp.maximum(jnp.linalg.norm(q, axis=-1, keepdims=True) / strength, 1)
        new = jnp.clip(f - t * (back(p) + _gradient_adjoint(q)), 0, 1)
        return new, 2 * new - f, p, q

    state = f, f, jnp.zeros_like(contrast), jnp.zeros((*f.shape, 3))
    return lax.fori_loop(0, iterations, step, state)[0]


def _norm(squared, f):
    """Norm of an operator [..., 1, 1, 1] whose square, with its adjoint, is given; by power iteration."""

    def size(f):
        return jnp.sqrt((f**2).sum((-3, -2, -1), keepdims=True))

    def step(_, f):
        f = squared(f)
        return f / size(f)

    # Of all frequencies and both signs, so that no direction is missed.
    start = jnp.broadcast_to(jax.random.normal(jax.random.key(0), f.shape[-3:]), f.shape)
    return 1.05 * jnp.sqrt(size(squared(lax.fori_loop(0, 30, step, start / size(start)))))


def _gradient(f):
    """Differences [..., y, x, z, 3] to the next voxels; none at the far sides."""
    return jnp.stack(
        [jnp.diff(f, axis=a, append=lax.slice_in_dim(f, f.shape[a] - 1, None, axis=a)) for a in (-3, -2, -1)],
        -1,
    )


def _gradient_adjoint(q):
    total = 0.0
    for k, axis in enumerate((-3, -2, -1)):
        inner = lax.slice_in_dim(q[..., k], 0, q.shape[axis - 1] - 1, axis=axis)
        padding = [(0, 0)] * inner.ndim
        padding[axis] = (1, 1)
        total = total - jnp.diff(jnp.pad(inner, padding), axis=axis)
    return total


def _filtered(transfer, fields):
    """Fields [..., y, x, a] with each frequency through its matrix [v, u, b, a]."""
    vertical, horizontal = (jnp.asarray(_cosines(n), jnp.float32) for n in fields.shape[-3:-1])
    spectrum = jnp.einsum("vy,ux,...yxa->...vua", vertical, horizontal, fields)
    spectrum = jnp.einsum("vuba,...vua->...vub", transfer, spectrum)
    return jnp.einsum("vy,ux,...vub->...yxb", vertical, horizontal, spectrum)


def _filtered_each(transfer, fields):
    """Fields [..., y, x, e, z] with each frequency times a number [v, u, e, z]."""
    vertical, horizontal = (jnp.asarray(_cosines(n), jnp.float32) for n in fields.shape[-4:-2])
    spectrum = transfer * jnp.einsum("vy,ux,...yxez->...vuez", vertical, horizontal, fields)
    return jnp.einsum("vy,ux,...vuez->...yxez", vertical, horizontal, spectrum)


def _cosines(n):
    """The orthonormal cosine transform DCT-II, float64 [frequency, pixel]."""
    k = np.arange(n)
    matrix = np.sqrt(2 / n) * np.cos(np.pi * np.outer(k, k + 0.5) / n)
    matrix[0] /= np.sqrt(2)
    return matrix


def _depths(operator, contrast):
    """Zeros of the shape of the volume of images [..., y, x, e]."""
    return jnp.zeros((*contrast.shape[:-1], operator.transfer.shape[-1]), jnp.float32)
