"""All ways to a volume on the same images, scored alike: the tables and figures of Zheng et al. 2024.

Each method gives a fraction of Cu per voxel. It is scored twice: at one threshold, chosen on validation
specimens, and by the protocol of the paper, at the best of five thresholds for each specimen with the truth
in view.
"""

import hashlib
import json
import os

import numpy as np
from ml_collections import ConfigDict

import bsevox_jax
from bsevox_jax import checkpoint, data, forward, imageio, metrics, models, page, paper_tables
from bsevox_jax.evaluate import SPLIT_OF, STRUCTURES, iou_by_family, iou_cu
from bsevox_jax.methods import SPLITS, Material, methods, volumes
from bsevox_jax.sim import shapes

DECISIVE = ("images_sha256", "image_model_sha256", "seed", "version")  # of all volumes
THRESHOLDS = tuple(k / 20 for k in range(1, 20))
ORACLE_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # Zheng et al. 2024, Sec. III


def compare(config: ConfigDict, workdir: str) -> dict:
    """Runs all methods of `config.compare`; writes `tables.json`, `tables.md` and `report.html`.

    Volumes are kept in the folder `volumes`; the same command goes on after a stop.

    Args:
        config: as of configs/paper_tables.py.
        workdir: folder of the results.

    Returns:
        What `tables.json` holds.

    Raises:
        FileNotFoundError, OSError: network or data set missing or damaged, or the disk is full.
        ValueError: an unknown method, or a data set without the structures; one line.
    """
    workdir = os.path.abspath(os.path.expanduser(workdir))
    material = material_of(config)
    about, chosen = _circumstances(config, material), methods(config, material)
    results = {"circumstances": about, "methods": {}, "ablation": _ablation(config.compare.ablation)}
    os.makedirs(os.path.join(workdir, "volumes"), exist_ok=True)
    found = {}
    for name, method in chosen.items():
        title, path = method.title, os.path.join(workdir, "volumes", f"{name.replace(' ', '_')}.npz")
        decisive = json.dumps([about[key] for key in DECISIVE] + [method.settings])
        found[title], timed = volumes(path, decisive, method, material.splits)
        score = {"about": method.about} | timed | scores(found[title], material.splits)
        results["methods"][title], seconds = score, timed["seconds_per_volume"]
        print(f"{title:<28} IoU {score['iou']:.3f}   {seconds:8.3f} s per volume", flush=True)
    results["networks"] = {
        title: models.count(models.build(**fields)) for title, fields in config.compare.sizes.items()
    }
    results["training"] = learning_curves(checkpoint.shipped("compact"))
    results["paper"] = paper_tables.STRUCTURES
    results["tables"] = paper_tables.tables(results)
    with imageio.whole_files(workdir) as folder:
        for name, text in (
            ("tables.json", json.dumps(results, indent=1)),
            ("tables.md", paper_tables.markdown(results)),
        ):
            with open(os.path.join(folder, name), "w") as file:
                file.write(text + "\n")
    page.write(os.path.join(workdir, "report.html"), results, specimens(found, material.splits))
    print(f"tables.json, tables.md and report.html are in {workdir}")
    return results


def scores(found: dict[str, np.ndarray], splits: dict[str, data.Examples]) -> dict:
    """IoU of Cu of one method's volumes, by the two ways of choosing a threshold."""
    threshold, _ = best_threshold(found["validation"], splits["validation"].labels)
    iou = {split: iou_at(found[split], splits[split].labels, threshold) for split in SPLITS}
    oracle = {
        split: np.max([iou_at(found[split], splits[split].labels, t) for t in ORACLE_THRESHOLDS], axis=0)
        for split in SPLITS
    }
    test = splits["test"]
    result = {
        "threshold": threshold,
        "iou_validation": float(iou["validation"].mean()),
        "iou": float(iou["test"].mean()),
        "standard_error": float(iou["test"].std(ddof=1) / len(test) ** 0.5),
        "iou_oracle": float(oracle["test"].mean()),
        "by_family": iou_by_family(iou["test"], test.families)["iou_by_family"],
        "by_depth": metrics.iou_by_depth(found["test"], data.copper(test.labels), threshold).tolist(),
        "out_of_family": dict(zip(shapes.SHAPES, iou["out_of_family"].tolist(), strict=True)),
    }
    for series, (split, place) in SPLIT_OF.items():
        pairs = zip(iou[split][place].tolist(), oracle[split][place].tolist(), strict=True)
        names = STRUCTURES[series]
        result[series] = {n: {"fixed": f, "oracle": o} for n, (f, o) in zip(names, pairs, strict=True)}
    return result


def specimens(found: dict, splits: dict[str, data.Examples]) -> list:
    """What the page shows: the structures of the paper, and of every family the specimen in the middle."""
    shown = []

    def add(title, group, split, k):
        examples = splits[split]
        probability = {method: volume[split][k] for method, volume in found.items()}
        yields = examples.counts[k] / examples.electrons_per_pixel
        shown.append(page.Specimen(title, group, yields, examples.labels[k], probability))

    for series, (split, place) in SPLIT_OF.items():
        for name, k in zip(STRUCTURES[series], range(*place.indices(len(splits[split]))), strict=True):
            add(f"{series.replace('_', ' ')} {name}", series, split, k)
    first = next(iter(found.values()))["test"]
    iou, families = iou_at(first, splits["test"].labels, 0.5), np.array(splits["test"].families)
    for family in np.unique(families):
        members = np.flatnonzero(families == family)
        add(str(family), "test", "test", members[np.argsort(iou[members])[len(members) // 2]])
    return shown


def learning_curves(export: str) -> dict:
    """Training loss and validation IoU by epoch, for each run in the log of an exported network."""
    path = os.path.join(export, "training.jsonl")
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        entries = [json.loads(row) for row in file]
    curves = {}
    for run in dict.fromkeys(entry["run"] for entry in entries):
        # One entry per epoch; the log counts anew in the second phase.
        trained = dict(enumerate((e for e in entries if e["run"] == run), start=1))
        validated = {k: e for k, e in trained.items() if "validation_iou_cu_mean" in e}
        curves[f"{run} run"] = {
            "epoch": list(trained),
            "loss": [e["train_loss"] for e in trained.values()],
            "validation_epoch": list(validated),
            "iou_cu_mean": [e["validation_iou_cu_mean"] for e in validated.values()],
        }
    return curves


def best_threshold(fractions: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The threshold of greatest mean IoU of Cu, and that IoU."""
    iou = [iou_at(fractions, labels, threshold).mean() for threshold in THRESHOLDS]
    return THRESHOLDS[np.argmax(iou)], float(np.max(iou))


def iou_at(fractions: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """IoU [n] of Cu, found where a fraction [n, y, x, z] is above the threshold."""
    return np.array(iou_cu(fractions, labels, threshold))


def material_of(config: ConfigDict) -> Material:
    """The data sets and the image model of a configuration."""

    def load(name, needs):
        return data.load(config.data.data_dir, name, needs=needs, **config.simulator)

    held_out = load(config.data.held_out, ("validation",))
    tested = load(config.data.test_config, SPLITS[1:])
    training = load(config.data.config, ("train",))["train"]
    splits = {"validation": held_out["validation"]} | {split: tested[split] for split in SPLITS[1:]}
    model = forward.load()
    taken = {name: (s.electrons_per_pixel, s.beam_energies_kev) for name, s in splits.items()}
    if len(set(taken.values())) > 1 or model.beam_energies_kev != splits["test"].beam_energies_kev:
        raise ValueError(
            "validation and test must have one dose and the energies of the image model; got "
            f"{taken['validation'][0]} and {taken['test'][0]} electrons per pixel, {len(taken['test'][1])} "
            f"and {len(model.beam_energies_kev)} energies. Choose another data.held_out or data.test_config."
        )
    return Material(splits, training, model, config.seed)


def _circumstances(config, material):
    test, fingerprint = material.splits["test"], hashlib.sha256(material.training.labels.tobytes())
    for split in SPLITS:
        fingerprint.update(material.splits[split].counts.tobytes())
    return {
        "data_set": test.name,
        "test_specimens": len(test),
        "electrons_per_pixel": test.electrons_per_pixel,
        "training": f"{len(material.training)} specimens of {material.training.name}",
        "images_sha256": fingerprint.hexdigest(),
        "image_model_sha256": material.model.sha256,
        "seed": config.seed,
        "version": bsevox_jax.__version__,
    }


def _ablation(path):
    """What `benchmarks.ablation --of=paper` wrote; nothing without it."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)
