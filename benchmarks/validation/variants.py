"""What each choice in the loss model is worth.

One choice at a time is exchanged for a published or a deliberately extreme alternative, and the yields above
50 eV of bulk and 20 nm films of Si and Cu are compared. The simulator has no such switches; the alternatives
stand here and take the place of one function of `step` while they run.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.validation import report, yields
from bsevox_jax import sim
from bsevox_jax.sim import elements, scattering, step
from bsevox_jax.sim.elements import HARTREE_KEV
from bsevox_jax.sim.instrument import accepts
from bsevox_jax.sim.random import uniform
from bsevox_jax.sim.tables import shipped
from bsevox_jax.sim.transport import look_up

CASES = {  # material, thickness, beam energies in keV
    "bulk Si": ("Si", None, (1.0, 5.0, 10.0)),
    "bulk Cu": ("Cu", None, (0.5, 1.0, 2.0, 5.0)),
    "20 nm Si": ("Si", 20.0, (1.0, 5.0, 10.0)),
    "20 nm Cu": ("Cu", 20.0, (1.0, 10.0)),
}
AS_IT_IS = "as it is"
ELECTRONS = {None: 50_000, 20.0: 400_000}

# Shares of the shells in the photoabsorption, above the edges (keV): J. J. Yeh, I. Lindau, At. Data Nucl.
# Data Tables 32, 1 (1985). What is left belongs to the valence band.
SHELL_SHARES = {
    "Si": {0.0998: ([0.1, 0.132, 0.2, 0.3, 0.6], [0.95, 0.962, 0.846, 0.788, 0.61]),
           0.1497: ([0.1497, 0.2, 0.3, 0.6], [0.097, 0.126, 0.183, 0.29]),
           1.839: ([1.839, 11.0], [0.92, 0.92])},
    "Cu": {0.0751: ([0.0751, 0.1, 0.132, 0.2, 0.3, 0.6, 0.8], [0.14, 0.08, 0.1, 0.219, 0.341, 0.519, 0.534]),
           0.1225: ([0.1225, 0.132, 0.2, 0.3, 0.6, 0.8], [0.045, 0.049, 0.067, 0.089, 0.139, 0.156]),
           0.9327: ([0.9327, 11.0], [0.85, 0.85]),
           1.0967: ([1.0967, 11.0], [0.1, 0.1]),
           8.979: ([8.979, 11.0], [0.87, 0.87])},
}  # fmt: skip


def struck_from_valence(medium, electron, label, collision, event, across, bits):
    """No inner shells: every struck electron comes from the Fermi sea."""
    core = jnp.full_like(medium.core_edges_kev, jnp.inf)
    sea = dataclasses.replace(medium, core_edges_kev=core)
    return scattering.strike(sea, electron, label, collision, event, across, bits)


def struck_by_shares(material):
    """The shell of the struck electron as likely as its share of the photoabsorption."""

    def struck(medium, electron, label, collision, event, across, bits):
        pole, u = collision.drawn, uniform(scrambled(bits[0]))
        binding, below = jnp.zeros_like(pole), jnp.zeros_like(pole)
        for edge, (energies, shares) in reversed(SHELL_SHARES[material].items()):
            share = jnp.where(pole >= edge, jnp.interp(pole, jnp.array(energies), jnp.array(shares)), 0.0)
            binding = jnp.where((u >= below) & (u < below + share), edge, binding)
            below = below + share
        assigned = collision._replace(drawn=jnp.where(binding > 0, binding * 1.0001, 0.0))
        return scattering.strike(medium, electron, label, assigned, event, across, bits)

    return struck


def struck_from_fermi_level(medium, electron, label, collision, event, across, bits):
    """Struck electrons of the sea start at its top."""
    top = jnp.full_like(bits[0], 2**32 - 1)
    return scattering.strike(medium, electron, label, collision, event, across, (top, *bits[1:]))


def struck_joint_density(medium, electron, label, collision, event, across, bits):
    """Start energy with the joint density of free-electron states, ~ sqrt(E (E + W)), E > E_F - W."""
    fermi = look_up(medium.fermi_kev, label)
    loss = jnp.maximum(event.loss_kev, 1e-4)
    lowest = jnp.maximum(fermi - loss, 0.0)
    grid = (jnp.arange(16, dtype=jnp.float32) + 0.5) / 16
    start = lowest[..., None] + (fermi - lowest)[..., None] * grid
    weight = jnp.cumsum(jnp.sqrt(start * (start + loss[..., None])), -1)
    pick = (uniform(bits[0])[..., None] * weight[..., -1:] > weight).sum(-1)
    chosen = jnp.take_along_axis(start, pick[..., None], -1)[..., 0]
    share = jnp.clip((chosen / fermi) ** 1.5, 0, 0.9999999)
    start_bits = (share * 2.0**32).astype(jnp.uint32)
    return scattering.strike(medium, electron, label, collision, event, across, (start_bits, *bits[1:]))


def struck_along(momentum_scale):
    """The momentum transfer counts more or less than that of the struck electron; 0: it leaves anywhere."""

    def struck(medium, electron, label, collision, event, across, bits):
        scaled = event._replace(along=event.along * momentum_scale, aside=event.aside * momentum_scale)
        return scattering.strike(medium, electron, label, collision, scaled, across, bits)

    return struck


def scrambled(bits):
    return (bits * jnp.uint32(2654435761)) ^ (bits >> 15)


def exchange(left: bool):
    """Born-Ochkur: an event counts with 1 - x + x^2, x = (q^2/2)/T, or over the energy left, T - W."""

    def lose(medium, electron, label, pole_kev, random_bits):
        event = scattering.lose_energy(medium, electron, label, pole_kev, random_bits)
        kinetic = electron.energy_kev + look_up(medium.barrier_kev, label)
        after = kinetic - event.loss_kev
        k, k_after = jnp.sqrt(2 * kinetic), jnp.sqrt(2 * jnp.maximum(after, 1e-9))
        q_squared = (k - k_after) ** 2 + 2 * k * k_after * event.one_minus_cos
        x = q_squared / 2 / (after if left else kinetic)
        u = uniform(scrambled(random_bits))
        return event._replace(possible=event.possible & (u < 1 - x + x * x))

    return lose


def surface_losses(material):
    """Mean energy an electron leaves in surface excitations on its way out.

    One crossing, optical limit of C. J. Tung, Y. F. Chen, C. M. Kwei, T. L. Chou, Phys. Rev. B 49, 16684
    (1994): dP/dw = [4 Im(-1/(eps + 1)) - Im(-1/eps)]/(2 v w cos), atomic units. Where the cosine is small, or
    the electron slow, that is an upper estimate.
    """
    strength = surface_strength(material)

    def cross(medium, electron, flight):
        moved, passes = transport_cross(medium, electron, flight)
        crossed = (flight.face > 0) & ((flight.label_start > 0) != (flight.label_end > 0)) & passes
        velocity = jnp.sqrt(2 * jnp.maximum(moved.energy_kev, 0.05) / HARTREE_KEV)
        loss_kev = strength * HARTREE_KEV / (2 * velocity * jnp.maximum(jnp.abs(moved.uz), 0.1))
        energy_kev = jnp.where(crossed, moved.energy_kev - loss_kev, moved.energy_kev)
        return moved._replace(energy_kev=jnp.maximum(energy_kev, 1e-3)), passes

    return cross


def surface_strength(material) -> float:
    """Integral of 4 Im(-1/(eps + 1)) - Im(-1/eps) over w (Hartree), up to 100 eV, eps by Kramers-Kronig."""
    energies_kev, values = elements.energy_loss_function(elements.material(material))
    w = np.geomspace(energies_kev[0], energies_kev[-1], 4000) / HARTREE_KEV
    loss = np.exp(np.interp(np.log(w * HARTREE_KEV), np.log(energies_kev), np.log(values)))
    middle = np.sqrt(w[1:] * w[:-1])
    kernel = w * w / (w * w - middle[:, None] ** 2)  # midway between poles the principal value is the sum
    real = 1 - 2 / np.pi * np.trapezoid(kernel * loss, np.log(w), axis=1)
    imaginary = np.exp(np.interp(np.log(middle), np.log(w), np.log(loss)))
    inverse = real - 1j * imaginary  # 1/eps
    surface = (-1 / (1 / inverse + 1)).imag
    below = middle < 0.1 / HARTREE_KEV
    return float(np.trapezoid((4 * surface - imaginary)[below], middle[below]))


def accepts_what_is_left(instrument, electron):
    """Counts an electron by the energy it has after the surface."""
    return accepts(instrument, electron) & (electron.energy_kev > instrument.lowest_energy_kev)


transport_cross = step.cross


def nebula_bands(cross_sections):
    """E_F and U0 as Nebula has them: 7.83 and 12.44 eV for Si, 7.0 and 11.53 eV for Cu."""
    values = {"Si": (7.83e-3, 12.44e-3), "Cu": (7.0e-3, 11.53e-3)}
    fermi, barrier = np.array([(0.0, 0.0), *(values[m] for m in cross_sections.material_names[1:])]).T
    return dataclasses.replace(
        cross_sections, fermi_kev=fermi.astype(np.float32), barrier_kev=barrier.astype(np.float32)
    )


VARIANTS = {  # name: patches of `step` by material, options of the simulation
    AS_IT_IS: lambda m: ({}, {}),
    "no inner shells": lambda m: ({"strike": struck_from_valence}, {}),
    "shells by photoabsorption": lambda m: ({"strike": struck_by_shares(m)}, {}),
    "struck at the Fermi level": lambda m: ({"strike": struck_from_fermi_level}, {}),
    "joint density of states": lambda m: ({"strike": struck_joint_density}, {}),
    "struck along q": lambda m: ({"strike": struck_along(1e3)}, {}),
    "struck anywhere": lambda m: ({"strike": struck_along(0.0)}, {}),
    "exchange, x = q2/2T": lambda m: ({"lose_energy": exchange(left=False)}, {}),
    "exchange, x = q2/2(T-W)": lambda m: ({"lose_energy": exchange(left=True)}, {}),
    "surface losses": lambda m: ({"cross": surface_losses(m), "accepts": accepts_what_is_left}, {}),
    "bands of Nebula": lambda m: ({}, {"cross_sections": nebula_bands(shipped())}),
    "free atoms": lambda m: ({}, {"cross_sections": shipped(atom="free")}),
    "threshold 100 eV": lambda m: ({}, {"instrument": sim.Instrument(lowest_energy_kev=0.1)}),
    "threshold 200 eV": lambda m: ({}, {"instrument": sim.Instrument(lowest_energy_kev=0.2)}),
}


def compute() -> list[dict]:
    """Yields of every variant: variant, case, energy_kev, all and primary (`yields.Yield`)."""
    return [
        {"variant": name, "case": case, **row}
        for name in VARIANTS
        for case, (material, film_nm, energies) in CASES.items()
        for row in simulate(material, film_nm, energies, *VARIANTS[name](material))
    ]


def simulate(material, film_nm, energies, patches, options) -> list[dict]:
    """Yields by energy with some functions of `step` exchanged."""
    specimen = yields.block(material, film_nm)
    per_pixel = -(-ELECTRONS[film_nm] // specimen.labels[..., 0].size)
    original = {name: getattr(step, name) for name in patches}
    forget = jax.clear_caches if patches else lambda: None  # what was compiled holds the old functions
    try:
        for name, function in patches.items():
            setattr(step, name, function)
        forget()
        images = sim.simulate_bse(
            specimen,
            electrons_per_pixel=per_pixel,
            beam_energies_kev=energies,
            devices=yields.one_device(),
            **options,
        )
    finally:
        for name, function in original.items():
            setattr(step, name, function)
        forget()
    return [
        {
            "energy_kev": energy,
            "all": yields.yield_of(images.counts[..., i], per_pixel),
            "primary": yields.yield_of(images.primary_counts[..., i], per_pixel),
        }
        for i, energy in enumerate(energies)
    ]


def tables(rows: list[dict]) -> dict[str, str]:
    """Yields as they are, and what each variant changes in %: all electrons (primaries alone)."""
    columns = [(case, energy) for case, (_, _, energies) in CASES.items() for energy in energies]
    found = {(row["variant"], row["case"], row["energy_kev"]): row for row in rows}
    body = []
    for name in VARIANTS:
        cells = [name]
        for column in columns:
            row, ours = found[name, *column], found[AS_IT_IS, *column]
            if name == AS_IT_IS:
                cells.append(f"{row['all'].eta:.4f} ({row['primary'].eta:.4f})")
            else:
                changes = [report.deviation(row[kind].eta, ours[kind].eta) for kind in ("all", "primary")]
                cells.append("{} ({})".format(*changes))
        body.append(cells)
    return {"variants": report.table(["", *(f"{case}, {energy:g} keV" for case, energy in columns)], body)}
