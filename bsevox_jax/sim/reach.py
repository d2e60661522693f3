"""How deep an electron may be and still come out: beyond its reach the walk need not follow it.

An electron that never turned would come closest to the surface, so the bound is straight ahead: the expected
number F(E, x) of electrons above the cut-off, itself and those it frees, a distance x further on. It obeys

    dF(E, x)/dx = lambda^-1(E) <F(E - W, x) + F(E_child, x) - F(E, x)>        F(E, 0) = 1 if E > cut-off

(the backward Kolmogorov equation of the losses), linear and solved by the exponential of its matrix. Elastic
and inelastic deflections only shorten the way, so F bounds the number that reaches a surface at distance x.
"""

import hashlib

import jax
import numpy as np
from scipy.linalg import expm

from bsevox_jax.sim import inelastic
from bsevox_jax.sim.elements import HARTREE_KEV

LOST_ELECTRONS = 1e-4
"""Electrons that might have reached the surface, at most, for each one that is given up."""
_SHARES = np.geomspace(1e-6, 1, 121)  # of the events; edges of the cells of the pole energy
_MOMENTA = (np.arange(8) + 0.5) / 8
_STEP = 0.05  # of x


def reach_nm(cross_sections, cutoff_kev: float) -> np.ndarray:
    """Distance to the surface at which F = `LOST_ELECTRONS`; [R], ascending.

    A way may lead through several materials: at each distance the one that lets most through counts.

    Args:
        cross_sections: a `tables.CrossSections`.
        cutoff_kev: energy in vacuum terms at or below which an electron does not count.
    """
    content = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(cross_sections))
    key = (hashlib.sha256(content).digest(), float(cutoff_kev))
    if key not in _KNOWN:
        _KNOWN[key] = _reach_nm(cross_sections, cutoff_kev)
    return _KNOWN[key]


_KNOWN = {}  # the chunks of a data set ask for the same again and again


def _reach_nm(cross_sections, cutoff_kev):
    energies = np.asarray(cross_sections.energies_kev, float)
    materials = range(1, len(cross_sections.barrier_kev))
    generators = [_generator(cross_sections, material, energies, cutoff_kev) for material in materials]
    fastest = max(np.abs(np.diag(generator)).max() for generator in generators)
    counted = (energies > cutoff_kev).astype(float)
    if min(np.abs(np.diag(generator)[counted > 0]).min() for generator in generators) == 0:
        return np.where(counted, np.inf, 0.0)  # a material without losses stops nothing
    x, expected = [0.0], [counted]
    while expected[-1].max() > LOST_ELECTRONS and x[-1] < 1e5 / fastest:
        step = max(_STEP / fastest, _STEP * x[-1])
        x.append(x[-1] + step)
        expected.append(np.max([expm(generator * step) @ expected[-1] for generator in generators], axis=0))
    reached = [
        np.interp(-np.log(LOST_ELECTRONS), -np.log(np.maximum(f, 1e-300)), x) for f in np.transpose(expected)
    ]
    return np.maximum.accumulate(np.where(expected[-1] > LOST_ELECTRONS, np.inf, reached))


def _generator(tables, material, energies, cutoff_kev):
    """Matrix of the equation [R, R]; an energy between two rows is shared, which keeps its mean in ln E."""
    rows = np.arange(len(energies))
    matrix = np.zeros((len(rows), len(rows)))
    step = np.log(energies[1] / energies[0])
    for row, energy in enumerate(energies):
        weights, products = _products(tables, material, row, energy)
        rate = float(tables.inelastic_rate_per_nm[material][row]) * weights
        matrix[row, row] -= rate.sum()
        for product in products:
            position = np.clip(np.log(np.maximum(product, 1e-9) / energies[0]) / step, 0, len(rows) - 1)
            lower = np.minimum(position.astype(int), len(rows) - 2)
            counts = rate * (product > cutoff_kev)
            np.add.at(matrix[row], lower, counts * (1 - (position - lower)))
            np.add.at(matrix[row], lower + 1, counts * (position - lower))
    return np.where((energies <= cutoff_kev)[:, None], 0.0, matrix)


def _products(tables, material, row, energy):
    """Energies (vacuum terms) of the two electrons after a loss, [2, n], and the shares of the events [n].

    The sea electron starts at the Fermi level, the highest it can.
    """
    barrier, fermi = float(tables.barrier_kev[material]), float(tables.fermi_kev[material])
    middle = np.sqrt(_SHARES[1:] * _SHARES[:-1])
    log_quantiles = np.linspace(0, tables.log_quantile_end, tables.loss_icdf_kev.shape[-1])
    pole = np.interp(-np.log(middle), -log_quantiles, tables.loss_icdf_kev[material][row])
    kinetic = (energy + barrier) / HARTREE_KEV
    limit = (energy + barrier - fermi) / 2 / HARTREE_KEV
    w0 = np.repeat(np.maximum(pole / HARTREE_KEV, 1e-4), len(_MOMENTA))
    x_min, x_max = inelastic.momentum_range(kinetic, w0, limit)
    h_min, h_max = (inelastic.pole_momentum(x, w0) for x in (x_min, x_max))
    h = h_min * (h_max / h_min) ** np.tile(_MOMENTA, len(pole))
    possible = x_max > x_min
    loss = np.where(possible, inelastic.dispersed_loss(inelastic.pole_momentum_inverse(h, w0), w0), 0.0)
    binding = np.zeros_like(w0)
    for edge in np.asarray(tables.core_edges_kev[material], float):
        binding = np.where(w0 * HARTREE_KEV >= edge, edge, binding)
    loss_kev = loss * HARTREE_KEV
    child = np.where(possible, loss_kev + fermi - binding - barrier, 0.0)
    weights = np.repeat(np.diff(_SHARES), len(_MOMENTA)) / len(_MOMENTA)
    return weights, (energy - loss_kev, child)
