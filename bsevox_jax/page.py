"""A page for the browser that compares methods: tables, curves, and volumes that can be turned.

One file that loads nothing else. The page is `page.html`, filled in here; the browser finds the faces of the
voxels itself, so that a volume takes one byte per voxel.
"""

import base64
import dataclasses
import html
import io
import json
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from plotly.offline import get_plotlyjs

from bsevox_jax import imageio, report
from bsevox_jax.data import COPPER_LABEL
from bsevox_jax.evaluate import iou_cu
from bsevox_jax.reconstruct import VOXEL_NM

TEMPLATE = Path(__file__).with_name("page.html")
LARGEST_BYTES = 15_000_000  # what still can be sent by mail
PICTURE_INCH, PICTURE_DPI, PICTURE_COLOURS = (1.6, 1.7), 120, 48
COLOURS = ("vacuum", "silicon", "copper", "missed", "extra", "blank")  # of the report
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
        "electrons_per_pixel": _cell(circumstances["electrons_per_pixel"]),
        "circumstances": _circumstances(circumstances),
        "methods": _table(
            ["method", "what it is", "threshold"],
            [[name, method["about"], method["threshold"]] for name, method in methods.items()],
        ),
        "tables": "\n".join(map(_titled_table, results["tables"])),
        "pictures": "\n".join(
            _pictures(specimen, thresholds, volume["iou"])
            for specimen, volume in zip(specimens, volumes, strict=True)
        ),
        "plotly": get_plotlyjs(),
        # Inside a script "<" could end it.
        "embedded": json.dumps(embedded, separators=(",", ":")).replace("<", "\\u003c"),
    }
    parts |= {name: getattr(report, name.upper()) for name in COLOURS}
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], TEMPLATE.read_text()).encode()
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
        "images": _text(grey),
        "mean_yields": specimen.yields.mean((0, 1)).round(4).tolist(),
        "truth": _text(specimen.truth),
        "codes": {m: _text(_coded(specimen.probability[m], t)) for m, t in thresholds.items()},
        "iou": {m: _iou(specimen, m, t) for m, t in thresholds.items()},
    }


def _coded(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Probabilities as whole numbers, 0 to 127 up to the threshold and 128 to 255 above, linear in each part.

    So rounding never takes a voxel across the threshold.
    """
    below = 127 * probability / threshold
    above = 128 + 127 * (probability - threshold) / (1 - threshold)
    return np.rint(np.where(probability > threshold, above, below))


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(np.uint8).tobytes()).decode()


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


def _circumstances(circumstances: dict) -> str:
    return "".join(
        f"<div><dt>{html.escape(name.replace('_', ' '))}</dt><dd>{_cell(value)}</dd></div>"
        for name, value in circumstances.items()
    )


def _titled_table(table: dict) -> str:
    title, note = html.escape(table["title"]), html.escape(table["note"])
    return f'<h3>{title}</h3>\n{_table(table["header"], table["rows"])}\n<p class="note">{note}</p>'


def _table(header: list[str], rows: list[list]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_data_cell, row))}</tr>\n" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _data_cell(value: str | float | None) -> str:
    kind = "" if isinstance(value, str) else " class=number"
    return f"<td{kind}>{_cell(value)}</td>"


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))
