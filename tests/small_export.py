"""An exported network without training, of the field of view and the energies that the launcher takes."""

import jax
import numpy as np

from bsevox_jax import checkpoint, data, models, sim
from configs import quickstart

DOSE = 6


def get_config(data_dir):
    """The quickstart configuration, shrunk, on the data set of `write`."""
    config = quickstart.get_config()
    config.data.update(data_dir=str(data_dir), config="small.npz", batch_size=4)
    config.model.update(widths=(8, 12), blocks=(1, 1))
    return config


def examples(number, seed):
    """Boxes of Cu, and counts that brighten above them."""
    rng = np.random.default_rng(seed)
    labels = np.ones((number, *sim.phantoms.SHAPE), np.uint8)
    for volume in labels:
        y, x, z = rng.integers(0, 14, 3)
        volume[y : y + 6, x : x + 5, z : z + 4] = data.COPPER_LABEL
    yields = 0.1 + 0.02 * (labels == data.COPPER_LABEL).sum(-1)[..., None] / np.arange(1, 21)
    counts = rng.poisson(DOSE * yields).astype(np.uint16)
    return data.Examples(counts, labels, DOSE, sim.PAPER_ENERGIES_KEV, "boxes")


def write(folder):
    """Writes the data set small.npz and the network run/export; returns the config and the splits."""
    config = get_config(folder)
    splits = {split: examples(n, n) for split, n in {"train": 6, "validation": 5, "test": 7}.items()}
    data.save_npz(str(folder / "small.npz"), splits)
    normalisation = data.Normalisation.fit(splits["train"])
    inputs = normalisation(splits["train"].counts[:1], DOSE)
    weights = jax.device_get(models.build(**config.model).init(jax.random.key(3), inputs, train=False))
    checkpoint.export(
        str(folder / "run" / "export"), dict(weights), config.to_dict(), normalisation, splits["train"]
    )
    return config, splits
