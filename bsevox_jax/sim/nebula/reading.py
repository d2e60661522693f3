"""Cross sections from material files of Nebula, ours or those of cstool."""

import dataclasses
import json
import os

import numpy as np

from bsevox_jax.sim import tables
from bsevox_jax.sim.nebula.materials import OWN_GROUP, h5py, loss_shares

_CELLS = 300  # of the losses of a file at one energy, and of the pole energies found for them
_STEPS = 300  # towards these pole energies


def read_materials(paths, *, foreign: bool = False) -> tables.CrossSections:
    """Cross sections of the materials in some files; label k is the k-th file.

    The arrays of our own group come back as they were written. From the tables of any other file come the
    rates, the angles, the edges, and pole energies such that our model gives the losses of the file. Even
    shares (512 in stock files) resolve the rare largest angles and losses worse than ours. Losses beyond
    (T - E_F)/2, of which our model calls the freed electron the primary, are mirrored to T - E_F - W. Momenta
    are those of our model, and so is the way electrons are freed.

    Args:
        paths: the files, in the order of the labels 1, 2, ...
        foreign: read the tables of Nebula even where our own arrays are.

    Raises:
        FileNotFoundError, OSError, ValueError: no such file, or not a material file of Nebula; one line.
    """
    paths = [os.fspath(path) for path in paths]
    own = None if foreign else _own(paths)
    return tables.combine(*(tables.CrossSections(**arrays) for arrays in own or _foreign(paths)))


def _own(paths):
    """Our own arrays, if all files carry them on one scale of energies."""
    files = [_open(path, _own_arrays) for path in paths]
    if any(file is None for file in files):
        return None
    files = [_whole(*file) for file in zip(paths, files, strict=True)]
    if any(not np.array_equal(file["energies_kev"], files[0]["energies_kev"]) for file in files):
        return None
    return files


def _own_arrays(file):
    if OWN_GROUP not in file:
        return None
    group = file[OWN_GROUP]
    return dict(group.attrs) | {name: values[()] for name, values in group.items()}


def _whole(path, found):
    names = [field.name for field in dataclasses.fields(tables.CrossSections)]
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"group {OWN_GROUP} of a material file must hold all cross sections; got no {', '.join(missing)} "
            f"in {path}. Write it anew with write_material."
        )
    texts = {
        "material_names": tuple(map(str, found["material_names"])),
        "provenance": str(found["provenance"]),
    }
    return {name: found[name] for name in names} | texts


def _open(path, read):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the material file must exist; got {path}. Correct the path.")
    hdf5 = h5py()
    try:
        with hdf5.File(path) as file:
            return read(file)
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise OSError(
            f"a material file must be one of Nebula's (HDF5 of cstool); got {reason!r} in {path}. Make it "
            "anew."
        ) from error


def _foreign(paths):
    """Arrays of each file from its tables, on the energies that all of them cover."""
    last_kev = min(_open(path, _last_energy_kev) for path in paths)
    if last_kev < 1:
        raise ValueError(f"material files must reach 1 keV; got {last_kev:.3g} keV. Make them anew.")
    energies_kev = np.geomspace(tables.ENERGIES_KEV[0], min(tables.ENERGIES_KEV[-1], last_kev), 64)
    return [_open(path, lambda file: _arrays(file, energies_kev)) for path in paths]


def _last_energy_kev(file):
    ends = [file[f"/{name}/energy"][-1] for name in ("kieft/elastic", "full_penn")]
    # A file of ours ends at the last of our energies, but for rounding.
    return (min(ends) - _quantity_ev(file, "barrier")) / 1000 * (1 + 1e-6)


def _quantity_ev(file, name):
    value = file.attrs[name]
    unit = value["unit"].decode() if isinstance(value["unit"], bytes) else str(value["unit"])
    if unit != "eV":
        raise ValueError(f"{name} is in {unit!r}, not in eV")
    return float(value["value"])


def _arrays(file, energies_kev):
    barrier_ev, fermi_ev = _quantity_ev(file, "barrier"), _quantity_ev(file, "fermi")
    k_ev = 1000 * energies_kev + barrier_ev
    angles = 1 - _at(file, "/kieft/elastic/costheta_icdf", k_ev)
    losses_ev = np.exp(_at(file, "/full_penn/omega_icdf", k_ev, np.log))
    rates = [np.exp(_at(file, f"/{name}/imfp", k_ev, np.log)) for name in ("kieft/elastic", "full_penn")]
    mu = np.stack([_quantiles(row[::-1] / 2) for row in angles])
    poles_ev = np.stack([_poles(*row, fermi_ev) for row in zip(k_ev, losses_ev, strict=True)])
    bindings_ev = np.unique(np.round(file["/ionization/binding_icdf"][()], 1))
    bindings_ev = bindings_ev[(bindings_ev >= 50) & np.isfinite(bindings_ev)]  # what Nebula takes for a shell
    provenance = {
        "nebula_material": _text(file.attrs["name"]),
        "cstool_version": _text(file.attrs["cstool_version"]),
    }

    def with_vacuum(values):
        values = np.asarray(values, np.float32)[None]
        return np.concatenate([np.zeros_like(values), values])

    edges_kev = with_vacuum(bindings_ev / 1000)
    edges_kev[0] = np.inf
    return {
        "material_names": (tables.VACUUM, provenance["nebula_material"]),
        "energies_kev": energies_kev.astype(np.float32),
        "elastic_rate_per_nm": with_vacuum(rates[0]),
        "inelastic_rate_per_nm": with_vacuum(rates[1]),
        "angle_icdf": with_vacuum(mu),
        "loss_icdf_kev": with_vacuum(poles_ev / 1000),
        "barrier_kev": with_vacuum(barrier_ev / 1000),
        "fermi_kev": with_vacuum(fermi_ev / 1000),
        "core_edges_kev": edges_kev,
        "provenance": json.dumps(provenance, sort_keys=True),
    }


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def _at(file, name, k_ev, scale=lambda values: values):
    """Rows of a table at energies K, interpolated as Nebula does: `scale` of the values, linear in ln K."""
    data = file[name]
    log_k = np.log(data.dims[0][0][()])
    values = scale(np.asarray(data[()], np.float64))
    position = np.clip((np.log(k_ev) - log_k[0]) / (log_k[-1] - log_k[0]), 0, 1) * (len(log_k) - 1)
    low = np.minimum(position.astype(int), len(log_k) - 2)
    weight = (position - low).reshape(-1, *[1] * (values.ndim - 1))
    return (1 - weight) * values[low] + weight * values[low + 1]


def _quantiles(ascending):
    """Our quantiles of a distribution given by its values at even shares."""
    edges = np.maximum.accumulate(ascending)
    return tables.complementary_quantiles(edges, np.ones(len(edges) - 1))


def _poles(k_ev, losses_ev, fermi_ev):
    """Quantiles of the pole energies whose losses, by our model, are those of the file.

    The expectation-maximisation of W. H. Richardson, J. Opt. Soc. Am. 62, 55 (1972).
    """
    limit_ev = (k_ev - fermi_ev) / 2
    losses_ev = np.sort(np.minimum(losses_ev, np.maximum(2 * limit_ev - losses_ev, losses_ev[0])))
    edges_ev = np.geomspace(losses_ev[0] / 2, limit_ev, _CELLS + 1)
    cumulative = np.interp(edges_ev, losses_ev, np.linspace(0, 1, len(losses_ev)), left=0, right=1)
    wanted = np.maximum(np.diff(cumulative), 1e-12)
    above, possible = loss_shares(k_ev, np.sqrt(edges_ev[1:] * edges_ev[:-1]), edges_ev, fermi_ev)
    shares = -np.diff(above, axis=1) * possible[:, None]
    poles = wanted * possible
    for _ in range(_STEPS):
        poles = poles * (shares @ (wanted / np.maximum(poles @ shares, 1e-300)))
    return tables.complementary_quantiles(edges_ev, poles)
