"""Yields of bulk specimens and free films, and the published ones they stand beside."""

import dataclasses
import math

import jax
import numpy as np

from benchmarks.validation import report
from bsevox_jax import sim
from bsevox_jax.sim import tables

PIXELS = (16, 16, 16)  # specimen, y, x: as many independent streams, from which the errors come
BULK_VOXEL_NM, BULK_VOXELS = 50.0, 64  # 3.2 um deep; the side walls are mirrors, so it is infinitely wide
FILM_VOXEL_NM = 1.0
ELECTRONS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Yield:
    """Electrons with more than 50 eV leaving upwards per primary, and the standard error of that."""

    eta: float
    standard_error: float

    def __str__(self):
        return f"{self.eta:.4f} ({self.standard_error:.4f})"

    def deviates_at_most(self, share: float, reference: float) -> bool:
        """Whether it lies within that share of the reference with two standard errors to spare."""
        return abs(self.eta - reference) + 2 * self.standard_error <= share * reference


def simulate(material: str, energy_kev: float, *, film_nm: float | None = None, tilt_deg: float = 0.0,
             electrons: int = ELECTRONS) -> dict:  # fmt: skip
    """Yields of a bulk specimen, or of a free film, of one material at one energy.

    Args:
        film_nm: thickness, or None for a bulk specimen.
        tilt_deg: angle of incidence, to the normal.
        electrons: primaries, at least.

    Returns:
        What was asked for; `all` and `primary`, two `Yield`s; and per primary `transmitted`, `absorbed` and
        `unfinished`.
    """
    images = simulate_images(material, energy_kev, film_nm, tilt_deg, electrons)
    result = {"material": material, "energy_kev": energy_kev, "film_nm": film_nm, "tilt_deg": tilt_deg}
    result["all"] = yield_of(images.counts, images.electrons_per_pixel)
    result["primary"] = yield_of(images.primary_counts, images.electrons_per_pixel)
    primaries = images.electrons_per_pixel * math.prod(PIXELS)
    for fate in ("transmitted", "absorbed", "unfinished"):
        result[fate] = float(images.fates[fate].sum() / primaries)
    return result


def simulate_images(material, energy_kev, film_nm, tilt_deg, electrons) -> sim.BseImages:
    return sim.simulate_bse(
        block(material, film_nm),
        beam_energies_kev=[energy_kev],
        electrons_per_pixel=per_pixel(electrons),
        cross_sections=tables.shipped((material,)),
        devices=one_device(),
        instrument=sim.Instrument(tilt_rad=math.radians(tilt_deg)),
    )


def per_pixel(electrons: int) -> int:
    return math.ceil(electrons / math.prod(PIXELS))


def one_device() -> list:
    """One device: threads fill all cores from it, and a test run forces several that would each compile."""
    return jax.local_devices()[:1]


def block(material: str, film_nm: float | None = None) -> sim.Specimen:
    """Specimens of one material throughout; a batch of them, so that all cores have work."""
    voxel_nm = BULK_VOXEL_NM if film_nm is None else FILM_VOXEL_NM
    voxels = BULK_VOXELS if film_nm is None else round(film_nm / FILM_VOXEL_NM)
    labels = np.ones((*PIXELS, voxels), np.uint8)
    return sim.Specimen(labels, voxel_nm=voxel_nm, materials=(material,))


def yield_of(counts: np.ndarray, electrons_per_pixel: int) -> Yield:
    """Mean over pixels, each an independent stream, and its error from their scatter.

    Several electrons of one primary may leave, so counts scatter more than independent ones would.
    """
    values = counts.ravel() / electrons_per_pixel
    return Yield(float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size)))


def published(material: str, *, program: str, film_nm: float | None = None, tilt_deg: float = 0.0,
              electrons: str = "all") -> dict[float, float]:  # fmt: skip
    """Yields by energy in keV, computed by another program, from `tests/data/bse_yield_simulated.csv`."""
    return {
        row["energy_kev"]: row["eta"]
        for row in report.references("bse_yield_simulated")
        if (row["program"], row["material"], row["film_nm"] or None) == (program, material, film_nm)
        and (row["tilt_deg"], row["electrons"]) == (tilt_deg, electrons)
    }


def measured(material: str) -> dict[str, list[tuple[float, float]]]:
    """Measured bulk yields, (keV, eta) by reference, from `tests/data/bse_yield.csv`."""
    sets = {}
    for row in report.references("bse_yield"):
        if row["material"] == material:
            sets.setdefault(row["reference"], []).append((row["energy_kev"], row["eta"]))
    return sets


def measured_at(material: str, energy_kev: float) -> list[float]:
    """Yields of the sets that have a point at that energy, ascending."""
    points = [point for points in measured(material).values() for point in points]
    return sorted(eta for point_kev, eta in points if point_kev == energy_kev)
