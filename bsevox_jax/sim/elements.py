"""Materials and atoms: the measured and published numbers every cross section starts from.

The tables beside this file (`data/*.csv`) carry their source and licence in their first lines.
"""

import csv
import dataclasses
import pathlib

import numpy as np

DATA_DIR = pathlib.Path(__file__).parent / "data"

# CODATA 2018: E. Tiesinga et al., Rev. Mod. Phys. 93, 025010 (2021).
HARTREE_KEV = 27.211386246e-3
BOHR_NM = 0.0529177210903
SPEED_OF_LIGHT_AU = 137.035999084
AVOGADRO_PER_MOL = 6.02214076e23


@dataclasses.dataclass(frozen=True)
class Material:
    """An amorphous solid of one element.

    Attributes:
      name: chemical symbol.
      atomic_number: Z.
      atomic_weight_g_mol: standard atomic weight.
      density_g_cm3: mass density.
      fermi_kev: width of the occupied valence band, from its bottom.
      gap_kev: band gap, 0 for a metal.
      affinity_kev: electron affinity (work function of a metal): vacuum level above the conduction band.
      muffin_tin_radius_nm: half the distance of nearest neighbours.
      loss_onset_kev: smallest energy loss considered.
      core_edges_kev: binding energies of the shells below the valence band, ascending.
      mean_excitation_kev: I of the Bethe formula; used for checks only.
    """

    name: str
    atomic_number: int
    atomic_weight_g_mol: float
    density_g_cm3: float
    fermi_kev: float
    gap_kev: float
    affinity_kev: float
    muffin_tin_radius_nm: float
    loss_onset_kev: float
    core_edges_kev: tuple[float, ...]
    mean_excitation_kev: float

    @property
    def barrier_kev(self) -> float:
        """U0: kinetic energy above the band bottom of an electron at rest in vacuum."""
        return self.fermi_kev + self.gap_kev + self.affinity_kev

    @property
    def atoms_per_nm3(self) -> float:
        return self.density_g_cm3 * AVOGADRO_PER_MOL / self.atomic_weight_g_mol * 1e-21


# E_F: S. Tanuma, C. J. Powell, D. R. Penn, Surf. Interface Anal. 43, 689 (2011), table 1.
# Binding energies: G. P. Williams, X-ray Data Booklet (LBNL, 2009), table 1-1, after J. A. Bearden,
#   A. F. Burr, Rev. Mod. Phys. 39, 125 (1967); one edge for each of Si L2,3 (L2), Cu M2,3 (M3), Cu L2,3 (L3).
# Atomic weights, densities: CRC Handbook of Chemistry and Physics.
# Gap, affinity: S. M. Sze, Physics of Semiconductor Devices. Work function of Cu: H. B. Michaelson,
#   J. Appl. Phys. 48, 4729 (1977).
# Nearest neighbours: lattice constants 0.5431 nm (diamond) and 0.3615 nm (fcc), C. Kittel, Introduction to
#   Solid State Physics. Mean excitation energies: ICRU Report 37 (1984).
MATERIALS = {
    "Si": Material(
        name="Si",
        atomic_number=14,
        atomic_weight_g_mol=28.0855,
        density_g_cm3=2.33,
        fermi_kev=12.5e-3,
        gap_kev=1.1e-3,
        affinity_kev=4.05e-3,
        muffin_tin_radius_nm=0.1176,
        loss_onset_kev=1.1e-3,
        core_edges_kev=(0.0998, 0.1497, 1.839),
        mean_excitation_kev=0.173,
    ),
    "Cu": Material(
        name="Cu",
        atomic_number=29,
        atomic_weight_g_mol=63.546,
        density_g_cm3=8.96,
        fermi_kev=8.7e-3,
        gap_kev=0.0,
        affinity_kev=4.65e-3,
        muffin_tin_radius_nm=0.1278,
        loss_onset_kev=0.3e-3,
        core_edges_kev=(0.0751, 0.1225, 0.9327, 1.0967, 8.979),
        mean_excitation_kev=0.322,
    ),
}


def material(name: str) -> Material:
    """Returns the material of that name; ValueError names the known ones."""
    if name not in MATERIALS:
        raise ValueError(
            f"material must be one of {', '.join(MATERIALS)}; got {name!r}. Add it to MATERIALS."
        )
    return MATERIALS[name]


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
    for row in csv.DictReader(_without_comments("lobato_2014.csv")):
        if row["symbol"] == symbol:
            a = np.array([float(row[f"a{i}"]) for i in range(1, 6)])
            b = np.array([float(row[f"b{i}"]) for i in range(1, 6)])
            bohr_angstrom = 10 * BOHR_NM
            return 2 * np.pi**2 * bohr_angstrom * a / b, 2 * np.pi * bohr_angstrom / np.sqrt(b)
    raise ValueError(f"element must be in the table of scattering factors (H to Lr); got {symbol!r}.")


def energy_loss_function(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Im(-1/eps) at momentum transfer zero: energies_kev [n] ascending and values [n].

    Between the points the function is a power law (linear in the logarithms); outside it is zero.
    Sources: in the first lines of `data/elf_*.csv`.
    """
    table = np.loadtxt(_without_comments(f"elf_{material(name).name.lower()}.csv")[1:], delimiter=",")
    return table[:, 0] * 1e-3, table[:, 1]


def _without_comments(file_name: str) -> list[str]:
    lines = (DATA_DIR / file_name).read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]
