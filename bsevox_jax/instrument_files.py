"""The images an SEM wrote, one per beam energy: read, checked, and turned into yields.

A recording is a folder of TIFF files of one image each, a TIFF or OME-TIFF with one page per energy, an HDF5
file (`.h5`, `.hdf5`, or `.hspy` of HyperSpy) or an MRC file. What a file does not say, the caller must; what
is taken for granted is listed in `Recording.assumptions`.
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bsevox_jax import forward, imageio
from bsevox_jax.image_files import frames
from bsevox_jax.imageio import listed
from bsevox_jax.sem_metadata import Refusal

ELEMENTARY_CHARGE_C = 1.602176634e-19  # exact, SI 2019
RIM_PIXELS, FEWEST_PIXELS = 4, 64  # left out around areas of known material, and needed inside
POSSIBLE_KEV, POSSIBLE_PIXEL_NM = (0.01, 300.0), (1e-3, 1e6)  # wider than any SEM; beyond is a slip or damage


@dataclasses.dataclass(frozen=True)
class Recording:
    """Images of one field at several beam energies, as the instrument stored them.

    Attributes:
        images: uint8, uint16, uint32 or float32 [y, x, e], grey values; neither gain nor offset is undone.
        beam_energies_kev: [e] ascending; landing energies, at the surface.
        landing: how they follow from the voltages of gun and stage.
        pixel_nm: edge of a pixel.
        dwell_s: [e], per pixel and all passes together; None where it is not known.
        current_na: [e], of the probe; None where it is not known.
        electrons_per_pixel: [e], dwell time x current / elementary charge, or as given; None if not known.
        assumptions: what was taken for granted, one sentence each.
        source: [e], names of the files, with the page where there are several.
    """

    images: np.ndarray
    beam_energies_kev: tuple[float, ...]
    landing: str
    pixel_nm: float
    dwell_s: tuple[float | None, ...]
    current_na: tuple[float | None, ...]
    electrons_per_pixel: tuple[float | None, ...]
    assumptions: tuple[str, ...]
    source: tuple[str, ...]


def read(
    path: str | os.PathLike,
    *,
    beam_energies_kev: Sequence[float] | None = None,
    pixel_nm: float | None = None,
    electrons_per_pixel: float | Sequence[float] | None = None,
    rows: tuple[int, int] | None = None,
    axes: str | None = None,
) -> Recording:
    """Reads what an SEM wrote. What is given takes precedence over what the files tell.

    Args:
        path: a folder of `.tif` files, or a file `.tif`, `.tiff`, `.h5`, `.hdf5`, `.hspy` or `.mrc`.
        beam_energies_kev: landing energies, in the order of the images: file names with their numbers
            ascending, pages, or places along the axis of the energies.
        pixel_nm: edge of a pixel.
        electrons_per_pixel: dose, one for all or one per image in the order of the images.
        rows: (first, last + 1) of the field, where a data bar must be cut off by hand.
        axes: order of the axes of an HDF5 data set, eyx or yxe.

    Raises:
        FileNotFoundError: no such file or folder.
        OSError: a file is damaged.
        ValueError: images, energies or pixels are missing, impossible or contradictory; one line.
    """
    path = os.fspath(path)
    count = None if beam_energies_kev is None else np.size(beam_energies_kev)
    found = frames(path, images=count, axes=axes)
    notes = ["The images show one field and are aligned to a pixel."]
    energies_kev = _energies_kev(found, beam_energies_kev, notes)
    pixel_nm = _pixel_nm(found, pixel_nm, notes)
    doses = _doses(found, electrons_per_pixel, notes)
    fields = [_field(frame, rows, notes) for frame in found]
    kinds = sorted({f"{field.shape[0]} x {field.shape[1]} {field.dtype}" for field in fields})
    if len(kinds) > 1:
        raise Refusal(
            f"images must be of one size and type; got {', '.join(kinds)} in {path}. Save them alike."
        )
    order = np.argsort(energies_kev)
    told = [found[k].told for k in order]
    landing = "; ".join(dict.fromkeys(one.landing for one in told if one.landing)) or "as told"
    if beam_energies_kev is not None:
        landing = "as given"
    notes.append(f"Landing energies: {landing}.")
    if any(one.stage_bias_v for one in told):
        notes.append("A bias of the stage changes the energy, and not what the detector collects.")
    for gamma in sorted({one.gamma for one in told} - {1.0}):
        notes.append(f"A gamma of {gamma:g}, which the files tell, is not in the grey values.")
    detectors = ", ".join(sorted({one.detector for one in told if one.detector})) or "none"
    notes.append(
        f"Grey values are linear in the backscattered electrons; detectors the files name: {detectors}."
    )
    return Recording(
        images=np.stack([fields[k] for k in order], axis=-1),
        beam_energies_kev=tuple(energies_kev[k] for k in order),
        landing=landing,
        pixel_nm=pixel_nm,
        dwell_s=tuple(_positive(one.dwell_s) for one in told),
        current_na=tuple(_positive(one.current_na) for one in told),
        electrons_per_pixel=tuple(doses[k] for k in order),
        assumptions=tuple(dict.fromkeys(notes)),
        source=tuple(found[k].name for k in order),
    )


def to_yields(
    recording: Recording, *, silicon: np.ndarray, copper: np.ndarray, model: forward.ImageModel
) -> np.ndarray:
    """Yields, float32 [y, x, e]: gain and offset of each energy undone by two areas of known material.

    Copper fills a pad from the surface through the film, and silicon an area without copper below or above;
    both are as deep as the image model, with nothing beneath. A pad is narrower than electrons go, so what it
    returns is no property of copper alone: its yields and those of the silicon beside it are what the image
    model expects of the pad in a field of silicon. Their rims are left out, for probe and drift.

    Args:
        recording: see `read`; of pixels of 1 nm.
        silicon: the area, bool [y, x].
        copper: all of the pad, bool [y, x].
        model: `forward.load()`.

    Raises:
        ValueError: an energy that the model does not know; an area that is too small; a contrast opposite to
            that of copper and silicon, or one that the model itself is not sure of; one line.
    """
    if not math.isclose(recording.pixel_nm, 1, rel_tol=0.01):
        raise Refusal(f"pixels must be of 1 nm; got {recording.pixel_nm:g}. Resample them, see registration.")
    places = imageio.places(model.beam_energies_kev, recording.beam_energies_kev)
    if places is None:
        raise Refusal(
            "beam_energies_kev must be among those of the image model, "
            f"{listed(model.beam_energies_kev)}; got {listed(recording.beam_energies_kev)}. Leave the "
            "others out."
        )
    areas = {"silicon": silicon, "copper": copper}
    inside = {name: _inside(name, area, recording.images) for name, area in areas.items()}
    expected = {name: _expected(model, copper, area, places) for name, area in inside.items()}
    (eta_si, _), (eta_cu, error) = expected["silicon"], expected["copper"]
    grey_si, grey_cu = (recording.images[area].mean(axis=0, dtype=np.float64) for area in inside.values())
    contrasts = eta_cu - eta_si
    for energy, contrast, doubt, grey in zip(
        recording.beam_energies_kev, contrasts, error, grey_cu - grey_si, strict=True
    ):
        if grey * contrast <= 0 or abs(contrast) < 3 * doubt:
            raise Refusal(
                f"copper less silicon must be of one sign in grey values and in yields, {contrast:.3g} +- "
                f"{doubt:.1g}; got {grey:.4g} at {energy:g} keV. Check the areas, or leave this energy out."
            )
    return (eta_si + (recording.images - grey_si) * (contrasts / (grey_cu - grey_si))).astype(np.float32)


def _inside(name, area, images):
    """The area, bool [y, x], without its rim."""
    area = np.asarray(area)
    if area.shape != images.shape[:2] or area.dtype != bool:
        raise Refusal(
            f"{name} must be a mask, bool {images.shape[:2]}; got {area.dtype} {area.shape}. Fit it to the "
            "images."
        )
    inside = ndimage.binary_erosion(area, iterations=RIM_PIXELS)
    if inside.sum() < FEWEST_PIXELS:
        raise Refusal(
            f"{name} must have {FEWEST_PIXELS} pixels inside a rim of {RIM_PIXELS}; got {inside.sum()}. Give "
            "a larger area."
        )
    return inside


def _expected(model, copper, area, places):
    """Mean yields [e] that are expected in an area of a field of silicon with a pad of copper, and errors."""
    margin = forward.reach(model.network)
    rows, columns = (np.flatnonzero(area.any(axis)) for axis in (1, 0))
    window = tuple(slice(max(0, of[0] - margin), of[-1] + 1 + margin) for of in (rows, columns))
    depth = (1, 1, forward.depth(model))
    labels = np.tile(np.where(copper, 2, 1).astype(np.uint8)[window][..., None], depth)
    found = forward.expect_all(model, labels[None])
    yields, errors = (np.asarray(of, np.float64)[0][area[window]] for of in (found.yields, found.errors))
    return yields.mean(0)[places], errors.mean(0)[places]


def _energies_kev(found, given, notes):
    told = [frame.told.beam_energy_kev for frame in found]
    names = ", ".join(frame.name for frame in found[:8]) + (", ..." if len(found) > 8 else "")
    remedy = f"Give beam_energies_kev= in the order {names}"
    if given is not None:
        energies_kev = np.asarray(given, np.float64).reshape(-1).tolist()
        if len(energies_kev) != len(found):
            raise Refusal(
                f"every image needs its energy; got {len(found)} images, {len(energies_kev)} energies. "
                f"{remedy}."
            )
        if None not in told and not np.allclose(told, energies_kev, rtol=1e-3):
            notes.append(f"The files tell other landing energies: {listed(told)} keV.")
    elif None in told:
        frame = found[told.index(None)]
        reason = f" ({frame.told.landing})" if frame.told.landing else ""
        raise Refusal(f"an image needs its landing energy; got none{reason} for {frame.name}. {remedy}.")
    else:
        energies_kev = told
    ascending = np.sort(energies_kev)
    least, most = POSSIBLE_KEV
    if not (least <= ascending[0] <= ascending[-1] <= most and (np.diff(ascending) > 1e-6).all()):
        raise Refusal(
            f"landing energies must differ and be {least:g} to {most:g} keV; got {listed(energies_kev)}. "
            f"{remedy}, or leave images out."
        )
    return [float(energy) for energy in energies_kev]


def _pixel_nm(found, given, notes):
    told = [_positive(frame.told.pixel_nm) for frame in found]
    known = sorted({size for size in told if size is not None})
    if given is not None:
        notes.append("The size of a pixel is as given.")
        if known and max(abs(size - given) for size in known) > 0.01 * given:
            notes.append(f"The files tell other sizes of a pixel: {listed(known)} nm.")
        sizes = [given]
    elif None in told:
        name = found[told.index(None)].name
        raise Refusal(f"every image needs its pixel size; got none for {name}. Give pixel_nm=.")
    else:
        sizes = known
    least, most = POSSIBLE_PIXEL_NM
    if not least <= sizes[0] <= sizes[-1] <= most:
        raise Refusal(
            f"pixel_nm must be {least:g} to {most:g}; got {listed(sizes)}. Give the edge of a pixel."
        )
    if sizes[-1] > 1.01 * sizes[0]:
        raise Refusal(
            f"pixels must be of one size; got {listed(sizes)} nm. Resample the images, give pixel_nm=."
        )
    return float(np.mean(sizes))


def _doses(found, given, notes):
    if given is not None:
        doses = np.asarray(given, np.float64).reshape(-1)
        if doses.size not in (1, len(found)) or any(_positive(dose) is None for dose in doses):
            raise Refusal(
                f"electrons_per_pixel must be positive, one or one per image; got {listed(doses)} for "
                f"{len(found)} images. Give current x dwell time / elementary charge."
            )
        notes.append("The dose is as given.")
        return np.broadcast_to(doses, len(found)).tolist()
    doses = [_dose(frame.told) for frame in found]
    if None in doses:
        notes.append("The dose of an image is not known; electrons_per_pixel= gives it.")
    if any(frame.told.dwell_s and frame.told.current_na for frame in found):
        notes.append("The dose is nominal: current as told, every frame or line averaged or summed counts.")
    return doses


def _dose(told):
    if told.electrons_per_pixel is None and told.dwell_s is not None and told.current_na is not None:
        return _positive(told.dwell_s * told.current_na * 1e-9 / ELEMENTARY_CHARGE_C)
    return _positive(told.electrons_per_pixel)


def _positive(value):
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _field(frame, rows, notes):
    """The image without its data bar, unsigned or float32 [y, x]."""
    name, grey, told, marks = frame
    height = len(grey)
    if rows is not None:
        first, stop = rows
        if not 0 <= first < stop <= height:
            raise Refusal(
                f"rows must lie in the image; got {first}, {stop} of {height} in {name}. Correct them."
            )
        grey = grey[first:stop]
    else:
        if told.field_rows is not None and told.field_rows < height:
            grey = grey[: told.field_rows]
            notes.append(
                f"Rows from {len(grey)} of {height} are a data bar, as the files tell; they are cut off."
            )
        if (flat := _first_flat_row(grey)) is not None:
            raise Refusal(
                f"images must show no data bar; got rows of one grey value from {flat} of {height} in "
                f"{name}. Give rows=(0, {flat}), or rows=(0, {height}) if the specimen itself is so uniform."
            )
    if np.isin(grey, marks).any():
        raise Refusal(
            f"an image must show no coloured marks; got some in {name}. Save it without, or give rows=."
        )
    if not np.isfinite(grey).all() or grey.min() == grey.max():
        raise Refusal(f"an image must be finite and have contrast; got one without in {name}. Leave it out.")
    if grey.dtype.kind == "i" and grey.min() >= 0:
        grey = grey.astype(f"u{grey.dtype.itemsize}")
    exact = grey.dtype.kind == "u" and grey.dtype.itemsize <= 4
    return grey.astype(grey.dtype.newbyteorder("=") if exact else np.float32)


def _first_flat_row(grey):
    """First row in the lowest quarter that one grey value fills by half; None if there is no data bar.

    A specimen is noisy; a bar is flat behind its text, but for a few rows. What fills half of a row is its
    median.
    """
    median = np.partition(grey, grey.shape[1] // 2, axis=1)[:, grey.shape[1] // 2, None]
    flat = (grey == median).mean(axis=1) > 0.5
    quarter = 3 * len(flat) // 4
    places = quarter + np.flatnonzero(flat[quarter:])
    # The bar reaches the lowest rows; where the specimen has such rows too, nothing can be told.
    if len(places) < 2 or not flat[-2:].any() or flat[: len(flat) // 2].mean() > 0.1:
        return None
    breaks = np.flatnonzero(np.diff(places) > 8)  # rows; above the last is the specimen, with saturated rows
    return int(places[breaks[-1] + 1 if len(breaks) else 0])
