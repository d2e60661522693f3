"""Small references: what can be had without a deep network, learnt from pairs of volumes and images.

Each function takes training pairs and returns one from counts [n, y, x, e], taken at the dose of the pairs,
to fractions of Cu, float32 [n, y, x, z].
"""

from collections.abc import Callable

import jax
import numpy as np

from bsevox_jax import blur, data
from bsevox_jax.examples import Examples
from bsevox_jax.models.equivariant import INVERSE, turned, turned_each

Reconstruction = Callable[[np.ndarray], np.ndarray]
PATCH = 1  # a voxel is judged by the pixels up to so many away, in y and in x
MASK_ABOVE_KEV = 2.5  # from there on copper counts alike at every depth


def mean_volume(pairs: Examples) -> Reconstruction:
    """The mean of all training volumes in all attitudes, whatever the images say."""
    mean = np.mean([turned(data.copper(pairs.labels).mean(0), k) for k in range(len(INVERSE))], axis=0)
    return lambda counts: np.broadcast_to(mean.astype(np.float32), (len(counts), *mean.shape))


def extrusion(pairs: Examples) -> Reconstruction:
    """The same at all depths: whether there is Cu below, by a line through the sum of high-energy images."""
    high = np.array(pairs.beam_energies_kev) >= MASK_ABOVE_KEV

    def brightness(counts):
        return counts[..., high].sum(-1) / pairs.electrons_per_pixel

    below = data.copper(pairs.labels).any(-1)
    slope, offset = np.polyfit(brightness(pairs.counts).ravel(), below.ravel(), 1)
    depth = pairs.labels.shape[-1]

    def reconstruct(counts):
        share = np.clip(slope * brightness(counts) + offset, 0, 1)
        return np.repeat(share[..., None], depth, axis=-1).astype(np.float32)

    return reconstruct


def linear_decoder(pairs: Examples, *, ridge: float) -> Reconstruction:
    """The linear map from images to volumes of least mean squared error, frequency by frequency.

    Args:
        pairs: training pairs.
        ridge: as of `blur.regressed`.
    """
    yields = pairs.counts / pairs.electrons_per_pixel
    copper = data.copper(pairs.labels).astype(np.float64)
    transfer, offset = blur.regressed(yields, copper, ridge=ridge)
    decode = jax.jit(lambda yields: blur.filtered(transfer.astype(np.float32), yields))

    def reconstruct(counts):
        found = np.asarray(decode((counts / pairs.electrons_per_pixel).astype(np.float32)))
        return np.clip(found + offset, 0, 1).astype(np.float32)

    return reconstruct


def nearest_neighbour(pairs: Examples) -> Reconstruction:
    """The training volume, in the best of its eight attitudes, whose images are the most like those given.

    Squared differences of counts are weighed by the mean variance at each energy.
    """
    mean = pairs.counts.mean((0, 1, 2)) / pairs.electrons_per_pixel
    weight = (1 / np.sqrt(pairs.electrons_per_pixel * mean * (1 - mean))).astype(np.float32)

    def rows(counts):
        return (counts * weight).reshape(len(counts), -1).astype(np.float32)

    known, copper = rows(pairs.counts), data.copper(pairs.labels).astype(np.float32)
    squared = (known**2).sum(1)

    def reconstruct(counts):
        nearest = np.full(len(counts), np.inf)
        found = np.zeros((len(counts), *copper.shape[1:]), np.float32)
        for attitude in range(len(INVERSE)):
            distance = squared - 2 * rows(np.asarray(turned_each(counts, attitude))) @ known.T
            volumes = np.asarray(turned_each(copper[distance.argmin(1)], INVERSE[attitude]))
            closer = distance.min(1) < nearest
            found[closer], nearest = volumes[closer], np.minimum(nearest, distance.min(1))
        return found

    return reconstruct


def boosted_trees(pairs: Examples, *, voxels: int, trees: int, seed: int) -> Reconstruction:
    """Gradient-boosted trees that judge each voxel by its depth and the counts around its column.

    By scikit-learn (`requirements-trees.txt`), after Friedman (2001) with histograms.

    Args:
        pairs: training pairs.
        voxels: to learn from, about as many of each pair.
        trees: their number.
        seed: of the draw.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # an extra

    depth = pairs.labels.shape[-1]

    def described(counts):
        """Counts around each column, and its depth: float32 [n, y, x, z, feature]."""
        padded = np.pad(counts, [(0, 0), (PATCH, PATCH), (PATCH, PATCH), (0, 0)], mode="symmetric")
        ny, nx = counts.shape[1:3]
        around = [
            padded[:, i : i + ny, j : j + nx] for i in range(2 * PATCH + 1) for j in range(2 * PATCH + 1)
        ]
        columns = np.concatenate(around, axis=-1).astype(np.float32)
        columns = np.repeat(columns[..., None, :], depth, axis=-2)
        z = np.broadcast_to(np.arange(depth, dtype=np.float32)[:, None], (*columns.shape[:-1], 1))
        return np.concatenate([columns, z], axis=-1)

    rng = np.random.default_rng(seed)
    features, classes = [], []
    for counts, labels in zip(pairs.counts, pairs.labels, strict=True):
        chosen = rng.integers(labels.size, size=-(-voxels // len(pairs)))
        features.append(described(counts[None]).reshape(labels.size, -1)[chosen])
        classes.append(data.copper(labels).ravel()[chosen])
    forest = HistGradientBoostingClassifier(max_iter=trees, early_stopping=False, random_state=seed)
    forest.fit(np.concatenate(features), np.concatenate(classes))

    def reconstruct(counts):
        volumes = []
        for one in counts:
            rows = described(one[None])[0]
            chance = forest.predict_proba(rows.reshape(-1, rows.shape[-1]))[:, 1]
            volumes.append(chance.reshape(rows.shape[:3]))
        return np.stack(volumes).astype(np.float32)

    return reconstruct
