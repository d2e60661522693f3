"""How well the shape fit does on Monte Carlo images: nanocubes, and test specimens with one box or cylinder.

    python -m benchmarks.fit                  # half a minute per specimen on two slow cores

Pulls, errors over their standard errors, are those of boxes, whose numbers the labels tell exactly. Prints
one JSON object.
"""

import json
import os
import statistics
import time

import jax
import numpy as np
from absl import app, flags

from bsevox_jax import data, fit, forward
from bsevox_jax.evaluate import iou_cu
from bsevox_jax.parallel import processor

FLAGS = flags.FLAGS
flags.DEFINE_integer("test_specimens", 20, "of the test split, from the first on")

FAMILIES = ("box", "cylinder")


def box_of(copper: np.ndarray) -> dict[str, float] | None:
    """Centre and size of the Cu [y, x, z] if it is a box along the axes, named as by `fit.Body`."""
    where = np.argwhere(copper)
    low, high = where.min(0), where.max(0) + 1
    if copper.sum() != np.prod(high - low):
        return None
    centre = {f"{axis}_nm": float(c) for axis, c in zip("yxz", (low + high) / 2, strict=True)}
    return centre | {f"size_{axis}_nm": float(s) for axis, s in zip("yxz", high - low, strict=True)}


def measured(model: forward.ImageModel, examples: data.Examples, k: int) -> dict:
    """What the fit of specimen k found, beside the truth."""
    start = time.perf_counter()
    body = fit.fit(model, examples.counts[k], examples.electrons_per_pixel)
    seconds = time.perf_counter() - start
    truth = box_of(examples.labels[k] == data.COPPER_LABEL)
    pulls = {}
    if truth and body.shape == "box":
        errors = {name: body.parameters[name] - value for name, value in truth.items()}
        # A face in a side of the block is no measurement, and has no error.
        pulls = {n: e / body.standard_errors[n] for n, e in errors.items() if body.standard_errors[n] > 0}
    return {
        "is_box": truth is not None,
        "found": body.shape,
        "iou": iou_cu(body.volume[None], examples.labels[k : k + 1])[0],
        "parameters": body.parameters,
        "standard_errors": body.standard_errors,
        "truth": truth,
        "pulls": pulls,
        "chi2_per_dof": body.chi2_per_dof,
        "seconds": seconds,
    }


def summary(rows: list[dict]) -> dict:
    pulls = [pull for row in rows for pull in row["pulls"].values()]
    return {
        "specimens": len(rows),
        "iou_mean": statistics.mean(row["iou"] for row in rows),
        "iou_median": statistics.median(row["iou"] for row in rows),
        "boxes": sum(row["is_box"] for row in rows),
        "boxes_found_as_boxes": sum(row["is_box"] and row["found"] == "box" for row in rows),
        "pulls": len(pulls),
        "pull_mean": statistics.mean(pulls),
        "pull_rms": float(np.sqrt(np.mean(np.square(pulls)))),
        "chi2_per_dof_mean": statistics.mean(row["chi2_per_dof"] for row in rows),
        "seconds_median": statistics.median(row["seconds"] for row in rows),
    }


def main(_):
    model, splits = forward.load(), data.load("data", "standard-test")
    test = splits["test"]
    whole = (test.labels > 0).all((1, 2, 3)) & np.isin(test.families, FAMILIES)
    chosen = [("nanocube", k) for k in range(len(splits["nanocube"]))]
    chosen += [("test", int(k)) for k in np.flatnonzero(whole)[: FLAGS.test_specimens]]
    rows = []
    for split, k in chosen:
        rows.append({"split": split, "index": k} | measured(model, splits[split], k))
        print({name: rows[-1][name] for name in ("split", "index", "found", "iou", "seconds")}, flush=True)
    result = {
        split: summary([row for row in rows if row["split"] == split]) for split in ("nanocube", "test")
    }
    about = {"device": jax.devices()[0].device_kind, "processor": processor(), "cores": os.cpu_count()}
    print(json.dumps(result | about | {"electrons_per_pixel": test.electrons_per_pixel, "rows": rows}))


if __name__ == "__main__":
    app.run(main)
