"""Materials and atoms: the measured and published numbers every cross section starts from.

The tables beside this file (`data/*.csv`) carry their sources and licences in their first lines.
"""

import csv
import dataclasses
import functools
import math
import pathlib
import re

import numpy as np

DATA_DIR = pathlib.Path(__file__).parent / "data"

# CODATA 2018: E. Tiesinga et al., Rev. Mod. Phys. 93, 025010 (2021).
HARTREE_KEV = 27.211386246e-3
BOHR_NM = 0.0529177210903
SPEED_OF_LIGHT_AU = 137.035999084
AVOGADRO_PER_MOL = 6.02214076e23


@dataclasses.dataclass(frozen=True)
class Element:
    """One row of `data/elements.csv`.

    Attributes:
      atomic_number: Z.
      weight_g_mol: atomic weight.
      core_edges_kev: binding energies of the shells that count as core, ascending.
    """

    atomic_number: int
    weight_g_mol: float
    core_edges_kev: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Material:
    """An amorphous solid.

    Attributes:
      name: what specimens and tables call it.
      composition: (chemical symbol, atoms per formula unit) of each element, by ascending Z (`composition`).
      density_g_cm3: mass density.
      fermi_kev: width of the occupied valence band, from its bottom.
      gap_kev: band gap, 0 for a metal.
      affinity_kev: electron affinity (work function of a metal): vacuum level above the conduction band.
      muffin_tin_radius_nm: half the distance of nearest neighbours.
      loss_onset_kev: smallest energy loss considered.
      elf_path: CSV file of the energy-loss function (`energy_loss_function`).
      mean_excitation_kev: I of the Bethe formula, nan if unknown; used for checks only.
    """

    name: str
    composition: tuple[tuple[str, float], ...]
    density_g_cm3: float
    fermi_kev: float
    gap_kev: float
    affinity_kev: float
    muffin_tin_radius_nm: float
    loss_onset_kev: float
    elf_path: pathlib.Path
    mean_excitation_kev: float = math.nan

    @property
    def barrier_kev(self) -> float:
        """U0: kinetic energy above the band bottom of an electron at rest in vacuum."""
        return self.fermi_kev + self.gap_kev + self.affinity_kev

    @property
    def atoms_per_nm3(self) -> float:
        """Number density of all atoms together."""
        mean_weight_g_mol = self.formula_weight_g_mol / self.atoms_per_formula
        return self.density_g_cm3 * AVOGADRO_PER_MOL / mean_weight_g_mol * 1e-21

    @property
    def atoms_per_formula(self) -> float:
        return sum(number for _, number in self.composition)

    @property
    def formula_weight_g_mol(self) -> float:
        return sum(number * element(symbol).weight_g_mol for symbol, number in self.composition)

    @property
    def electrons_per_formula(self) -> float:
        return sum(number * element(symbol).atomic_number for symbol, number in self.composition)

    @property
    def atomic_fractions(self) -> tuple[tuple[str, float], ...]:
        """(Symbol, share of all atoms) of each element."""
        return tuple((symbol, number / self.atoms_per_formula) for symbol, number in self.composition)

    @property
    def core_edges_kev(self) -> tuple[float, ...]:
        """Binding energies of the shells below the valence band, of all elements, ascending."""
        edges = {edge for symbol, _ in self.composition for edge in element(symbol).core_edges_kev}
        return tuple(sorted(edges))


def composition(formula: str) -> tuple[tuple[str, float], ...]:
    """Elements and numbers of a formula without brackets, such as "SiO2" or "Si0.8Ge0.2", by ascending Z.

    Raises:
      ValueError: not such a formula, or an unknown element.
    """
    parts = re.findall(r"([A-Z][a-z]?)(\d+\.?\d*|\.\d+)?", formula)
    if not parts or "".join(symbol + number for symbol, number in parts) != formula:
        raise ValueError(
            f"formula must be symbols of elements with numbers, such as SiO2 or Si0.8Ge0.2; got {formula!r}. "
            "Write brackets out."
        )
    numbers = {}
    for symbol, number in parts:
        numbers[symbol] = numbers.get(symbol, 0.0) + (float(number) if number else 1.0)
    if min(numbers.values()) == 0:
        raise ValueError(f"formula must not hold 0 atoms of an element; got {formula!r}. Leave it out.")
    return tuple(sorted(numbers.items(), key=lambda item: element(item[0]).atomic_number))


def element(symbol: str) -> Element:
    """Returns the element of that symbol, H to Lr; ValueError if there is none."""
    if symbol not in _elements():
        raise ValueError(
            f"element must be a chemical symbol from H to Lr; got {symbol!r}. Check the formula."
        )
    return _elements()[symbol]


def material(name: str) -> Material:
    """Returns the shipped material of that name; ValueError names the known ones."""
    if name not in MATERIALS:
        raise ValueError(
            f"material must be one of {', '.join(MATERIALS)}; got {name!r}. Make its tables with "
            "python -m bsevox_jax.sim.tabulate --formula=.. and pass them."
        )
    return MATERIALS[name]


def own_material(
    formula: str,
    density_g_cm3: float,
    elf_path: pathlib.Path,
    *,
    name: str | None = None,
    fermi_kev: float = 0.010,
    gap_kev: float = 0.0,
    affinity_kev: float = 0.0045,
    nearest_neighbour_nm: float | None = None,
    loss_onset_kev: float | None = None,
) -> Material:
    """Describes a material that is not shipped; the default of its band is a typical metal's.

    Args:
      formula: see `composition`; also the name, unless there is another.
      nearest_neighbour_nm: their distance. None: that of close-packed spheres, which no arrangement exceeds.
      loss_onset_kev: smallest loss. None: the gap, but at least 0.3 eV.
      The others: see `Material`.

    Raises:
      ValueError: not a formula, or a number out of range.
    """
    if not density_g_cm3 > 0:
        raise ValueError(f"density_g_cm3 must be above 0; got {density_g_cm3}. Give it in g/cm^3.")
    if not min(gap_kev, affinity_kev) >= 0:
        raise ValueError(f"gap and affinity must not be below 0; got {gap_kev} and {affinity_kev} keV.")
    onset_kev = max(gap_kev, 0.3e-3) if loss_onset_kev is None else loss_onset_kev
    own = (density_g_cm3, fermi_kev, gap_kev, affinity_kev)
    made = Material(name or formula, composition(formula), *own, math.nan, onset_kev, pathlib.Path(elf_path))
    if nearest_neighbour_nm is None:
        nearest_neighbour_nm = 2 ** (1 / 6) * made.atoms_per_nm3 ** (-1 / 3)
    made = dataclasses.replace(made, muffin_tin_radius_nm=nearest_neighbour_nm / 2)
    for field in ("fermi_kev", "muffin_tin_radius_nm", "loss_onset_kev"):
        if not getattr(made, field) > 0:
            raise ValueError(f"{field} must be above 0; got {getattr(made, field)}. Give another value.")
    return made


def screening(symbol: str) -> tuple[np.ndarray, np.ndarray]:
    """Charges and inverse lengths of the screened nucleus of a neutral atom.

    The potential and the electron density of the parameterised scattering factor
    f_e(g) = sum a_i (2 + b_i g^2)/(1 + b_i g^2)^2 are, in atomic units,
    V(r) = -sum z_i (1/r + c_i/2) exp(-c_i r) and n(r) = sum z_i c_i^3/(8 pi) exp(-c_i r),
    with z_i = 2 pi^2 a0 a_i/b_i and c_i = 2 pi a0/sqrt(b_i); sum z_i = Z.

    Args:
      symbol: chemical symbol, Z = 1..103.

    Returns:
      z [5] (elementary charges) and c [5] (1/Bohr radius), float64.

    Raises:
      ValueError: an element the table does not have.

    Source: I. Lobato, D. Van Dyck, Acta Cryst. A70, 636 (2014).
    """
    for row in _rows("lobato_2014.csv"):
        if row["symbol"] == symbol:
            a = np.array([float(row[f"a{i}"]) for i in range(1, 6)])
            b = np.array([float(row[f"b{i}"]) for i in range(1, 6)])
            bohr_angstrom = 10 * BOHR_NM
            return 2 * np.pi**2 * bohr_angstrom * a / b, 2 * np.pi * bohr_angstrom / np.sqrt(b)
    raise ValueError(f"element must be in the table of scattering factors (H to Lr); got {symbol!r}.")


def energy_loss_function(material: Material) -> tuple[np.ndarray, np.ndarray]:
    """Im(-1/eps) at momentum transfer zero: energies_kev [n] ascending and values [n].

    Between the points the function is a power law (linear in the logarithms); outside it is zero.

    Its CSV file has energy in eV and Im(-1/eps) per line, after `#` lines and one line of column names.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another content.
    """
    path = material.elf_path
    if not path.is_file():
        raise FileNotFoundError(f"file of the energy-loss function must exist; got {path}. Check the path.")
    lines = [line for line in path.read_text().splitlines() if line.strip() and line[0] != "#"]
    try:
        energies_ev, values = np.loadtxt(lines[1:], delimiter=",", ndmin=2).T
    except ValueError as error:
        raise ValueError(
            f"energy-loss function must be # lines, a line of column names, then lines eV,value; got {path} "
            f"({str(error).splitlines()[0]}). Correct it."
        ) from None
    if len(values) < 2 or not np.all(np.diff(energies_ev, prepend=0) > 0) or not np.all(values > 0):
        raise ValueError(
            f"energy-loss function must have ascending energies and positive values; got {path}. Correct it."
        )
    return energies_ev * 1e-3, values


@functools.cache
def _elements():
    return {
        row["symbol"]: Element(
            int(row["Z"]),
            float(row["weight_g_mol"]),
            tuple(float(edge) for edge in row["core_edges_kev"].split()),
        )
        for row in _rows("elements.csv")
    }


def _materials():
    found = {}
    for row in _rows("materials.csv"):
        name, formula = row.pop("name"), row.pop("formula")
        numbers = {field: float(value) for field, value in row.items()}
        elf_path = DATA_DIR / f"elf_{name.lower()}.csv"
        found[name] = Material(name, composition(formula), elf_path=elf_path, **numbers)
    return found


def _rows(file_name):
    lines = (DATA_DIR / file_name).read_text().splitlines()
    return csv.DictReader(line for line in lines if not line.startswith("#"))


MATERIALS = _materials()
