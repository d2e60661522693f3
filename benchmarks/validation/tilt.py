"""Bulk yields under tilt beside JMONSEL."""

from benchmarks.validation import report, yields

ANGLES_DEG = (30.0, 60.0, 80.0)
ENERGIES_KEV = {"Si": (0.5, 1.0, 2.0, 5.0, 10.0), "Cu": (1.0, 5.0)}


def compute() -> list[dict]:
    """Yields as `yields.simulate` returns them."""
    return [
        yields.simulate(name, energy_kev, tilt_deg=tilt_deg, electrons=400_000)
        for name, energies_kev in ENERGIES_KEV.items()
        for energy_kev in energies_kev
        for tilt_deg in ANGLES_DEG
    ]


def reference(row: dict) -> float | None:
    """The yield JMONSEL has for the case, if it has one."""
    known = yields.published(row["material"], program="JMONSEL", tilt_deg=row["tilt_deg"])
    return known.get(row["energy_kev"])


def tables(rows: list[dict]) -> dict[str, str]:
    header = [
        "",
        "keV",
        "tilt / degrees",
        "all (standard error)",
        "primaries alone",
        "JMONSEL, all",
        "to JMONSEL / %",
    ]
    body = []
    for row in rows:
        theirs = reference(row)
        compared = [f"{theirs:.3f}", report.deviation(row["all"].eta, theirs)] if theirs else ["-", "-"]
        case = [row["material"], f"{row['energy_kev']:g}", f"{row['tilt_deg']:g}"]
        body.append([*case, str(row["all"]), str(row["primary"]), *compared])
    return {"tilt": report.table(header, body)}


def figure(rows: list[dict]):
    figure, (axes,) = report.axes(1, 2)
    for axis, name in zip(axes, ENERGIES_KEV, strict=True):
        for energy_kev, colour in zip(ENERGIES_KEV[name], report.COLOURS, strict=False):
            chosen = [row for row in rows if (row["material"], row["energy_kev"]) == (name, energy_kev)]
            eta = [row["all"].eta for row in chosen]
            error = [row["all"].standard_error for row in chosen]
            axis.errorbar(ANGLES_DEG, eta, error, color=colour, lw=1, label=f"{energy_kev:g} keV")
            theirs = [(row["tilt_deg"], reference(row)) for row in chosen if reference(row)]
            if theirs:
                axis.plot(*zip(*theirs, strict=True), "o", color=colour, mfc="none", ms=5)
        axis.set(xlabel="tilt / degrees", ylabel="electrons above 50 eV per primary")
        axis.set_title(f"{name}: lines ours, points JMONSEL" if name == "Si" else f"{name}: ours")
        axis.legend()
    return figure
