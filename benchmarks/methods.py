"""Settings of the classical methods, tried on validation specimens; and their times on one core, or a GPU.

    python -m benchmarks.methods --try=tv                         # IoU for each of its settings
    taskset -c 0 python -m benchmarks.methods --batches=1         # seconds per volume on one core
    python -m benchmarks.methods --batches=1,16,64                # in batches, as on a GPU

Prints one JSON object.
"""

import itertools
import json
import os

import jax
from absl import app, flags

from bsevox_jax.compare import best_threshold, material_of
from bsevox_jax.methods import methods, seconds_per_call
from bsevox_jax.parallel import processor
from configs import paper_tables

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "try", None, ["map", "tv", "em", "blind", "linear"], "settings of which method; none: times"
)
flags.DEFINE_integer("validation_specimens", 16, "for --try")
flags.DEFINE_list("batches", ["1"], "volumes at once, for the times")

TRIED = {
    "blind": {"iterations": [2, 5, 10, 20, 50]},
    "em": {"cycles": [5, 10, 20, 50, 100, 300]},
    "tv": {"strength": [0.3, 1.0, 3.0], "model_error": [0.05, 0.15, 0.3, 0.6]},
    "map": {"strength": [0.3, 1.0, 3.0], "learning_rate": [0.1, 0.3]},
    "linear": {"ridge": [1e-6, 1e-4, 1e-2]},
}


def tried(name: str) -> list[dict]:
    """Each combination of settings with its best threshold and mean IoU, the best first."""
    rows, material = [], material_of(paper_tables.get_config())
    for values in itertools.product(*TRIED[name].values()):
        config = paper_tables.get_config()
        config.compare[name].update(dict(zip(TRIED[name], values, strict=True)))
        images = material.splits["validation"]
        found = methods(config, material)[name].make()(images.counts[: FLAGS.validation_specimens])
        threshold, iou = best_threshold(found, images.labels[: FLAGS.validation_specimens])
        rows.append(config.compare[name].to_dict() | {"threshold": threshold, "iou": iou})
        print(rows[-1], flush=True)
    return sorted(rows, key=lambda row: -row["iou"])


def times() -> dict:
    """Seconds per volume of every method, by volumes at once."""
    config = paper_tables.get_config()
    material, found = material_of(config), {}
    for name, method in methods(config, material).items():
        reconstruct = method.make()
        found[name] = {
            batch: seconds_per_call(reconstruct, material.splits["test"].counts[:batch]) / batch
            for batch in map(int, FLAGS.batches)
        }
        print(name, found[name], flush=True)
    return found


def main(_):
    name = FLAGS["try"].value
    result = {"tried": {name: tried(name)}} if name else {"seconds_per_volume": times()}
    cores = len(os.sched_getaffinity(0))
    about = {"device": jax.devices()[0].device_kind, "processor": processor(), "cores": cores}
    print(json.dumps(result | about))


if __name__ == "__main__":
    app.run(main)
