"""The material file of Nebula (`.mat`, HDF5) from our cross sections.

K is the kinetic energy from the band bottom in eV, as T elsewhere. The file makes the default build (full
Penn, with secondaries) transport with our tables as far as its algorithm allows. What stays different:

* A loss W is drawn and then its momentum q. The shares of W and of q at given (K, W) are those of our
  model, tabulated for K, W/K (in steps of 1/255) and even shares, between which Nebula interpolates.
* Losses end at (K - E_F)/2, as ours do, so no secondary is faster than its primary; in the files of cstool
  they go on to K - E_F. Kinematics after the draw is not relativistic, as ours.
* An electron freed from the Fermi sea gets its initial energy by Nebula's rule: at small q a plasmon decays
  into an electron of any direction, at larger q one electron is struck, beyond that none is freed. Ours
  comes from the density of states, with a momentum in any direction. One freed from a shell (the highest
  edge below the pole energy) has the same energy W - B + E_F, but Nebula draws no q for it: its direction
  and that of the primary are those of a collision with an electron of the kinetic energy B.
* The barrier is the same step. Nebula also reflects at it quantum-mechanically, and refracts between
  solids.
* Losses to recoil and phonons, which we do not have, are turned off: an atom of 1 g, phonons of 0 eV. So
  are losses without deflection below the gap: there is no attribute `band_gap`.
* The tables begin 40 eV above vacuum: the energy threshold must be at least that.

The group `bsevox_jax` carries our arrays as they are.
"""

import dataclasses
import importlib
import os

import numpy as np

from bsevox_jax.sim import inelastic, tables
from bsevox_jax.sim.elements import BOHR_NM, HARTREE_KEV
from bsevox_jax.sim.files import whole_file

OWN_GROUP = "bsevox_jax"
ROWS = 48  # energies
SHARES = 16385  # even shares of the losses and the angles: what is rare has the largest effect
Q_LOSSES, Q_SHARES = 256, 513  # below 512 shares of q the yields suffer
BINDING_ROWS, BINDING_LOSSES, BINDING_SHARES = 128, 512, 17
LOSS_POINTS = 512  # of the curves from which the losses are taken


def write_material(path: str | os.PathLike, cross_sections: tables.CrossSections, name: str) -> None:
    """Writes one material of the tables, 36 MB; see the module for what Nebula makes of it.

    Raises:
        OSError: h5py is not installed, or the file cannot be written.
        ValueError: the tables do not cover the material.
    """
    hdf5 = h5py()
    own = cross_sections.select((name,))
    source = _Source(own)
    with whole_file(path) as temporary, hdf5.File(temporary, "w") as file:
        _write_attributes(file, name, source)
        _write_elastic(file, source)
        _write_losses(file, source)
        _write_bindings(file, source)
        group = file.create_group(OWN_GROUP)
        for field in dataclasses.fields(own):
            value = getattr(own, field.name)
            if isinstance(value, np.ndarray):
                group[field.name] = value
        group.attrs["material_names"] = list(own.material_names)
        group.attrs["provenance"] = own.provenance


class _Source:
    """One material of our tables, at any K (eV)."""

    def __init__(self, own: tables.CrossSections):
        self.barrier_ev, self.fermi_ev = 1000.0 * own.barrier_kev[1], 1000.0 * own.fermi_kev[1]
        energies_ev = 1000.0 * np.asarray(own.energies_kev, np.float64)
        self.ends_ev = energies_ev[[0, -1]] + self.barrier_ev
        self.edges_ev = 1000.0 * own.core_edges_kev[1][np.isfinite(own.core_edges_kev[1])]
        self._log_energy = np.log(energies_ev)
        self._own = own

    def scale(self, rows):
        return np.geomspace(*self.ends_ev, rows)

    def rate_per_nm(self, process, k_ev):
        """Elastic or inelastic rate, [k]."""
        return np.exp(self._at(np.log(getattr(self._own, f"{process}_rate_per_nm")[1]), k_ev))

    def quantiles(self, process, k_ev):
        """mu, or w0 in eV, that the shares exp(`tables.LOG_QUANTILES`) exceed, [k, P]."""
        if process == "elastic":
            return self._at(self._own.angle_icdf[1], k_ev)
        return 1000 * np.exp(self._at(np.log(self._own.loss_icdf_kev[1]), k_ev))

    def _at(self, table, k_ev):
        table = np.asarray(table, np.float64)
        first, last = self._log_energy[[0, -1]]
        position = np.log(np.maximum(k_ev - self.barrier_ev, 1e-3)) - first
        position = np.clip(position / (last - first), 0, 1) * (len(table) - 1)
        low = np.minimum(position.astype(int), len(table) - 2)
        weight = (position - low).reshape(-1, *[1] * (table.ndim - 1))
        return (1 - weight) * table[low] + weight * table[low + 1]


def h5py():
    """The module h5py, an optional extra; OSError with the remedy if it is missing."""
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise OSError("material files of Nebula need h5py; got none. Run pip install h5py.") from error


def _text():
    """Strings as Nebula reads them; inside a compound it cannot convert those of UTF-8."""
    return h5py().string_dtype("ascii")


def _write_attributes(file, name, source):
    text = _text()
    file.attrs.create("name", name, dtype=text)
    file.attrs.create("cstool_version", f"none, written by bsevox_jax for {name}", dtype=text)
    file.attrs.create("conductor_type", "metal", dtype=text)  # that is, without a gap: see the module
    quantity = np.dtype([("value", "f8"), ("unit", text)])
    quantities = {
        "fermi": (source.fermi_ev, "eV"),
        "barrier": (source.barrier_ev, "eV"),
        "phonon_loss": (0.0, "eV"),
        "effective_A": (1.0, "g"),
    }
    for key, value in quantities.items():
        file.attrs.create(key, np.array(value, quantity), dtype=quantity)


def _write(file, name, values, unit, *scales):
    """A dataset with its unit and the scales of its first axes; a scale in float32 would be refused."""
    data = file.create_dataset(name, data=np.asarray(values, np.float32 if scales else np.float64))
    data.attrs.create("units", unit, dtype=_text())
    if not scales:
        data.make_scale(name.rsplit("/", 1)[1])
    for axis, scale in enumerate(scales):
        data.dims[axis].attach_scale(scale)
    return data


def _write_elastic(file, source):
    k_ev = source.scale(ROWS)
    rate, quantiles = source.rate_per_nm("elastic", k_ev), source.quantiles("elastic", k_ev)
    energy = _write(file, "/kieft/elastic/energy", k_ev, "eV")
    _write(file, "/kieft/elastic/imfp", rate, "nm^-1", energy)
    mu = np.stack([_even_shares(row) for row in quantiles])  # P counts from cos = -1, that is mu = 1
    _write(file, "/kieft/elastic/costheta_icdf", 1 - 2 * mu, "", energy)
    _write(file, "/kieft/elastic/tl", 1 / (rate * 2 * ((mu[:, 1:] + mu[:, :-1]) / 2).mean(1)), "nm", energy)


def _even_shares(quantiles):
    """Values that the shares 0, 1/n .. 1 of a distribution exceed, from those of the tables."""
    shares = np.linspace(0, 1, SHARES)
    log_shares = np.log(np.maximum(shares, np.exp(tables.LOG_QUANTILES[-1])))
    return np.interp(-log_shares, -tables.LOG_QUANTILES, quantiles)


def _write_losses(file, source):
    k_ev = source.scale(ROWS)
    rate = source.rate_per_nm("inelastic", k_ev)
    poles_ev = source.quantiles("inelastic", k_ev)
    icdf = np.stack([_loss_icdf(k, row, source.fermi_ev) for k, row in zip(k_ev, poles_ev, strict=True)])
    energy = _write(file, "/full_penn/energy", k_ev, "eV")
    _write(file, "/full_penn/imfp", rate, "nm^-1", energy)
    _write(file, "/full_penn/omega_icdf", icdf, "eV", energy)
    mean_ev = ((icdf[:, 1:] + icdf[:, :-1]) / 2).mean(1)
    _write(file, "/full_penn/sp", rate * mean_ev, "eV/nm", energy)
    rows = zip(k_ev, poles_ev, strict=True)
    momenta = np.stack([_momentum_icdf(k, row, source.fermi_ev) for k, row in rows])
    _write(file, "/full_penn/q_icdf", momenta / BOHR_NM, "nm^-1", energy)


def _loss_icdf(k_ev, poles_ev, fermi_ev):
    """Losses W in eV that the shares 0 .. 1 stay below, [SHARES]."""
    losses_ev, above = loss_curve(k_ev, poles_ev, fermi_ev)
    return np.interp(np.linspace(0, 1, SHARES), 1 - above, losses_ev)


def loss_curve(k_ev: float, poles_ev: np.ndarray, fermi_ev: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses W in eV, ascending, and the share of events that lose more, [n] each.

    From pole energies w0, given by the quantiles of the tables [P].
    """
    weights = -np.diff(np.exp(tables.LOG_QUANTILES))
    w0_ev = np.maximum((poles_ev[1:] + poles_ev[:-1]) / 2, 1e-3)
    losses_ev = np.geomspace(w0_ev[0] * 0.999, (k_ev - fermi_ev) / 2, LOSS_POINTS)
    above, possible = loss_shares(k_ev, w0_ev, losses_ev, fermi_ev)
    weights = weights * possible
    return losses_ev, weights @ above / weights.sum()


def loss_shares(k_ev, w0_ev, losses_ev, fermi_ev) -> tuple[np.ndarray, np.ndarray]:
    """Share of the events with pole energy w0 [m] that lose more than W [n], and whether there are any, [m].

    With the momentum transfer of our model: the logarithm of H(q^2) is even between its limits (`inelastic`).
    """
    limit = (k_ev - fermi_ev) / (2000 * HARTREE_KEV)
    t, w0, w = (value / (1000 * HARTREE_KEV) for value in (k_ev, w0_ev[:, None], losses_ev))
    x_min, x_max = inelastic.momentum_range(t, w0, limit)
    b = inelastic.dispersion(w0)
    room = np.maximum(w**2 - w0**2, 0)
    x = np.clip(2 * room / (np.sqrt(b**2 + room) + b), x_min, x_max)
    low, here, high = (np.log(inelastic.pole_momentum(end, w0)) for end in (x_min, x, x_max))
    possible = x_max > x_min
    return np.where(possible, (high - here) / np.where(possible, high - low, 1), 0), possible[:, 0]


def _momentum_icdf(k_ev, poles_ev, fermi_ev):
    """Quantiles of q in atomic units at even W/K and even shares, [Q_LOSSES, Q_SHARES].

    Between W = 0 and the next row lie all plasmons of a fast electron. The row W = 0, where nothing happens,
    is chosen so that interpolation is right at their median.
    """
    losses_ev, above = loss_curve(k_ev, poles_ev, fermi_ev)
    step_ev = k_ev / (Q_LOSSES - 1)
    lowest = 1 - np.interp(step_ev, losses_ev, above)
    median_ev = np.interp(lowest / 2, 1 - above, losses_ev)
    wanted_ev = np.concatenate([[median_ev], step_ev * np.arange(1, Q_LOSSES)])
    q, _, weights = _momenta(k_ev, np.clip(wanted_ev, losses_ev[0], losses_ev[-1]), poles_ev, fermi_ev, 400)
    share = np.cumsum(weights, axis=1)
    share = (share - weights / 2) / share[:, -1:]
    even = np.linspace(0, 1, Q_SHARES)
    icdf = np.stack([np.interp(even, p, row) for p, row in zip(share, q, strict=True)])
    if 0 < median_ev < step_ev:
        t = median_ev / step_ev
        icdf[0] = np.maximum.accumulate(np.maximum((icdf[0] - t * icdf[1]) / (1 - t), 0))
    return icdf


def _momenta(k_ev, losses_ev, poles_ev, fermi_ev, points):
    """Momenta q (atomic units) at given losses W [n], with their pole energies (eV) and shares, [n, points].

    At fixed W the density of q is f(w0) (w0/W)/q dw0/dW, where f(w0) is the density of the poles over the
    logarithm of their range of H.
    """
    t, limit = k_ev / (1000 * HARTREE_KEV), (k_ev - fermi_ev) / (2000 * HARTREE_KEV)
    loss = losses_ev[:, None] / (1000 * HARTREE_KEV)
    v = np.sqrt(inelastic.velocity_squared(t))
    root = np.sqrt(np.maximum(v**2 - 2 * loss, 0))
    first, last = 2 * loss / (v + root), np.minimum(v + root, np.sqrt(2 * loss))
    q = first * (last / first) ** ((np.arange(points) + 0.5) / points)
    w0, b = _pole_of(loss, q)

    edges = poles_ev / (1000 * HARTREE_KEV)
    middles = (edges[1:] + edges[:-1]) / 2
    low, high = (inelastic.pole_momentum(x, middles) for x in inelastic.momentum_range(t, middles, limit))
    density = -np.diff(np.exp(tables.LOG_QUANTILES)) / np.maximum(np.diff(edges), 1e-12)
    density /= np.maximum(np.log(high / low), 1e-6)
    cell = np.searchsorted(edges, w0) - 1
    inside = (cell >= 0) & (cell < len(density))
    density = np.where(inside, density[np.clip(cell, 0, len(density) - 1)], 0)
    weights = density * w0 / (w0 + 2 / 3 * b * q**2 / w0)
    weights = np.where(weights.sum(1, keepdims=True) > 0, weights, 1.0)  # a loss that never occurs
    return q, w0 * 1000 * HARTREE_KEV, weights


def _pole_of(loss, q):
    """Pole energy w0 with w0^2 + b(w0) q^2 + q^4/4 = W^2, and b; Newton steps from above, y = w0^(2/3)."""
    slope = inelastic.dispersion(1.0)
    rest = np.maximum(loss**2 - q**4 / 4, 1e-18)
    y = np.cbrt(rest)
    for _ in range(12):
        y = y - (y**3 + slope * q**2 * y**2 - rest) / (3 * y**2 + 2 * slope * q**2 * y)
    return y**1.5, slope * y**2


def _write_bindings(file, source):
    """Shells by the rule of our model, the highest edge below w0. Nebula rounds (K, W/K, P) down."""
    k_ev = source.scale(BINDING_ROWS)
    fractions = np.geomspace(1e-4, 1, BINDING_LOSSES)
    half = np.sqrt(k_ev[1] / k_ev[0]), np.sqrt(fractions[1] / fractions[0])
    shares = (np.arange(BINDING_SHARES) + 0.5) / (BINDING_SHARES - 1)
    icdf = np.zeros((BINDING_ROWS, BINDING_LOSSES, BINDING_SHARES))
    poles_ev = source.quantiles("inelastic", k_ev * half[0])
    for row, k in enumerate(k_ev * half[0]):
        losses_ev = np.clip(fractions * half[1] * k, poles_ev[row, 0], (k - source.fermi_ev) / 2)
        _, w0_ev, weights = _momenta(k, losses_ev, poles_ev[row], source.fermi_ev, 50)
        weights = weights / weights.sum(1, keepdims=True)
        for edge_ev in source.edges_ev:
            below = (weights * (w0_ev < edge_ev)).sum(1)
            icdf[row][np.minimum(shares, 1) >= below[:, None] + 1e-9] = edge_ev
    energy = _write(file, "/ionization/energy", k_ev, "eV")
    fraction = _write(file, "/ionization/loss_frac", fractions, "")
    _write(file, "/ionization/binding_icdf", icdf, "eV", energy, fraction)
