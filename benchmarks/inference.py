"""How long a volume takes: one alone, and in batches, for every network; and the size of each (Table 2).

    python -m benchmarks.inference            # two minutes on two slow cores

As in a reconstruction: a network that learns from all attitudes of the specimen is shown all eight. Weights
are random, which takes the same time. Prints one JSON object.
"""

import json
import os
import statistics
import time
from importlib import import_module

import jax
import numpy as np
from absl import app, flags

from bsevox_jax import models
from bsevox_jax.inference import predicted
from bsevox_jax.parallel import processor

FLAGS = flags.FLAGS
flags.DEFINE_list("configs", ["compact", "lite", "small", "medium", "moderate", "unet3d"], "networks")
flags.DEFINE_integer("repeats", 7, "of which the median counts")
flags.DEFINE_list("batches", ["1", "8"], "volumes at once")

SHAPE = (20, 20, 20)


def measured(name: str) -> dict:
    """Parameters, multiply-adds and milliseconds per volume by batch, of a configuration's network."""
    config = import_module(f"configs.{name}").get_config()
    network = models.build(**config.model)
    images = jax.random.normal(jax.random.key(0), (max(map(int, FLAGS.batches)), *SHAPE))
    weights = jax.jit(lambda key: network.init(key, images[:1], train=False))(jax.random.key(1))

    @jax.jit
    def apply(weights, images):
        return predicted(network, weights, images, all_attitudes=config.data.symmetries)

    found = {}
    for batch in map(int, FLAGS.batches):
        inputs = np.asarray(images[:batch])
        jax.block_until_ready(apply(weights, inputs))
        seconds = []
        for _ in range(FLAGS.repeats):
            start = time.perf_counter()
            jax.block_until_ready(apply(weights, inputs))
            seconds.append(time.perf_counter() - start)
        found[batch] = 1e3 * statistics.median(seconds) / batch
    return models.count(network) | {"ms_per_volume": found}


def main(_):
    about = {"device": jax.devices()[0].device_kind, "processor": processor(), "cores": os.cpu_count()}
    print(json.dumps({name: measured(name) for name in FLAGS.configs} | about))


if __name__ == "__main__":
    app.run(main)
