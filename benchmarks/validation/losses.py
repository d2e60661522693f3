"""Energy losses: sum rules of the optical data, inelastic mean free paths, stopping powers."""

import math

from benchmarks.validation import report
from bsevox_jax.sim import elements, inelastic

WRITTEN_OUT = ("Si", "Cu")
PICTURED = ("Si", "Cu", "Ge", "Au")
ENERGIES_KEV = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

# 1 - 1/eps(0) of the electrons; a metal screens perfectly. eps(0) of Si and Ge: S. M. Sze, Physics of
# Semiconductor Devices; n of fused silica at 1 eV: I. H. Malitson, J. Opt. Soc. Am. 55, 1205 (1965).
SCREENING = {"Si": 1 - 1 / 11.7, "Ge": 1 - 1 / 16.0, "SiO2": 1 - 1 / 1.448**2}


def compute() -> dict[str, list[dict]]:
    """Sum rules, mean free paths beside the cited ones, and stopping powers, of all materials with data."""
    return {
        "sums": [sum_rules(material) for material in elements.MATERIALS.values()],
        "paths": [_mean_free_path(row) for row in report.references("imfp")],
        "stopping": [
            stopping_power(material, energy_kev)
            for material in elements.MATERIALS.values()
            for energy_kev in ENERGIES_KEV
        ],
    }


def sum_rules(material: elements.Material) -> dict:
    """f-sum (electrons per formula unit) and ps-sum of the optical data, with what they should be.

    Forward scattering of X rays, and with it the f-sum, counts Z - (Z/82.5)^2.37 electrons of an atom:
    Henke et al., At. Data Nucl. Data Tables 54, 181 (1993).
    """
    f_sum, ps_sum = inelastic.sum_rules(material)
    numbers = [(elements.element(symbol).atomic_number, n) for symbol, n in material.composition]
    return {
        "material": material.name,
        "f_sum": f_sum,
        "f_expected": sum(n * (z - (z / 82.5) ** 2.37) for z, n in numbers),
        "ps_sum": ps_sum,
        "ps_expected": SCREENING.get(material.name, 1.0),
    }


def _mean_free_path(reference: dict) -> dict:
    material = elements.material(reference["material"])
    full, half = (_losses(material, reference["energy_ev"] * 1e-3, parts) for parts in (1, 2))
    return reference | {"full_nm": 1 / full.rate_per_nm, "half_nm": 1 / half.rate_per_nm}


def stopping_power(material: elements.Material, energy_kev: float) -> dict:
    """Stopping powers in eV/nm at an energy above the Fermi level, beside two formulas.

    Joy and Luo, Scanning 11, 176 (1989): 785 rho Z/(A E) ln(1.166 E/J*), J* = J/(1 + kJ/E), in eV/Angstrom
    with E and J in eV, k = 0.731 + 0.0688 log10 Z; Bethe: the same with J* = J; J of ICRU Report 37. Their
    1.166 = sqrt(e/2) belongs to the faster of two electrons, W <= E/2, and holds the exchange, which we leave
    out: without it the number is sqrt(2).
    """
    energy_ev, excitation_ev = energy_kev * 1e3, material.mean_excitation_kev * 1e3
    per_gram = material.electrons_per_formula / material.formula_weight_g_mol
    scale = 7850 * material.density_g_cm3 * per_gram / energy_ev
    k = 0.731 + 0.0688 * math.log10(material.electrons_per_formula / material.atoms_per_formula)
    full, half = (_losses(material, energy_kev, parts) for parts in (1, 2))
    return {
        "material": material.name,
        "energy_kev": energy_kev,
        "full": 1e3 * full.stopping_kev_per_nm,
        "half": 1e3 * half.stopping_kev_per_nm,
        "joy_luo": scale * math.log(1.166 * (energy_ev / excitation_ev + k)),
        "bethe": scale * math.log(1.166 * energy_ev / excitation_ev),
    }


def _losses(material, above_fermi_kev, parts):
    kinetic_kev = above_fermi_kev + material.fermi_kev
    return inelastic.losses(material, kinetic_kev, loss_limit_kev=above_fermi_kev / parts)


def tables(results: dict) -> dict[str, str]:
    sums = [
        [row["material"], f"{row['f_sum']:.2f}", f"{row['f_expected']:.2f}", f"{row['ps_sum']:.3f}",
         f"{row['ps_expected']:.3f}"]
        for row in results["sums"]
    ]  # fmt: skip
    paths = [
        [row["material"], f"{row['energy_ev']:.1f}", report.digits(row["imfp_nm"]), row["source"],
         _compared(row["full_nm"], row["imfp_nm"]), report.digits(row["half_nm"])]
        for row in results["paths"]
    ]  # fmt: skip
    paths_header = ["", "eV above E_F", "published / nm", "source", "W_max = T - E_F", "half (transport)"]
    return {
        "sum_rules": report.table(["", "f-sum", "expected", "ps-sum", "expected"], sums),
        "imfp": report.table(paths_header, paths),
        "stopping": _stopping_in_full(results["stopping"]),
        "stopping_materials": _stopping_of_others(results["stopping"]),
    }


def _stopping_in_full(rows: list[dict]) -> str:
    """Both limits of a loss and both formulas, for WRITTEN_OUT."""
    header = ["keV above E_F"]
    for name in WRITTEN_OUT:
        header += [f"{name}, W_max = T - E_F", "half (transport)", "Joy-Luo", "Bethe"]
    body = []
    for energy_kev in ENERGIES_KEV:
        cells = [f"{energy_kev:g}"]
        for row in rows:
            if row["energy_kev"] == energy_kev and row["material"] in WRITTEN_OUT:
                cells += [report.digits(row["full"]), _compared(row["half"], row["joy_luo"])]
                cells += [report.digits(row[kind]) if row[kind] > 0 else "-" for kind in ("joy_luo", "bethe")]
        body.append(cells)
    return report.table(header, body)


def _stopping_of_others(rows: list[dict]) -> str:
    """With the limit of transport beside Joy and Luo, a line for each material."""
    body = []
    for name in dict.fromkeys(row["material"] for row in rows):
        if name not in WRITTEN_OUT:
            chosen = [row for row in rows if row["material"] == name]
            body.append([name, *(_compared(row["half"], row["joy_luo"]) for row in chosen)])
    return report.table(["", *(f"{energy_kev:g} keV" for energy_kev in ENERGIES_KEV)], body)


def _compared(value, reference):
    """The value, and in brackets its deviation in %, if there is a reference."""
    deviation = "" if math.isnan(reference) else f" ({report.deviation(value, reference)})"
    return report.digits(value) + deviation


def figure(results: dict):
    figure, (axes,) = report.axes(1, 2)
    for name, colour, marker in zip(PICTURED, report.COLOURS, report.MARKERS, strict=False):
        for source, filled in (("Shinotsuka2015", "none"), ("Tanuma2011", colour), ("Lesiak1996", "w")):
            rows = [row for row in results["paths"] if (row["material"], row["source"]) == (name, source)]
            energies = [row["energy_ev"] * 1e-3 for row in rows]
            axes[0].loglog(energies, [row["full_nm"] for row in rows], "-", color=colour, lw=1)
            label = f"{name}, {source}" if rows else None
            published = [row["imfp_nm"] for row in rows]
            axes[0].loglog(energies, published, marker, color=colour, mfc=filled, ms=4, label=label)
        rows = [row for row in results["stopping"] if row["material"] == name]
        energies = [row["energy_kev"] for row in rows]
        joy_luo = [row["joy_luo"] for row in rows]
        bethe = [row["bethe"] if row["bethe"] > row["joy_luo"] / 2 else math.nan for row in rows]
        axes[1].loglog(energies, [row["half"] for row in rows], "-", color=colour, lw=1, label=name)
        axes[1].loglog(energies, joy_luo, marker, color=colour, mfc="none", ms=4)
        axes[1].loglog(energies, bethe, ":", color=colour, lw=1)
    axes[0].set(xlabel="energy above E$_F$ / keV", ylabel="inelastic mean free path / nm")
    axes[1].set(xlabel="energy above E$_F$ / keV", ylabel="stopping power / eV nm$^{-1}$")
    axes[0].set_title("lines ours, points published")
    axes[1].set_title("lines ours (transport), points Joy and Luo, dotted Bethe")
    for axis in axes:
        axis.legend()
    return figure
