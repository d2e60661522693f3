"""Cross sections of a set of materials, tabulated for the transport kernel; made by `tabulate`."""

import dataclasses
import json
import os
import zipfile

import jax
import numpy as np

from bsevox_jax.sim import elements
from bsevox_jax.sim.files import whole_file

VACUUM = "vacuum"
ATOMS = ("muffin_tin", "free")
ENERGIES_KEV = np.geomspace(0.040, 11.0, 64)
LOG_QUANTILES = np.linspace(0.0, np.log(1e-7), 512)
"""ln c of the tabulated complementary quantiles: the share c of all events has a larger value."""
SHIPPED_DIR = elements.DATA_DIR / "tables"
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
      provenance: JSON of sources, model choices and versions: a record, or a list of them.
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
                f"{', '.join(self.material_names[1:])}. Pass tables.shipped(materials) or tables.combine(..)."
            )
        names = (VACUUM, *(name for name in names if name != VACUUM))
        rows = np.array([self.material_names.index(name) for name in names])
        return dataclasses.replace(
            self, material_names=names, **{name: getattr(self, name)[rows] for name in _per_material()}
        )


def combine(*parts: CrossSections) -> CrossSections:
    """Joins tables: labels 1, 2, .. are the materials of the parts in their order.

    Raises:
      ValueError: no part, a material twice, or different energies.
    """
    if not parts:
        raise ValueError("tables to combine must be those of one or more materials; got none. Name one.")
    names = [name for part in parts for name in part.material_names[1:]]
    if len({VACUUM, *names}) <= len(names):
        raise ValueError(
            f"materials to combine must differ in name, also from {VACUUM!r}; got {', '.join(names)}. Leave "
            "out what comes twice, or give it another name."
        )
    if any(not np.array_equal(part.energies_kev, parts[0].energies_kev) for part in parts):
        raise ValueError(
            f"tables to combine must share their energies; those of {', '.join(names)} do not. Build again."
        )
    num_edges = max(part.core_edges_kev.shape[1] for part in parts)

    def joined(name):
        rows = [np.asarray(getattr(part, name)) for part in parts]
        if name == "core_edges_kev":
            rows = [np.pad(r, ((0, 0), (0, num_edges - r.shape[1])), constant_values=np.inf) for r in rows]
        return np.concatenate([rows[0][:1], *(r[1:] for r in rows)])

    return dataclasses.replace(
        parts[0],
        material_names=(VACUUM, *names),
        provenance=json.dumps([record for part in parts for record in _records(part)], sort_keys=True),
        **{name: joined(name) for name in _per_material()},
    )


def save(tables: CrossSections, path: str | os.PathLike) -> None:
    """Writes the tables as a compressed .npz file."""
    fields = {f.name: getattr(tables, f.name) for f in dataclasses.fields(tables)}
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **{name: np.asarray(value) for name, value in fields.items()})


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


def shipped(materials: tuple[str, ...] = ("Si", "Cu"), *, atom: str = "muffin_tin") -> CrossSections:
    """Returns the shipped tables of some of `elements.MATERIALS`, labels 1, 2, .. in the order given.

    Args:
      materials: one or more names.
      atom: "muffin_tin", the atom in the solid, which has fewer forward events and the same transport; or
        "free", the isolated atom, which is the one to compare with published cross sections.

    Raises:
      ValueError: an unknown material or kind of atom.
    """
    check_atom(atom)
    return combine(*(load(SHIPPED_DIR / f"{elements.material(name).name}_{atom}.npz") for name in materials))


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


def check_atom(atom: str) -> None:
    """ValueError unless it is one of `ATOMS`."""
    if atom not in ATOMS:
        raise ValueError(f"atom must be one of {', '.join(ATOMS)}; got {atom!r}. Use one of them.")


def _records(part):
    records = json.loads(part.provenance)
    return records if isinstance(records, list) else [records]


def _per_material():
    names = (field.name for field in dataclasses.fields(CrossSections))
    return [name for name in names if name not in (*_STATIC, "energies_kev")]
