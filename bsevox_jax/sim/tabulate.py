"""Makes tables of cross sections from atomic and optical data.

    python -m bsevox_jax.sim.tabulate --formula=SiO2 --density_g_cm3=2.2 --elf=my_sio2.csv --output=sio2.npz

makes those of a new material in seconds to a minute; without arguments, all that `data/tables/` ships.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

import numpy as np
import scipy

from bsevox_jax.sim import elastic, elements, inelastic, tables


def build(material: elements.Material, *, atom: str = "muffin_tin") -> tables.CrossSections:
    """Computes the tables of one material (label 1) from its atomic and optical data, in seconds.

    Args:
      material: one of `elements.MATERIALS`, or your own.
      atom: "muffin_tin", or "free" for isolated atoms (see `elastic`).

    Returns:
      Tables in float32, computed in float64.

    Raises:
      ValueError: an unknown kind of atom, or a damaged energy-loss function.
      FileNotFoundError: no file of the energy-loss function.
    """
    tables.check_atom(atom)
    rates = np.zeros((2, 2, len(tables.ENERGIES_KEV)))
    quantiles = np.zeros((2, 2, len(tables.ENERGIES_KEV), len(tables.LOG_QUANTILES)))
    for row, energy_kev in enumerate(tables.ENERGIES_KEV):
        kinetic_kev = energy_kev + material.barrier_kev
        rates[0, 1, row], quantiles[0, 1, row] = _elastic_row(material, kinetic_kev, atom)
        rates[1, 1, row], quantiles[1, 1, row] = _inelastic_row(material, kinetic_kev)
        _show_progress(f"{material.name}, {atom} atom", row + 1, len(tables.ENERGIES_KEV))
    edges = np.full((2, len(material.core_edges_kev)), np.inf)
    edges[1] = material.core_edges_kev
    return tables.CrossSections(
        material_names=(tables.VACUUM, material.name),
        energies_kev=tables.ENERGIES_KEV.astype(np.float32),
        elastic_rate_per_nm=rates[0].astype(np.float32),
        inelastic_rate_per_nm=rates[1].astype(np.float32),
        angle_icdf=quantiles[0].astype(np.float32),
        loss_icdf_kev=quantiles[1].astype(np.float32),
        barrier_kev=np.array([0.0, material.barrier_kev], np.float32),
        fermi_kev=np.array([0.0, material.fermi_kev], np.float32),
        core_edges_kev=edges.astype(np.float32),
        provenance=json.dumps([_provenance(material, atom)], sort_keys=True),
    )


def _elastic_row(material, energy_kev, atom):
    radius_nm = material.muffin_tin_radius_nm if atom == "muffin_tin" else None
    total_nm2, cells_nm2 = 0.0, 0.0
    for symbol, fraction in material.atomic_fractions:
        waves = elastic.partial_waves(symbol, energy_kev, muffin_tin_radius_nm=radius_nm)
        edges, cells = elastic.angular_distribution(waves)
        total_nm2 += fraction * elastic.cross_section_nm2(waves)
        cells_nm2 += fraction * cells
    return material.atoms_per_nm3 * total_nm2, tables.complementary_quantiles(edges, cells_nm2)


def _inelastic_row(material, energy_kev):
    losses = inelastic.losses(material, energy_kev)
    if losses.rate_per_nm == 0:
        raise ValueError(
            f"energy-loss function must allow losses at every energy; got none for {material.name} at "
            f"{energy_kev:.3g} keV. Give its energies in eV, from the onset on."
        )
    return losses.rate_per_nm, tables.complementary_quantiles(losses.edges_kev, losses.cell_rates_per_nm)


def _provenance(material, atom):
    description = dataclasses.asdict(material) | {"elf_path": material.elf_path.name}
    del description["mean_excitation_kev"]
    return {
        "atom": atom,
        "elastic": "Dirac partial waves (Salvat 2005), potential of Lobato and Van Dyck 2014, exchange of "
        "Furness and McCarthy 1973",
        "inelastic": "single-pole Penn model (Penn 1987), relativistic, losses up to (T - E_F)/2",
        "energy_loss_function": [
            line for line in material.elf_path.read_text().splitlines() if line.startswith("#")
        ],
        "material": description,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def _show_progress(what, done, total):
    if sys.stderr.isatty() or done == total:
        end = "\n" if done == total else "\r"
        print(f"{what}: {done}/{total} energies", file=sys.stderr, end=end, flush=True)


def _parser():
    # Without a usage line an error is one line.
    parser = argparse.ArgumentParser("tabulate", usage=argparse.SUPPRESS, description=__doc__.split("\n")[0])
    parser.add_argument("--formula", help="such as SiO2; without it the shipped tables are rebuilt")
    parser.add_argument("--density_g_cm3", type=float)
    parser.add_argument("--elf", type=pathlib.Path, help="CSV: # lines, column names, then eV,Im(-1/eps)")
    parser.add_argument("--output", type=pathlib.Path, help=".npz file to write")
    parser.add_argument("--name", help="of the material; default: the formula")
    parser.add_argument("--fermi_ev", type=float, default=10.0, help="width of the valence band")
    parser.add_argument("--gap_ev", type=float, default=0.0)
    parser.add_argument("--affinity_ev", type=float, default=4.5, help="a metal's work function")
    parser.add_argument("--nearest_neighbour_nm", type=float, help="default: of close-packed atoms")
    parser.add_argument("--loss_onset_ev", type=float, help="smallest loss; default: the gap, at least 0.3")
    parser.add_argument("--atom", default="muffin_tin")
    return parser


def _own_material(given):
    for name in ("density_g_cm3", "elf", "output"):
        if getattr(given, name) is None:
            raise ValueError(
                f"a new material needs its formula, density_g_cm3, elf and output; got no --{name}. Give it."
            )
    if not given.output.parent.is_dir():
        raise ValueError(f"folder of --output must exist; got {given.output}. Make it first.")
    material = elements.own_material(
        given.formula,
        given.density_g_cm3,
        given.elf,
        name=given.name,
        fermi_kev=given.fermi_ev / 1e3,
        gap_kev=given.gap_ev / 1e3,
        affinity_kev=given.affinity_ev / 1e3,
        nearest_neighbour_nm=given.nearest_neighbour_nm,
        loss_onset_kev=given.loss_onset_ev and given.loss_onset_ev / 1e3,
    )
    f_sum, ps_sum = inelastic.sum_rules(material)
    for line in (
        f"f-sum {f_sum:.2f} of {material.electrons_per_formula:g} electrons, ps-sum {ps_sum:.3f} of 1 "
        "(a metal) or 1 - 1/n^2",
        f"band {given.fermi_ev:g} eV, gap {given.gap_ev:g} eV, affinity {given.affinity_ev:g} eV, loss from "
        f"{1e3 * material.loss_onset_kev:g} eV, muffin-tin radius {material.muffin_tin_radius_nm:.4f} nm",
    ):
        print(f"{material.name}: {line}", file=sys.stderr)
    return material


def main(arguments: list[str] | None = None) -> None:
    """Makes the tables of the material that the arguments describe, or all shipped ones without any."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(arguments)
    try:
        if given.formula is None and arguments:
            names = ", ".join(argument.split("=")[0] for argument in arguments if argument.startswith("--"))
            raise ValueError(
                f"a new material needs --formula; got {names} without it. Give it, or no option to rebuild "
                "the shipped tables."
            )
        if given.formula is not None:
            tables.save(build(_own_material(given), atom=given.atom), given.output)
            return
        tables.SHIPPED_DIR.mkdir(exist_ok=True)
        for material in elements.MATERIALS.values():
            for atom in tables.ATOMS:
                tables.save(build(material, atom=atom), tables.SHIPPED_DIR / f"{material.name}_{atom}.npz")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
