"""What a network learns: volumes from images, or images from volumes.

A task is all that the training loop does not know: what one example becomes, how outputs are compared with
targets, and which figures say how good they are.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsevox_jax import data, forward, losses, metrics
from bsevox_jax.examples import Examples


@dataclasses.dataclass(frozen=True)
class Task:
    """Pure functions of one device; `example` is a row of a batch of `data.epoch_batches` without its mask.

    Attributes:
        augment: (key, example) -> (inputs, targets) in training.
        present: example -> (inputs, targets) in an evaluation.
        loss: (outputs, targets, mask) -> scalar, of a batch.
        score: (outputs, targets) -> sums of every row of a batch, by name.
        summarise: (sums, mask) -> figures by name, of any number of rows.
        merit: name of the figure that says which weights are best.
        sign: 1 if the greatest figure is best, -1 if the least.
        finish: weights -> weights to export.
    """

    augment: Callable[[jax.Array, dict], tuple]
    present: Callable[[dict], tuple]
    loss: Callable[[Any, Any, jax.Array], jax.Array]
    score: Callable[[Any, Any], dict]
    summarise: Callable[[dict, np.ndarray], dict[str, float]]
    merit: str
    sign: int
    finish: Callable[[dict], dict] = lambda weights: weights


def volumes(loss: Callable, augment: Callable, normalisation: data.Normalisation, dose: int) -> Task:
    """Cu volumes from counts.

    Args:
        loss: (logits, classes, mask=) -> scalar.
        augment: (key, example) -> (inputs, labels).
        normalisation: of the yields.
        dose: electrons per pixel of the counts that are evaluated.
    """

    def augmented(key, example):
        images, labels = augment(key, example)
        return images, data.copper(labels)

    return Task(
        augment=augmented,
        present=lambda example: (normalisation(example["counts"], dose), data.copper(example["labels"])),
        loss=lambda logits, classes, mask: loss(logits, classes, mask=mask),
        score=lambda logits, classes: metrics.sample_sums(metrics.cu_probability(logits), classes),
        summarise=metrics.summarise,
        merit="iou_cu_mean",
        sign=1,
    )


def images(network: Any, mean_yields: np.ndarray, training: Examples, held_out: Examples) -> Task:
    """Expected counts of volumes, and their variance.

    Args:
        network: as in `forward.ImageModel`.
        mean_yields: [e], which the network starts from.
        training: what is fitted to.
        held_out: of a higher dose, for the size of the model's errors.
    """
    dose = training.electrons_per_pixel

    def present(example):
        volume = forward.soft_volume(example["labels"], network.materials)
        seen = jnp.any(example["labels"] > 0, axis=-1)
        return volume, {"counts": example["counts"], "seen": seen}

    def loss(outputs, targets, mask):
        statistics = forward.statistics(outputs, mean_yields)
        return losses.counts(*statistics, targets["counts"], dose, targets["seen"] & mask[:, None, None])

    def score(outputs, targets):
        statistics = forward.statistics(outputs, mean_yields)
        return metrics.count_sums(*statistics, targets["counts"], dose, targets["seen"])

    return Task(
        augment=lambda key, example: present(example),  # the network has the symmetries
        present=present,
        loss=loss,
        score=score,
        summarise=metrics.summarise_counts,
        merit="deviance_per_dof",
        sign=-1,
        finish=lambda weights: forward.with_errors(network, weights, mean_yields, training, held_out),
    )
