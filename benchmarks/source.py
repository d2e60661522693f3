"""What the image model is worth as a source of training data: accuracy on Monte Carlo images over specimens.

    python -m benchmarks.source        # eight minutes per network on two slow cores

One small network and one recipe, the same number of steps for all: trained on the first specimens of
`standard-train`, on as many specimens whose images the image model made, and on a new one of these for every
example. Evaluated on `standard-test` at the dose of the training, so that nothing else differs. Writes
`source.json` and `source.png`; a network that is there is not trained again.
"""

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")  # files only, on any machine

import matplotlib.pyplot as plt
import ml_collections
import numpy as np
from absl import app, flags

from bsevox_jax import checkpoint, data
from bsevox_jax.evaluate import iou_cu
from bsevox_jax.inference import cu_probability
from bsevox_jax.parallel import processor
from bsevox_jax.sim.files import whole_file, write_whole
from bsevox_jax.train import train
from configs import quickstart

FLAGS = flags.FLAGS
flags.DEFINE_string("folder", "runs/source", "of the networks and the results")
flags.DEFINE_integer("examples", 24_000, "that every network sees, repetitions included")
flags.DEFINE_list("specimens", ["300", "2400"], "sizes of the sets that are compared")
flags.DEFINE_list("seeds", ["0"], "of the networks, which are trained with each")

ELECTRONS_PER_PIXEL = 100  # of both sources, and of the test
WARM_UP_STEPS = 150
PHASES = 5  # parts of a training; cross-entropy takes the first, and each ends with a validation


def recipe(seed: int, specimens: int) -> ml_collections.ConfigDict:
    """The configuration that sees all examples in epochs of so many specimens."""
    config = quickstart.get_config()
    config.seed = seed
    config.data.update(config="standard-train", test_config=thinned_test())
    config.data.forward.textures = 0.0
    epochs = FLAGS.examples // specimens
    config.phase1.epochs = config.eval_every_epochs = epochs // PHASES
    config.phase2.epochs = epochs - epochs // PHASES
    batches = -(-specimens // config.data.batch_size)
    config.optim.warmup_epochs = min(max(1, WARM_UP_STEPS // batches), epochs // PHASES - 1)
    return config


def thinned_test() -> str:
    """File of `standard-test` at the dose of the training."""
    path = Path(FLAGS.folder).absolute() / "test.npz"
    if not path.exists():
        splits = data.load("data", "standard-test")
        for number, (name, split) in enumerate(splits.items()):
            key = jax.random.key(number)
            counts = data.thin_counts(key, split.counts, split.electrons_per_pixel, ELECTRONS_PER_PIXEL)
            about = dict(counts=np.asarray(counts, np.uint16), electrons_per_pixel=ELECTRONS_PER_PIXEL)
            splits[name] = dataclasses.replace(split, **about)
        data.save_npz(str(path), splits)
    return str(path)


def of_monte_carlo(seed: int, specimens: int) -> ml_collections.ConfigDict:
    """Of the first specimens of `standard-train`."""
    path = Path(FLAGS.folder).absolute() / f"monte_carlo_{specimens}.npz"
    if not path.exists():
        splits = data.load("data", "standard-train")
        train = splits["train"]
        few = dict(counts=train.counts[:specimens], labels=train.labels[:specimens], families=None)
        train = dataclasses.replace(train, **few, name=f"{train.name}, {specimens} specimens")
        data.save_npz(str(path), splits | {"train": train})
    config = recipe(seed, specimens)
    config.data.config = str(path)
    return config


def of_image_model(seed: int, specimens: int, fresh: int) -> ml_collections.ConfigDict:
    """Of specimens drawn on the fly, so many of them new in every epoch."""
    config = recipe(seed, specimens)
    config.data.source = "forward"
    config.data.forward.update(
        specimens=specimens,
        fresh=fresh,
        lowest_electrons_per_pixel=ELECTRONS_PER_PIXEL,
        highest_electrons_per_pixel=ELECTRONS_PER_PIXEL,
    )
    return config


def score(name: str, config: ml_collections.ConfigDict) -> dict[str, list[float]]:
    """IoU of every specimen of the thinned test set; trains if need be."""
    workdir = Path(FLAGS.folder) / name
    if not (workdir / "export").exists():
        print(f"training {name}", file=sys.stderr, flush=True)
        train(config, str(workdir))
    export = checkpoint.load_export(str(workdir / "export"))
    splits = data.load("", config.data.test_config)
    scores = {}
    for name, split in {"iou_cu": splits["test"], "iou_cu_out_of_family": splits["out_of_family"]}.items():
        scores[name] = iou_cu(cu_probability(export, split.counts, split.electrons_per_pixel), split.labels)
    return scores


def curves(seed: int) -> dict:
    """Source -> number of specimens -> IoU of every specimen of the test, in and out of the families."""
    sizes = [int(number) for number in FLAGS.specimens]
    largest = sizes[-1]
    if any(FLAGS.examples % (2 * PHASES * size) for size in sizes):
        raise app.UsageError(
            f"examples must be a multiple of {2 * PHASES} times every size; "
            f"got {FLAGS.examples} and {', '.join(FLAGS.specimens)}. Use e.g. {2 * PHASES * largest}."
        )
    found = {"monte_carlo": {}, "image_model": {}}
    for size in sizes:
        found["monte_carlo"][size] = score(f"monte_carlo_{size}_{seed}", of_monte_carlo(seed, size))
        found["image_model"][size] = score(f"image_model_{size}_{seed}", of_image_model(seed, size, 0))
    every = FLAGS.examples  # a new one for each
    found["image_model"][every] = score(f"image_model_{every}_{seed}", of_image_model(seed, largest, largest))
    return found


def means(found: dict[int, dict]) -> dict:
    """Of every seed the mean scores, and how far the image model is ahead at equal numbers."""
    result = {}
    for seed, curve in found.items():
        rows = {
            source: {
                size: {name: float(np.mean(iou)) for name, iou in row.items()} for size, row in of.items()
            }
            for source, of in curve.items()
        }
        rows["ahead"] = {size: {} for size in curve["monte_carlo"]}
        for size, row in rows["ahead"].items():
            for name, iou in curve["image_model"][size].items():
                difference = np.subtract(iou, curve["monte_carlo"][size][name])  # of the same specimen
                error = difference.std(ddof=1) / math.sqrt(len(difference))
                row[name] = {"mean": float(difference.mean()), "standard_error": float(error)}
        result[seed] = rows
    return result


def draw(path: str, rows: dict[int, dict]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), dpi=100, layout="constrained", sharex=True)
    names = {"iou_cu": "200 random specimens", "iou_cu_out_of_family": "12 shapes out of the families"}
    for panel, (key, title) in zip(axes, names.items(), strict=True):
        for source, style in {"monte_carlo": "s-", "image_model": "o-"}.items():
            sizes = list(next(iter(rows.values()))[source])
            scores = np.array([[curve[source][size][key] for size in sizes] for curve in rows.values()])
            (line,) = panel.semilogx(sizes, scores.mean(0), style, label=source.replace("_", " "))
            for row in scores:
                panel.plot(sizes, row, ".", color=line.get_color(), alpha=0.5)
        panel.set(title=title, xlabel="different specimens in training", ylabel="mean IoU of Cu")
        panel.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, format="png")
    plt.close(figure)


def main(_):
    rows = means({int(seed): curves(int(seed)) for seed in FLAGS.seeds})
    about = {
        "examples": FLAGS.examples,
        "electrons_per_pixel": ELECTRONS_PER_PIXEL,
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "cores": os.cpu_count(),
    }
    result = {"by_seed": rows} | about
    write_whole(Path(FLAGS.folder) / "source.json", json.dumps(result, indent=1))
    with whole_file(Path(FLAGS.folder) / "source.png") as path:
        draw(path, rows)
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
