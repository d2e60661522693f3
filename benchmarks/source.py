"""What the image model is worth as a source of training data: accuracy on Monte Carlo images over specimens.

    python -m benchmarks.source        # half an hour on two quiet cores

One small network and one recipe, the same number of steps for all: trained on the first specimens of
`standard-train`, on as many specimens whose images the image model made, and on a new one of these for every
example. Evaluated on `standard-test`. Writes `source.json` and `source.png`; a network that is there is not
trained again.
"""

import json
import os
import sys
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")  # files only, on any machine

import matplotlib.pyplot as plt
import ml_collections
from absl import app, flags

from benchmarks.roofline import processor
from bsevox_jax import data
from bsevox_jax.evaluate import evaluate
from bsevox_jax.sim.files import whole_file
from bsevox_jax.train import train
from configs import quickstart

FLAGS = flags.FLAGS
flags.DEFINE_string("folder", "runs/source", "of the networks and the results")
flags.DEFINE_integer("examples", 24_000, "that every network sees, repetitions included")
flags.DEFINE_list("specimens", ["300", "600", "1200", "2400"], "sizes of the sets that are compared")

ELECTRONS_PER_PIXEL = 100  # in training, of both sources
WARM_UP_STEPS = 150
PHASES = 5  # parts of a training; cross-entropy takes the first, and each ends with a validation
SEED = 0


def recipe(specimens: int) -> ml_collections.ConfigDict:
    """The configuration that sees all examples in epochs of so many specimens."""
    config = quickstart.get_config()
    config.seed = SEED
    config.data.update(config="standard-train", test_config="standard-test")
    epochs = FLAGS.examples // specimens
    config.phase1.epochs = config.eval_every_epochs = epochs // PHASES
    config.phase2.epochs = epochs - epochs // PHASES
    batches = -(-specimens // config.data.batch_size)
    config.optim.warmup_epochs = min(max(1, WARM_UP_STEPS // batches), epochs // PHASES - 1)
    return config


def of_monte_carlo(specimens: int) -> ml_collections.ConfigDict:
    """Of the first specimens of `standard-train`."""
    splits = data.load("data", "standard-train")
    of_all = splits["train"]
    few = (of_all.counts[:specimens], of_all.labels[:specimens])
    about = (of_all.electrons_per_pixel, of_all.beam_energies_kev, f"{of_all.name}, {specimens} specimens")
    path = Path(FLAGS.folder).absolute() / f"monte_carlo_{specimens}.npz"
    data.save_npz(str(path), splits | {"train": data.Examples(*few, *about)})
    config = recipe(specimens)
    config.data.config = str(path)
    return config


def of_image_model(specimens: int, fresh: int) -> ml_collections.ConfigDict:
    """Of specimens drawn on the fly, so many of them new in every epoch."""
    config = recipe(specimens)
    config.data.source = "forward"
    config.data.forward.update(
        specimens=specimens,
        fresh=fresh,
        lowest_electrons_per_pixel=ELECTRONS_PER_PIXEL,
        highest_electrons_per_pixel=ELECTRONS_PER_PIXEL,
    )
    return config


def score(name: str, config: ml_collections.ConfigDict) -> dict:
    """Trains if need be, and measures on the standard test set."""
    workdir = Path(FLAGS.folder) / name
    if not (workdir / "metrics.json").exists():
        print(f"training {name}", file=sys.stderr, flush=True)
        train(config, str(workdir))
        evaluate(config, str(workdir))
    result = json.loads((workdir / "metrics.json").read_text())
    odd = list(result["out_of_family"].values())
    return {"iou_cu": result["iou_cu_mean"], "iou_cu_out_of_family": sum(odd) / len(odd)}


def curves() -> dict:
    sizes = [int(number) for number in FLAGS.specimens]
    largest = sizes[-1]
    if any(FLAGS.examples % (2 * PHASES * size) for size in sizes):
        raise app.UsageError(
            f"examples must be a multiple of {2 * PHASES} times every size; "
            f"got {FLAGS.examples} and {', '.join(FLAGS.specimens)}. Use e.g. {2 * PHASES * largest}."
        )
    found = {"monte_carlo": {}, "image_model": {}}
    for size in sizes:
        found["monte_carlo"][size] = score(f"monte_carlo_{size}", of_monte_carlo(size))
        found["image_model"][size] = score(f"image_model_{size}", of_image_model(size, 0))
    every = FLAGS.examples  # a new one for each
    found["image_model"][every] = score(f"image_model_{every}", of_image_model(largest, largest))
    return found


def draw(path: str, found: dict) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), dpi=100, layout="constrained", sharex=True)
    names = {"iou_cu": "200 random specimens", "iou_cu_out_of_family": "12 shapes out of the families"}
    for panel, (key, title) in zip(axes, names.items(), strict=True):
        for source, rows in found.items():
            style = {"monte_carlo": "s-", "image_model": "o-"}[source]
            panel.semilogx(
                list(rows), [row[key] for row in rows.values()], style, label=source.replace("_", " ")
            )
        panel.set(title=title, xlabel="different specimens in training", ylabel="mean IoU of Cu")
        panel.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, format="png")
    plt.close(figure)


def main(_):
    found = curves()
    about = {
        "examples": FLAGS.examples,
        "electrons_per_pixel": {"train": ELECTRONS_PER_PIXEL, "test": 1000},
        "seed": SEED,
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "cores": os.cpu_count(),
    }
    with whole_file(Path(FLAGS.folder) / "source.json") as path:
        Path(path).write_text(json.dumps(found | about, indent=1))
    with whole_file(Path(FLAGS.folder) / "source.png") as path:
        draw(path, found)
    print(json.dumps(found | about))


if __name__ == "__main__":
    app.run(main)
