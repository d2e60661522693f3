"""Can a reconstruction be trusted, and does it say so when it can not?

    python -m benchmarks.trust --output=docs/benchmarks/trust.json

Of a shipped network on `standard-test`: how far its calibrated probabilities are from the truth, how often
good images are called out of range, and how often spoilt ones are: energies in another order, axes exchanged,
one energy filled with its neighbour, a gain 20 % too high or too low, a tenth of the dose that is told.
Prints one JSON object; with `--output` the same command goes on where it was stopped.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bsevox_jax import calibration, check, checkpoint, data, forward, inference, intervals
from bsevox_jax.calibrate import measured
from bsevox_jax.evaluate import iou_cu
from bsevox_jax.sim.files import write_whole


def spoilt(counts: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Counts [n, y, x, e] as they are, and in every way in which they can be wrong."""
    rng = np.random.default_rng(seed)
    energies = counts.shape[-1]

    def filled(one):
        k = rng.integers(1, energies)
        return np.concatenate([one[..., :k], one[..., k - 1 : k], one[..., k + 1 :]], axis=-1)

    return {
        "as they are": counts,
        "energies descending": counts[..., ::-1],
        "energies in any order": np.stack([one[..., rng.permutation(energies)] for one in counts]),
        "axes e, y, x": np.moveaxis(counts, -1, 1),
        "one energy filled with another": np.stack([filled(one) for one in counts]),
        "gain 20 % too high": np.round(1.2 * counts).astype(counts.dtype),
        "gain 20 % too low": np.round(0.8 * counts).astype(counts.dtype),
        "a tenth of the dose": 10 * rng.binomial(counts, 0.1).astype(counts.dtype),
    }


def judged(export, known, model, counts, dose, families) -> dict:
    """Shares of specimens that are out of range, and that are not explained; with wires, and without."""
    probability = known(inference.cu_probability(export, counts, dose))
    found = [
        check.check(model, one / dose, dose, volume, reference=known.reference)
        for one, volume in zip(counts, tqdm(probability, leave=False), strict=True)
    ]
    outside, unexplained = (
        np.array([not flag for flag in of])
        for of in ([one.in_range for one in found], [one.explains for one in found])
    )
    wires = np.array(families) == "core-shell wire"
    groups = {"all": np.ones_like(wires), "without wires": ~wires, "wires": wires}
    return {
        name: {
            "specimens": int(of.sum()),
            "out_of_range": float(outside[of].mean()),
            "not_explained": float(unexplained[of].mean()),
            "either": float((outside | unexplained)[of].mean()),
            "median_chi2": float(np.median([one.chi2 for one in itertools.compress(found, of)])),
        }
        for name, of in groups.items()
        if of.any()
    }


def held(known, is_cu, probability) -> dict:
    """Share of true values that intervals of bodies hold, and their number: by the soft edge, and widened."""
    pairs = measured(is_cu, probability, known.threshold)
    widened = [(true, intervals.widened(found, known.margins)) for true, found in pairs]
    return {"soft edge": intervals.coverage(pairs), "widened": intervals.coverage(widened)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="compact")
    parser.add_argument(
        "--specimens", type=int, default=200, help="of standard-test, whose images are spoilt; 0: none"
    )
    parser.add_argument("--output", default="", help="file of the JSON object")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = checkpoint.shipped(options.network)
    export, model = checkpoint.load_export(folder), forward.load()
    known = calibration.load(folder, export)
    test = data.load("data", "standard-test")["test"]
    dose, is_cu = test.electrons_per_pixel, data.copper(test.labels)
    own = inference.cu_probability(export, test.counts, dose)
    calibrated = known(own)
    about = {"network": options.network, "sha256": export.sha256, "electrons_per_pixel": dose}
    about |= {"spoilt": options.specimens, "seed": options.seed}
    found = dict(about)
    for name, probability in (("own", own), ("calibrated", calibrated)):
        curve = calibration.reliability(probability, is_cu)
        found[name] = {key: np.asarray(value).tolist() for key, value in curve.items()}
    found["iou_at_threshold"] = float(np.mean(iou_cu(calibrated, test.labels, known.threshold)))
    found["threshold"] = known.threshold
    found["intervals"] = held(known, is_cu, calibrated)
    found["range"], some = done_before(options.output, about), slice(options.specimens)
    kinds = spoilt(test.counts[some].astype(np.int64), options.seed) if options.specimens else {}
    for name, images in kinds.items():
        if name not in found["range"]:
            print(f"judging: {name}", file=sys.stderr)
            found["range"][name] = judged(export, known, model, images, dose, test.families[some])
            write(options.output, found)
    write(options.output, found)
    print(json.dumps(found, indent=1))


def done_before(path: str, about: dict) -> dict:
    """What a file of the same network and specimens has of the range; nothing else."""
    if not path or not Path(path).exists():
        return {}
    before = json.loads(Path(path).read_text())
    return before["range"] if all(before.get(name) == value for name, value in about.items()) else {}


def write(path: str, found: dict) -> None:
    """Writes the JSON object, if it is to be written."""
    if path:
        write_whole(path, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
