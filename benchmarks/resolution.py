"""What a network resolves, in nanometres: gratings, gaps, thin layers, borders; against dose and instrument.

    python -m benchmarks.resolution                 # of the shipped network; most of it simulates structures

The structures are simulated once at the dose of `standard-test`. Doses up to that one are the test set with
electrons left out; higher ones, and the errors of instruments, are made by the image model, whose own row at
the same dose stands beside the simulated one. What fewer beam energies cost is asked of the images and not
of the network, which takes all it was trained with: the least standard errors of a cube. Writes
`resolution.json` and `resolution.png` into the folder of the run.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # files only, on any machine

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags
from scipy.ndimage import distance_transform_edt

from bsevox_jax import checkpoint, data, forward, likelihood, observe
from bsevox_jax.calibration import reliability
from bsevox_jax.evaluate import iou_cu
from bsevox_jax.inference import cu_probability
from bsevox_jax.parallel import processor
from bsevox_jax.sim.files import whole_file, write_whole
from bsevox_jax.simulate import counts_of

FLAGS = flags.FLAGS
flags.DEFINE_string("run", None, "folder of the run whose network is measured; none: the shipped network")
flags.DEFINE_string("structures", "runs/resolution.npz", "file of the simulated structures")

FIELD = 20  # voxels of 1 nm on each axis
PERIODS_NM = {2: 1, 3: 1, 4: 2, 6: 3}  # of gratings, with the width of a line
TOPS_NM = (1, 5, 9, 13)  # depths of the upper side of gratings and pairs
THICKNESS_NM = 4  # of lateral gratings, and edge of the cubes of a pair
GAPS_NM = (1, 2, 3, 4, 5, 6)
LAYER_NM = 2  # thickness of a thin layer
LAYER_TOPS_NM = tuple(range(0, 19, 2))
DOSES = (100, 200, 500, 1000, 2000, 5000, 10_000)
EFFECTS = {
    "probe of 2 nm": dict(probe_fwhm_nm=(2.0, 2.0)),
    "probe of 4 nm": dict(probe_fwhm_nm=(4.0, 4.0)),
    "drift of 0.5 nm per image": dict(drift_nm=0.5),
    "gain off by 2 %": dict(gain_error=0.02),
    "offset of 0.005": dict(offset_error=0.005),
    "noise of 5 electrons": dict(noise_electrons=5.0),
    "energies off by 2 %": dict(energy_error=0.02),
}
NUMBERS_OF_ENERGIES = (3, 4, 5, 7, 10, 20)
CUBE_NM = 5.0  # edge
CUBE_DEPTHS_NM = (4.0, 8.0, 12.0, 16.0)  # of its centre
BINS = 10  # of probability


def with_cu(*boxes) -> np.ndarray:
    """Silicon with boxes of copper, each the slices (y, x, z); labels uint8 [y, x, z]."""
    labels = np.ones((FIELD, FIELD, FIELD), np.uint8)
    for box in boxes:
        labels[box] = 2
    return labels


def grating(period_nm: int, top_nm: int) -> np.ndarray:
    """Lines along y."""
    lines = np.arange(FIELD) % period_nm < PERIODS_NM[period_nm]
    return with_cu((slice(None), lines, slice(top_nm, top_nm + THICKNESS_NM)))


def stack_of_plates(period_nm: int, top_nm: int) -> np.ndarray:
    """Two plates of 12 x 12 nm, one period apart."""
    plate = PERIODS_NM[period_nm]
    tops = (top_nm, top_nm + period_nm)
    return with_cu(*((slice(4, 16), slice(4, 16), slice(top, top + plate)) for top in tops))


def pair(gap_nm: int, top_nm: int, axis: str) -> np.ndarray:
    """Two cubes beside each other along x, or one below the other."""
    edge = THICKNESS_NM
    y, near, far = slice(8, 8 + edge), slice(3, 3 + edge), slice(3 + edge + gap_nm, 3 + 2 * edge + gap_nm)
    if axis == "x":
        level = slice(top_nm, top_nm + edge)
        return with_cu((y, near, level), (y, far, level))
    below = top_nm + edge + gap_nm
    return with_cu((y, y, slice(top_nm, top_nm + edge)), (y, y, slice(below, below + edge)))


def layer(top_nm: int) -> np.ndarray:
    """A plate of 10 x 10 nm."""
    return with_cu((slice(5, 15), slice(5, 15), slice(top_nm, top_nm + LAYER_NM)))


STRUCTURES = (
    {("grating", p, t): grating(p, t) for p in PERIODS_NM for t in TOPS_NM}
    | {("plates", p, t): stack_of_plates(p, t) for p in PERIODS_NM for t in TOPS_NM if t + 2 * p <= FIELD}
    | {("pair x", g, t): pair(g, t, "x") for g in GAPS_NM for t in TOPS_NM}
    | {("pair z", g, t): pair(g, t, "z") for g in GAPS_NM for t in TOPS_NM[:2]}
    | {("layer", LAYER_NM, t): layer(t) for t in LAYER_TOPS_NM}
)


def structure_counts(dose: int, energies_kev: tuple[float, ...]) -> np.ndarray:
    """Simulated counts [n, y, x, e] of all structures, of the file if it has them."""
    labels = np.stack(list(STRUCTURES.values()))
    path = Path(FLAGS.structures)
    if path.exists():
        with np.load(path) as file:
            if np.array_equal(file["labels"], labels) and int(file["dose"]) == dose:
                return file["counts"]
    beam = dict(electrons_per_pixel=dose, beam_energies_kev=energies_kev)
    counts = counts_of(labels, kind="bsevox", program={}, **beam).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, labels=labels, dose=dose, counts=counts)
    return counts


def contrast(probability: np.ndarray, labels: np.ndarray) -> float:
    """Mean probability in copper minus that in the gaps, in the smallest box around all copper."""
    cu = labels == 2
    box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(cu))
    inside, cu = probability[box], cu[box]
    return float(inside[cu].mean() - inside[~cu].mean())


def separated(probability: np.ndarray, gap_nm: int, top_nm: int, axis: str) -> bool:
    """Whether both cubes are found, and a plane between them that is not copper."""
    lines = {"x": (slice(8, 12), slice(None), slice(top_nm, top_nm + 4)), "z": (slice(8, 12), slice(8, 12))}
    profile = probability[lines[axis]].mean(axis=(0, 2) if axis == "x" else (0, 1))
    first = 3 if axis == "x" else top_nm
    bodies = slice(first, first + 4), slice(first + 4 + gap_nm, first + 8 + gap_nm)
    gap = profile[first + 4 : first + 4 + gap_nm]
    return bool(min(profile[body].mean() for body in bodies) > 0.5 > gap.min())


def of_structures(probabilities: np.ndarray) -> dict:
    """Contrast, smallest gap and depth error, by kind, size and depth."""
    found = {"contrast": {}, "smallest_gap_nm": {}, "layer_depth_error_nm": {}}
    gaps = {}
    for ((kind, size, top), labels), probability in zip(STRUCTURES.items(), probabilities, strict=True):
        if kind in ("grating", "plates"):
            by_period = found["contrast"].setdefault(kind, {}).setdefault(size, {})
            by_period[top] = contrast(probability, labels)
        elif kind == "layer":
            depth_nm = probability[5:15, 5:15].mean((0, 1)) @ (np.arange(FIELD) + 0.5)
            depth_nm /= max(probability[5:15, 5:15].mean((0, 1)).sum(), 1e-6)
            found["layer_depth_error_nm"][top + LAYER_NM / 2] = float(depth_nm - top - LAYER_NM / 2)
        else:
            gaps.setdefault(kind, {}).setdefault(top, {})[size] = separated(probability, size, top, kind[-1])
    for kind, by_top in gaps.items():
        found["smallest_gap_nm"][kind] = {
            top: min((g for g in GAPS_NM if all(seen[h] for h in GAPS_NM if h >= g)), default=None)
            for top, seen in by_top.items()
        }
    return found


def of_bodies(probability: np.ndarray, labels: np.ndarray) -> dict:
    """Volume bias and surface distance of test specimens, by the size of their copper."""
    truth, found = labels == 2, probability > 0.5
    sizes = truth.sum((1, 2, 3))
    bias = probability.sum((1, 2, 3)) / sizes - 1
    distances = np.array([surface_distance(*pair) for pair in zip(truth, found, strict=True)])
    iou = np.array(iou_cu(probability, labels))
    edges = np.quantile(sizes, np.linspace(0, 1, 6))
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        here = (sizes >= low) & (sizes <= high)
        rows.append(
            {
                "cu_nm3": [float(low), float(high)],
                "iou": float(iou[here].mean()),
                "volume_bias_percent": float(100 * bias[here].mean()),
                "surface_distance_nm": float(np.nanmean(distances[here])),
            }
        )
    return {"by_size": rows, "surface_distance_nm": float(np.nanmean(distances))}


def surface_distance(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean distance in nm from the border voxels of either body to the nearest of the other."""
    borders = [body & ~eroded(body) for body in (truth, found)]
    if not all(border.any() for border in borders):
        return float("nan")
    to = [distance_transform_edt(~border) for border in borders]
    return float(np.concatenate([to[1][borders[0]], to[0][borders[1]]]).mean())


def eroded(body: np.ndarray) -> np.ndarray:
    """The voxels whose six neighbours are of the body; what lies beyond the box counts as such."""
    padded = np.pad(body, 1, mode="edge")
    inside = body.copy()
    for axis in range(3):
        for step in (-1, 1):
            inside &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return inside


def calibration(probability: np.ndarray, labels: np.ndarray) -> dict:
    """Share of copper among the voxels of every bin of probability."""
    curve = reliability(probability, labels == 2, BINS)
    names = {"stated": "stated", "found": "share", "voxels": "voxels"}
    return {name: curve[of].tolist() for name, of in names.items()} | {
        "expected_calibration_error": curve["expected_calibration_error"]
    }


def against_dose(export: checkpoint.Export, splits: dict, images: dict[str, forward.Expected]) -> dict:
    """IoU by dose of random specimens and odd shapes: simulated where the test set allows, and modelled."""
    result = {"simulated": {}, "modelled": {}}
    for dose in DOSES:
        for split in ("test", "out_of_family"):
            examples = splits[split]
            if dose <= examples.electrons_per_pixel:
                thin = functools.partial(data.thin_counts, jax.random.key(dose))
                counts = np.asarray(thin(examples.counts, examples.electrons_per_pixel, dose))
                score = np.mean(iou_cu(cu_probability(export, counts, dose), examples.labels))
                result["simulated"].setdefault(split, {})[dose] = float(score)
            score = modelled(export, images[split], examples.labels, dose)
            result["modelled"].setdefault(split, {})[dose] = score
    return result


def modelled(
    export: checkpoint.Export, images: forward.Expected, labels: np.ndarray, dose: int, **effects
) -> float:
    """Mean IoU on images of the image model, with errors of the instrument."""
    limits = dict(lowest_electrons_per_pixel=dose, highest_electrons_per_pixel=dose)
    about = dict(normalisation=export.normalisation, beam_energies_kev=export.beam_energies_kev)
    microscope = observe.Microscope(**about, **limits, symmetries=False, **effects)

    @jax.jit
    @jax.vmap
    def counted(key, yields, excess):
        instrument, noise, count = jax.random.split(key, 3)
        expected = microscope.distort(instrument, observe.chances(yields, excess))
        counts = observe.draw_counts(count, expected, dose)
        counts = counts + microscope.noise_electrons * jax.random.normal(noise, counts.shape)
        return jnp.maximum(jnp.round(counts), 0).astype(jnp.int32)

    keys = jax.random.split(jax.random.key(dose), len(labels))
    counts = np.asarray(counted(keys, images.yields, images.excess))
    return float(np.mean(iou_cu(cu_probability(export, counts, dose), labels)))


def against_energies(model: forward.ImageModel, dose: int) -> dict:
    """Least standard error in nm of the depth of a Cu cube whose place and three edges are unknown.

    The bound of Cramer and Rao for an unbiased estimate, by depth and number of energies, spread evenly over
    those of the model. `dose` is of one pixel and energy where all are taken; the electrons of all images
    together stay the same.
    """
    energies = len(model.beam_energies_kev)
    result = {number: {} for number in NUMBERS_OF_ENERGIES}
    for depth in CUBE_DEPTHS_NM:
        cube = jnp.array([FIELD / 2, FIELD / 2, depth, CUBE_NM, CUBE_NM, CUBE_NM])
        volume_of = lambda cube: likelihood.box(cube[:3], cube[3:])  # noqa: E731
        information = np.asarray(likelihood.fisher_information(model, volume_of, cube), np.float64)
        for number in NUMBERS_OF_ENERGIES:
            taken = np.linspace(0, energies - 1, number).round().astype(int)
            known = dose * energies / number * information[taken].sum(0)
            result[number][depth] = float(likelihood.standard_errors(known)[2])
    return result


def draw(path: str, found: dict) -> None:
    """Contrast by period, depth error of a layer, IoU by dose and depth, calibration, error by energies."""
    figure, axes = plt.subplots(2, 4, figsize=(17, 7), dpi=90, layout="constrained")
    for panel, kind, title in (
        (axes[0, 0], "grating", "lines side by side"),
        (axes[0, 1], "plates", "plates below each other"),
    ):
        for top in TOPS_NM:
            by_period = {p: tops[top] for p, tops in found["contrast"][kind].items() if top in tops}
            panel.plot(list(by_period), list(by_period.values()), "o-", label=f"{top} nm deep")
        panel.set(title=title, xlabel="period (nm)", ylabel="contrast found (true: 1)", ylim=(-0.7, 1.05))
        panel.legend()
    error = found["layer_depth_error_nm"]
    axes[0, 2].plot(list(error), list(error.values()), "o-")
    axes[0, 2].axhline(0, color="0.6", lw=0.8)
    axes[0, 2].set(title="a layer of 2 nm", xlabel="its depth (nm)", ylabel="depth found - true (nm)")
    for source, style in (("simulated", "s-"), ("modelled", "o--")):
        for split, colour in (("test", "C0"), ("out_of_family", "C1")):
            by_dose = found["against_dose"][source][split]
            axes[1, 0].semilogx(
                list(by_dose), list(by_dose.values()), style, color=colour, label=f"{split}, {source}"
            )
    axes[1, 0].set(title="dose", xlabel="electrons per pixel and energy", ylabel="mean IoU of Cu")
    axes[1, 0].legend()
    effects = found["effects"]
    axes[1, 1].barh(list(effects), list(effects.values()))
    axes[1, 1].set(title="errors of the instrument it was not taught", xlabel="mean IoU of Cu")
    curve = found["calibration"]
    axes[1, 2].plot([0, 1], [0, 1], color="0.6", lw=0.8)
    axes[1, 2].plot(curve["stated"], curve["found"], "o-")
    axes[1, 2].set(title="calibration", xlabel="probability of Cu stated", ylabel="share that is Cu")
    for depth in CUBE_DEPTHS_NM:
        errors = [of_depth[depth] for of_depth in found["against_energies"].values()]
        axes[0, 3].semilogy(list(found["against_energies"]), errors, "o-", label=f"{depth:g} nm deep")
    axes[0, 3].set(
        title="a cube of 5 nm, same electrons in all",
        xlabel="beam energies",
        ylabel="least error of its depth (nm)",
    )
    axes[0, 3].legend()
    bodies = found["bodies"]["by_size"]
    middles = [np.mean(row["cu_nm3"]) for row in bodies]
    axes[1, 3].semilogx(middles, [row["iou"] for row in bodies], "o-")
    axes[1, 3].set(title="size of the copper", xlabel="nm^3", ylabel="mean IoU of Cu")
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    figure.savefig(path, format="png")
    plt.close(figure)


def main(_):
    folder, workdir = checkpoint.of_run(FLAGS.run, "compact")
    export = checkpoint.load_export(folder)
    splits, model = data.load("data", "standard-test"), forward.load()
    images = {s: forward.expect_all(model, splits[s].labels) for s in ("test", "out_of_family")}
    test = splits["test"]
    dose = test.electrons_per_pixel
    counts = structure_counts(dose, test.beam_energies_kev)
    found = of_structures(cu_probability(export, counts, dose))
    probability = cu_probability(export, test.counts, dose)
    found |= {
        "bodies": of_bodies(probability, test.labels),
        "calibration": calibration(probability, test.labels),
    }
    found["against_dose"] = against_dose(export, splits, images)
    found["against_energies"] = against_energies(model, dose)
    found["effects"] = {"none": found["against_dose"]["modelled"]["test"][dose]} | {
        name: modelled(export, images["test"], test.labels, dose, **effect)
        for name, effect in EFFECTS.items()
    }
    found |= {"electrons_per_pixel": dose, "device": jax.devices()[0].device_kind, "processor": processor()}
    write_whole(Path(workdir) / "resolution.json", json.dumps(found, indent=1))
    with whole_file(Path(workdir) / "resolution.png") as path:
        draw(path, found)
    print(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
