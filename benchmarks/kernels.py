"""Where the classical methods take their point-spread functions from, and what each source is worth.

    python -m benchmarks.kernels --output=docs/benchmarks/kernels.json

Layers of copper, 1 nm thick, go through a film of silicon, one depth after another; the Monte Carlo counts
what each adds to every image, and with that stand the image model's images of the same layers and its
derivative. Then total variation and the posterior mean work through each operator on validation specimens:
the derivative, its forms with the sums of the Monte Carlo, the regression on pairs, and positive parts alone.
Layers that are simulated are kept in `runs/kernels`. Prints one JSON object.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bsevox_jax import blur, deconvolution, forward, sim
from bsevox_jax.compare import best_threshold, material_of
from bsevox_jax.examples import Examples
from bsevox_jax.parallel import processor
from bsevox_jax.sim.files import whole_file, write_whole
from configs import paper_tables

FOLDER = Path("runs/kernels")
FIELD = 20  # pixels along y and x, to run as many electrons at once
SHOWN_KEV = (0.5, 1.0, 2.0, 5.0, 10.0)
MODEL_ERRORS = (0.05, 0.15, 0.3, 0.6)  # of the total variation, tried for each operator


def layers(depth: int) -> np.ndarray:
    """Labels [1 + z, y, x, z] of a film of silicon, and of such films with one voxel layer of copper."""
    labels = np.full((1 + depth, FIELD, FIELD, depth), sim.phantoms.SILICON, np.uint8)
    for z in range(depth):
        labels[1 + z, ..., z] = sim.phantoms.COPPER
    return labels


def simulated(labels: np.ndarray, electrons_per_pixel: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Yields [n, e] of uniform specimens, and their standard errors from the scatter of the pixels."""
    yields, errors = [], []
    for k, one in enumerate(tqdm(labels, "layers")):
        path = FOLDER / f"layer_{k}_{electrons_per_pixel}_{seed}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            counts = sim.simulate_bse(
                one, electrons_per_pixel=electrons_per_pixel, seed=seed, specimen_ids=k
            ).counts
            with whole_file(path) as temporary, open(temporary, "wb") as file:
                np.save(file, counts)
        pixels = np.load(path).reshape(-1, len(sim.PAPER_ENERGIES_KEV)) / electrons_per_pixel
        yields.append(pixels.mean(0))
        errors.append(pixels.std(0, ddof=1) / len(pixels) ** 0.5)
    return np.array(yields), np.array(errors)


def contrast(yields: np.ndarray) -> np.ndarray:
    """[e, z] of yields [1 + z, e], the first of silicon."""
    return (yields[1:] - yields[0]).T


def scores(operator: blur.Operator, validation: Examples, specimens: int, settings: dict) -> dict:
    """IoU of the first validation specimens at the best threshold, by the best of the model errors."""
    dose, labels = validation.electrons_per_pixel, validation.labels[:specimens]
    yields = (validation.counts[:specimens] / dose).astype(np.float32)

    def of_variation(model_error):
        found = deconvolution.tv(operator, yields, dose, **(settings | {"model_error": model_error}))
        return best_threshold(found, labels)[1]

    tried = {error: of_variation(error) for error in MODEL_ERRORS}
    best = max(tried, key=tried.get)
    mean = np.clip(deconvolution.wiener(operator, yields, dose).mean, 0, 1)
    return {"tv": tried[best], "tv_model_error": best, "wiener": best_threshold(mean, labels)[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--electrons_per_pixel", type=int, default=1000, help=f"of {FIELD} x {FIELD} pixels")
    parser.add_argument("--specimens", type=int, default=16, help="of the validation set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="", help="file of the JSON object")
    options = parser.parse_args()
    config = paper_tables.get_config()
    material = material_of(config)
    derivative, depth = material.derivative, forward.depth(material.model)
    labels, validation = layers(depth), material.splits["validation"]
    yields, errors = simulated(labels, options.electrons_per_pixel, options.seed)
    of_model = np.asarray(forward.expect_all(material.model, labels).yields)[:, 0, 0]
    sums = {
        "monte carlo": contrast(yields),
        "standard error": np.hypot(errors[1:], errors[0]).T,
        "image model": contrast(of_model),
        "its derivative": np.asarray(derivative.transfer[0, 0]),
    }
    operators = {
        "derivative of the image model": derivative,
        "its forms, sums of the Monte Carlo": blur.with_sums(derivative, sums["monte carlo"]),
        "its positive parts": blur.non_negative(derivative),
        "regression on pairs": blur.of_pairs(blur.of_silicon_and_copper(material.pairs), ridge=1e-3),
    }
    shown = [sim.PAPER_ENERGIES_KEV.index(energy) for energy in SHOWN_KEV]
    found = {
        "electrons_per_layer_and_energy": options.electrons_per_pixel * FIELD**2,
        "seed": options.seed,
        "processor": processor(),
        "beam_energies_kev": SHOWN_KEV,
        "contrast": {name: array[shown].round(5).tolist() for name, array in sums.items()},
        "chi2_of_the_image_model": float(
            np.mean(((sums["monte carlo"] - sums["image model"]) / sums["standard error"]) ** 2)
        ),
        "iou": {
            name: scores(operator, validation, options.specimens, config.compare.tv.to_dict())
            for name, operator in tqdm(operators.items(), "operators")
        },
    }
    text = json.dumps(found, indent=1)
    if options.output:
        write_whole(options.output, text)
    print(text)


if __name__ == "__main__":
    main()
