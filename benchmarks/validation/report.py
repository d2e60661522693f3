"""From results to docs/physics.md: references in, tables and pictures out."""

import csv
import pathlib

import matplotlib
from matplotlib.figure import Figure

from bsevox_jax.sim.files import whole_file

ROOT = pathlib.Path(__file__).parents[2]
REFERENCES = ROOT / "tests/data"
PAGE = ROOT / "docs/physics.md"
PICTURES = ROOT / "docs/validation"
END = "<!-- end -->"

# P. Bang Wong, Points of view: Color blindness, Nature Methods 8, 441 (2011): told apart by every eye.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^v<>PX*phd"


def references(name: str) -> list[dict]:
    """Rows of `tests/data/<name>.csv`, numbers as float; the sources are in its first lines."""
    lines = (REFERENCES / f"{name}.csv").read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [{key: _number(value) for key, value in row.items()} for row in rows]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def digits(value: float) -> str:
    """Three of them."""
    return f"{value:#.3g}".rstrip(".")


def deviation(value: float, reference: float) -> str:
    """Deviation in %, with sign."""
    return f"{100 * (value / reference - 1):+.1f}"


def publish(tables: dict[str, str], picture: str | None = None, figure: Figure | None = None) -> None:
    """Puts each table between its markers in docs/physics.md, and the figure beside it.

    Raises:
        ValueError: docs/physics.md has no marker of that name.
    """
    page = PAGE.read_text()
    for name, text in tables.items():
        page = with_block(page, name, text)
    _replace(PAGE, lambda path: pathlib.Path(path).write_text(page))
    if figure is not None:
        PICTURES.mkdir(exist_ok=True)
        options = {"format": "png", "dpi": 80, "metadata": {"Software": None}}
        _replace(PICTURES / f"{picture}.png", lambda path: figure.savefig(path, **options))


def with_block(page: str, name: str, text: str) -> str:
    """The page with the lines between `<!-- table: name -->` and the next `<!-- end -->` replaced."""
    start = f"<!-- table: {name} -->"
    before, found, rest = page.partition(start)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"docs/physics.md must hold {start} followed by {END}; found none. Add both lines.")
    return f"{before}{start}\n{text}\n{END}{after}"


def axes(rows: int, columns: int, *, width: float = 9.0, height: float = 4.0):
    """A figure and its axes [rows, columns]; sizes in inches."""
    matplotlib.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "legend.fontsize": 7})
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def legend_below(axis, columns: int = 3) -> None:
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=columns, frameon=False)


def _replace(path: pathlib.Path, write) -> None:
    """Writes under a temporary name, then renames: a reader finds the old file or the new one."""
    with whole_file(path) as temporary:
        write(temporary)
