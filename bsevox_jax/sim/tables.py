"""Cross sections of a set of materials, tabulated for the transport kernel.

`python -m bsevox_jax.sim.tables` rebuilds the tables shipped in `data/`.
"""

import dataclasses
import json
import os
import sys
import zipfile

import jax
import numpy as np
import scipy

from bsevox_jax.sim import elastic, elements, inelastic

VACUUM = "vacuum"
ENERGIES_KEV = np.geomspace(0.040, 11.0, 64)
LOG_QUANTILES = np.linspace(0.0, np.log(1e-7), 512)
"""ln c of the tabulated complementary quantiles: the share c of all events has a larger value."""
_STATIC = ("material_names", "provenance")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossSections:
    """Cross sections of M materials at R energies; index 0 is vacuum, index l the voxel label l.

    Attributes:
      material_names: M names.
      energies_kev: [R] kinetic energy E in vacuum terms, ascending, equal steps in ln E. Inside a material
        the electron has T = E + barrier_kev, and every cross section is that of T.
      elastic_rate_per_nm, inelastic_rate_per_nm: [M, R] inverse mean free paths.
      angle_icdf: [M, R, P] quantiles of mu = (1 - cos theta)/2 of an elastic event: the share c_j of the
        events has a larger mu, ln c_j = `LOG_QUANTILES`; to be interpolated linearly in ln c.
      loss_icdf_kev: [M, R, P] the same for the pole energy w0 of an inelastic event (`inelastic`), with
        losses up to (T - E_F)/2.
      barrier_kev: [M] U0, from the bottom of the valence band to the vacuum level.
      fermi_kev: [M] E_F, from the same bottom.
      core_edges_kev: [M, K] binding energies of inner shells, ascending, padded with inf.
      provenance: JSON of sources, model choices and versions.
    """

    material_names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    energies_kev: jax.typing.ArrayLike
    elastic_rate_per_nm: jax.typing.ArrayLike
    inelastic_rate_per_nm: jax.typing.ArrayLike
    angle_icdf: jax.typing.ArrayLike
    loss_icdf_kev: jax.typing.ArrayLike
    barrier_kev: jax.typing.ArrayLike
    fermi_kev: jax.typing.ArrayLike
    core_edges_kev: jax.typing.ArrayLike
    provenance: str = dataclasses.field(metadata={"static": True})

    @property
    def log_quantile_end(self) -> float:
        """ln c of the last tabulated quantile; the first is 0."""
        return float(LOG_QUANTILES[-1])

    def select(self, names: tuple[str, ...]) -> "CrossSections":
        """Returns the tables with labels 1, 2, .. for the given materials; ValueError if one is missing."""
        missing = [name for name in names if name not in self.material_names]
        if missing:
            raise ValueError(
                f"cross sections must cover the materials of the specimen; got {', '.join(missing)}, have "
                f"{', '.join(self.material_names[1:])}. Build them with tables.build and pass them."
            )
        names = (VACUUM, *(name for name in names if name != VACUUM))
        rows = np.array([self.material_names.index(name) for name in names])
        per_material = [f.name for f in dataclasses.fields(self) if f.name not in (*_STATIC, "energies_kev")]
        return dataclasses.replace(
            self, material_names=names, **{name: getattr(self, name)[rows] for name in per_material}
        )


def build(materials: tuple[str, ...] = ("Si", "Cu"), *, atom: str = "muffin_tin") -> CrossSections:
    """Computes the tables from the atomic and optical data; about ten seconds.

    Args:
      materials: names in `elements.MATERIALS`, in the order of the labels 1, 2, ...
      atom: "muffin_tin", or "free" for isolated atoms (see `elastic`).

    Returns:
      Tables in float32, computed in float64.

    Raises:
      ValueError: an unknown material or kind of atom.
    """
    chosen = [elements.material(name) for name in materials]
    shape = (len(chosen) + 1, len(ENERGIES_KEV))
    rates = np.zeros((2, *shape))
    quantiles = np.zeros((2, *shape, len(LOG_QUANTILES)))
    for label, material in enumerate(chosen, start=1):
        for row, energy_kev in enumerate(ENERGIES_KEV):
            for process, tabulate in enumerate((_elastic_row, _inelastic_row)):
                rates[process, label, row], quantiles[process, label, row] = tabulate(
                    material, energy_kev + material.barrier_kev, atom
                )
            _show_progress(f"{material.name}, {atom} atom", row + 1, len(ENERGIES_KEV))
    edges = np.full((len(chosen) + 1, max(len(m.core_edges_kev) for m in chosen)), np.inf)
    for label, material in enumerate(chosen, start=1):
        edges[label, : len(material.core_edges_kev)] = material.core_edges_kev
    return CrossSections(
        material_names=(VACUUM, *materials),
        energies_kev=ENERGIES_KEV.astype(np.float32),
        elastic_rate_per_nm=rates[0].astype(np.float32),
        inelastic_rate_per_nm=rates[1].astype(np.float32),
        angle_icdf=quantiles[0].astype(np.float32),
        loss_icdf_kev=quantiles[1].astype(np.float32),
        barrier_kev=np.array([0.0, *(m.barrier_kev for m in chosen)], np.float32),
        fermi_kev=np.array([0.0, *(m.fermi_kev for m in chosen)], np.float32),
        core_edges_kev=edges.astype(np.float32),
        provenance=_provenance(chosen, atom),
    )


def save(tables: CrossSections, path: str | os.PathLike) -> None:
    """Writes the tables as a compressed .npz file."""
    fields = {f.name: getattr(tables, f.name) for f in dataclasses.fields(tables)}
    temporary = f"{os.fspath(path)}.tmp"
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **{name: np.asarray(value) for name, value in fields.items()})
    os.replace(temporary, path)


def load(path: str | os.PathLike) -> CrossSections:
    """Reads tables written by `save`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a file of cross sections.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"cross-section file must exist; got {path}. Write one with tables.save.")
    try:
        with np.load(path) as file:
            fields = {f.name: file[f.name] for f in dataclasses.fields(CrossSections)}
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"cross-section file must be written by tables.save; got {path} ({error}). Build it again."
        ) from None
    fields["material_names"] = tuple(str(name) for name in fields["material_names"])
    return CrossSections(**fields | {"provenance": str(fields["provenance"])})


def shipped(atom: str = "muffin_tin") -> CrossSections:
    """Returns the shipped tables of Si (label 1) and Cu (label 2).

    Args:
      atom: "muffin_tin", the atom in the solid, which has fewer forward events and the same transport; or
        "free", the isolated atom, which is the one to compare with published cross sections.
    """
    if atom not in elastic.ATOMS:
        raise ValueError(f"atom must be one of {', '.join(elastic.ATOMS)}; got {atom!r}.")
    return load(_shipped_path(atom))


def _elastic_row(material, energy_kev, atom):
    waves = elastic.partial_waves(material, energy_kev, atom=atom)
    edges, cross_sections_nm2 = elastic.angular_distribution(waves)
    rate_per_nm = material.atoms_per_nm3 * elastic.cross_section_nm2(waves)
    return rate_per_nm, complementary_quantiles(edges, cross_sections_nm2)


def _inelastic_row(material, energy_kev, atom):
    losses = inelastic.losses(material, energy_kev)
    return losses.rate_per_nm, complementary_quantiles(losses.edges_kev, losses.cell_rates_per_nm)


def complementary_quantiles(edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values that the shares exp(`LOG_QUANTILES`) of a distribution exceed, [P].

    The last is the upper end of the distribution. The first is not the lower end but gives the lowest
    interval, 3 % of all events, its mean: few losses are as small as the gap of Si, where they begin.

    Args:
      edges: [n + 1] ascending.
      weights: [n] of the cells between them, uniform within each.
    """
    above = np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]]) / weights.sum()
    quantiles = np.interp(np.exp(LOG_QUANTILES), above[::-1], edges[::-1])
    quantiles[-1] = edges[np.flatnonzero(weights)[-1] + 1]

    lowest = np.append(edges[edges < quantiles[1]], quantiles[1])
    shares = -np.diff(np.interp(lowest, edges, above))
    mean = shares @ (lowest[1:] + lowest[:-1]) / 2 / shares.sum()
    towards_second = interpolation_mean()
    first = (mean - towards_second * quantiles[1]) / (1 - towards_second)
    quantiles[0] = np.clip(first, edges[0], quantiles[1])
    return quantiles


def interpolation_mean() -> float:
    """Mean of the interpolation weight (ln c_j - ln c)/step of a uniform c between two quantiles."""
    step = -LOG_QUANTILES[1]
    return 1 / step - 1 / np.expm1(step)


def _provenance(materials, atom):
    record = {
        "atom": atom,
        "elastic": "Dirac partial waves (Salvat 2005), potential of Lobato and Van Dyck 2014, exchange of "
        "Furness and McCarthy 1973",
        "inelastic": "single-pole Penn model (Penn 1987), relativistic, losses up to (T - E_F)/2",
        "energy_loss_functions": {"Si": "Franta 2017, Henke 1993", "Cu": "Hagemann 1975, Henke 1993"},
        "materials": [dataclasses.asdict(material) for material in materials],
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    return json.dumps(record, sort_keys=True)


def _shipped_path(atom):
    return elements.DATA_DIR / f"cross_sections_{atom}.npz"


def _show_progress(what, done, total):
    if sys.stderr.isatty() or done == total:
        end = "\n" if done == total else "\r"
        print(f"{what}: {done}/{total} energies", file=sys.stderr, end=end, flush=True)


if __name__ == "__main__":
    for kind in elastic.ATOMS:
        save(build(atom=kind), _shipped_path(kind))
