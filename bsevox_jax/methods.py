"""The ways from images to volumes that are compared, and their volumes, kept in files."""

import dataclasses
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from bsevox_jax import baselines, blur, checkpoint, data, deconvolution, forward, observe
from bsevox_jax.reconstruct import cu_probability
from bsevox_jax.sim.files import whole_file

SPLITS = ("validation", "test", "nanocube", "nanowire", "out_of_family")
SAVE_EVERY_S = 30
TIMED = 3  # of which the median counts


class Method(NamedTuple):
    """A way from images to a volume.

    Attributes:
        title: for tables.
        about: what it does and whose idea it is.
        make: gives the function from counts [n, y, x, e] to fractions of Cu [n, y, x, z]; may learn first.
        at_once: specimens per call.
        settings: what else decides the volumes.
    """

    title: str
    about: str
    make: Callable[[], baselines.Reconstruction]
    at_once: int
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
    def blur(self) -> blur.Operator:
        """The derivative of the image model at silicon."""
        return blur.of_model(self.model, self.splits["test"].labels.shape[1:3])


def methods(config: ConfigDict, material: Material) -> dict[str, Method]:
    """Those of `config.compare.methods`, in that order, and other networks by their titles.

    Raises:
        ValueError: there is no such method; one line.
    """
    c, dose = config.compare, material.dose
    energies_kev = material.splits["test"].beam_energies_kev
    depth = material.splits["test"].labels.shape[-1]

    def of_yields(function):
        """From counts, by a function of yields."""
        compiled = jax.jit(function)
        return lambda counts: np.asarray(compiled(np.asarray(counts / dose, np.float32)))

    def network(folder):
        export = checkpoint.load_export(folder)
        return lambda counts: cu_probability(export, counts, dose)

    def blind():
        about = dict(beam_energies_kev=energies_kev, depth=depth, **c.blind)
        return of_yields(lambda yields: deconvolution.blind(yields, **about))

    def em():
        positive = blur.non_negative(material.blur)
        return of_yields(lambda yields: deconvolution.em(positive, yields, **c.em))

    def tv():
        operator = material.blur
        return of_yields(lambda yields: deconvolution.tv(operator, yields, dose, **c.tv))

    def most_likely():
        start = tv()

        def reconstruct(counts):
            return np.asarray(
                deconvolution.map_estimate(material.model, counts, float(dose), start(counts), **c.map)
            )

        return reconstruct

    def wiener():
        operator = material.blur
        found = of_yields(lambda yields: deconvolution.wiener(operator, yields, dose).mean)
        return lambda counts: np.clip(found(counts), 0, 1)

    shipped = checkpoint.shipped("compact")
    known = {
        "network": Method(
            "our network",
            "the network `compact`, as shipped",
            lambda: network(shipped),
            32,
            {"sha256": checkpoint.load_export(shipped).sha256},
        ),
        "map": Method(
            "most likely volume",
            "climbs the likelihood of the image model with total variation, from the result of `tv`",
            most_likely,
            16,
            dict(c.map) | dict(c.tv),
        ),
        "tv": Method(
            "total variation",
            "least squares through the same blur with total variation (Chambolle and Pock 2011)",
            tv,
            16,
            dict(c.tv),
        ),
        "em": Method(
            "expectation maximisation",
            "the most likely fractions through the blur that is the image model's derivative (Byrne 1998)",
            em,
            16,
            dict(c.em),
        ),
        "blind": Method(
            "blind separation",
            "our implementation of the published idea of separating depths blindly (Boughorbel et al. 2012; "
            "de Goede et al. 2017)",
            blind,
            16,
            dict(c.blind),
        ),
        "wiener": Method("Wiener filter", "Gaussian copper and noise, through the same blur", wiener, 32, {}),
        "linear": Method(
            "linear decoder",
            "the best linear map from images to volumes, learnt from pairs",
            lambda: baselines.linear_decoder(material.pairs, **c.linear),
            32,
            dict(c.linear),
        ),
        "trees": Method(
            "boosted trees",
            "each voxel by itself, by trees on the counts around its column (scikit-learn)",
            lambda: baselines.boosted_trees(material.pairs, **c.trees),
            8,
            dict(c.trees),
        ),
        "nearest": Method(
            "nearest neighbour",
            "the training volume whose images are the most alike",
            lambda: baselines.nearest_neighbour(material.pairs),
            100,
            {},
        ),
        "extrusion": Method(
            "extruded mask",
            "the bright pixels at high energies, at all depths alike",
            lambda: baselines.extrusion(material.pairs),
            100,
            {},
        ),
        "mean": Method(
            "mean volume",
            "the mean of the training volumes, whatever the images",
            lambda: baselines.mean_volume(material.pairs),
            100,
            {},
        ),
    }
    if unknown := sorted(set(c.methods) - set(known)):
        raise ValueError(
            f"compare.methods must be of {', '.join(known)}; got {', '.join(unknown)}. Correct these."
        )
    if "trees" in c.methods and importlib.util.find_spec("sklearn") is None:
        raise ValueError(
            "trees need scikit-learn; got none. Install requirements-trees.txt, or leave them out of "
            "compare.methods."
        )
    others = {
        title: Method(
            title,
            f"exported to {folder}",
            functools.partial(network, folder),
            32,
            {"sha256": checkpoint.load_export(folder).sha256},
        )
        for title, folder in c.networks.items()
    }
    return {name: known[name] for name in c.methods} | others


def volumes(
    path: str, decisive: str, method: Method, splits: dict[str, data.Examples]
) -> tuple[dict[str, np.ndarray], float]:
    """The volumes float16 [n, y, x, z] of every split, and the seconds that one alone takes.

    What the file `path` has, made with the same `decisive` settings, is not made again.
    """
    counts = np.concatenate([splits[split].counts for split in SPLITS])
    done, seconds = _kept(path, decisive)
    if len(done) < len(counts):
        reconstruct = method.make()
        seconds = seconds or seconds_per_call(reconstruct, counts[:1])
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
                        np.savez_compressed(file, volumes=done, decisive=decisive, seconds=seconds)
                    saved = time.monotonic()
    ends = np.cumsum([len(splits[split]) for split in SPLITS])
    return dict(zip(SPLITS, np.split(done, ends[:-1]), strict=True)), float(seconds)


def _kept(path, decisive):
    """Volumes that the file has, and seconds per volume; none of other settings or of a damaged file."""
    try:
        with np.load(path) as file:
            if str(file["decisive"]) == decisive:
                return file["volumes"], float(file["seconds"])
    except Exception:  # missing, or damaged in any of the many ways of a zip file: begin again
        pass
    return (), None


def seconds_per_call(reconstruct: baselines.Reconstruction, counts: np.ndarray) -> float:
    """Median of a few calls, after one that compiles."""
    reconstruct(counts)
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        reconstruct(counts)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
