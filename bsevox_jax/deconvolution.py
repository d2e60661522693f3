"""The classical methods: ways to undo the blur of `blur`, and the climb of the likelihood.

`blind` follows the published idea of separating the images of several landing energies into depths, with
point-spread functions that are estimated on the way (Boughorbel et al. 2012; de Goede et al. 2017; the field
is patented, e.g. EP 2557584 and US 9,711,325): our implementation of it, not the software of its authors.
`em` and `tv` know the physics to first order: the derivative of the image model. `map_estimate` climbs the
likelihood of that model itself.

Volumes are fractions of Cu [..., y, x, z] in Si, images yields [..., y, x, e]; only `map_estimate` knows of
vacuum.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bsevox_jax import forward, likelihood
from bsevox_jax.blur import Operator, adjoint, apply, beyond, filtered, filtered_each, within

SMALL = 1e-6  # instead of nothing, where it is divided by
START = 0.2  # fraction of Cu that iterations begin with
FIRST_VACUUM = 0.05  # fraction of vacuum that the climb of the likelihood begins with
SILICON_RANGE_NM = 31.7  # at 1 keV, growing with energy^1.67 (Kanaya and Okayama 1972, Eq. 12)
PRIOR_FRACTION = 0.35  # standard deviation of a fraction before the images are seen


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
    """Mean and spread where copper and noise are Gaussian; the noise is that of silicon everywhere.

    Beyond a field without mirrors the images are continued as if mirrors stood at its sides.
    """
    noise = operator.background * (1 - operator.background) / electrons_per_pixel
    seen = operator.transfer / jnp.sqrt(noise)[:, None]
    known = jnp.einsum("vuez,vuew->vuzw", seen, seen)
    covariance = jnp.linalg.inv(known + jnp.eye(known.shape[-1]) / PRIOR_FRACTION**2)
    decoder = jnp.einsum("vuzw,vuew,e->vuze", covariance, seen, noise**-0.5)
    mean = within(operator, filtered(decoder, beyond(operator, yields - operator.background, "symmetric")))
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
        return filtered_each(blur, volume[..., None, :])

    def step(_, state):
        volume, amplitude = state
        ratio = images / jnp.maximum((amplitude * blurred(volume)).sum(-1), SMALL)
        up = (amplitude * filtered_each(blur, ratio[..., None])).sum(-2)
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


@functools.partial(jax.jit, static_argnames="cycles")
def em(operator: Operator, yields: jax.Array, *, cycles: int) -> jax.Array:
    """The most likely copper by expectation maximisation, from 0 to 1; fractions [..., y, x, z].

    Every primary is detected by way of silicon or of some voxel's copper, or is not detected, by way of what
    a voxel lacks of it; the expected shares of both give the next fraction (Dempster, Laird and Rubin 1977;
    bounded on both sides as in Byrne 1998, ABEMML). A cycle is two such steps, a leap along the parabola
    through them, and one more step (Varadhan and Roland 2008, scheme S3); the leap counts if the images
    become more likely by it. To stop early is the only regularisation.

    Args:
        operator: `blur.non_negative`.
        yields: [..., y, x, e].
        cycles: their number.
    """
    detected = jnp.clip(yields, 0, 1)

    def expected(f):
        return jnp.clip(operator.background + apply(operator, f), SMALL, 1 - SMALL)

    def misfit(f):
        """Relative to the best possible, so that rounding does not hide small gains."""
        mean = expected(f)
        lost = detected * jnp.log(mean / jnp.maximum(detected, SMALL))
        lost += (1 - detected) * jnp.log((1 - mean) / jnp.maximum(1 - detected, SMALL))
        return -lost.sum((-3, -2, -1), keepdims=True)

    def improved(f):
        mean = expected(f)
        gained = f * adjoint(operator, detected / mean)
        missing = (1 - f) * adjoint(operator, (1 - detected) / (1 - mean))
        return gained / jnp.maximum(gained + missing, SMALL**2)  # some of a margin is seen by nothing

    def cycle(_, f):
        one = improved(f)
        two = improved(one)
        step, bend = one - f, two - 2 * one + f
        length = jnp.maximum(_size(step) / jnp.maximum(_size(bend), SMALL), 1)
        leap = improved(jnp.clip(f + 2 * length * step + length**2 * bend, SMALL, 1 - SMALL))
        return jnp.where(misfit(leap) < misfit(two), leap, two)

    start = jnp.full(_volume_shape(operator, yields), START)
    return within(operator, lax.fori_loop(0, cycles, cycle, start))


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
        operator: see `blur`.
        yields: [..., y, x, e].
        electrons_per_pixel: the dose.
        strength: of the total variation, per voxel face.
        model_error: relative error of the operator.
        iterations: of each solution.
        refreshes: solutions after the first, each with the variance of the one before.
    """
    contrast = yields - operator.background
    f = jnp.zeros(_volume_shape(operator, contrast))
    for _ in range(refreshes + 1):
        made = jnp.maximum(apply(operator, f), 0)
        mean = jnp.clip(operator.background + made, SMALL, 1 - SMALL)
        variance = mean * (1 - mean) / electrons_per_pixel + (model_error * made) ** 2
        f = _primal_dual(operator, contrast, variance**-0.5, f, strength, iterations)
    return within(operator, f)


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
    """The most likely volume by the image model, with total variation; fractions [n, y, x, z] of Cu.

    Climbs `likelihood.log_likelihood` minus strength times the total variation of Si and Cu together, where
    the fractions are the softmax of what Adam (Kingma and Ba 2015) changes, with a learning rate that falls
    to nothing as a cosine.

    Args:
        model: see `forward.load`.
        counts: [n, y, x, e].
        electrons_per_pixel: the dose.
        start: fractions [n, y, x, z] of Cu to begin with; the rest is Si and a little vacuum.
        strength: of the total variation, per voxel face.
        learning_rate: of Adam, at the start.
        iterations: of Adam.
    """

    def materials(logits):
        return jax.nn.softmax(logits)[..., 1:]

    def loss(logits):
        volume = materials(logits)
        steps = _gradient(jnp.moveaxis(volume, -1, 0))  # [material, n, y, x, z, 3]
        variation = jnp.sqrt((steps**2).sum((0, -1)) + SMALL).sum()
        return (
            strength * variation - likelihood.log_likelihood(model, counts, volume, electrons_per_pixel).sum()
        )

    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, iterations))

    def step(_, state):
        logits, moments = state
        updates, moments = adam.update(jax.grad(loss)(logits), moments)
        return optax.apply_updates(logits, updates), moments

    copper = (1 - FIRST_VACUUM) * jnp.clip(start, 0.05, 0.95)
    vacuum = jnp.full_like(copper, FIRST_VACUUM)
    logits = jnp.log(jnp.stack([vacuum, 1 - FIRST_VACUUM - copper, copper], axis=-1))
    return materials(lax.fori_loop(0, iterations, step, (logits, adam.init(logits)))[0])[..., 1]


def _primal_dual(operator, contrast, weight, f, strength, iterations):
    def seen(f):
        return weight * apply(operator, f)

    def back(r):
        return adjoint(operator, weight * r)

    spread_back = jax.linear_transpose(_gradient, f)
    norm = _norm(lambda f: back(seen(f)), f)
    t = 0.5 / norm
    s_images, s_faces = 0.5 / norm, 0.5 / (12 * t)  # 12 bounds the squared norm of the gradient
    wanted = weight * contrast

    def step(_, state):
        f, ahead, p, q = state
        p = (p + s_images * (seen(ahead) - wanted)) / (1 + s_images)
        q = q + s_faces[..., None] * _gradient(ahead)
        longest = jnp.maximum(strength, SMALL)
        q = q * longest / jnp.maximum(jnp.linalg.norm(q, axis=-1, keepdims=True), longest)
        new = jnp.clip(f - t * (back(p) + spread_back(q)[0]), 0, 1)
        return new, 2 * new - f, p, q

    state = f, f, jnp.zeros_like(contrast), jnp.zeros((*f.shape, 3))
    return lax.fori_loop(0, iterations, step, state)[0]


def _norm(squared, f):
    """Norm of an operator [..., 1, 1, 1] whose square, with its adjoint, is given; by power iteration."""

    def step(_, f):
        f = squared(f)
        return f / _size(f)

    # Of all frequencies and both signs, so that no direction is missed.
    start = jnp.broadcast_to(jax.random.normal(jax.random.key(0), f.shape[-3:]), f.shape)
    return 1.05 * jnp.sqrt(_size(squared(lax.fori_loop(0, 30, step, start / _size(start)))))


def _size(f):
    return jnp.sqrt((f**2).sum((-3, -2, -1), keepdims=True))


def _gradient(f):
    """Differences [..., y, x, z, 3] to the next voxels; none at the far sides."""
    return jnp.stack(
        [jnp.diff(f, axis=a, append=lax.slice_in_dim(f, f.shape[a] - 1, None, axis=a)) for a in (-3, -2, -1)],
        -1,
    )


def _volume_shape(operator, contrast):
    """Shape (..., y, x, z), with its margin, of the volume of images [..., y, x, e]."""
    return *contrast.shape[:-3], *operator.transfer.shape[:2], operator.transfer.shape[-1]
