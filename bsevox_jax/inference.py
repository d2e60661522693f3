"""What a trained network makes of images, on any number of devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bsevox_jax import metrics, models, parallel
from bsevox_jax.checkpoint import Export
from bsevox_jax.imageio import listed
from bsevox_jax.models.equivariant import INVERSE, turned_each

ROWS_PER_DEVICE = 8


def check_energies(beam_energies_kev: Sequence[float], export: Export) -> None:
    """Raises ValueError, in one line, unless the network was trained on these energies."""
    if export.config.get("task", "volumes") != "volumes":
        raise ValueError(
            f"the network must have learnt volumes; got one that learnt {export.config['task']}. Give the "
            "export of another run."
        )
    trained = np.asarray(export.beam_energies_kev)
    settings = export.config["data"]
    share = settings["forward"].get("missing", 0.0) if settings["source"] == "forward" else 0.0
    fewest = len(trained) - int(share * len(trained))
    given = np.asarray(beam_energies_kev, np.float64).reshape(-1)
    known = np.isclose(given[:, None], trained, rtol=1e-3)
    if not (known.any(1).all() and known.sum(0).max() <= 1 and fewest <= len(given) <= len(trained)):
        some = "" if fewest == len(trained) else f", {fewest} of them at least"
        raise ValueError(
            f"beam_energies_kev must be those of the network, {listed(trained)}{some}; "
            f"got {listed(given)}. Take these images, or train on these energies."
        )


def cu_probability(export: Export, counts: np.ndarray, electrons_per_pixel: float) -> np.ndarray:
    """The network's probability of Cu, float32 [n, y, x, z], of counts [n, y, x, e]; see `asked`."""
    return asked(export)(np.asarray(counts) / electrons_per_pixel)


def asked(export: Export, places: Sequence[int] | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A network as a function on all devices, compiled once for each number of rows.

    A network that learnt from specimens in all attitudes is shown the images in each, and the mean is taken.

    Args:
        export: the network.
        places: of the images among the energies of the network; None: all are there.

    Returns:
        From yields [n, y, x, e], all of them in every process, to the probability of Cu, float32
        [n, y, x, z].
    """
    network = models.build(**export.config["model"])
    all_attitudes = export.config["data"]["symmetries"]
    energies = len(export.beam_energies_kev)
    places = np.arange(energies) if places is None else np.asarray(places)

    def predict(weights, yields):
        complete = jnp.zeros((*yields.shape[:-1], energies)).at[..., places].set(yields)
        # What is missing is 0 all over, as in training.
        there = np.isin(np.arange(energies), places)
        images = jnp.where(there, export.normalisation(complete, 1.0), 0)
        found = predicted(network, weights, images, all_attitudes=all_attitudes)
        return lax.all_gather(found, parallel.AXIS, tiled=True)

    mapped, weights = parallel.map_evaluation(predict), parallel.replicate(export.weights)
    devices = jax.device_count()

    def ask(yields):
        batch = devices * min(ROWS_PER_DEVICE, -(-len(yields) // devices))
        parts = []
        for start in range(0, len(yields), batch):
            rows = np.arange(start, start + batch)[parallel.local_rows(batch)]
            rows %= len(yields)  # the last are filled up
            parts.append(
                parallel.unreplicate(mapped(weights, parallel.shard(yields[rows].astype(np.float32))))
            )
        return np.concatenate(parts)[: len(yields)].astype(np.float32)

    return ask


def predicted(network: Any, weights: dict, images: jax.Array, *, all_attitudes: bool) -> jax.Array:
    """Probability of Cu [b, y, x, z] of inputs [b, y, x, e], as they are or averaged over all attitudes."""

    def seen(images):
        return metrics.cu_probability(network.apply(weights, images, train=False))

    return _symmetric_mean(seen, images) if all_attitudes else seen(images)


def _symmetric_mean(predict: Callable, images: jax.Array) -> jax.Array:
    """Volumes [b, y, x, z] that `predict` makes of images [b, y, x, e], averaged over all attitudes."""
    every = range(len(INVERSE))
    square = images.shape[1] == images.shape[2]
    total = 0.0
    for together in (every,) if square else (every[:4], every[4:]):  # those of one shape in one batch
        seen = jnp.concatenate([turned_each(images, k) for k in together])
        for k, found in zip(together, jnp.split(predict(seen), len(together)), strict=True):
            total = total + turned_each(found, INVERSE[k])
    return total / len(INVERSE)
