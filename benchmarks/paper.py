"""The paper's networks and its U-Net, trained with its recipe on one accelerator: accuracy, curves, rates.

    python -m benchmarks.paper --minutes=9      # again and again, until all are done

250 epochs of 9,600 specimens for each, from the configurations of the same names. The specimens are drawn
once and imaged by the image model with the noise of 1,000 electrons per pixel, in seconds, where the Monte
Carlo would take 16 hours; the test is `standard-test`, which is Monte Carlo. A call ends, with a checkpoint,
before the minutes are over, and the next one goes on from there. `paper.json` in the folder holds what is
finished.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags

from bsevox_jax import checkpoint, data, forward, models, observe
from bsevox_jax.evaluate import evaluate
from bsevox_jax.inference import cu_probability
from bsevox_jax.models import bsevoxnet
from bsevox_jax.parallel import processor
from bsevox_jax.sim import phantoms
from bsevox_jax.sim.files import write_whole
from bsevox_jax.train import train
from configs import lite, medium, moderate, small, unet3d

FLAGS = flags.FLAGS
flags.DEFINE_string("folder", "runs/paper", "of the specimens, the networks and the results")
flags.DEFINE_list("networks", ["moderate", "medium", "small", "lite", "unet3d"], "in this order")
flags.DEFINE_integer("specimens", 9600, "for training")
flags.DEFINE_list("epochs", ["200", "50"], "of cross-entropy and of the Lovasz loss")
flags.DEFINE_float("minutes", 9.0, "after which this call stops")
flags.DEFINE_string("dtype", "bfloat16", "of the computation")

CONFIGS = {"lite": lite, "small": small, "medium": medium, "moderate": moderate, "unet3d": unet3d}
IOU_OF_THE_PAPER = {"lite": 0.796, "small": 0.826, "medium": 0.935, "moderate": 0.953}  # Table 2
VALIDATION = 200  # specimens
ELECTRONS_PER_PIXEL = 1000
ROWS = 200  # specimens imaged at once
SEED = 0
CURVE = ("step", "phase", "epoch", "train_loss", "validation_loss", "validation_iou_cu_mean")


def specimens() -> str:
    """File with the specimens and their counts, drawn if it is not there."""
    path = Path(FLAGS.folder).absolute() / f"specimens_{FLAGS.specimens}.npz"
    if path.exists():
        return str(path)
    model = forward.load()

    @jax.jit
    @jax.vmap
    def draw(number):
        key, noise = jax.random.split(jax.random.fold_in(jax.random.key(SEED), number))
        labels = phantoms.random_specimen(key)
        expected = forward.expect(model, labels)
        chances = observe.chances(expected.yields, expected.excess)
        return labels, observe.draw_counts(noise, chances, ELECTRONS_PER_PIXEL).astype(jnp.uint16)

    def split(first, number):
        blocks = [draw(first + np.arange(k, min(k + ROWS, number))) for k in range(0, number, ROWS)]
        labels, counts = (np.concatenate(parts) for parts in zip(*jax.device_get(blocks), strict=True))
        about = ELECTRONS_PER_PIXEL, model.beam_energies_kev, f"{number} specimens by the image model"
        return data.Examples(counts, labels, *about)

    data.save_npz(str(path), {"train": split(0, FLAGS.specimens), "validation": split(10**8, VALIDATION)})
    return str(path)


def recipe(name: str) -> ml_collections.ConfigDict:
    config = CONFIGS[name].get_config()
    config.data.update(config=specimens(), test_config="standard-test")
    config.model.dtype = FLAGS.dtype
    config.phase1.epochs, config.phase2.epochs = (int(epochs) for epochs in FLAGS.epochs)
    return config


def trained(config: ml_collections.ConfigDict, workdir: Path, deadline: float) -> bool:
    """Whether the training is finished; it stops itself, with a checkpoint, at the deadline."""
    alarm = threading.Timer(max(deadline - time.time(), 1), os.kill, (os.getpid(), signal.SIGTERM))
    alarm.start()
    try:
        return train(config, str(workdir)) is not None
    finally:
        alarm.cancel()


def rates(workdir: Path, macs: int) -> dict:
    """Specimens per second in training and inference, and the share of the matrix rate in training."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    seconds = [r["seconds"] for r in records if "validation_loss" not in r]  # of epochs and nothing else
    per_second = FLAGS.specimens / float(np.median(seconds or [r["seconds"] for r in records]))
    export = checkpoint.load_export(str(workdir / "export"))
    test = data.load("data", "standard-test")["test"]
    durations = []
    for _ in range(4):  # the first one compiles
        started = time.time()
        cu_probability(export, test.counts, test.electrons_per_pixel)
        durations.append(time.time() - started)
    return {
        "training_specimens_per_second": per_second,
        "share_of_matrix_rate": 6 * macs * per_second / matrix_rate(),  # forward 1, backward 2 times 2 macs
        "volumes_per_second_with_transfer": len(test) / min(durations),
        "curve": [{k: r[k] for k in r if k in CURVE} for r in records if "validation_loss" in r],
    }


def matrix_rate() -> float:
    """Operations per second of a large product of matrices in the type of the computation."""
    n = 8192 if jax.default_backend() != "cpu" else 1024
    matrix = jnp.ones((n, n), FLAGS.dtype)
    product = jax.jit(lambda a: (a @ a) * (1 / n))
    product(matrix).block_until_ready()
    durations = []
    for _ in range(5):
        started, result = time.time(), matrix
        for _ in range(8):
            result = product(result)
        result.block_until_ready()
        durations.append((time.time() - started) / 8)
    return 2 * n**3 / min(durations)


def row(name: str) -> dict:
    """What the network scored and how fast it was; Table 2 of the paper beside it."""
    workdir = Path(FLAGS.folder) / name
    model = CONFIGS[name].get_config().model
    counted = models.count(models.build(**model))
    result = json.loads((workdir / "metrics.json").read_text()) | counted | rates(workdir, counted["macs"])
    if model.name == "bsevoxnet":
        result["thop"] = bsevoxnet.operations(model.widths, model.blocks)["thop"]
        result["iou_of_the_paper"] = IOU_OF_THE_PAPER[name]
    return result


def main(_):
    deadline = time.time() + 60 * FLAGS.minutes
    summary = Path(FLAGS.folder) / "paper.json"
    results = json.loads(summary.read_text()) if summary.exists() else {}
    for name in FLAGS.networks:
        if name in results:
            continue
        workdir = Path(FLAGS.folder) / name
        if not (workdir / "export").exists() and not trained(recipe(name), workdir, deadline):
            print(f"{name} goes on at the next call")
            return
        evaluate(recipe(name), str(workdir))
        about = {"processor": processor(), "seed": SEED, "electrons_per_pixel": ELECTRONS_PER_PIXEL}
        results[name] = row(name) | about
        write_whole(summary, json.dumps(results, indent=1))
    print(json.dumps({name: {k: v for k, v in r.items() if k != "curve"} for name, r in results.items()}))


if __name__ == "__main__":
    app.run(main)
