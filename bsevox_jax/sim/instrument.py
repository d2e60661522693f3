"""The microscope: how the beam meets the specimen, and which of the electrons that leave it are counted."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from bsevox_jax.sim.random import cos_sin_turns, uniform
from bsevox_jax.sim.transport import NUDGE, Electron

LOWEST_BEAM_KEV = 0.1
LOWEST_COUNTED_KEV = 0.050  # a backscattered electron has more than 50 eV in vacuum, by convention
FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Instrument:
    """Beam and detector. Without arguments: a point of a beam at normal incidence, everything above 50 eV.

    Attributes:
        probe_fwhm_nm: full width at half maximum of the Gaussian probe, across the beam. Each electron starts
            at an even position in its pixel plus this blur.
        tilt_rad: angle between the beam and the normal of the surface, 0 to 85 degrees.
        tilt_azimuth_rad: where the tilted beam is heading along the surface, from +x (0) to +y (pi/2).
        lowest_energy_kev: the detector counts electrons with more than this in vacuum; at least 0.05 keV
        highest_energy_kev: and with at most this.
        smallest_exit_angle_rad: inner edge of an annular detector, the angle between the way of the electron
            and the way back to the gun.
        largest_exit_angle_rad: outer edge; pi counts all that leave the surface, whatever the tilt.

    Side walls mirror directions too: a tilted beam with an angle window is only nearly right where there are
    structures; yields of whole blocks are right.
    """

    probe_fwhm_nm: float = 0.0
    tilt_rad: float = 0.0
    tilt_azimuth_rad: float = 0.0
    lowest_energy_kev: float = LOWEST_COUNTED_KEV
    highest_energy_kev: float = math.inf
    smallest_exit_angle_rad: float = 0.0
    largest_exit_angle_rad: float = math.pi


def check_instrument(instrument: Instrument) -> Instrument:
    """Returns the instrument, or raises ValueError for a broken rule."""
    i = instrument
    energies_kev = i.lowest_energy_kev, i.highest_energy_kev
    angles_rad = i.smallest_exit_angle_rad, i.largest_exit_angle_rad
    rules = (
        (0 <= i.probe_fwhm_nm < math.inf, f"probe_fwhm_nm must be 0 or more; got {i.probe_fwhm_nm}. Use nm"),
        (
            0 <= i.tilt_rad <= 1.4836,
            f"tilt_rad must be 0 to 1.4835 (85 degrees); got {i.tilt_rad}. Use radians and the azimuth",
        ),
        (
            math.isfinite(i.tilt_azimuth_rad),
            f"tilt_azimuth_rad must be finite; got {i.tilt_azimuth_rad}. Use 0 for +x",
        ),
        (
            LOWEST_COUNTED_KEV <= energies_kev[0] < energies_kev[1],
            f"lowest_energy_kev must be {LOWEST_COUNTED_KEV} or more, and below highest_energy_kev; got "
            f"{energies_kev[0]} and {energies_kev[1]}. Give keV, in this order",
        ),
        (
            0 <= angles_rad[0] < angles_rad[1],
            "smallest_exit_angle_rad must be 0 or more, and below largest_exit_angle_rad; got "
            f"{angles_rad[0]} and {angles_rad[1]}. Give radians, in this order",
        ),
        (
            angles_rad[1] <= math.pi + 1e-6,
            f"largest_exit_angle_rad must be at most pi; got {angles_rad[1]}. Give radians",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise ValueError(f"{message}.")
    return instrument


def check_energies(beam_energies_kev, highest_kev: float) -> tuple[float, ...]:
    """Energies of the beam; ValueError unless they ascend from 0.1 keV or more to `highest_kev` or less."""
    energies = tuple(float(energy) for energy in beam_energies_kev)
    if not energies or not all(LOWEST_BEAM_KEV <= energy <= highest_kev for energy in energies):
        raise ValueError(
            f"beam_energies_kev must lie in {LOWEST_BEAM_KEV} to {highest_kev:g} keV; got {energies}. Give "
            "one or more, in keV."
        )
    if any(a >= b for a, b in zip(energies, energies[1:], strict=False)):
        raise ValueError(f"beam_energies_kev must ascend; got {energies}. Sort them and drop repeats.")
    return energies


def check_whole(name: str, value, lowest: int, highest: int = 2**31 - 1) -> int:
    """The value as an int; ValueError unless it is a whole number within the limits."""
    try:
        whole = lowest <= value <= highest and value == int(value)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            f"{name} must be a whole number from {lowest} to {highest}; got {value!r}. Give another."
        )
    return int(value)


def primary(instrument: Instrument, x, y, energy_kev, size, bits) -> Electron:
    """An electron of the beam that meets the surface near the corner (x, y) of its pixel.

    Args:
        x, y: nm.
        energy_kev: of the beam.
        size: of the pixel, nm.
        bits: three uint32: position within the pixel along x and y, and the blur of the probe.

    Returns:
        The electron, which the blur may have put beyond the side walls.
    """
    tilt, azimuth = instrument.tilt_rad, instrument.tilt_azimuth_rad
    ux, uy, uz = beam_direction(instrument)
    x, y = x + uniform(bits[0]) * size, y + uniform(bits[1]) * size

    def blurred(x, y):
        # A Gaussian of two 16-bit numbers, of which a tilt stretches the part along the beam.
        radius = instrument.probe_fwhm_nm / FWHM_PER_SIGMA * jnp.sqrt(-2 * jnp.log(uniform(bits[2] << 16)))
        cos, sin = cos_sin_turns(uniform(bits[2]))
        along, aside = radius * cos / jnp.cos(tilt), radius * sin
        return (
            x + along * jnp.cos(azimuth) - aside * jnp.sin(azimuth),
            y + along * jnp.sin(azimuth) + aside * jnp.cos(azimuth),
        )

    def blurred_if_needed(x, y):
        return jax.lax.cond(jnp.asarray(instrument.probe_fwhm_nm) > 0, blurred, lambda *xy: xy, x, y)

    x, y = jax.lax.platform_dependent(x, y, cpu=blurred_if_needed, default=blurred)
    ones = jnp.ones_like(x)
    return Electron(
        x=x,
        y=y,
        # A tilted beam starts above the surface and is refracted there; a normal one would not be.
        z=ones * jnp.where(jnp.asarray(tilt) > 0, -NUDGE, NUDGE) * size,
        ux=ones * ux,
        uy=ones * uy,
        uz=ones * uz,
        energy_kev=energy_kev,
        is_primary=jnp.ones(x.shape, bool),
    )


def beam_direction(instrument: Instrument):
    """Direction cosines (x, y, z) of the beam."""
    sin, cos = jnp.sin(instrument.tilt_rad), jnp.cos(instrument.tilt_rad)
    return (
        sin * jnp.cos(instrument.tilt_azimuth_rad),
        sin * jnp.sin(instrument.tilt_azimuth_rad),
        cos,
    )


def accepts(instrument: Instrument, electron: Electron):
    """Whether an electron that left the surface upwards with more than the lowest energy is counted.

    Side walls mirror directions too: with a tilted beam and an angle window this is only nearly right where
    there are structures; yields of whole blocks are right.
    """
    bx, by, bz = beam_direction(instrument)
    cosine = -(electron.ux * bx + electron.uy * by + electron.uz * bz)
    inner = jnp.where(jnp.asarray(instrument.smallest_exit_angle_rad) > 0,
                      jnp.cos(instrument.smallest_exit_angle_rad), 2.0)  # fmt: skip
    outer = jnp.where(jnp.asarray(instrument.largest_exit_angle_rad) < math.pi,
                      jnp.cos(instrument.largest_exit_angle_rad), -2.0)  # fmt: skip
    return (electron.energy_kev <= instrument.highest_energy_kev) & (cosine <= inner) & (cosine >= outer)
