"""From images to a volume of copper: by a trained network, on any field, with what the result is worth.

found = reconstruct(counts, beam_energies_kev, electrons_per_pixel=1000)
found.labels, found.probability, found.chi2, found.in_range
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from bsevox_jax import calibration, check, forward, imageio, intervals, measure, models, sim, tiles
from bsevox_jax.checkpoint import Export, load_export, shipped
from bsevox_jax.data import COPPER_LABEL
from bsevox_jax.inference import asked, check_energies
from bsevox_jax.models import compact

VOXEL_NM = 1.0  # of the simulated training data, and so of every network yet
SILICON_LABEL = 1
WINDOW = 192  # pixels, of which a network makes volumes at once


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
    """A volume and what it is worth.

    Attributes:
        probability: of Cu, float32 [y, x, z]; calibrated, if the network is.
        threshold: above which a voxel is called copper.
        yields: the images, float32 [y, x, e].
        beam_energies_kev: [e].
        electrons_per_pixel: dose, [e].
        check: the images beside those expected of the volume; None if the image model does not know them.
        assumptions: what was taken for granted, one sentence each.
        network: name, training set and sha256 of the weights.
        voxel_nm: edge of a voxel.
        margins: of the intervals of `bodies`, see `intervals`; None without a calibration.
        offset_nm: (y, x) of the corner of the volume from that of the images as they were recorded.
    """

    probability: np.ndarray
    threshold: float
    yields: np.ndarray
    beam_energies_kev: tuple[float, ...]
    electrons_per_pixel: tuple[float, ...]
    check: check.Check | None
    assumptions: tuple[str, ...]
    network: dict
    voxel_nm: float = VOXEL_NM
    margins: dict[str, float] | None = None
    offset_nm: tuple[float, float] = (0.0, 0.0)

    @property
    def labels(self) -> np.ndarray:
        """uint8 [y, x, z]: 2 Cu, 1 all else (the network does not tell Si from vacuum)."""
        return np.where(self.probability > self.threshold, COPPER_LABEL, SILICON_LABEL).astype(np.uint8)

    @functools.cached_property
    def bodies(self) -> list[measure.Body]:
        """The bodies of copper, with intervals that are meant to hold nine of ten true values."""
        found = measure.bodies(self.probability, self.voxel_nm, self.threshold)
        return [intervals.widened(body, self.margins or {}) for body in found]

    @property
    def chi2(self) -> float | None:
        """Of the re-simulated images per degree of freedom: 1 where the volume explains its images."""
        return self.check and self.check.chi2

    @property
    def in_range(self) -> bool | None:
        """Whether the images are such as the network knows; None if it has no reference."""
        return self.check and self.check.in_range


def reconstruct(
    stack: np.ndarray,
    beam_energies_kev: Sequence[float],
    *,
    electrons_per_pixel: float | Sequence[float],
    checkpoint: str | None = None,
    noise: np.ndarray | float | None = None,
    keep: str | None = None,
) -> Reconstruction:
    """Reconstructs a volume from images of pixels of 1 nm.

    Args:
        stack: [y, x, e]: counts, if of an integer type, else yields (counts over electrons per pixel).
        beam_energies_kev: [e] ascending.
        electrons_per_pixel: dose, one for all images or one each.
        checkpoint: folder of an exported network; None: `compact` as shipped, or, where energies are
            missing, `instrument`.
        noise: see `check.check`; None for counts, and e.g. 1 for what was grey values of an instrument.
        keep: file of the windows that are done, from which a stopped run goes on; the caller removes it.

    Raises:
        FileNotFoundError, OSError: the network is missing or damaged.
        ValueError: the images are not such as the network was trained on; one line.
    """
    yields, energies_kev, dose = _checked(stack, beam_energies_kev, electrons_per_pixel)
    folder = checkpoint or default_network(energies_kev)
    export = load_export(folder)
    check_fits(yields.shape[:2], energies_kev, export)
    present = imageio.places(export.beam_energies_kev, energies_kev)
    probability = _of_field(export, yields, present, keep)
    known = calibration.load(folder, export)
    if known is not None:
        probability = known(probability)
    return Reconstruction(
        probability=probability,
        threshold=0.5 if known is None else known.threshold,
        yields=yields,
        beam_energies_kev=energies_kev,
        electrons_per_pixel=tuple(dose.tolist()),
        check=_check(yields, dose, probability, energies_kev, known, noise),
        assumptions=tuple(assumptions(yields.shape[:2], dose, energies_kev, export, known is not None)),
        network={
            "name": export.config.get("shipped") or export.config["model"]["name"],
            "trained_on": export.dataset,
            "sha256": export.sha256,
            "calibration": None if known is None else known.about,
        },
        margins=None if known is None else known.margins,
    )


def check_exactly(found: Reconstruction, *, seed: int = 0, progress: Callable | None = None) -> dict:
    """Simulates the images of a reconstruction by the Monte Carlo, and compares them with the measured ones.

    As many electrons are sent in as were measured with, so the time is that of `sim.simulate_bse`. Pixels
    that return next to nothing are taken for vacuum.

    Args:
        found: with its check, which gives the width of the probe.
        seed: of the simulation.
        progress: called with the number of electrons done.

    Returns:
        `chi2`, `chi2_by_energy` and `electrons_per_pixel`; chi2 is 1 where the volume explains its images.

    Raises:
        ValueError: the reconstruction has no check; one line.
    """
    if found.check is None or not (found.check.chi2_map > 0).any():
        raise ValueError("an exact check needs that of the image model; got none. Use its energies.")
    dose, seen = np.asarray(found.electrons_per_pixel), found.check.chi2_map > 0
    simulated = sim.simulate_bse(
        np.where(seen[..., None], found.labels, 0).astype(np.uint8),
        electrons_per_pixel=max(1, round(dose.min())),
        beam_energies_kev=found.beam_energies_kev,
        instrument=sim.Instrument(probe_fwhm_nm=found.check.probe_fwhm_nm),
        seed=seed,
        progress=progress,
    )
    per_electron = found.check.noise / dose + 1 / simulated.electrons_per_pixel
    variance = np.maximum(found.check.scatter, 1e-5) * per_electron
    yields = (found.yields - found.check.offset) / found.check.gain
    square = (yields - simulated.yields)[seen] ** 2 / variance[seen]
    return {
        "chi2": float(square.mean()),
        "chi2_by_energy": square.mean(0).tolist(),
        "electrons_per_pixel": simulated.electrons_per_pixel,
    }


def default_network(beam_energies_kev: Sequence[float]) -> str:
    """The folder of the shipped network for these energies: `compact` for all of them, else `instrument`."""
    compact = shipped("compact")
    trained = load_export(compact).beam_energies_kev
    complete = len(trained) == len(beam_energies_kev) and np.allclose(trained, beam_energies_kev, rtol=1e-3)
    return compact if complete else shipped("instrument")


def _checked(stack, beam_energies_kev, electrons_per_pixel):
    """Yields float32 [y, x, e], energies and dose [e], if they can be those of a stack."""
    stack = np.asarray(stack)
    dose = np.asarray(electrons_per_pixel, np.float64).reshape(-1)
    energies = np.size(beam_energies_kev)
    if dose.size not in (1, energies) or not (np.isfinite(dose) & (dose > 0)).all():
        raise ValueError(
            f"electrons_per_pixel must be positive, one or one per image; got {dose.tolist()[:20]} for "
            f"{energies} images. Give beam current x dwell time / elementary charge."
        )
    if stack.dtype.kind in "iu":
        # No image may hold more electrons than came, of the highest dose at least.
        found = imageio.check_stack(stack, beam_energies_kev, np.ceil(dose.max()))
        energies_kev, images = found.beam_energies_kev, found.counts / dose
        imageio.check_yields(images, energies_kev)
    else:
        energies_kev, images = imageio.check_yields(stack, beam_energies_kev), stack
    return images.astype(np.float32), energies_kev, np.broadcast_to(dose, len(energies_kev))


def _of_field(export, yields, present, keep):
    """The network's probability of Cu, float32 [y, x, z], of yields [y, x, e] of any field it serves."""
    ask = asked(export, present)
    if yields.shape[:2] == export.field or export.config["model"]["name"] not in models.ANY_FIELD:
        return ask(yields[None])[0]
    halo = compact.reach(models.build(**export.config["model"]))
    # Windows begin where coarse pixels do, in all attitudes, if these divide the field.
    ny, nx = yields.shape[:2]
    fold = 2 ** (len(export.config["model"]["widths"]) - 1)
    padded = np.pad(yields, ((0, -ny % fold), (0, -nx % fold), (0, 0)), mode="symmetric")
    depth = (export.config["model"]["depth"],)
    found = tiles.tiled(
        ask, padded, channels=depth, width=max(WINDOW, 4 * halo), halo=halo, keep=keep, about="volume"
    )
    return found[:ny, :nx]


def _check(yields, dose, probability, energies_kev, known, noise):
    """The re-simulation, if the shipped image model knows depth and energies."""
    model = forward.load()
    present = imageio.places(model.beam_energies_kev, energies_kev)
    if present is None or forward.depth(model) != probability.shape[-1]:
        return None
    reference = None if known is None else known.reference
    return check.check(model, yields, dose, probability, places=present, reference=reference, noise=noise)


def check_fits(field: tuple[int, int], beam_energies_kev: Sequence[float], export: Export) -> None:
    """Raises ValueError, in one line, unless the network was trained on such images."""
    check_energies(beam_energies_kev, export)
    if tuple(field) != export.field and export.config["model"]["name"] not in models.ANY_FIELD:
        raise ValueError(
            f"the field of view must be that of the network, {export.field} pixels (y, x) of "
            f"{VOXEL_NM:g} nm; got {tuple(field)}. Crop or rescale the images, or use compact."
        )


def assumptions(
    field: tuple[int, int],
    electrons_per_pixel: np.ndarray,
    beam_energies_kev: Sequence[float],
    export: Export,
    calibrated: bool,
) -> list[str]:
    """What a reconstruction takes for granted, as sentences for the one who uses it."""
    lines = [
        f"pixels and voxels of {VOXEL_NM:g} nm, normal incidence, no charging, drift or contamination",
        "images are electrons above 50 eV in all backward directions, with no gain and no offset",
        f"the specimen is like those of {export.dataset}: Cu in Si under vacuum",
    ]
    if not calibrated:
        lines.append("the probability is the network's own and has not been calibrated")
    if tuple(field) != export.field:
        lines.append("beyond the border of the images lies their mirror image")
    if missing := len(export.beam_energies_kev) - len(beam_energies_kev):
        lines.append(f"{missing} of the energies of the network are missing; depth is known the less")
        if calibrated:
            lines.append("probabilities and intervals were calibrated with all energies")
    low, high = export.doses
    if not (low <= electrons_per_pixel.min() and electrons_per_pixel.max() <= high):
        trained = f"{high:g}" if low == high else f"{low:g} to {high:g}"
        doses = f"{electrons_per_pixel.min():g}"
        if electrons_per_pixel.min() < electrons_per_pixel.max():
            doses += f" to {electrons_per_pixel.max():g}"
        lines.append(
            f"the dose, {doses} electrons per pixel, is not that of training, {trained}: noise and errors "
            "differ"
        )
    return lines
