"""What a run learns from: the counts of data sets, or specimens drawn on the fly; and what judges it."""

import dataclasses
import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from bsevox_jax import data, stream


@dataclasses.dataclass(frozen=True)
class Source:
    """Examples of all kinds.

    Attributes:
        training: what is learnt from; `training.at(epoch)` has the examples of an epoch.
        augment: (key, example) -> (inputs, labels) in training, for a network that learns volumes.
        validation: what says which weights are best.
        held_out: what shows an image model its errors.
        normalisation: of the inputs, by the counts of the training split.
        about: the training in one line.
    """

    training: data.Examples | stream.Stream
    augment: Callable
    validation: data.Examples
    held_out: data.Examples
    normalisation: data.Normalisation
    about: str


def load(config: ConfigDict) -> Source:
    """Reads the data sets of a configuration, and the image model if its training draws specimens.

    Raises:
        ValueError: the configuration names no source, or what it names does not fit together; one line.
        FileNotFoundError, OSError: a data set or the image model is missing or damaged.
    """

    def read(name, *needs):
        return data.load(config.data.data_dir, name, needs=needs, **config.simulator)

    splits = read(config.data.config, "train", "validation")
    more = [
        examples
        for name in config.data.also
        for split, examples in read(name).items()
        if split not in ("validation", "test")
    ]
    recorded = data.join(splits["train"], more)
    held_out = (read(config.data.held_out, "validation") if config.data.held_out else splits)["validation"]
    validation = held_out if config.task == "volumes" else splits["validation"]  # images: at their dose
    normalisation = data.normalisation(config.data.normalise, recorded)
    source = {"counts": _counts, "forward": _drawn}.get(config.data.source)
    if source is None or (source is _drawn and config.task != "volumes"):
        raise ValueError(
            "data.source must be counts, or forward where the task is volumes; "
            f"got {config.data.source!r} and {config.task!r}. Use counts."
        )
    if config.task == "images" and config.data.normalise != "standardise":
        raise ValueError(
            "an image model starts from the mean yields, so data.normalise must be standardise; "
            f"got {config.data.normalise!r}. Use standardise."
        )
    training, augment, about = source(config, recorded, normalisation)
    return Source(training, augment, validation, held_out, normalisation, about)


def _counts(config, recorded, normalisation) -> tuple[data.Examples, Callable, str]:
    """What was counted, at a dose up to that of the data set."""
    dose, lowest = recorded.electrons_per_pixel, config.data.lowest_dose_fraction
    augment = functools.partial(
        data.augment,
        normalisation=normalisation,
        electrons_per_pixel=dose,
        symmetries=config.data.symmetries,
        lowest_dose_fraction=lowest,
    )
    about = f"data set {recorded.name}: {len(recorded)} training examples at {dose} electrons per pixel"
    return recorded, augment, f"{about}; lowest dose fraction {lowest}"


def _drawn(config, recorded, normalisation) -> tuple[stream.Stream, Callable, str]:
    """Specimens without end, with the voxels and energies of the data set."""
    settings = dict(seed=config.seed, symmetries=config.data.symmetries, **config.data.forward)
    drawn = stream.start(recorded, normalisation, **settings)
    return drawn, drawn.microscope, f"{drawn.about}; validated on {recorded.name}"
