"""A page for the browser that compares methods: tables, curves, and volumes that can be turned.

The page is `page.html`, filled in here.
"""

import base64
import dataclasses
import html
import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from bsevox_jax import imageio, report, template
from bsevox_jax.data import COPPER_LABEL
from bsevox_jax.evaluate import iou_cu
from bsevox_jax.reconstruct import VOXEL_NM

LARGEST_BYTES = 15_000_000  # what still can be sent by mail
PICTURE_INCH, PICTURE_DPI, PICTURE_COLOURS = (1.6, 1.7), 120, 48
GROUPS = ("nanocube", "nanowire", "nanowire_lying", "test")


@dataclasses.dataclass(frozen=True)
class Specimen:
    """What was measured of a specimen, what is true, and what the methods found.

    Attributes:
        title: unique name.
        group: of `GROUPS`.
        yields: electrons back per electron in, [y, x, e], energies ascending.
        truth: labels uint8 [y, x, z], 0 vacuum, 1 Si, 2 Cu.
        probability: method -> probability or fraction of Cu, [y, x, z], in [0, 1].
    """

    title: str
    group: str
    yields: np.ndarray
    truth: np.ndarray
    probability: dict[str, np.ndarray]


def write(path: str, results: dict, specimens: list[Specimen]) -> None:
    """Writes the page.

    Cu is found wherever a probability lies above the threshold of the method, here as in the tables.

    Args:
        path: of the HTML file; its folder is made if missing.
        results: as JSON. `circumstances`: name -> string or number, `electrons_per_pixel` among them.
            `methods`: title -> `about`, `threshold`, `seconds_per_volume`, `iou`, `standard_error`, and IoU
            `by_family`, `by_depth` [z], `nanocube`, `nanowire`, `nanowire_lying` (each name -> `fixed`,
            `oracle`), `out_of_family`. `paper`: `nanocube`, `nanowire` (method -> name -> IoU). `tables`:
            `title`, `note`, `header`, `rows`. `training`: name -> `epoch`, `loss`, `validation_epoch`,
            `iou_cu_mean`; may be empty.
        specimens: to be looked at.

    Raises:
        ValueError: a specimen does not fit the results or itself, or the page grows too large; one line.
        OSError: the file cannot be written; one line.
    """
    methods, circumstances = results["methods"], results["circumstances"]
    thresholds = {name: method["threshold"] for name, method in methods.items()}
    for specimen in specimens:
        _check(specimen, thresholds)
    volumes = [_embedded(specimen, thresholds) for specimen in specimens]
    embedded = {name: results[name] for name in ("methods", "paper", "training")}
    embedded |= {"voxel_nm": VOXEL_NM, "specimens": volumes}
    parts = {
        "data_set": html.escape(str(circumstances["data_set"])),
        "electrons_per_pixel": template.cell(circumstances["electrons_per_pixel"]),
        "circumstances": template.facts(circumstances),
        "methods": template.table(
            ["method", "what it is", "threshold"],
            [[name, method["about"], method["threshold"]] for name, method in methods.items()],
        ),
        "tables": "\n".join(map(_titled_table, results["tables"])),
        "pictures": "\n".join(
            _pictures(specimen, thresholds, volume["iou"])
            for specimen, volume in zip(specimens, volumes, strict=True)
        ),
    }
    page = template.filled("page.html", parts, embedded)
    if len(page) > LARGEST_BYTES:
        raise ValueError(
            f"a page must be at most {LARGEST_BYTES / 1e6:g} MB; got {len(page) / 1e6:.1f}. Give fewer "
            "specimens or methods."
        )
    with imageio.whole_files(os.path.dirname(path) or ".") as folder:
        Path(folder, os.path.basename(path)).write_bytes(page)


def _check(specimen: Specimen, thresholds: dict[str, float]) -> None:
    name, shape = specimen.title, np.shape(specimen.truth)
    if specimen.group not in GROUPS:
        raise ValueError(f"a group must be one of {', '.join(GROUPS)}; got {specimen.group} of {name}.")
    if wrong := set(thresholds) ^ set(specimen.probability):
        raise ValueError(
            f"a specimen must have the methods of the results; got {', '.join(sorted(wrong))} on one side "
            f"only, {name}. Reconstruct it, or leave it out."
        )
    if len(shape) != 3 or np.ndim(specimen.yields) != 3 or np.shape(specimen.yields)[:2] != shape[:2]:
        raise ValueError(
            "yields [y, x, e] and truth [y, x, z] must be of the same pixels; got "
            f"{np.shape(specimen.yields)} and {shape}, {name}. Give both of one specimen."
        )
    for method, probability in specimen.probability.items():
        if not 0 < thresholds[method] < 1:
            raise ValueError(
                f"a threshold must lie between 0 and 1; got {thresholds[method]} of {method}. Fix it on "
                "validation specimens."
            )
        if np.shape(probability) != shape:
            raise ValueError(
                f"probabilities must have the shape of the truth, {shape}; got {np.shape(probability)} of "
                f"{method}, {name}. Give all of one specimen."
            )
        if not (np.min(probability) >= 0 and np.max(probability) <= 1):  # NaN fails too
            raise ValueError(
                f"probabilities must lie in [0, 1]; got {np.min(probability):g} to {np.max(probability):g} "
                f"of {method}, {name}. Clip them."
            )


def _embedded(specimen: Specimen, thresholds: dict[str, float]) -> dict:
    """The arrays of a specimen as text of one byte each, and its IoU."""
    low, high = specimen.yields.min((0, 1)), specimen.yields.max((0, 1))
    grey = np.rint(255 * (specimen.yields - low) / np.maximum(high - low, 1e-12))
    return {
        "title": specimen.title,
        "group": specimen.group,
        "shape": specimen.truth.shape,
        "images": template.text(grey),
        "mean_yields": specimen.yields.mean((0, 1)).round(4).tolist(),
        "truth": template.text(specimen.truth),
        "codes": {
            method: template.text(template.coded(specimen.probability[method], threshold))
            for method, threshold in thresholds.items()
        },
        "iou": {m: _iou(specimen, m, t) for m, t in thresholds.items()},
    }


def _iou(specimen: Specimen, method: str, threshold: float) -> float:
    return iou_cu(specimen.probability[method][None], specimen.truth[None], threshold)[0]


def _pictures(specimen: Specimen, thresholds: dict[str, float], iou: dict[str, float]) -> str:
    """Truth and what every method found, with its IoU below, as HTML."""
    cu = specimen.truth == COPPER_LABEL
    figures = [("truth", cu, "&nbsp;")]
    for method, threshold in thresholds.items():
        found = specimen.probability[method] > threshold
        figures.append((method, found, f"IoU {iou[method]:.3f}"))
    drawn = "".join(
        f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{_png(volume)}">'
        f"<figcaption>{html.escape(name)}<br>{below}</figcaption></figure>"
        for name, volume, below in figures
    )
    return f'<h3>{html.escape(specimen.title)}</h3>\n<div class="pictures">{drawn}</div>'


def _png(cu: np.ndarray) -> str:
    """Picture of Cu voxels [y, x, z], in few colours, as text."""
    figure = plt.figure(figsize=PICTURE_INCH, dpi=PICTURE_DPI)
    report.draw_voxels(figure.add_axes((0, 0, 1, 1)), cu.astype(int), [report.COPPER])
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    file = io.BytesIO()
    image.quantize(PICTURE_COLOURS).save(file, "PNG", optimize=True)  # a third of the bytes
    return base64.b64encode(file.getvalue()).decode()


def _titled_table(table: dict) -> str:
    title, note = html.escape(table["title"]), html.escape(table["note"])
    return f'<h3>{title}</h3>\n{template.table(table["header"], table["rows"])}\n<p class="note">{note}</p>'
