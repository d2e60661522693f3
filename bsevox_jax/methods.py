"""The ways from images to volumes that are compared, and their volumes, kept in files."""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from bsevox_jax import baselines, blur, checkpoint, data, deconvolution, forward, observe
from bsevox_jax.inference import asked, check_energies
from bsevox_jax.parallel import processor
from bsevox_jax.sim.files import whole_file

SPLITS = ("validation", "test", "nanocube", "nanowire", "out_of_family")
SAVE_EVERY_S = 30
TIMED = 3  # of which the median counts


class Method(NamedTuple):
    """A way from images to a volume.

    Attributes:
        title: for tables.
        about: what it does and whose idea it is.
        at_once: specimens per call.
        make: gives the function from counts [n, y, x, e] to fractions of Cu [n, y, x, z]; may learn first.
        settings: what decides the volumes, beside the data.
    """

    title: str
    about: str
    at_once: int
    make: Callable[[], baselines.Reconstruction]
    settings: dict


@dataclasses.dataclass(frozen=True)
class Material:
    """What the methods work with.

    Attributes:
        splits: of the data set, with `validation`.
        training: specimens to learn from.
        model: of the images.
        seed: of the noise in the images that are learnt from.
    """

    splits: dict[str, data.Examples]
    training: data.Examples
    model: forward.ImageModel
    seed: int

    @property
    def dose(self) -> int:
        return self.splits["test"].electrons_per_pixel

    @functools.cached_property
    def pairs(self) -> data.Examples:
        """The training specimens as the image model shows them at the dose of the test."""

        @jax.jit
        def drawn(keys, labels):
            expected = forward.expect(self.model, labels)
            chances = jax.vmap(observe.chances)(expected.yields, expected.excess)
            return jax.vmap(lambda key, chance: observe.draw_counts(key, chance, self.dose))(keys, chances)

        keys, labels = jax.random.split(jax.random.key(self.seed), len(self.training)), self.training.labels
        starts = tqdm(range(0, len(labels), forward.ROWS), "images to learn from", delay=2, leave=False)
        counts = np.concatenate(
            [np.asarray(drawn(keys[k : k + forward.ROWS], labels[k : k + forward.ROWS])) for k in starts]
        )
        return dataclasses.replace(self.training, counts=counts, electrons_per_pixel=self.dose)

    @functools.cached_property
    def derivative(self) -> blur.Operator:
        """The derivative of the image model at silicon."""
        return blur.of_model(self.model, self.splits["test"].labels.shape[1:3])


def methods(config: ConfigDict, material: Material) -> dict[str, Method]:
    """Our network, those of `config.compare.networks`, and the methods of `config.compare.methods`.

    Raises:
        FileNotFoundError, OSError: a network is missing or damaged.
        ValueError: there is no such method, or it needs what is not installed; one line.
    """
    compare = config.compare
    if "our network" in compare.networks:
        raise ValueError("our network is the shipped one; got another in compare.networks. Change its title.")
    if unknown := sorted(set(compare.methods) - set(METHODS)):
        raise ValueError(
            f"compare.methods must be of {', '.join(METHODS)}; got {', '.join(unknown)}. Correct these."
        )
    if "trees" in compare.methods and importlib.util.find_spec("sklearn") is None:
        raise ValueError(
            "trees need scikit-learn; got none. Install requirements-trees.txt, or leave them out of "
            "compare.methods."
        )
    chosen = {}
    for title, folder in {"our network": checkpoint.shipped("compact"), **compare.networks}.items():
        if not re.fullmatch(r"[\w -]+", title) or title in {*METHODS, *(m[0] for m in METHODS.values())}:
            raise ValueError(
                f"a network must have a title of its own, of letters, digits, blanks and -; got {title!r}. "
                "Change it in compare.networks."
            )
        export = checkpoint.load_export(folder)
        check_energies(material.splits["test"].beam_energies_kev, export)
        about = f"{export.config['model']['name']}, trained on {export.dataset}"
        make = functools.partial(_network, material, export)
        chosen[title] = Method(title, about, 32, make, {"sha256": export.sha256})
    for name in compare.methods:
        title, about, at_once, make, decisive = METHODS[name]
        settings = {of: compare[of].to_dict() for of in decisive}
        chosen[name] = Method(title, about, at_once, functools.partial(make, material, compare), settings)
    return chosen


def _network(material, export):
    ask = asked(export)
    return lambda counts: ask(counts / material.dose)


def _of_yields(material, function):
    """A reconstruction from counts, by a function of yields."""
    compiled = jax.jit(function)
    return lambda counts: np.asarray(compiled(np.asarray(counts / material.dose, np.float32)))


def _map(material, compare):
    start, model, dose = _tv(material, compare), material.model, float(material.dose)
    return lambda counts: np.asarray(
        deconvolution.map_estimate(model, counts, dose, start(counts), **compare.map)
    )


def _tv(material, compare):
    operator, dose = material.derivative, material.dose
    return _of_yields(material, lambda yields: deconvolution.tv(operator, yields, dose, **compare.tv))


def _em(material, compare):
    operator = blur.non_negative(material.derivative)
    return _of_yields(material, lambda yields: deconvolution.em(operator, yields, **compare.em))


def _blind(material, compare):
    test = material.splits["test"]
    about = {"beam_energies_kev": test.beam_energies_kev, "depth": test.labels.shape[-1], **compare.blind}
    return _of_yields(material, lambda yields: deconvolution.blind(yields, **about))


def _wiener(material, compare):
    operator, dose = material.derivative, material.dose
    mean = _of_yields(material, lambda yields: deconvolution.wiener(operator, yields, dose).mean)
    return lambda counts: np.clip(mean(counts), 0, 1)


METHODS = {  # name -> title, about, specimens at once, make(material, config.compare), what settings decide
    "map": (
        "most likely volume",
        "climbs the likelihood of the image model with total variation, from the result of `tv`",
        16,
        _map,
        ("map", "tv"),
    ),
    "tv": (
        "total variation",
        "least squares with total variation, through the image model's derivative (Chambolle and Pock 2011)",
        16,
        _tv,
        ("tv",),
    ),
    "em": (
        "expectation maximisation",
        "the most likely fractions through the same derivative, stopped early (Byrne 1998)",
        16,
        _em,
        ("em",),
    ),
    "blind": (
        "blind separation",
        "our implementation of the published idea of separating depths blindly (Boughorbel et al. 2012; "
        "de Goede et al. 2017)",
        16,
        _blind,
        ("blind",),
    ),
    "wiener": (
        "Wiener filter",
        "Gaussian copper and noise, through the same derivative",
        32,
        _wiener,
        (),
    ),
    "linear": (
        "linear decoder",
        "the best linear map from images to volumes, learnt from pairs",
        32,
        lambda material, compare: baselines.linear_decoder(material.pairs, **compare.linear),
        ("linear",),
    ),
    "trees": (
        "boosted trees",
        "each voxel by itself, by trees on the counts around its column (scikit-learn)",
        8,
        lambda material, compare: baselines.boosted_trees(material.pairs, **compare.trees),
        ("trees",),
    ),
    "nearest": (
        "nearest neighbour",
        "the training volume whose images are the most alike",
        100,
        lambda material, compare: baselines.nearest_neighbour(material.pairs),
        (),
    ),
    "extrusion": (
        "extruded mask",
        "the bright pixels at high energies, at all depths alike",
        100,
        lambda material, compare: baselines.extrusion(material.pairs),
        (),
    ),
    "mean": (
        "mean volume",
        "the mean of the training volumes, whatever the images",
        100,
        lambda material, compare: baselines.mean_volume(material.pairs),
        (),
    ),
}


def volumes(
    path: str, decisive: str, method: Method, splits: dict[str, data.Examples]
) -> tuple[dict[str, np.ndarray], dict]:
    """The volumes float32 [n, y, x, z] of every split; `seconds_per_volume` of one alone, `on` what device.

    What the file `path` has, made with the same `decisive` settings, is not made again.
    """
    counts = np.concatenate([splits[split].counts for split in SPLITS])
    done, timed = _kept(path, decisive)
    if len(done) < len(counts):
        reconstruct = method.make()
        timed = timed or {"seconds_per_volume": seconds_per_call(reconstruct, counts[:1]), "on": device()}
        saved = time.monotonic()
        with tqdm(
            total=len(counts), initial=len(done), desc=method.title, unit="volume", delay=2, leave=False
        ) as bar:
            while len(done) < len(counts):
                # Always as many at once, so that nothing is compiled twice; the last are filled up.
                rows = np.arange(len(done), len(done) + method.at_once)
                new = reconstruct(counts[rows % len(counts)])[: len(counts) - len(done)].astype(np.float16)
                done = new if len(done) == 0 else np.concatenate([done, new])
                bar.update(len(new))
                if len(done) == len(counts) or time.monotonic() > saved + SAVE_EVERY_S:
                    with whole_file(path) as temporary, open(temporary, "wb") as file:
                        np.savez_compressed(file, volumes=done, decisive=decisive, timed=json.dumps(timed))
                    saved = time.monotonic()
    ends = np.cumsum([len(splits[split]) for split in SPLITS])
    # In half precision 0.3 is above 0.3; a threshold must mean the same everywhere.
    return dict(zip(SPLITS, np.split(done.astype(np.float32), ends[:-1]), strict=True)), timed


def _kept(path, decisive):
    """Volumes that the file has, and how long one took; none of other settings or of a damaged file."""
    try:
        with np.load(path) as file:
            if str(file["decisive"]) == decisive:
                return file["volumes"], json.loads(str(file["timed"]))
    except Exception:  # missing, or damaged in any of the many ways of a zip file: begin again
        pass
    return (), None


def device() -> str:
    """What computes, in words."""
    kind = jax.devices()[0].device_kind
    return f"{len(os.sched_getaffinity(0))} cores of {processor()}" if kind == "cpu" else kind


def seconds_per_call(reconstruct: baselines.Reconstruction, counts: np.ndarray) -> float:
    """Median of a few calls, after one that compiles."""
    reconstruct(counts)
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        reconstruct(counts)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
