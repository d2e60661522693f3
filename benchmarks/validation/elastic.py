"""Elastic cross sections of free atoms beside ELSEPA, and what the solid changes."""

from benchmarks.validation import report
from bsevox_jax.sim import elastic, elements

KINDS = ("sigma_el", "sigma_tr1", "sigma_tr2")
WRITTEN_OUT = ("Si", "Cu")
NM2_PER_SQUARE_ANGSTROM = 0.01


def compute() -> list[dict]:
    """One row for each cited element and energy.

    Returns:
        element, energy_ev; `free` and `reference`, the three cross sections in 0.01 nm^2; and, for the
        elements written out in full, `muffin_tin`, those of the atom in the solid.
    """
    rows = []
    for reference in report.references("elastic"):
        name, energy_kev = reference["element"], reference["energy_ev"] * 1e-3
        row = {"element": name, "energy_ev": reference["energy_ev"]}
        row["reference"] = [reference[kind] for kind in KINDS]
        row["free"] = cross_sections(name, energy_kev, None)
        if name in WRITTEN_OUT:
            radius_nm = elements.material(name).muffin_tin_radius_nm
            row["muffin_tin"] = cross_sections(name, energy_kev, radius_nm)
        rows.append(row)
    return rows


def cross_sections(symbol: str, energy_kev: float, muffin_tin_radius_nm: float | None) -> list[float]:
    """sigma_el, sigma_tr1, sigma_tr2 in 0.01 nm^2 of a free atom or of one in a solid."""
    waves = elastic.partial_waves(symbol, energy_kev, muffin_tin_radius_nm=muffin_tin_radius_nm)
    transport_nm2 = [elastic.transport_cross_section_nm2(waves, order) for order in (1, 2)]
    values_nm2 = [elastic.cross_section_nm2(waves), *transport_nm2]
    return [float(value) / NM2_PER_SQUARE_ANGSTROM for value in values_nm2]


def tables(rows: list[dict]) -> dict[str, str]:
    header = ["T / eV"]
    for name in WRITTEN_OUT:
        header += [f"{name} el", "tr1", "tr2", "solid/free el", "tr1"]
    full = []
    for energy_ev in sorted({row["energy_ev"] for row in rows}):
        cells = [f"{energy_ev:.0f}"]
        for row in (row for name in WRITTEN_OUT for row in rows if row["element"] == name):
            if row["energy_ev"] == energy_ev:
                pairs = zip(row["free"], row["reference"], strict=True)
                cells += [f"{ours:#.4g} ({report.deviation(ours, theirs)})" for ours, theirs in pairs]
                cells += [f"{row['muffin_tin'][n] / row['free'][n]:.3f}" for n in (0, 1)]
        full.append(cells)
    worst = []
    for name in dict.fromkeys(row["element"] for row in rows):
        deviations = relative_deviations(rows, name)
        worst.append([name] + [f"{100 * min(d):+.1f} .. {100 * max(d):+.1f}" for d in deviations])
    return {
        "elastic": report.table(header, full),
        "elastic_elements": report.table(["element", *(kind.replace("_", " ") for kind in KINDS)], worst),
    }


def relative_deviations(rows: list[dict], element: str) -> list[list[float]]:
    """Deviations of the free atom from the reference, one list over all energies for each of KINDS."""
    chosen = [row for row in rows if row["element"] == element]
    return [[row["free"][n] / row["reference"][n] - 1 for row in chosen] for n in range(len(KINDS))]


def figure(rows: list[dict]):
    figure, axes = report.axes(1, 2)
    for axis, n, title in zip(axes[0], (0, 1), ("total", "transport (tr1)"), strict=True):
        for i, name in enumerate(dict.fromkeys(row["element"] for row in rows)):
            chosen = [row for row in rows if row["element"] == name]
            energies = [row["energy_ev"] * 1e-3 for row in chosen]
            style = {"color": report.COLOURS[i % 7], "ls": "-" if i < 7 else "--"}
            axis.loglog(energies, [row["free"][n] for row in chosen], lw=1, **style)
            cited = [row["reference"][n] for row in chosen]
            axis.loglog(
                energies, cited, report.MARKERS[i], ms=4, mfc="none", color=style["color"], label=name
            )
        axis.set(xlabel="kinetic energy / keV", ylabel="cross section / 0.01 nm$^2$")
        axis.set_title(f"{title}: lines ours, points ELSEPA")
    axes[0][0].legend(ncol=2)
    return figure
