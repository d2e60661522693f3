"""A page for the browser about one reconstruction: is it to be trusted, and what is in it.

The page is `volume_page.html`, filled in here. It has the volume to be turned and cut, how sure the network
is of it, how well it explains its images, and the bodies of Cu with their lengths.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bsevox_jax import imageio, measure, template
from bsevox_jax.check import Check
from bsevox_jax.measure import Body, Estimate

WHITE_TO_BLUE = 3.0  # the colours of chi-square reach so far at least
MOST_IMAGE_BYTES = 6_000_000  # of a stack of images; larger ones are binned
CLIPPED_PERCENT = 0.1  # of the pixels of an image are darker than black, and as many brighter than white
QUANTITIES = (  # of a body, and what its column is called
    ("top_nm", "top (nm)"),
    ("bottom_nm", "bottom (nm)"),
    ("height_nm", "height (nm)"),
    ("width_x_nm", "width x (nm)"),
    ("width_y_nm", "width y (nm)"),
    ("volume_nm3", "volume (nm³)"),
    ("side_wall_angle_x_deg", "wall angle x (°)"),
    ("side_wall_angle_y_deg", "wall angle y (°)"),
)


def write(
    path: str,
    *,
    title: str,
    yields: np.ndarray,
    beam_energies_kev: Sequence[float],
    probability: np.ndarray,
    voxel_nm: float,
    threshold: float,
    bodies: Sequence[Body],
    check: Check | None,
    registration: Sequence[str],
    about: dict,
    assumptions: Sequence[str],
) -> None:
    """Writes the page.

    Args:
        path: of the HTML file, in a folder that `imageio.whole_files` gave.
        title: the heading, for instance the name of the file of the images.
        yields: electrons back per electron in, [y, x, e].
        beam_energies_kev: [e].
        probability: of Cu, float32 [y, x, z].
        voxel_nm: edge of a voxel and of a pixel.
        threshold: probability above which a voxel is Cu.
        bodies: as measured at this threshold.
        check: of the images against those simulated anew from the volume; None: not done.
        registration: what was done to lay the images on each other, in sentences.
        about: name -> setting.
        assumptions: what the reconstruction takes for granted, in sentences.

    Raises:
        ValueError: an argument is impossible, or two do not fit each other; one line.
        OSError: the file cannot be written.
    """
    probability = imageio.check_probability(probability, voxel_nm, threshold)
    _check_shapes(probability, yields, beam_energies_kev, check)
    colour, verdict = _verdict(check, bodies)
    settings = [[name.replace("_", " "), _told(value)] for name, value in about.items()]
    parts = {
        "title": html.escape(title),
        "colour": colour,
        "verdict": html.escape(verdict),
        "brief": template.facts(_brief(probability, beam_energies_kev, voxel_nm, threshold)),
        "sentences": _listed(check.sentences if check else []),
        "bodies": _bodies(bodies),
        "about": template.table(["setting", "value"], settings),
        "registration": _listed(registration or ["The images were taken as they are."]),
        "assumptions": _listed(assumptions),
    }
    embedded = {
        "voxel_nm": float(voxel_nm),
        "threshold": float(threshold),
        "shape": probability.shape,
        "probability": template.deflated(np.moveaxis(template.coded(probability, threshold), -1, 0)),
        "beam_energies_kev": [float(energy) for energy in beam_energies_kev],
        "images": _images(yields, check.expected if check else None),
        "check": _checked(check) if check else None,
        "bodies": [_box(body) for body in bodies],
    }
    Path(path).write_bytes(template.filled("volume_page.html", parts, embedded))


def _check_shapes(probability, yields, beam_energies_kev, check):
    pixels, stack = probability.shape[:2], np.shape(yields)
    if stack != (*pixels, len(beam_energies_kev)):
        raise ValueError(
            f"yields must be [y, x, e] of the pixels of the volume, {pixels}, and of "
            f"{len(beam_energies_kev)} energies; got {stack}. Give the images that were reconstructed."
        )
    if not np.isfinite(yields).all():
        raise ValueError(
            f"yields must be finite; got {(~np.isfinite(yields)).sum()} that are not. Repair the images."
        )
    if check and check.expected.shape != stack:
        raise ValueError(
            f"the check must be of images {stack}; got {check.expected.shape}. Check the images that were "
            "reconstructed."
        )


def _verdict(check: Check | None, bodies: Sequence[Body]) -> tuple[str, str]:
    """green, amber or red, and why."""
    found = measure.told(bodies)
    if check is None:
        return "amber", f"Not checked against the images; {found}."
    inside = {True: "in the range", False: "outside of the range", None: "not compared with the range"}
    seen = f"The images are {inside[check.in_range]} of the network, and the reconstruction"
    does = "explains them" if check.explains else "does not explain them"
    colour = "red" if not check.explains else "green" if check.in_range else "amber"
    return colour, f"{seen} {does} (reduced chi-square {check.chi2:.2f}); {found}."


def _brief(probability, beam_energies_kev, voxel_nm, threshold) -> dict[str, str]:
    y, x, z = (f"{size * voxel_nm:g}" for size in probability.shape)
    energies = f"{min(beam_energies_kev):g} to {max(beam_energies_kev):g} keV"
    return {
        "field, x by y": f"{x} nm × {y} nm",
        "depth": f"{z} nm",
        "voxel": f"{voxel_nm:g} nm",
        "images": f"{len(beam_energies_kev)}, {energies}",
        "copper above a probability of": f"{threshold:g}",
        "copper in the volume": f"{(probability > threshold).mean():.2%}",
    }


def _images(yields: np.ndarray, expected: np.ndarray | None) -> dict:
    """Images as bytes [e, y, x] from black to white, the same for those measured and those expected."""
    bin_pixels = 1
    while np.size(yields) / bin_pixels**2 > MOST_IMAGE_BYTES:
        bin_pixels *= 2
    measured = _binned(yields, bin_pixels)
    limits = [CLIPPED_PERCENT, 100 - CLIPPED_PERCENT]
    black, white = np.percentile(measured, limits, axis=(1, 2))
    white = np.maximum(white, black + 1e-6)
    stacks = {"measured": measured} | (
        {} if expected is None else {"expected": _binned(expected, bin_pixels)}
    )
    scale = 255 / (white - black)[:, None, None]
    grey = {
        name: template.deflated(np.rint(np.clip((stack - black[:, None, None]) * scale, 0, 255)))
        for name, stack in stacks.items()
    }
    about = {"black": black.tolist(), "white": white.tolist(), "mean": measured.mean((1, 2)).tolist()}
    return about | {"bin": bin_pixels, "shape": measured.shape[1:]} | grey


def _binned(images: np.ndarray, bin_pixels: int) -> np.ndarray:
    """Means over squares of pixels, float32 [e, y, x], of images [y, x, e], whose last row fills the rest."""
    images = np.moveaxis(np.asarray(images, np.float32), -1, 0)
    fill = [(0, 0), *((0, -size % bin_pixels) for size in images.shape[1:])]
    e, y, x = (padded := np.pad(images, fill, mode="edge")).shape
    return padded.reshape(e, y // bin_pixels, bin_pixels, x // bin_pixels, bin_pixels).mean((2, 4))


def _checked(check: Check) -> dict:
    """The check for the script; chi-square as bytes from 0 to `most`."""
    chi2 = np.nan_to_num(np.asarray(check.chi2_map, np.float64), nan=0.0, posinf=1e9)
    most = max(WHITE_TO_BLUE, float(np.percentile(chi2, 99.5)))
    by_energy = np.asarray(check.chi2_by_energy, np.float64)
    return {
        "chi2": template.deflated(np.rint(np.clip(255 * chi2 / most, 0, 255))),
        "most": most,
        "chi2_by_energy": [value if math.isfinite(value) else None for value in by_energy.tolist()],
        "flagged": template.deflated(check.flagged),
        "flagged_share": float(check.flagged.mean()),
    }


def _bodies(bodies: Sequence[Body]) -> str:
    """Rows of the table of bodies, and its head, as HTML."""
    head = "".join(f"<th class=number>{name}</th>" for _, name in QUANTITIES)
    rows = "".join(
        f"<tr data-body={k} class={'sure' if body.is_sure else 'doubtful'}><td class=number>{k + 1}</td>"
        f"<td class=number>{body.peak_probability:.2f}</td>"
        f"{''.join(_estimate(getattr(body, field)) for field, _ in QUANTITIES)}"
        f"<td>{html.escape(' '.join(body.touches))}</td></tr>\n"
        for k, body in enumerate(bodies)
    )
    first, last = "<th class=number>body</th><th class=number>peak</th>", "<th>cut by</th>"
    return f"<thead><tr>{first}{head}{last}</tr></thead>\n<tbody>{rows}</tbody>"


def _estimate(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "<td class=number>–</td>"
    value, low, high = (f"{part:,.0f}" if estimate.high >= 1000 else f"{part:.1f}" for part in estimate)
    return f"<td class=number>{value}<small>{low} – {high}</small></td>"


def _box(body: Body) -> dict:
    """Its ends along y, x, z and its centroid, in nm."""
    ends = (body.y_start_nm, body.y_end_nm), (body.x_start_nm, body.x_end_nm), (body.top_nm, body.bottom_nm)
    centroid = body.y_nm, body.x_nm, body.z_nm
    return {
        "ends": [[round(end.value, 2) for end in pair] for pair in ends],
        "centroid": [round(position.value, 2) for position in centroid],
    }


def _listed(sentences: Sequence[str]) -> str:
    return "".join(f"<li>{html.escape(sentence)}</li>\n" for sentence in sentences)


def _told(value) -> str:
    """A setting in words."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_told(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value))
    return "" if value is None else str(value)
