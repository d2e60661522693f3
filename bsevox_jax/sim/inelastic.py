"""Energy losses of electrons in matter: the single-pole Penn model of the dielectric response.

A loss starts as an excitation of the optical energy-loss function at w0 and momentum zero, and disperses
with its momentum transfer q: W(q)^2 = w0^2 + b q^2 + q^4/4. Everything over q is then closed, with x = q^2
and H(x) = x/(2 w0 W + b x + 2 w0^2), so that a rate is one integral over w0. Atomic units inside; T is the
kinetic energy above the bottom of the valence band. Model: D. R. Penn, Phys. Rev. B 35, 482 (1987),
doi:10.1103/PhysRevB.35.482; relativistic: H. Shinotsuka et al., Surf. Interface Anal. 47, 871 (2015).
"""

import dataclasses

import numpy as np

from bsevox_jax.sim import elements

_CELLS = 2000


@dataclasses.dataclass(frozen=True)
class Losses:
    """Losses of one material at one energy.

    Attributes:
      rate_per_nm: inverse inelastic mean free path.
      stopping_kev_per_nm: mean energy loss per path.
      edges_kev: [n + 1] edges of cells of w0.
      cell_rates_per_nm: [n] rate of each cell; they sum to rate_per_nm.
    """

    rate_per_nm: float
    stopping_kev_per_nm: float
    edges_kev: np.ndarray
    cell_rates_per_nm: np.ndarray


def losses(material: elements.Material, energy_kev: float, *, loss_limit_kev: float | None = None) -> Losses:
    """Rates of the losses at one energy.

    d(1/lambda) = (2/(pi v^2)) ELF(w0) dw0 (1/2) ln[H(x_max)/H(x_min)], and the stopping power has
    w0 (1/2) ln(x_max/x_min) in place of the logarithm. Three Gauss points per cell of w0; the cells respect
    the points of the energy-loss function, between which it is a power law.

    Args:
      material: the solid.
      energy_kev: T, above the band bottom.
      loss_limit_kev: largest loss W. None: (T - E_F)/2, for transport that follows both of the two
        indistinguishable electrons and calls the faster one the primary. Published mean free paths are
        defined with T - E_F.

    Returns:
      The rates; zero if no loss fits.
    """
    t = energy_kev / elements.HARTREE_KEV
    limit_kev = (energy_kev - material.fermi_kev) / 2 if loss_limit_kev is None else loss_limit_kev
    table_kev, values = elements.energy_loss_function(material)
    edges_kev = _cell_edges(material.loss_onset_kev, max(limit_kev, 2 * material.loss_onset_kev), table_kev)
    points, weights = np.polynomial.legendre.leggauss(3)
    half = np.diff(np.log(edges_kev))[:, None] / 2
    w0_kev = edges_kev[:-1, None] * np.exp(half * (1 + points))
    log_elf = np.interp(np.log(w0_kev), np.log(table_kev), np.log(values), left=-np.inf, right=-np.inf)
    elf = np.exp(log_elf)
    w0 = w0_kev / elements.HARTREE_KEV
    x_min, x_max = momentum_range(t, w0, limit_kev / elements.HARTREE_KEV)
    density = elf * w0 * half * weights / (np.pi * velocity_squared(t))
    cells = (density * np.log(pole_momentum(x_max, w0) / pole_momentum(x_min, w0))).sum(1)
    stopping = (density * w0 * np.log(x_max / x_min)).sum() * elements.HARTREE_KEV
    return Losses(
        rate_per_nm=float(cells.sum() / elements.BOHR_NM),
        stopping_kev_per_nm=float(stopping / elements.BOHR_NM),
        edges_kev=edges_kev,
        cell_rates_per_nm=cells / elements.BOHR_NM,
    )


def sum_rules(material: elements.Material) -> tuple[float, float]:
    """The two integrals that an energy-loss function obeys, over its table and exact on the power laws.

    f-sum: (2/pi) int w ELF dw / (4 pi n), n formula units per volume, should be the electrons of the formula
    (of heavy atoms a little less). ps-sum: (2/pi) int ELF dw/w should be 1 - 1/eps(0): 1 for a metal,
    1 - 1/n(0)^2 for an insulator without its phonons.

    Source: S. Tanuma, C. J. Powell, D. R. Penn, J. Electron Spectrosc. Relat. Phenom. 62, 95 (1993).
    """
    w_kev, elf = elements.energy_loss_function(material)
    w = w_kev / elements.HARTREE_KEV
    formulas = material.atoms_per_nm3 * elements.BOHR_NM**3 / material.atoms_per_formula
    f_sum = _power_law_integral(w, elf * w) / (2 * np.pi**2 * formulas)
    return float(f_sum), float(2 / np.pi * _power_law_integral(w, elf / w))


def velocity_squared(t: np.ndarray) -> np.ndarray:
    """v^2 = c^2 [1 - 1/(1 + T/c^2)^2]."""
    c2 = elements.SPEED_OF_LIGHT_AU**2
    return c2 * (1 - 1 / (1 + t / c2) ** 2)


def dispersion(w0: np.ndarray) -> np.ndarray:
    """b = v_F^2/3 with the Fermi velocity of the electron gas whose plasmon is w0, v_F^3 = 3 pi w0^2/4."""
    return (3 * np.pi / 4 * w0**2) ** (2 / 3) / 3


def dispersed_loss(x: np.ndarray, w0: np.ndarray) -> np.ndarray:
    """W(q) = sqrt(w0^2 + b x + x^2/4) with x = q^2."""
    return np.sqrt(w0**2 + dispersion(w0) * x + x**2 / 4)


def pole_momentum(x: np.ndarray, w0: np.ndarray) -> np.ndarray:
    """H(x), whose half logarithm is the integral of (dq/q)(w0/W)."""
    return x / (2 * w0 * dispersed_loss(x, w0) + dispersion(w0) * x + 2 * w0**2)


def pole_momentum_inverse(h: np.ndarray, w0: np.ndarray) -> np.ndarray:
    """x at which H(x) = h: 4 w0^2 h/[(1 - h b)^2 - w0^2 h^2]."""
    return 4 * w0**2 * h / ((1 - h * dispersion(w0)) ** 2 - w0**2 * h**2)


def momentum_range(t: float, w0: np.ndarray, loss_limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest x = q^2 of a loss; equal where there is none.

    The kinematics W <= kq - q^2/2 give k q^3 - (k^2 - b) q^2 + w0^2 <= 0, solved by its trigonometric roots
    in a form without cancellation: p = (k^2 - b)/(3k), y = w0^2/(4 k p^3), a = (2/3) asin(sqrt(y)),
    q_min = p [2 sin^2(a/2) + sqrt(3) sin a], q_max = p (1 + 2 cos a); and W <= loss_limit gives
    x <= 2 [sqrt(b^2 + W_max^2 - w0^2) - b].
    """
    b, k = dispersion(w0), np.sqrt(velocity_squared(t))
    p = (k**2 - b) / (3 * k)
    y = np.where(p > 0, w0**2 / (4 * k * np.maximum(p, 1e-30) ** 3), np.inf)
    a = 2 / 3 * np.arcsin(np.sqrt(np.minimum(y, 1)))
    x_min = (p * (2 * np.sin(a / 2) ** 2 + np.sqrt(3) * np.sin(a))) ** 2
    x_max = (p * (1 + 2 * np.cos(a))) ** 2
    room = np.maximum(loss_limit**2 - w0**2, 0)
    x_max = np.minimum(x_max, 2 * room / (np.sqrt(b**2 + room) + b))
    none = (y > 1) | (x_max <= x_min)
    return np.where(none, 1.0, x_min), np.where(none, 1.0, x_max)


def _cell_edges(first, last, table_kev):
    """Logarithmic cells, split at the points of the table."""
    inside = table_kev[(table_kev > first) & (table_kev < last)]
    return np.union1d(np.geomspace(first, last, _CELLS + 1), inside)


def _power_law_integral(x, y):
    """Integral of y between the points x, a power law in each interval."""
    step = np.diff(np.log(x))
    exponent = np.diff(np.log(x * y))
    near_zero = np.abs(exponent) < 1e-6  # the integrand x y is then constant in ln x
    mean = np.expm1(exponent) / np.where(near_zero, 1.0, exponent)
    return (x[:-1] * y[:-1] * step * np.where(near_zero, 1.0, mean)).sum()
