"""Yields of free films beside Nebula."""

from benchmarks.validation import report, yields

MATERIALS = ("Si", "Cu")
ENERGIES_KEV = (0.5, 1.0, 2.0, 5.0, 10.0)
THICKNESSES_NM = (10.0, 20.0)


def compute() -> list[dict]:
    """Yields as `yields.simulate` returns them."""
    return [
        yields.simulate(name, energy_kev, film_nm=film_nm)
        for film_nm in THICKNESSES_NM
        for name in MATERIALS
        for energy_kev in ENERGIES_KEV
    ]


def reference(row: dict, electrons: str) -> float | None:
    """The yield Nebula has for the case, if it has one."""
    film = {"film_nm": row["film_nm"], "electrons": electrons}
    return yields.published(row["material"], program="Nebula", **film).get(row["energy_kev"])


def tables(rows: list[dict]) -> dict[str, str]:
    header = [
        "film",
        "keV",
        "all (standard error)",
        "Nebula",
        "%",
        "primaries alone",
        "Nebula",
        "%",
        "freed / %",
    ]
    body = []
    for row in rows:
        cells = [f"{row['material']} {row['film_nm']:g} nm", f"{row['energy_kev']:g}"]
        for kind in ("all", "primary"):
            theirs = reference(row, kind)
            compared = [f"{theirs:.4f}", report.deviation(row[kind].eta, theirs)] if theirs else ["-", "-"]
            cells += [str(row[kind]), *compared]
        body.append([*cells, f"{100 * (1 - row['primary'].eta / row['all'].eta):.0f}"])
    return {"films": report.table(header, body)}


def figure(rows: list[dict]):
    figure, (axes,) = report.axes(1, 2)
    for axis, name in zip(axes, MATERIALS, strict=True):
        for film_nm, colour in zip(THICKNESSES_NM, report.COLOURS, strict=False):
            chosen = [row for row in rows if (row["material"], row["film_nm"]) == (name, film_nm)]
            for kind, style, marker in (("all", "-", "o"), ("primary", "--", "s")):
                eta = [row[kind].eta for row in chosen]
                error = [row[kind].standard_error for row in chosen]
                label = f"{film_nm:g} nm, {kind}"
                axis.errorbar(ENERGIES_KEV, eta, error, ls=style, color=colour, lw=1, label=label)
                theirs = [(row["energy_kev"], reference(row, kind)) for row in chosen if reference(row, kind)]
                if theirs:
                    axis.plot(*zip(*theirs, strict=True), marker, color=colour, mfc="none", ms=5)
        axis.set(xscale="log", yscale="log", xlabel="beam energy / keV")
        axis.set(ylabel="electrons above 50 eV per primary", title=f"{name}: lines ours, points Nebula")
        axis.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        axis.legend()
    return figure
