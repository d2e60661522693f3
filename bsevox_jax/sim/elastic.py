"""Elastic scattering of electrons by atoms: Dirac partial waves in a static potential with exchange.

Atomic units inside (Hartree, Bohr radius). Energies are kinetic energies at the atom, so inside a solid they
count from the bottom of the valence band. Method: F. Salvat, A. Jablonski, C. J. Powell, Comput. Phys.
Commun. 165, 157 (2005), doi:10.1016/j.cpc.2004.09.006. Angles are written as mu = (1 - cos theta)/2.
"""

import dataclasses

import numpy as np
from scipy.special import spherical_jn, spherical_yn

from bsevox_jax.sim import elements

_C = elements.SPEED_OF_LIGHT_AU
_FREE_RADIUS = 16.0  # beyond it the potential of a free atom is nothing: 20 changes no cross section by 1e-6
_STEPS_PER_RADIAN = 4.0
_STEPS_PER_E_FOLD = 12.0
_ANGLE_CELLS = 2000


@dataclasses.dataclass(frozen=True)
class PartialWaves:
    """Phase shifts of one atom at one energy.

    Attributes:
      wave_number_per_nm: k of the free electron.
      up_rad: [L] phase shifts of j = l + 1/2 (kappa = -l - 1), l = 0..L-1.
      down_rad: [L] phase shifts of j = l - 1/2 (kappa = l); 0 at l = 0.
    """

    wave_number_per_nm: float
    up_rad: np.ndarray
    down_rad: np.ndarray


def partial_waves(
    symbol: str, energy_kev: float, *, muffin_tin_radius_nm: float | None = None
) -> PartialWaves:
    """Solves the radial Dirac equation for every kappa that feels the atom.

    Outside the potential P = r [cos d j_l(kr) - sin d n_l(kr)], and with R = s (Q/P)(E + 2c^2)/(ck) the phase
    shift follows from tan d = (R j_l - j_l')/(R n_l - n_l'); l' = l - s, s = sign(kappa).

    Args:
      symbol: the element, H to Lr.
      energy_kev: kinetic energy, from about 0.03 keV.
      muffin_tin_radius_nm: where the atom ends, half way to its neighbours; None for a free atom.

    Returns:
      The phase shifts.

    Raises:
      ValueError: an unknown element.

    Source: Salvat et al. 2005.
    """
    free = muffin_tin_radius_nm is None
    radius = _FREE_RADIUS if free else muffin_tin_radius_nm / elements.BOHR_NM
    energy = energy_kev / elements.HARTREE_KEV
    k = np.sqrt(energy * (energy + 2 * _C**2)) / _C
    x = k * radius
    l_max = int(x + 4 * x ** (1 / 3)) + 2  # Wiscombe's rule for scattering by a sphere with an edge
    orders = np.arange(1, l_max + 2)  # |kappa|
    ratio = _integrate(_potential(symbol, energy, muffin_tin_radius_nm), energy, orders, radius)
    sign = np.array([[-1.0], [1.0]])
    l = np.stack([orders - 1, orders])
    l_small = np.stack([orders, orders - 1])
    r = sign * ratio * (energy + 2 * _C**2) / (_C * k)
    j, n = spherical_jn(np.arange(l_max + 2), x), spherical_yn(np.arange(l_max + 2), x)
    phases = np.arctan((r * j[l] - j[l_small]) / (r * n[l] - n[l_small]))
    down = np.concatenate([[0.0], phases[1, :l_max]])
    return PartialWaves(float(k / elements.BOHR_NM), phases[0], down)


def cross_section_nm2(waves: PartialWaves) -> float:
    """Total elastic cross section (4 pi/k^2) sum_l (l+1) sin^2 d(-l-1) + l sin^2 d(l)."""
    l = np.arange(len(waves.up_rad))
    terms = (l + 1) * np.sin(waves.up_rad) ** 2 + l * np.sin(waves.down_rad) ** 2
    return float(4 * np.pi / waves.wave_number_per_nm**2 * terms.sum())


def differential_nm2(waves: PartialWaves, mu: np.ndarray) -> np.ndarray:
    """Differential cross section |f|^2 + |g|^2 of unpolarised electrons, nm^2/sr [n] at mu [n].

    f = (1/2ik) sum_l {(l+1)[e^(2i d(-l-1)) - 1] + l [e^(2i d(l)) - 1]} P_l,
    g = (1/2ik) sum_l {e^(2i d(l)) - e^(2i d(-l-1))} P_l^1. Source: Salvat et al. 2005.
    """
    l = np.arange(len(waves.up_rad))
    up, down = np.expm1(2j * waves.up_rad), np.expm1(2j * waves.down_rad)
    direct, flip = (l + 1) * up + l * down, down - up
    p, p1 = _legendre(len(l), mu)
    amplitudes = np.hstack([p @ np.stack([a.real, a.imag], 1) for p, a in ((p, direct), (p1, flip))])
    return (amplitudes**2).sum(1) / (4 * waves.wave_number_per_nm**2)


def angular_distribution(waves: PartialWaves) -> tuple[np.ndarray, np.ndarray]:
    """Edges of cells of mu [n + 1], and the cross section in nm^2 that scatters into each cell [n]."""
    edges, mu, solid_angle = _angle_cells()
    return edges, (differential_nm2(waves, mu.ravel()).reshape(mu.shape) * solid_angle).sum(1)


def transport_cross_section_nm2(waves: PartialWaves, order: int = 1) -> float:
    """Transport cross section of order 1 or 2: the solid-angle integral of (1 - P_order(cos theta)) dsigma.

    Order 1 weighs with 1 - cos theta, order 2 with 1.5 (1 - cos^2 theta).
    """
    _, mu, solid_angle = _angle_cells()
    weight = {1: 2 * mu, 2: 6 * mu * (1 - mu)}[order]
    return float((weight * differential_nm2(waves, mu.ravel()).reshape(mu.shape) * solid_angle).sum())


def static_potential(
    symbol: str, r: np.ndarray, *, muffin_tin_radius_nm: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Electrostatic energy of an electron (Hartree) and electron density (1/Bohr^3) at r (Bohr).

    The muffin tin adds the tail of the neighbours, mirrored at its radius R, and takes V = 0 there:
    V(r) + V(2R - r) - 2 V(R), n(r) + n(2R - r). Its r must not exceed R.
    Sources: `elements.screening`; muffin tin: Salvat et al. 2005.
    """
    charge, decay = elements.screening(symbol)

    def free(r):
        screened = charge * np.exp(-decay * r[..., None])
        potential = -(screened * (1 / r[..., None] + decay / 2)).sum(-1)
        return potential, (screened * decay**3).sum(-1) / (8 * np.pi)

    potential, density = free(r)
    if muffin_tin_radius_nm is None:
        return potential, density
    radius = muffin_tin_radius_nm / elements.BOHR_NM
    mirrored_potential, mirrored_density = free(2 * radius - r)
    return potential + mirrored_potential - 2 * free(np.array([radius]))[0], density + mirrored_density


def _potential(symbol, energy, muffin_tin_radius_nm):
    """Static potential plus exchange of J. B. Furness, I. E. McCarthy, J. Phys. B 6, 2280 (1973), of r."""

    def potential(r):
        static, density = static_potential(symbol, r, muffin_tin_radius_nm=muffin_tin_radius_nm)
        local = energy - static
        return static + (local - np.sqrt(local**2 + 4 * np.pi * density)) / 2

    return potential


def _integrate(potential, energy, orders, radius):
    """Q/P at the radius, [2, |kappa|], rows kappa < 0 and kappa > 0.

    Each kappa starts deep under its centrifugal barrier with the growing solution of the local equation. The
    irregular solution has died out by 1e-16 when it would matter, and the regular one grows by at most 1e8.
    """
    k = np.sqrt(energy * (energy + 2 * _C**2)) / _C
    starts = np.minimum(orders / k, radius) * 10.0 ** (-8.0 / orders)
    nodes = _radial_nodes(potential, energy, starts[0], radius)
    constant, times_kappa, ratio, k_r_squared = _magnus_steps(potential, energy, nodes)
    kappa = np.array([[-1.0], [1.0]]) * orders
    p, q = np.empty_like(kappa), np.empty_like(kappa)
    begun = 0
    for i, active in enumerate(np.searchsorted(starts, nodes[:-1], side="right")):
        if active > begun:
            new = kappa[:, begun:active]
            growth = np.sqrt(new**2 - k_r_squared[i])
            p[:, begun:active], q[:, begun:active] = 1.0, (growth + new) * ratio[i]
            begun = active
        kappa_now, p_now, q_now = kappa[:, :active], p[:, :active], q[:, :active]
        a, b, c = (constant[j][i] + times_kappa[j][i] * kappa_now for j in range(3))
        s2 = a * a + b * c  # exp(Omega) = cosh(s) + sinh(s)/s Omega; |s^2| < 1
        cosh = 1 + s2 / 2 * (1 + s2 / 12 * (1 + s2 / 30 * (1 + s2 / 56)))
        sinhc = 1 + s2 / 6 * (1 + s2 / 20 * (1 + s2 / 42 * (1 + s2 / 72)))
        p[:, :active], q[:, :active] = (
            cosh * p_now + sinhc * (a * p_now + b * q_now),
            cosh * q_now + sinhc * (c * p_now - a * q_now),
        )
    return q / p


def _magnus_steps(potential, energy, nodes):
    """Omega = [[a, b], [c, -a]] of every step, each entry a constant and a multiple of kappa.

    dP/dr = -(kappa/r) P + alpha Q, dQ/dr = (kappa/r) Q - beta P, alpha = (E - V + 2c^2)/c, beta = (E - V)/c.
    Omega = (h/2)(A1 + A2) + (sqrt(3)/12) h^2 [A2, A1] at the two Gauss points is of fourth order and exact
    for constant coefficients: the steps follow the potential, and no phase is lost along the free wave.
    Source: S. Blanes, F. Casas, J. A. Oteo, J. Ros, Phys. Rep. 470, 151 (2009).

    Returns:
      The constants of (a, b, c), their factors of kappa, and 1/(r alpha) and r^2 alpha beta to start with.
    """
    h = np.diff(nodes)
    r1, r2 = (nodes[:-1] + h * (0.5 + side * np.sqrt(3) / 6) for side in (-1, 1))
    beta1, beta2 = ((energy - potential(r)) / _C for r in (r1, r2))
    alpha1, alpha2 = beta1 + 2 * _C, beta2 + 2 * _C
    g = np.sqrt(3) / 12 * h**2
    constant = (g * (alpha1 * beta2 - alpha2 * beta1), h / 2 * (alpha1 + alpha2), -h / 2 * (beta1 + beta2))
    times_kappa = (
        -h / 2 * (1 / r1 + 1 / r2),
        2 * g * (alpha2 / r1 - alpha1 / r2),
        2 * g * (beta2 / r1 - beta1 / r2),
    )
    return constant, times_kappa, 1 / (r1 * alpha1), r1**2 * alpha1 * beta1


def _radial_nodes(potential, energy, first, last):
    """Nodes of equal phase: so many per radian of the local wave, and so many per e-fold of r."""
    fine = np.geomspace(first, last, 20000)
    local = energy - potential(fine)
    k_local = np.sqrt(np.maximum(local * (local + 2 * _C**2), 0)) / _C
    per_log_r = _STEPS_PER_RADIAN * k_local * fine + _STEPS_PER_E_FOLD
    cells = (per_log_r[1:] + per_log_r[:-1]) / 2 * np.diff(np.log(fine))
    count = np.concatenate([[0.0], np.cumsum(cells)])
    steps = int(np.ceil(count[-1]))
    return np.interp(np.linspace(0, count[-1], steps + 1), count, fine)


def _legendre(l_count, mu):
    """P_l and P_l^1 (without the Condon phase) at mu [n]: two arrays [n, l_count]."""
    x, sine = 1 - 2 * mu, 2 * np.sqrt(mu * (1 - mu))
    p = np.empty((max(l_count, 3), len(mu)))
    p1 = np.empty_like(p)
    p[0], p[1], p1[0], p1[1] = 1, x, 0, sine
    for l in range(1, len(p) - 1):
        p[l + 1] = ((2 * l + 1) * x * p[l] - l * p[l - 1]) / (l + 1)
        p1[l + 1] = ((2 * l + 1) * x * p1[l] - (l + 1) * p1[l - 1]) / l
    return p[:l_count].T, p1[:l_count].T


def _angle_cells():
    """Edges of cells [n + 1], Gauss points mu and solid angles in sr [n, 3]; mu = t^3 resolves the peak."""
    edges = np.linspace(0, 1, _ANGLE_CELLS + 1)
    points, weights = np.polynomial.legendre.leggauss(3)
    half = np.diff(edges)[:, None] / 2
    t = edges[:-1, None] + half * (1 + points)
    return edges**3, t**3, 4 * np.pi * 3 * t**2 * half * weights
