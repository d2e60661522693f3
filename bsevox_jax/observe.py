"""Expected images as a microscope records them: with the noise of a dose, and what the instrument adds.

A primary makes none, one or two counted electrons. What the instrument does before the counting is linear in
the chances of one and of two, images [2, y, x, e], so their mean and variance stay right through it. All
functions are pure, of one example, for use inside the step. Pixels are 1 nm.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtri

from bsevox_jax.data import SYMMETRIES, Normalisation, apply_symmetry

SIGMAS_PER_FWHM = 1 / math.sqrt(8 * math.log(2))
REACH = 6  # standard deviations; what is farther from the mean is rarer than float32 resolves
EXTREME_UNIFORMS = 2**-25, 1 - 2**-24  # the last is the greatest float32 below 1
MISSING = 5  # child of the key of an example, after those that are split from it
SUMMED_VARIANCE = 8  # up to which the probabilities of counts are summed


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Microscope:
    """Makes a training example of expected images; what is drawn is drawn anew for every key.

    Attributes:
        normalisation: of the yields.
        beam_energies_kev: [e] ascending.
        symmetries: whether to apply one of the eight of the square.
        lowest_electrons_per_pixel, highest_electrons_per_pixel: range of the dose, log-uniform.
        probe_fwhm_nm: range of the full width at half maximum of a Gaussian probe.
        drift_nm: standard deviation, along y and x, of the walk of the field from one energy to the next.
        gain_error: relative standard deviation of the signal of each energy.
        offset_error: standard deviation of the offset of each energy, as a yield.
        noise_electrons: standard deviation of what the detector adds to each count.
        energy_error: relative standard deviation of the scale of the beam energies.
        missing: largest share of energies that an example lacks. Every second one is complete; for the others
            the share is uniform up to it. Inputs of a missing energy are 0 all over.
    """

    normalisation: Normalisation
    beam_energies_kev: tuple[float, ...]
    symmetries: bool
    lowest_electrons_per_pixel: float
    highest_electrons_per_pixel: float
    probe_fwhm_nm: tuple[float, float] = (0.0, 0.0)
    drift_nm: float = 0.0
    gain_error: float = 0.0
    offset_error: float = 0.0
    noise_electrons: float = 0.0
    energy_error: float = 0.0
    missing: float = 0.0

    def __post_init__(self) -> None:
        dose = self.lowest_electrons_per_pixel, self.highest_electrons_per_pixel
        check_range("lowest_ and highest_electrons_per_pixel", dose, 1)
        check_range("probe_fwhm_nm", self.probe_fwhm_nm, 0)
        for name in ("drift_nm", "gain_error", "offset_error", "noise_electrons", "energy_error"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"data.forward.{name} must be from 0; got {getattr(self, name)}. Use 0 to switch it off."
                )
        if not 0 <= self.missing < 1:
            raise ValueError(
                f"data.forward.missing must be from 0 and below 1; got {self.missing}. Use 0 for none."
            )

    @property
    def effects(self) -> str:
        """What the instrument adds, in words."""
        names = ("probe_fwhm_nm", "drift_nm", "gain_error", "offset_error", "noise_electrons")
        settings = {name: getattr(self, name) for name in (*names, "energy_error", "missing")}
        return ", ".join(f"{name} {value}" for name, value in settings.items() if np.any(value)) or "none"

    def __call__(self, key: jax.Array, example: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Inputs [y, x, e] float32 and labels [y, x, z] of one example.

        Args:
            key: of this example in this step.
            example: yields and excess, each [y, x, e] as in `forward.Expected`, and labels.
        """
        symmetry_key = jax.random.split(key, 5)[4]
        yields, _ = self.recorded(key, example)
        images, labels = self.normalisation(yields, 1.0), example["labels"]
        if self.missing:
            images = lacking(jax.random.fold_in(key, MISSING), images, self.missing)
        if self.symmetries:
            index = jax.random.randint(symmetry_key, (), 0, SYMMETRIES)
            images, labels = apply_symmetry(images, labels, index)
        return images, labels

    def recorded(self, key: jax.Array, example: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Counts over electrons per pixel, float32 [y, x, e], and the dose, of an example as above."""
        dose_key, instrument_key, count_key, noise_key, _ = jax.random.split(key, 5)
        low, high = self.lowest_electrons_per_pixel, self.highest_electrons_per_pixel
        dose = jnp.round(low * (high / low) ** jax.random.uniform(dose_key))
        expected = self.distort(instrument_key, chances(example["yields"], example["excess"]))
        counts = draw_counts(count_key, expected, dose)
        if self.noise_electrons:
            counts = counts + self.noise_electrons * jax.random.normal(noise_key, counts.shape)
        return counts / dose, dose

    def distort(self, key: jax.Array, expected: jax.Array) -> jax.Array:
        """Chances [2, y, x, e] with what the instrument does to them."""
        energy_key, probe_key, drift_key, gain_key, offset_key = jax.random.split(key, 5)
        energies = len(self.beam_energies_kev)
        if self.energy_error:
            error = self.energy_error * jax.random.normal(energy_key)
            expected = recalibrated(expected, self.beam_energies_kev, error)
        if any(self.probe_fwhm_nm):
            low, high = self.probe_fwhm_nm
            expected = blurred(expected, jax.random.uniform(probe_key, minval=low, maxval=high))
        if self.drift_nm:
            walk_nm = jnp.cumsum(self.drift_nm * jax.random.normal(drift_key, (2, energies)), axis=1)
            # The volume lies where the images lie on average.
            expected = shifted(expected, walk_nm - walk_nm.mean(axis=1, keepdims=True))
        if self.gain_error:
            expected = expected * (1 + self.gain_error * jax.random.normal(gain_key, (energies,)))
        if self.offset_error:
            expected = expected.at[0].add(self.offset_error * jax.random.normal(offset_key, (energies,)))
        return expected


def lacking(key: jax.Array, images: jax.Array, largest_share: float) -> jax.Array:
    """Inputs [..., e] with 0 for the energies that are missing; see `Microscope.missing`."""
    share_key, energy_key = jax.random.split(key)
    share = largest_share * jnp.maximum(0, 2 * jax.random.uniform(share_key) - 1)
    return jnp.where(jax.random.uniform(energy_key, images.shape[-1:]) < share, 0, images)


def check_range(name: str, limits: tuple[float, float], least: float) -> None:
    """Raises ValueError unless limits are (lowest, highest), finite and not below `least`."""
    if not (len(limits) == 2 and least <= limits[0] <= limits[1] < math.inf):
        raise ValueError(
            f"data.forward.{name} must be lowest, highest, from {least}; got {tuple(limits)}. "
            "Give two numbers that rise, or the same twice."
        )


def chances(yields: jax.Array, excess: jax.Array) -> jax.Array:
    """Chances that one and that two electrons of a primary are counted, [2, y, x, e].

    Counts then have the mean of the yields and the variance of `forward.Expected`: y (1 - y) (1 + excess).
    """
    two = jnp.minimum(excess * yields * (1 - yields), yields) / 2
    return jnp.stack([yields - 2 * two, two])


def draw_counts(key: jax.Array, expected: jax.Array, electrons_per_pixel: jax.Array | float) -> jax.Array:
    """Counts, int32 [y, x, e], of so many primaries with chances `expected` [2, y, x, e]."""
    two = jnp.clip(expected[1], 0, 0.5)
    one = jnp.clip(expected[0], 0, 1 - two)
    uniform = jax.random.uniform(key, expected.shape)
    pairs = binomial(uniform[0], electrons_per_pixel, two)
    singles = binomial(uniform[1], electrons_per_pixel - pairs, one / (1 - two))
    return (singles + 2 * pairs).astype(jnp.int32)


def binomial(uniform: jax.Array, n: jax.Array | float, p: jax.Array) -> jax.Array:
    """Binomial numbers, float32, that uniform ones in [0, 1) stand for: the inverse of the distribution.

    Probabilities are summed where the variance is small. Elsewhere the quantile is the expansion of
    Cornish and Fisher (1938) about the normal one, to the fourth cumulant, with Sheppard's correction for the
    rounding to whole numbers: up to three numbers in a thousand are then the next one, and mean and variance
    right.
    `jax.random.binomial` draws random numbers in its loops and takes ten times as long.

    Args:
        uniform: in [0, 1).
        n: trials, whole numbers; they and p broadcast against `uniform`.
        p: chance of each.
    """
    mirrored = p > 0.5
    p = jnp.where(mirrored, 1 - p, p)
    uniform = jnp.clip(jnp.where(mirrored, 1 - uniform, uniform), *EXTREME_UNIFORMS)
    many = n * p * (1 - p) > SUMMED_VARIANCE
    drawn = jnp.where(many, _expanded(uniform, n, p), _summed(uniform, n, jnp.where(many, 0, p)))
    return jnp.where(mirrored, n - drawn, drawn)


def _summed(uniform, n, p):
    """How many partial sums of the probabilities do not exceed the uniform number; p up to 1/2."""
    odds, mean = p / (1 - p), n * p
    most = jnp.max(mean + REACH * jnp.sqrt(mean)).astype(jnp.int32) + REACH  # small means reach farther up

    def add(i, state):
        probability, total, drawn = state
        total = total + probability
        probability = probability * (jnp.maximum(n - i, 0) / (i + 1) * odds)
        return probability, total, drawn + (total <= uniform)

    none, start = jnp.zeros_like(uniform), jnp.exp(n * jnp.log1p(-p))
    drawn = lax.fori_loop(0, most, add, (jnp.broadcast_to(start, none.shape), none, none))[2]
    return jnp.minimum(drawn, n)


def _expanded(uniform, n, p):
    variance = jnp.maximum(n * p * (1 - p), SUMMED_VARIANCE) - 1 / 12
    skewness, kurtosis = (1 - 2 * p) * variance**-0.5, (1 - 6 * p * (1 - p)) / variance
    z = ndtri(uniform)
    tail = kurtosis * (z**3 - 3 * z) / 24 - skewness**2 * (2 * z**3 - 5 * z) / 36
    x = z + skewness * (z**2 - 1) / 6 + tail
    return jnp.clip(jnp.round(n * p + jnp.sqrt(variance) * x), 0, n)


def blurred(images: jax.Array, fwhm_nm: jax.Array | float) -> jax.Array:
    """Images [..., y, x, e] under a Gaussian probe, with mirrors at the edges."""
    sigma_nm = jnp.maximum(fwhm_nm * SIGMAS_PER_FWHM, 1e-3)
    y, x = (
        _folded(jnp.exp(-0.5 * (_distances(n) / sigma_nm) ** 2), normalise=True) for n in images.shape[-3:-1]
    )
    return jnp.einsum("ij,kl,...jle->...ike", y, x, images)


def shifted(images: jax.Array, shift_nm: jax.Array) -> jax.Array:
    """Images [..., y, x, e], each seen from `shift_nm` [2, e] farther along y and x, between mirrors.

    Between pixels they are interpolated linearly.
    """
    y, x = (
        _folded(jnp.maximum(1 - jnp.abs(_distances(n) + s[:, None, None]), 0))
        for n, s in zip(images.shape[-3:-1], shift_nm, strict=True)
    )
    return jnp.einsum("eij,ekl,...jle->...ike", y, x, images)


def recalibrated(
    images: jax.Array, beam_energies_kev: tuple[float, ...], error: jax.Array | float
) -> jax.Array:
    """Images [..., e] at energies (1 + error) times as high; linear in between, constant beyond the ends."""
    energies_kev = jnp.asarray(beam_energies_kev)

    def interpolated(values):
        return jnp.interp(energies_kev * (1 + error), energies_kev, values)

    return images @ jax.vmap(interpolated)(jnp.eye(len(energies_kev)))


def _distances(n):
    """From each of n pixels to each pixel of five fields side by side, [n, 5 n]; ours is the middle one."""
    return jnp.arange(n)[:, None] - jnp.arange(-2 * n, 3 * n)


def _folded(weights, normalise=False):
    """Weights [..., n, 5 n] of pixels of five fields as [..., n, n] of ours, which the others mirror."""
    n = weights.shape[-2]
    fields = weights.reshape(*weights.shape[:-1], 5, n)
    folded = fields[..., ::2, :].sum(-2) + fields[..., 1::2, ::-1].sum(-2)
    return folded / folded.sum(-1, keepdims=True) if normalise else folded
