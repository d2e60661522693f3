"""A data set and a configuration small enough to train in seconds; as a program, trains in its own process.

`python tests/small_run.py <data_dir> <workdir> [--key=value ...]` sets keys of the config.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PIXELS, DOSE, ENERGIES_KEV = 8, 400, (0.5, 1.0, 2.0, 4.0)


def specimens(number, seed):
    """Boxes and upright cylinders of Cu (2) in Si (1), some under vacuum (0): uint8 [n, y, x, z]."""
    import numpy as np

    rng = np.random.default_rng(seed)
    y, x, z = np.meshgrid(*[np.arange(PIXELS)] * 3, indexing="ij")
    labels = np.ones((number, PIXELS, PIXELS, PIXELS), np.uint8)
    for k in range(number):
        centre, half = rng.uniform(1, 6, 3), rng.uniform(1, 3, 3)
        dy, dx, dz = (abs(axis - c) for axis, c in zip((y, x, z), centre, strict=True))
        across = np.hypot(dy, dx) <= half[0] if k % 2 else (dy <= half[0]) & (dx <= half[1])
        labels[k][across & (dz <= half[2])] = 2
        if k % 3 == 0:
            labels[k, :, : rng.integers(1, 3), :2] = 0
    return labels


def counts_of(labels, seed):
    """Poisson counts of a plain projection: deeper voxels count less, the more so at low energy."""
    import numpy as np

    yields = np.array([0.0, 0.1, 0.3])[labels]
    depth_nm = np.arange(PIXELS) + 0.5
    weights = np.stack([np.exp(-depth_nm / (1.5 * (k + 1))) for k in range(len(ENERGIES_KEV))])
    expected = np.einsum("nyxz,ez->nyxe", yields, weights / weights.sum(1, keepdims=True))
    return np.random.default_rng(seed).poisson(DOSE * expected).astype(np.uint16)


def write_data(data_dir):
    """Writes small.npz and returns its splits."""
    from bsevox_jax import data

    splits = {}
    for seed, (split, number) in enumerate({"train": 26, "validation": 7, "test": 4}.items()):
        labels = specimens(number, seed)
        splits[split] = data.Examples(counts_of(labels, 100 + seed), labels, DOSE, ENERGIES_KEV, "small")
    data.save_npz(os.path.join(data_dir, "small.npz"), splits)
    return splits


def get_config(data_dir):
    """The compact configuration, shrunk: 4 steps per epoch, 4 epochs of phase 1 and 2 of phase 2."""
    from configs import compact

    config = compact.get_config()
    config.data.update(data_dir=str(data_dir), config="small.npz", held_out="", source="counts", batch_size=8)
    config.model.update(widths=(8, 12), blocks=(1, 1), depth=PIXELS)
    config.optim.update(name="adamw", warmup_epochs=1)  # compiles in half the time
    config.optim.average_decay = 0.9
    config.phase1.epochs = 4
    config.phase2.epochs = 2
    config.eval_every_epochs = 2
    return config


def main():
    data_dir, workdir, *settings = sys.argv[1:]
    sys.path.insert(0, ROOT)
    import jax

    jax.config.update("jax_compilation_cache_dir", os.path.join(ROOT, ".jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from bsevox_jax import parallel, train

    parallel.start()
    config = get_config(data_dir)
    config.update_from_flattened_dict(
        {key: type(_get(config, key))(value) for key, value in (s[2:].split("=") for s in settings)}
    )
    train.train(config, workdir)


def _get(config, key):
    for name in key.split("."):
        config = config[name]
    return config


if __name__ == "__main__":
    main()
