"""The paper's grid of learning rate, weight decay and lambda, 252 points; the best of each round go on.

`--config=configs/sweep.py:quickstart` takes another configuration than `lite` for the network and its data.
"""

from importlib import import_module

from ml_collections import ConfigDict


def get_config(base: str = "lite") -> ConfigDict:
    config = import_module(f"configs.{base}").get_config()
    config.sweep = sweep = ConfigDict()
    sweep.learning_rates = (5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5)  # of phase 1; that of phase 2 in proportion
    sweep.weight_decays = (1e-3, 1e-4, 1e-5)
    sweep.lams = tuple(1 / n for n in range(2, 16))
    # Each round is a whole training, both phases, with the schedules shortened to its epochs.
    sweep.epochs = (10, 50, 250)
    sweep.kept = 0.2  # share of the points that enter the next round, at least one
    sweep.side_by_side = 4  # points that train at once, as memory allows
    return config
