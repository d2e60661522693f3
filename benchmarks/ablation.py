"""What each choice of the recipe is worth: short trainings of a small network, each with one choice undone.

    python -m benchmarks.ablation                          # four minutes per training on two slow cores
    python -m benchmarks.ablation --of=paper               # the parts of the paper's network, shrunk
    python -m benchmarks.ablation --of=networks            # other networks in the place of ours

The number of examples and the test are the same for all; what stands in a row is the change in
the IoU of the same specimens of `standard-test`, with the standard error of its mean. The choices were made
on validation specimens before. Writes `ablation_<of>.json` into the folder; a network that is there is not
trained again.
"""

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks.bound import best_volumes
from bsevox_jax import checkpoint, data, metrics
from bsevox_jax.evaluate import SINGLE_BODIES, iou_cu
from bsevox_jax.inference import asked
from bsevox_jax.parallel import processor
from bsevox_jax.sim.files import write_whole
from bsevox_jax.train import train
from configs import compact, lite, quickstart

FLAGS = flags.FLAGS
flags.DEFINE_string("folder", "runs/ablation", "of the networks and the results")
flags.DEFINE_enum("of", "recipe", ["recipe", "paper", "networks"], "what is taken apart")
flags.DEFINE_integer("epochs", 15, "of each training, with 1,600 specimens each")
flags.DEFINE_integer("seed", 0, "of the trainings")

ADAMW = {
    "optim.name": "adamw",
    "phase1.learning_rate": 1e-3,
    "phase2.learning_rate": 1e-3,
    "phase1.final_learning_rate": 3e-4,
}
RECIPE = {  # name -> keys that undo one choice
    "as it is": {},
    "no average of the weights": {"optim.average_decay": 0.0},
    "no symmetries": {"data.symmetries": False},
    "cross-entropy alone": {
        "phase1.epochs": "all",
        "phase1.final_learning_rate": 5e-5,
        "phase2.epochs": 0,
    },
    "cross-entropy with the paper's weights": {"phase1.loss.lam": 1 / 12},
    "Lovasz loss over the batch": {"phase2.loss.per_sample": False, "phase2.loss.classes": "present"},
    "AdamW": ADAMW,
    "doses of 1,000 only": {
        "data.forward.lowest_electrons_per_pixel": 1000.0,
        "data.forward.highest_electrons_per_pixel": 1000.0,
    },
    "doses of 50 to 2,000": {"data.forward.lowest_electrons_per_pixel": 50.0},
    "yields as they are": {"data.normalise": "none"},
    "no textures": {"data.forward.textures": 0.0},
    "batches of 32": {"data.batch_size": 32},
}
UNET = dict(name="unet3d", base=8, levels=3, energy_maps=0)
PAPER = {  # Zheng et al. 2024, Table 1
    "as it is": {},
    "without patch embedding": {"model.sope": False},
    "without S2-MLP blocks": {"model.s2": False},
    "plain FFN": {"model.conv_ffn": False},
    "3D U-Net in its place": {"model": UNET},
}
NETWORKS = {  # name -> keys; "model" replaces the whole network
    "as it is": {},
    "as it is, AdamW": ADAMW,
    "3D U-Net": ADAMW | {"model": UNET},
    "the paper's network": ADAMW | {"model": dict(name="bsevoxnet", widths=(48, 96), blocks=(2, 4))},
}


def recipe() -> ConfigDict:
    """That of `compact`, with the small network of the demo."""
    config = compact.get_config()
    small = quickstart.get_config()
    config.model, config.data.batch_size = small.model, small.data.batch_size
    config.optim.average_decay = small.optim.average_decay
    config.data.forward.specimens = 1600
    config.phase1.epochs = max(2, FLAGS.epochs // 5)
    config.phase2.epochs = FLAGS.epochs - config.phase1.epochs
    config.phase2.learning_rate = small.phase2.learning_rate
    config.eval_every_epochs = FLAGS.epochs
    return config


def paper() -> ConfigDict:
    """The same for the paper's network with two narrow, shallow stages, learnt by AdamW."""
    config = recipe()
    config.model = lite.get_config().model
    config.model.update(widths=(48, 96), blocks=(2, 4))
    config.optim.name = "adamw"
    for phase in (config.phase1, config.phase2):
        phase.update(learning_rate=1e-3, final_learning_rate=1e-4)
    return config


def trained(name: str, changes: dict) -> checkpoint.Export:
    """The network of the recipe with these keys changed."""
    config = (paper if FLAGS.of == "paper" else recipe)()
    config.seed = FLAGS.seed
    changes = {k: FLAGS.epochs if v == "all" else v for k, v in changes.items()}
    if "model" in changes:
        config.model = ConfigDict(changes.pop("model"))
    config.update_from_flattened_dict(changes)
    workdir = Path(FLAGS.folder) / f"{FLAGS.of}_{FLAGS.seed}_{name.replace(' ', '_')}"
    if not (workdir / "export").exists():
        print(f"training: {name}", file=sys.stderr, flush=True)
        train(config, str(workdir))
    return checkpoint.load_export(str(workdir / "export"))


def scores(splits: dict, probabilities: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """IoU of every specimen, by group."""
    iou = {split: np.array(iou_cu(probabilities[split], images.labels)) for split, images in splits.items()}
    return {
        "all": iou["test"],
        "one body": iou["test"][np.isin(splits["test"].families, SINGLE_BODIES)],
        "out of the families": iou["out_of_family"],
        "cubes": iou["nanocube"],
        "upright wires": iou["nanowire"][:5],
        "lying wires": iou["nanowire"][5:],
    }


def reconstructions(export: checkpoint.Export, splits: dict) -> dict[str, np.ndarray]:
    """Probability of Cu in every specimen of each split."""
    ask = asked(export)
    return {split: ask(images.counts / images.electrons_per_pixel) for split, images in splits.items()}


def relative_error(probability: np.ndarray, test: data.Examples) -> float:
    """`mre` of `metrics.summarise`, beside the paper's Table 1."""
    return metrics.summarise(metrics.sample_sums(probability, data.copper(test.labels)))["mre"]


def after_training(
    export: checkpoint.Export, splits: dict, probabilities: dict[str, np.ndarray]
) -> dict[str, dict]:
    """What can be done with a trained network."""
    config = export.config | {"data": export.config["data"] | {"symmetries": False}}
    as_seen = dataclasses.replace(export, config=config)
    best = {split: best_volumes(probability) for split, probability in probabilities.items()}
    return {
        "images in one attitude": scores(splits, reconstructions(as_seen, splits)),
        "threshold of greatest expected IoU": scores(splits, best),
    }


def table(found: dict[str, dict]) -> dict:
    """Means, and differences from the first with their standard errors."""
    base = next(iter(found.values()))
    rows = {}
    for name, groups in found.items():
        rows[name] = {}
        for group, iou in groups.items():
            difference = iou - base[group]
            rows[name][group] = {
                "iou": float(iou.mean()),
                "change": float(difference.mean()),
                "standard_error": float(difference.std(ddof=1) / math.sqrt(len(iou))),
            } | ({"each": iou.tolist()} if len(iou) <= 5 else {})
    return rows


def main(_):
    splits, found, mre = data.load("data", "standard-test"), {}, {}
    dose = splits["test"].electrons_per_pixel
    for name, changes in {"recipe": RECIPE, "paper": PAPER, "networks": NETWORKS}[FLAGS.of].items():
        export = trained(name, changes)
        probabilities = reconstructions(export, splits)
        found[name] = scores(splits, probabilities)
        mre[name] = relative_error(probabilities["test"], splits["test"])
        if not changes and FLAGS.of == "recipe":
            found |= after_training(export, splits, probabilities)
        result = {
            "rows": table(found),
            "mre": mre,
            "examples": 1600 * FLAGS.epochs,
            "electrons_per_pixel": dose,
            "seed": FLAGS.seed,
            "processor": processor(),
            "cores": os.cpu_count(),
        }
        write_whole(Path(FLAGS.folder) / f"ablation_{FLAGS.of}.json", json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
