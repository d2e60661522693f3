"""Does a reconstruction explain its images, and are they such as the network knows?

The images that are expected of the reconstruction, by the image model, are laid beside the measured ones. In
every square of about 20 nm the standardised residuals give, per energy, their mean and the logarithm of their
mean square, and over all energies the greatest correlation of the residuals of two images. How these scatter
where all is as it should be is known from specimens that the network did not learn from (`Reference`); what
lies farther out than nearly all of those is flagged. So gain errors, another dose, mixed up energies and
axes show, and so does a specimen that the network cannot make out.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import ndimage

from bsevox_jax import forward, tiles
from bsevox_jax.observe import SIGMAS_PER_FWHM

FEWEST = 40  # pixels with matter in a square that is judged
SQUARE = 20  # pixels, the field of the specimens that the network learnt from
WINDOW = 96  # pixels, of which the image model makes images at once
EMPTY = 0.15  # of the signal of silicon, all energies together: less comes from no film
NEAR = 10  # pixels around vacuum where columns may be partly vacuum
CLIMBS, CLIMB = 25, 0.4  # steps to the share of silicon in a column, and their size
PROBES_NM = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
TRIMMED = 0.02  # of the reference at either end of each feature
SHRINKAGE = 0.1  # of the covariance towards its diagonal (Ledoit and Wolf 2004, with a fixed share)
EXPLAINED = 1.2  # largest chi^2; errors of the image model alone make up to 1.11 (docs/forward.md)
FEWEST_EXPLAINED = 10  # specimens of a reference
ACCEPTED = 0.97  # of the reference are within the range
CLEARLY = 0.02  # share by which a probe must lessen the misfit, to be believed
SEARCHED = 256  # pixels along y and x in the middle of the field, where the width of the probe is looked for


@dataclasses.dataclass(frozen=True)
class Reference:
    """Specimens where all is as it should be, one square each.

    Attributes:
        features: [n, 2 e + 1], see `features`.
        chi2: [n], mean square residual.
    """

    features: np.ndarray
    chi2: np.ndarray

    def of(self, places: list[int]) -> "Reference":
        """The same without the energies that are not at these places."""
        energies = self.features.shape[1] // 2
        columns = [*places, *(energies + np.asarray(places))]
        if len(places) == energies:  # the greatest of fewer correlations is another quantity
            columns.append(2 * energies)
        return Reference(self.features[:, columns], self.chi2)

    def outside(self, found: np.ndarray) -> np.ndarray:
        """Whether features [m, 2 e + 1] lie farther out than nearly all of explained specimens, bool [m]."""
        return _distance(self._explained_features, found[:, : self.features.shape[1]]) > self._limit

    @property
    def is_enough(self) -> bool:
        """Whether so many specimens are explained that a distance from them means anything."""
        return len(self._explained_features) >= FEWEST_EXPLAINED

    @functools.cached_property
    def _explained_features(self):
        return self.features[self.chi2 <= EXPLAINED]

    @functools.cached_property
    def _limit(self):
        """Each against all others: a distance within the sample it is measured by would be too short."""
        known = self._explained_features
        places = range(len(known))
        distances = [_distance(np.delete(known, k, axis=0), known[k : k + 1])[0] for k in places]
        return np.quantile(distances, ACCEPTED)


def _distance(known, found):
    """Squared distance by Mahalanobis of features, with a covariance that no outlier inflates."""
    inner = np.clip(known, *np.quantile(known, (TRIMMED, 1 - TRIMMED), axis=0))
    covariance = np.cov(inner, rowvar=False)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
    away = found - inner.mean(0)
    return np.sum(away * np.linalg.solve(covariance, away.T).T, axis=1)


@dataclasses.dataclass(frozen=True)
class Check:
    """The images beside those that are expected of a reconstruction.

    Attributes:
        expected: yields, float32 [y, x, e], under a probe of `probe_fwhm_nm`.
        scatter: [y, x, e], variance of the counts of one electron sent in.
        probe_fwhm_nm: the width of a Gaussian probe that fits best.
        gain, offset: [e], of the yields relative to the expected; 1 and 0 where they are counted.
        noise: [y, x, e] or [1, 1, e], variance found over that of counting; 1 where they are counted.
        chi2_map: float32 [y, x], mean square of the standardised residuals over energies.
        chi2_by_energy: [e], mean over the pixels.
        chi2: mean of all; 1 where the reconstruction explains the images.
        features: [squares, 2 e + 1], see `features`.
        flagged: bool [y, x], squares outside the range of the reference; none without a reference.
        explains: whether chi2 is at most `EXPLAINED`.
        in_range: whether no more squares are flagged than of the reference; None without one.
    """

    expected: np.ndarray
    scatter: np.ndarray
    probe_fwhm_nm: float
    gain: np.ndarray
    offset: np.ndarray
    noise: np.ndarray
    chi2_map: np.ndarray
    chi2_by_energy: np.ndarray
    chi2: float
    features: np.ndarray
    flagged: np.ndarray
    explains: bool
    in_range: bool | None

    @property
    def sentences(self) -> list[str]:
        """What a reader must know, in words."""
        lines = [f"chi^2 per degree of freedom of the re-simulated images: {self.chi2:.2f}"]
        if self.probe_fwhm_nm:
            lines.append(f"the images look like those of a probe of {self.probe_fwhm_nm:g} nm")
        if not self.explains:
            lines.append("the reconstruction does NOT explain its images: do not trust it")
        if self.in_range is None:
            lines.append("whether the network knows such images is not known: nothing to compare them with")
        if self.in_range is False:
            share = self.flagged.mean()
            lines.append(
                f"{share:.0%} of the field is OUTSIDE of what the network knows: check energies, axes, dose, "
                "gain and offset, and whether it is Cu in Si"
            )
        return lines


def check(
    model: forward.ImageModel,
    yields: np.ndarray,
    electrons_per_pixel: float | np.ndarray,
    probability: np.ndarray,
    *,
    places: list[int] | None = None,
    reference: Reference | None = None,
    noise: np.ndarray | float | None = None,
) -> Check:
    """Lays the images that are expected of a reconstruction beside the measured ones.

    Args:
        model: the image model.
        yields: measured, [y, x, e].
        electrons_per_pixel: dose, one for all or [e].
        probability: of Cu, [y, x, z].
        places: of the energies among those of the model; None: all.
        reference: of the network.
        noise: None where yields are counts over dose. If they are not, as of a detector that does not count,
            or after interpolation, gain and offset of each image are fitted to what is expected, and so is
            the size of its noise: the median over the squares. This is its pattern, the variance [y, x, e]
            of a pixel over that of counting, up to a factor per image; 1 where it is the same all over.
    """
    places = list(range(len(model.beam_energies_kev))) if places is None else places
    dose = np.broadcast_to(np.asarray(electrons_per_pixel, np.float32), yields.shape[-1:])
    film = silicon_yields(model)[places].sum()
    sharp = expected_images(model, probability, yields, dose, places, film)
    fwhm_nm, (expected, excess, errors) = _best_probe(sharp, yields, dose)
    seen = expected.sum(-1) > EMPTY * film
    gain, offset = np.ones(len(places)), np.zeros(len(places))
    if noise is not None and seen.any():
        gain, offset = _gain_and_offset(yields[seen], expected[seen])
    residuals = standardised((yields - offset) / gain, expected, excess, errors, dose) * seen[..., None]
    squares = _squares(seen)
    noise = np.ones((1, 1, len(places))) if noise is None else _scaled_noise(noise, residuals, seen, squares)
    residuals /= np.sqrt(noise)
    found = _of_squares(residuals, np.broadcast_to(noise, residuals.shape), seen, squares)
    flagged, in_range = np.zeros(seen.shape, bool), None
    if reference is not None and (known := reference.of(places)).is_enough:
        in_range = _flag(flagged, squares, found, known)
    by_energy = np.square(residuals).sum((0, 1)) / max(seen.sum(), 1)
    return Check(
        expected=expected,
        scatter=expected * (1 - expected) * (1 + excess),
        probe_fwhm_nm=fwhm_nm,
        gain=gain,
        offset=offset,
        noise=noise,
        chi2_map=np.square(residuals).mean(-1),
        chi2_by_energy=by_energy,
        chi2=float(by_energy.mean()),
        features=found,
        flagged=flagged,
        explains=bool(by_energy.mean() <= EXPLAINED),
        in_range=in_range,
    )


def silicon_yields(model: forward.ImageModel) -> np.ndarray:
    """Yields [e] of a film of silicon as thick as the model is deep."""
    film = np.ones((1, 3, 3, forward.depth(model)), np.uint8)
    return np.asarray(forward.expect_all(model, film).yields)[0, 1, 1]


def expected_images(model, probability, yields, dose, places, film) -> np.ndarray:
    """Yields, excess and errors, float32 [3, y, x, e], expected of a reconstruction.

    What is not copper is silicon. Where pixels give next to nothing there is vacuum; near them the share of
    silicon in every column is fitted to the images as well. `film`: the signal of silicon, all energies.
    """
    signal = np.maximum(yields.sum(-1, keepdims=True), 0) / film
    vacuum = ndimage.binary_dilation(signal[..., 0] < EMPTY, iterations=NEAR)[..., None]
    depth = probability.shape[-1]

    def of_windows(batch):
        probability, vacuum, signal, yields = np.split(batch, [depth, depth + 1, depth + 2], axis=-1)
        some = bool(vacuum.any())
        found = _images(model, tuple(places), some, dose, probability, vacuum[..., 0], signal, yields)
        return np.concatenate([np.asarray(field) for field in found], axis=-1)

    together = np.concatenate([probability, vacuum, signal, yields], axis=-1).astype(np.float32)
    halo = forward.reach(model.network)
    size, channels = WINDOW + 2 * halo, (3 * len(places),)
    found = tiles.tiled(
        of_windows, together, channels=channels, width=size, halo=halo, about="expected images"
    )
    return np.moveaxis(found.reshape(*found.shape[:2], 3, len(places)), 2, 0)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _images(model, places, some_vacuum, dose, probability, vacuum, signal, yields):
    places = jnp.asarray(places)

    def expect(logit):
        silicon = 1 - probability
        if some_vacuum:
            silicon = silicon * jnp.where(vacuum[..., None] > 0, jax.nn.sigmoid(logit), 1)
        found = forward.expect(model, jnp.stack([silicon, probability], axis=-1))
        return forward.Expected(*(field[..., places] for field in found))

    def misfit(logit):
        found = expect(logit)
        variance = jax.lax.stop_gradient(jnp.maximum(found.variance(dose), 1))
        return jnp.mean(dose**2 * (yields - found.yields) ** 2 / variance) * logit.size

    share = jnp.clip(signal, 0.02, 0.98)
    logit = jnp.log(share) - jnp.log1p(-share)
    if some_vacuum:
        optimiser = optax.adam(CLIMB)

        def climb(_, state):
            logit, memory = state
            updates, memory = optimiser.update(jax.grad(misfit)(logit), memory)
            return optax.apply_updates(logit, updates), memory

        logit, _ = jax.lax.fori_loop(0, CLIMBS, climb, (logit, optimiser.init(logit)))
    return tuple(expect(logit))


def standardised(yields, expected, excess, errors, dose) -> np.ndarray:
    """Residuals [y, x, e] over their standard deviation: of counting and of the image model."""
    p = np.clip(expected, 0, 1)
    variance = np.maximum(dose * p * (1 - p) * (1 + excess), 1e-2) + (dose * errors) ** 2
    return dose * (yields - expected) / np.sqrt(variance)


def _gain_and_offset(yields, expected):
    """Of each energy [e], by least squares of yields on expected ones, both [pixel, e]."""
    means = yields.mean(0, dtype=np.float64), expected.mean(0, dtype=np.float64)
    away = yields - means[0], expected - means[1]
    gain = (away[0] * away[1]).sum(0) / np.maximum((away[1] ** 2).sum(0), 1e-12)
    gain = np.where(gain > 0.5, gain, 1.0)  # an image without contrast tells none
    return gain, means[0] - gain * means[1]


def _best_probe(sharp, yields, dose):
    """The width of the probe, nm, that leaves the least misfit, and the images under it."""

    def blurred(images, fwhm_nm):
        sigma = fwhm_nm * SIGMAS_PER_FWHM
        return ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="reflect") if sigma else images

    def misfit(fwhm_nm):
        images = blurred(sharp[:, *middle], fwhm_nm)
        return np.mean(standardised(yields[middle], *images, dose) ** 2)

    middle = tuple(slice(max(0, (n - SEARCHED) // 2), (n + SEARCHED) // 2) for n in yields.shape[:2])
    misfits = {fwhm_nm: misfit(fwhm_nm) for fwhm_nm in PROBES_NM}
    best = min(PROBES_NM, key=misfits.get)
    best = best if misfits[best] < (1 - CLEARLY) * misfits[0.0] else 0.0
    return best, blurred(sharp, best)


def features(residuals: np.ndarray) -> np.ndarray:
    """Features [2 e + 1] of the residuals [pixel, e] of a square; see the module."""
    mean = residuals.mean(0)
    power = np.log(np.maximum((residuals**2).mean(0), 1e-6))
    with np.errstate(invalid="ignore"):  # an image that does not vary
        together = np.corrcoef(residuals, rowvar=False) - np.eye(residuals.shape[1])
    return np.concatenate([mean, power, [np.nan_to_num(together, nan=1.0).max()]])


def _scaled_noise(pattern, residuals, seen, squares):
    """Variance of residuals [y, x, e]: a pattern, and the median over the squares for its size."""
    pattern = np.broadcast_to(pattern, residuals.shape)
    power = [(residuals[square] ** 2 / pattern[square])[seen[square]].mean(0) for square in squares]
    return pattern * (np.maximum(np.median(power, axis=0), 1e-6) if squares else 1)


def _of_squares(residuals, noise, seen, squares):
    """Features [squares, 2 e + 1]; interpolation takes noise from pixels, not from their mean."""
    found = np.array([features(residuals[square][seen[square]]) for square in squares])
    if squares:
        share = np.array([noise[square][seen[square]].mean(0) for square in squares])
        found[:, : residuals.shape[-1]] *= np.sqrt(np.minimum(share, 1))
    return found


def _squares(seen):
    """Pairs of slices that cut the field into squares of about `SQUARE` pixels, where there is matter."""

    def pieces(size):
        edges = np.linspace(0, size, max(1, round(size / SQUARE)) + 1).round().astype(int)
        return [slice(*ends) for ends in itertools.pairwise(edges)]

    squares = itertools.product(*(pieces(size) for size in seen.shape))
    return [square for square in squares if seen[square].sum() >= FEWEST]


def _flag(flagged, squares, found, reference):
    """Flags the squares outside of the reference; whether they are few enough, None if none can be judged."""
    if not squares:  # vacuum all over, or next to no pixels
        return None
    outside = reference.outside(found)
    for square in itertools.compress(squares, outside):
        flagged[square] = True
    rejected = 1 - ACCEPTED
    limit = rejected + 3 * np.sqrt(rejected * (1 - rejected) / len(squares))
    return bool(outside.mean() <= limit)
