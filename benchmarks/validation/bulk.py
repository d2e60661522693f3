"""Bulk yields of Si and Cu at normal incidence beside the measured ones and those of other programs."""

import statistics

from benchmarks.validation import report, yields

MATERIALS = ("Si", "Cu")
ENERGIES_KEV = (0.5, 1.0, 2.0, 3.0, 3.5, 5.0, 7.0, 10.0)
PROGRAMS = (("JMONSEL", "all"), ("Nebula", "all"), ("Nebula", "primary"), ("lindhard", "primary"))


def compute() -> list[dict]:
    """Yields as `yields.simulate` returns them, material by material and energy by energy."""
    return [yields.simulate(name, energy_kev) for name in MATERIALS for energy_kev in ENERGIES_KEV]


def tables(rows: list[dict]) -> dict[str, str]:
    header = ["", "keV", "all (standard error)", "primaries alone", "measured: min / median / max (sets)"]
    header += [f"{program}, {electrons}" for program, electrons in PROGRAMS]
    header += ["all to median / %", "primaries to median / %"]
    body = []
    for row in rows:
        name, energy_kev = row["material"], row["energy_kev"]
        cells = [name, f"{energy_kev:g}", str(row["all"]), str(row["primary"])]
        etas = yields.measured_at(name, energy_kev)
        median = statistics.median(etas) if etas else None
        cells.append(f"{etas[0]:.3f} / {median:.3f} / {etas[-1]:.3f} ({len(etas)})" if etas else "-")
        for program, electrons in PROGRAMS:
            value = yields.published(name, program=program, electrons=electrons).get(energy_kev)
            cells.append(f"{value:.3f}" if value else "-")
        cells += [report.deviation(row[kind].eta, median) if etas else "-" for kind in ("all", "primary")]
        body.append(cells)
    return {"bulk_yields": report.table(header, body)}


def figure(rows: list[dict]):
    figure, (axes,) = report.axes(1, 2, height=5.2)
    for axis, name in zip(axes, MATERIALS, strict=True):
        draw_measured(axis, name)
        draw_ours(axis, [row for row in rows if row["material"] == name])
        for (program, electrons), marker in zip(PROGRAMS, "+x1|", strict=True):
            points = yields.published(name, program=program, electrons=electrons)
            if points:
                label = f"{program}, {electrons}"
                axis.plot(points.keys(), points.values(), marker, color="k", ms=7, label=label)
        report.legend_below(axis)
    return figure


def draw_measured(axis, name: str) -> None:
    """Measured points of 0.4 to 10.5 keV, a colour and a marker for each reference."""
    for i, (reference, points) in enumerate(yields.measured(name).items()):
        points = [point for point in points if 0.4 <= point[0] <= 10.5]
        if points:
            style = {"color": report.COLOURS[i % 6], "marker": report.MARKERS[i % 12], "mfc": "none"}
            axis.plot(*zip(*points, strict=True), ls="none", ms=5, label=reference, **style)


def draw_ours(axis, rows: list[dict]) -> None:
    """Our yields as lines with a band of one standard error, all electrons and primaries alone."""
    energies = [row["energy_kev"] for row in rows]
    for kind, style in (("all", "-"), ("primary", "--")):
        eta = [row[kind].eta for row in rows]
        error = [row[kind].standard_error for row in rows]
        low, high = ([y + s * e for y, e in zip(eta, error, strict=True)] for s in (-1, 1))
        axis.plot(energies, eta, style, color="k", lw=1.2, label=f"ours, {kind}")
        axis.fill_between(energies, low, high, color="k", alpha=0.25, lw=0)
    axis.set_xscale("log")
    axis.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axis.set(xlabel="beam energy / keV", ylabel="electrons above 50 eV per primary")
    axis.set_title(rows[0]["material"])
