"""Pages for the browser, each one file that loads nothing else.

A template is HTML with names in double braces. What all pages share is `template.css` and `template.js`;
volumes reach the browser as one byte per voxel, and it finds their faces itself.
"""

import base64
import html
import json
import re
import zlib
from pathlib import Path

import numpy as np
from plotly.offline import get_plotlyjs

from bsevox_jax import report

FOLDER = Path(__file__).parent
COLOURS = ("vacuum", "silicon", "copper", "missed", "extra", "blank")  # of the report


def filled(name: str, parts: dict[str, str], embedded: dict) -> bytes:
    """A page.

    Args:
        name: of the template in this folder.
        parts: name in the template -> HTML that stands for it.
        embedded: what the script of the page holds, as JSON.
    """
    colours = {colour: getattr(report, colour.upper()) for colour in COLOURS}
    parts = parts | colours | {
        "plotly": get_plotlyjs(),
        "shared_script": (FOLDER / "template.js").read_text(),
        "shared_style": _replaced((FOLDER / "template.css").read_text(), colours),
        # Inside a script "<" could end it.
        "embedded": json.dumps(embedded, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }  # fmt: skip
    return _replaced((FOLDER / name).read_text(), parts).encode()


def _replaced(text: str, parts: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], text)


def coded(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Probabilities as whole numbers, 0 to 127 up to the threshold and 128 to 255 above, linear in each part.

    So rounding never takes a voxel across the threshold.
    """
    below = 127 * probability / threshold
    above = 128 + 127 * (probability - threshold) / (1 - threshold)
    return np.rint(np.where(probability > threshold, above, below))


def text(array: np.ndarray) -> str:
    """Whole numbers from 0 to 255 as text."""
    return base64.b64encode(array.astype(np.uint8).tobytes()).decode()


def deflated(array: np.ndarray) -> str:
    """Whole numbers from 0 to 255, compressed, as text."""
    return base64.b64encode(zlib.compress(array.astype(np.uint8).tobytes())).decode()


def facts(values: dict) -> str:
    """Names and values as items of a `dl`."""
    return "".join(
        f"<div><dt>{html.escape(name.replace('_', ' '))}</dt><dd>{cell(value)}</dd></div>"
        for name, value in values.items()
    )


def table(header: list[str], rows: list[list]) -> str:
    """A table of texts and numbers; None stays empty."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_data_cell, row))}</tr>\n" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _data_cell(value: str | float | None) -> str:
    kind = "" if isinstance(value, str) else " class=number"
    return f"<td{kind}>{cell(value)}</td>"


def cell(value: str | float | None) -> str:
    """A value as HTML."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))
