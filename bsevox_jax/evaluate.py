"""How good a trained network is: the test split, and the structures of Zheng et al. 2024, Tables 3 and 4.

An image model is measured by how well it foretells the counts of all splits.
"""

import hashlib
import json
import os

import jax
import numpy as np
from ml_collections import ConfigDict

import bsevox_jax
from bsevox_jax import checkpoint, data, forward, imageio, metrics, parallel, report, sim
from bsevox_jax.inference import check_energies, cu_probability
from bsevox_jax.reconstruct import VOXEL_NM
from bsevox_jax.sim import shapes
from bsevox_jax.simulate import counts_of

STRUCTURES = shapes.STRUCTURES
SPLIT_OF = {  # series -> split of a data set that has the structures, and the place in it
    "nanocube": ("nanocube", slice(0, 4)),
    "nanowire": ("nanowire", slice(0, 5)),
    "nanowire_lying": ("nanowire", slice(5, 10)),
}
FIRST_STRUCTURE = 300_000_000  # number of the first one; no random specimen shares its noise
SEED = 0  # of the simulated structures, the same for all networks
SINGLE_BODIES = ("box", "cylinder", "sphere", "core-shell wire")  # families of one Cu body each


def evaluate(config: ConfigDict, workdir: str | None = None) -> dict:
    """Measures an exported network; writes `metrics.json` and `picture.png`, and prints a table.

    For the task `images` see `evaluate_images`. Else the test split is that of `data.test_config`. The
    structures are those of the same data set, or else are simulated once at its dose and energies.

    Args:
        config: as for training; its data sets may be others with the same energies.
        workdir: folder of the run; None takes the shipped network of the name, and writes below
            runs/shipped.

    Returns:
        What `metrics.json` holds: `metrics.summarise` of the test split, its IoU by depth and, where families
        are known, by family and over all specimens of `SINGLE_BODIES`; the IoU of Cu of each structure and of
        each shape out of the families, if the data set has them, and what they were measured with.

    Raises:
        FileNotFoundError, OSError: network or data set missing or damaged, or the disk is full.
        ValueError: the data set does not fit the network, or none is shipped; one line.
    """
    name = "forward" if config.task == "images" else config.shipped or config.model.name
    folder, workdir = checkpoint.of_run(workdir, name)
    if config.task == "images":
        return evaluate_images(config, workdir, folder)
    export = checkpoint.load_export(folder)
    name = config.data.test_config or config.data.config
    splits = data.load(config.data.data_dir, name, needs=("test",), **config.simulator)
    test = splits["test"]
    check_energies(test.beam_energies_kev, export)
    probability = cu_probability(export, test.counts, test.electrons_per_pixel)
    results = metrics.summarise(metrics.sample_sums(probability, data.copper(test.labels)))
    results["iou_by_depth"] = metrics.iou_by_depth(probability, data.copper(test.labels)).tolist()
    iou = iou_cu(probability, test.labels)
    results |= iou_by_family(iou, test.families)
    results |= _structure_iou(config, splits, export)
    results |= _circumstances(test, export)
    if parallel.is_main_process():
        _write(workdir, results, test, probability, iou)
        print(table(results))
        print(f"picture: {os.path.join(workdir, 'picture.png')}")
    return results


def evaluate_images(config: ConfigDict, workdir: str, export: str) -> dict:
    """Measures the image model exported to a folder; writes `metrics.json`, and prints chi^2 per energy.

    Returns:
        Split of `data.test_config` -> `metrics.agreement`, as lists.
    """
    model = forward.load(export)
    name = config.data.test_config or config.data.config
    results = {}
    for split, examples in data.load(config.data.data_dir, name, **config.simulator).items():
        if model.beam_energies_kev != examples.beam_energies_kev:
            raise ValueError(f"the data set must have the energies of the model; got {name}. Choose another.")
        images = forward.expect_all(model, examples.labels)
        found = agreement(images, examples.labels, examples.counts, examples.electrons_per_pixel)
        results[split] = {key: np.asarray(value).tolist() for key, value in found.items()}
    lines = [f"chi^2 per degree of freedom, data set {name}", " " * 16 + "keV" + "".join(
        f"{energy:6g}" for energy in model.beam_energies_kev)]  # fmt: skip
    for split, found in results.items():
        lines.append(f"{split:>19}" + "".join(f"{value:6.3f}" for value in found["chi2_per_dof"]))
    with imageio.whole_files(workdir) as folder:
        with open(os.path.join(folder, "metrics.json"), "w") as file:
            json.dump(results, file, indent=1)
    print(*lines, sep="\n")
    return results


def agreement(
    images: forward.Expected, labels: np.ndarray, counts: np.ndarray, electrons_per_pixel: np.ndarray | int
) -> dict:
    """`metrics.agreement` of expected images with counts [n, y, x, e], at one dose or one per energy [e].

    The pixels that count are those of `labels` [n, y, x, z] whose column holds matter.
    """
    seen = (labels > 0).any(-1)
    return metrics.agreement(*images, counts / electrons_per_pixel, electrons_per_pixel, seen)


def _structure_iou(config: ConfigDict, splits: dict[str, data.Examples], export: checkpoint.Export) -> dict:
    """IoU of Cu by series and name."""
    if "nanocube" in splits and "nanowire" in splits:
        places = dict(SPLIT_OF)
    else:
        data_dir = os.path.expanduser(config.data.data_dir)
        splits = splits | {"structures": _structures(data_dir, splits["test"], **config.simulator)}
        starts = np.cumsum([0] + [len(members) for members in STRUCTURES.values()])
        places = {s: ("structures", slice(*starts[k : k + 2])) for k, s in enumerate(STRUCTURES)}
    names = {series: list(members) for series, members in STRUCTURES.items()}
    if "out_of_family" in splits:
        places["out_of_family"], names["out_of_family"] = ("out_of_family", slice(None)), list(shapes.SHAPES)
    iou = {}
    for split in dict.fromkeys(split for split, _ in places.values()):
        images = splits[split]
        probability = cu_probability(export, images.counts, images.electrons_per_pixel)
        iou[split] = iou_cu(probability, images.labels)
    return {
        series: dict(zip(names[series], iou[split][place], strict=True))
        for series, (split, place) in places.items()
    }


def iou_cu(probability: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> list[float]:
    """Intersection over union of Cu of each specimen, from probabilities and labels [n, y, x, z]."""
    sums = metrics.sample_sums(probability, data.copper(labels), threshold)
    one = [{name: value[k : k + 1] for name, value in sums.items()} for k in range(len(labels))]
    return [metrics.summarise(sample)["iou_cu_mean"] for sample in one]


def iou_by_family(iou: list[float], families: tuple[str, ...] | None) -> dict:
    """`iou_by_family`, means of the specimens of each, and `iou_single_body`; empty without families."""
    if families is None:
        return {}
    iou, families = np.array(iou), np.array(families)
    mean = {str(family): float(iou[families == family].mean()) for family in np.unique(families)}
    single = np.isin(families, SINGLE_BODIES)
    return {"iou_by_family": mean} | ({"iou_single_body": float(iou[single].mean())} if single.any() else {})


def table(results: dict) -> str:
    """The results as text."""
    lines = [
        f"{results['model']} on {results['test_specimens']} test specimens of {results['data_set']}, "
        f"{results['electrons_per_pixel']} electrons per pixel",
        f"  IoU(Cu) mean {results['iou_cu_mean']:.3f}   pooled {results['iou_cu_pooled']:.3f}   "
        f"MRE {100 * results['mre']:.1f} %",
    ]
    if "iou_by_family" in results:
        of_family = [f"{name} {iou:.3f}" for name, iou in results["iou_by_family"].items()]
        lines += [f"  {'   '.join(of_family[k : k + 5])}" for k in range(0, len(of_family), 5)]
    if "iou_single_body" in results:
        lines.append(f"  one box, cylinder, sphere or wire: {results['iou_single_body']:.3f}")
    of_depth = results["iou_by_depth"]
    planes = range(0, len(of_depth), max(1, len(of_depth) // 5))
    lines.append(f"  {'plane, nm below the top':<33}" + "".join(f"{z + 1:>7}" for z in planes))
    lines.append(f"  {'  IoU(Cu), pooled':<33}" + "".join(f"{of_depth[z]:7.3f}" for z in planes))
    titles = {
        "nanocube": "Cu cube of 5 nm in Si, position",
        "nanowire": "upright wire, Cu radius in nm",
        "nanowire_lying": "lying wire, Cu radius in nm",
    }
    for series, title in titles.items():
        lines.append(f"  {title:<33}" + "".join(f"{name:>7}" for name in results[series]))
        lines.append(f"  {'  IoU(Cu)':<33}" + "".join(f"{iou:7.3f}" for iou in results[series].values()))
    for name, iou in results.get("out_of_family", {}).items():
        lines.append(f"  {f'out of the families: {name}':<40}{iou:7.3f}")
    return "\n".join(lines)


def _circumstances(test: data.Examples, export: checkpoint.Export) -> dict:
    return {
        "data_set": test.name,
        "test_specimens": len(test),
        "electrons_per_pixel": test.electrons_per_pixel,
        "dose": {"train": list(export.doses), "test": test.electrons_per_pixel},
        "checkpoint_sha256": export.sha256,
        "structures_seed": SEED,
        "seed": export.config["seed"],
        "model": export.config["model"]["name"],
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "version": bsevox_jax.__version__,
    }


def _write(
    workdir: str, results: dict, test: data.Examples, probability: np.ndarray, iou: list[float]
) -> None:
    median = int(np.argsort(iou)[len(iou) // 2])
    yields, dose = test.counts[median] / test.electrons_per_pixel, test.electrons_per_pixel
    images = yields, test.beam_energies_kev, dose
    title = f"{results['model']}, the test specimen of median IoU ({results['data_set']})"
    with imageio.whole_files(workdir) as folder:
        with open(os.path.join(folder, "metrics.json"), "w") as file:
            json.dump(results, file, indent=1)
            file.write("\n")
        path = os.path.join(folder, "picture.png")
        report.picture(path, *images, probability[median], VOXEL_NM, truth=test.labels[median], title=title)


def _structures(data_dir: str, test: data.Examples, kind: str, **program) -> data.Examples:
    """The test structures in the order of `STRUCTURES`, simulated as the data set was."""
    made = [make() for members in STRUCTURES.values() for make in members.values()]
    labels = np.stack([np.asarray(m) for m in made])
    dose, energies_kev = test.electrons_per_pixel, test.beam_energies_kev
    version = sim.SIMULATOR_VERSION if kind == "bsevox" else kind
    decisive = [dose, energies_kev, SEED, version, hashlib.sha256(labels.tobytes()).hexdigest()]
    name = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]
    folder = os.path.join(data_dir, "test_structures")
    counts = _read_counts(os.path.join(folder, f"{name}.npz"))
    if counts is None:
        if parallel.is_main_process():
            print(f"simulating {len(labels)} test structures at {dose} electrons per pixel", flush=True)
        counts = counts_of(
            labels,
            kind=kind,
            program=program,
            electrons_per_pixel=dose,
            beam_energies_kev=energies_kev,
            seed=SEED,
            specimen_ids=FIRST_STRUCTURE + np.arange(len(labels)),
        )
        with imageio.whole_files(folder) as temporary:
            np.savez_compressed(os.path.join(temporary, f"{name}.npz"), counts=counts)
    return data.Examples(counts, labels, dose, energies_kev, "test structures")


def _read_counts(path: str) -> np.ndarray | None:
    """Counts of a file; None if it is missing or damaged."""
    try:
        with np.load(path) as file:
            return file["counts"]
    except Exception:  # damaged, in any of the many ways of a zip file: simulate again
        return None
