"""Bulk yields of the other materials at normal incidence, beside measured ones where there are any."""

import statistics

from benchmarks.validation import bulk, report, yields
from bsevox_jax.sim import elements

ENERGIES_KEV = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
ELECTRONS = 200_000


def compute() -> list[dict]:
    """Yields as `yields.simulate` returns them, of every shipped material that `bulk` does not have."""
    return [
        yields.simulate(name, energy_kev, electrons=ELECTRONS)
        for name in elements.MATERIALS
        if name not in bulk.MATERIALS
        for energy_kev in ENERGIES_KEV
    ]


def tables(rows: list[dict]) -> dict[str, str]:
    header = ["", "", *(f"{energy_kev:g} keV" for energy_kev in ENERGIES_KEV)]
    body = []
    for name in dict.fromkeys(row["material"] for row in rows):
        chosen = [row for row in rows if row["material"] == name]
        for kind, label in (("all", "all"), ("primary", "primaries alone")):
            body.append([name, label, *(f"{row[kind].eta:.3f}" for row in chosen)])
        measured = [yields.measured_at(name, energy_kev) for energy_kev in ENERGIES_KEV]
        if any(measured):
            medians = [f"{statistics.median(etas):.3f} ({len(etas)})" if etas else "-" for etas in measured]
            body.append([name, "measured: median (sets)", *medians])
    return {"other_yields": report.table(header, body)}


def figure(rows: list[dict]):
    names = [name for name in dict.fromkeys(row["material"] for row in rows) if yields.measured(name)]
    figure, (axes,) = report.axes(1, len(names), height=5.2)
    for axis, name in zip(axes, names, strict=True):
        bulk.draw_measured(axis, name)
        bulk.draw_ours(axis, [row for row in rows if row["material"] == name])
        report.legend_below(axis)
    return figure
