"""From files to files: a stack of counts, or what a microscope wrote, to a volume and what it is worth.

A stack of counts (`imageio.read_stack`) is taken as it is. Images of an instrument (`instrument_files`) are
laid over each other, brought to pixels of 1 nm, and turned from grey values into yields by two areas that the
caller knows: bare silicon, and a pad of copper.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

import bsevox_jax
from bsevox_jax import (
    checkpoint,
    forward,
    imageio,
    instrument_files,
    measure,
    parallel,
    registration,
    report,
    volume_page,
    volumes,
)
from bsevox_jax.intervals import COVERED
from bsevox_jax.reconstruct import VOXEL_NM, Reconstruction, check_exactly, default_network, reconstruct

RECORDINGS = (".h5", ".hdf5", ".hspy", ".mrc")  # which only instruments write; TIFF may be either
WRITTEN = "volume.npz, volume.tif, picture.png, report.html, summary.json, bodies.csv and bodies.json"
MARGIN = f"soft edge and a margin; {COVERED:.0%} in calibration"
Area = tuple[slice, slice]


@dataclasses.dataclass(frozen=True)
class Images:
    """What is reconstructed.

    Attributes:
        stack: counts, integers, or yields, [y, x, e].
        beam_energies_kev: [e].
        electrons_per_pixel: one for all or one each.
        noise: see `check.check`.
        offset_nm: (y, x) of their corner from that of the images as they were recorded.
        registration: what was done to lay the images over each other, line by line.
        assumptions: of the reading.
    """

    stack: np.ndarray
    beam_energies_kev: tuple[float, ...]
    electrons_per_pixel: float | tuple[float, ...]
    noise: np.ndarray | None = None
    offset_nm: tuple[float, float] = (0.0, 0.0)
    registration: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def reconstruct_files(
    path: str,
    checkpoint_path: str | None,
    output_dir: str,
    *,
    silicon: Area | None = None,
    copper: Area | None = None,
    formats: Sequence[str] = (),
    exact: bool = False,
    **given,
) -> Reconstruction:
    """Reconstructs what a path holds and writes `WRITTEN` and the formats asked for.

    A run that was stopped goes on from the windows of the field that it had finished.

    Args:
        path: a stack, see `imageio.read_stack`, or a recording, see `instrument_files.read`.
        checkpoint_path: folder of an exported network; None: a shipped one.
        output_dir: folder of the results.
        silicon, copper: areas of a recording, rows and columns in pixels of its images: silicon alone, and
            all of a pad of copper from the surface through the film; see `instrument_files.to_yields`.
        formats: of more files of the volume, see `volumes`.
        exact: simulate the images of the volume by the Monte Carlo as well, and compare.
        given: `beam_energies_kev`, `electrons_per_pixel`, and of recordings `pixel_nm`, `rows` and `axes`,
            where the files do not tell.

    Raises:
        FileNotFoundError, OSError: images or network missing or damaged, or the disk is full.
        ValueError: the images are not such as the network was trained on; one line.
    """
    volumes.check(formats)
    images = read(path, silicon=silicon, copper=copper, **given)
    folder = checkpoint_path or (
        checkpoint.shipped("instrument") if images.registration else default_network(images.beam_energies_kev)
    )
    settings = dict(electrons_per_pixel=images.electrons_per_pixel, checkpoint=folder, noise=images.noise)
    key, energies_kev = _key(images, folder), images.beam_energies_kev
    with imageio.unfinished(output_dir, key) as first, imageio.unfinished(output_dir, f"{key}-2") as second:
        found = reconstruct(images.stack, energies_kev, **settings, keep=first)
        if found.check is not None and images.noise is not None:
            # The whole field tells gain and offset better than two areas, once it is known what it shows.
            better = ((images.stack - found.check.offset) / found.check.gain).astype(np.float32)
            found = reconstruct(better, energies_kev, **settings, keep=second)
        told = images.assumptions + found.assumptions
        found = dataclasses.replace(found, assumptions=told, offset_nm=images.offset_nm)
        if parallel.is_main_process():
            facts = summary(found) | ({"exact": _exactly(found)} if exact else {})
            title = os.path.basename(os.path.normpath(path))
            write(output_dir, title, found, facts, images.registration, formats)
    return found


def read(path: str, *, silicon: Area | None = None, copper: Area | None = None, **given) -> Images:
    """The images of a stack or a recording; arguments as of `reconstruct_files`."""
    is_recording = os.path.isdir(path) or os.path.splitext(path)[1].lower() in RECORDINGS
    if not is_recording and silicon is None and copper is None:
        if more := [name for name in ("pixel_nm", "rows", "axes") if name in given]:
            raise ValueError(
                f"--{more[0]} is for the images of an instrument; got a stack of counts, {path}. Leave it "
                "out, or give --silicon and --copper."
            )
        stack = imageio.read_stack(path, **given)
        return Images(stack.counts, stack.beam_energies_kev, stack.electrons_per_pixel)
    recording = instrument_files.read(path, **given)
    if silicon is None or copper is None:
        raise ValueError(
            "grey values of an instrument need two areas of known yield; got "
            f"{'no' if silicon is None else 'only'} --silicon in {path}. Give --silicon=y0:y1,x0:x1 of bare "
            "silicon and --copper=y0:y1,x0:x1 of a whole pad of copper through the film, in pixels."
        )
    return of_recording(recording, silicon, copper)


def of_recording(recording: instrument_files.Recording, silicon: Area, copper: Area) -> Images:
    """Yields in pixels of `VOXEL_NM` of what an instrument recorded; areas as of `reconstruct_files`."""
    if None in recording.electrons_per_pixel:
        raise ValueError(
            "every image needs its electrons per pixel; got none in these files. Give --electrons_per_pixel."
        )
    found = registration.register(recording.images, recording.pixel_nm)
    laid = registration.resample(recording.images, found, recording.pixel_nm, VOXEL_NM)
    aligned = dataclasses.replace(recording, images=laid.images, pixel_nm=VOXEL_NM)
    areas = {
        name: _moved(name, area, recording.pixel_nm, laid)
        for name, area in (("silicon", silicon), ("copper", copper))
    }
    yields = instrument_files.to_yields(aligned, model=forward.load(), **areas)
    lines = registration.report_lines(found, recording.pixel_nm, recording.beam_energies_kev)
    y, x = laid.offset_nm
    lines.append(f"the field begins {y:g} nm below and {x:g} nm right of the corner of the images")
    return Images(
        stack=yields,
        beam_energies_kev=recording.beam_energies_kev,
        electrons_per_pixel=tuple(dose * laid.electrons_factor for dose in recording.electrons_per_pixel),
        noise=laid.noise,
        offset_nm=laid.offset_nm,
        registration=tuple(lines),
        assumptions=recording.assumptions + found.assumptions,
    )


def write(
    output_dir: str,
    title: str,
    found: Reconstruction,
    facts: dict,
    registration_lines: Sequence[str] = (),
    formats: Sequence[str] = (),
) -> None:
    """Writes `WRITTEN`, with `facts` as summary, and the formats asked for; all of them or none."""
    about = {
        "checkpoint_sha256": found.network["sha256"],
        "assumptions": list(found.assumptions),
        "version": bsevox_jax.__version__,
    }
    with imageio.whole_files(output_dir) as folder:
        _write_arrays(folder, found, about)
        with open(os.path.join(folder, "summary.json"), "w") as file:
            file.write(imageio.json_text(facts))
        _write_pictures(folder, title, found, registration_lines)
        measure.write_csv(os.path.join(folder, "bodies.csv"), found.bodies)
        told = () if found.margins is None else (MARGIN,)
        measure.write_json(os.path.join(folder, "bodies.json"), found.bodies, about, *told)
        if formats:
            volumes.write(
                folder, found.probability, found.voxel_nm, about, formats=formats, threshold=found.threshold
            )


def summary(found: Reconstruction) -> dict:
    """What the result is worth, as JSON can hold it."""
    facts = {
        "network": found.network,
        "threshold": found.threshold,
        "beam_energies_kev": list(found.beam_energies_kev),
        "electrons_per_pixel": list(found.electrons_per_pixel),
        "offset_nm": list(found.offset_nm),
        "bodies": len(found.bodies),
        "doubtful_bodies": measure.doubtful_count(found.bodies),
        "assumptions": list(found.assumptions),
        "version": bsevox_jax.__version__,
    }
    if found.check is not None:
        facts |= {
            "chi2": found.check.chi2,
            "chi2_by_energy": found.check.chi2_by_energy.tolist(),
            "probe_fwhm_nm": found.check.probe_fwhm_nm,
            "explains_its_images": found.check.explains,
            "in_range": found.check.in_range,
            "flagged_share": float(found.check.flagged.mean()),
            "sentences": found.check.sentences,
        }
    return facts


def _write_arrays(folder, found, about):
    dose = np.asarray(found.electrons_per_pixel)
    arrays = {
        "beam_energies_kev": found.beam_energies_kev,
        "electrons_per_pixel": dose[0] if (dose == dose[0]).all() else dose,
        "threshold": found.threshold,
    }
    if found.check is not None:
        arrays |= {"chi2": found.check.chi2_map, "flagged": found.check.flagged}
    imageio.write_volume(folder, found.probability, found.voxel_nm, arrays | about, threshold=found.threshold)


def _exactly(found):
    total = max(1, round(min(found.electrons_per_pixel))) * found.yields.size
    with tqdm(total=total, desc="exact check", unit=" electrons", unit_scale=True, leave=False) as bar:
        exact = check_exactly(found, progress=bar.update)
    print(f"chi^2 per degree of freedom of images simulated by the Monte Carlo: {exact['chi2']:.2f}")
    return exact


def _write_pictures(folder, title, found, registration_lines):
    heading = f"{title}, reconstructed by {found.network['name']} trained on {found.network['trained_on']}"
    dose = float(np.mean(found.electrons_per_pixel))
    images = found.yields, found.beam_energies_kev
    path = os.path.join(folder, "picture.png")
    report.picture(
        path, *images, dose, found.probability, found.voxel_nm, title=heading, threshold=found.threshold
    )
    volume_page.write(
        os.path.join(folder, "report.html"),
        title=title,
        yields=found.yields,
        beam_energies_kev=found.beam_energies_kev,
        probability=found.probability,
        voxel_nm=found.voxel_nm,
        threshold=found.threshold,
        bodies=found.bodies,
        check=found.check,
        registration=list(registration_lines),
        about=_settings(found),
        assumptions=list(found.assumptions),
    )


def _settings(found):
    return {
        "network": f"{found.network['name']}, trained on {found.network['trained_on']}",
        "checkpoint_sha256": found.network["sha256"],
        "electrons_per_pixel": ", ".join(f"{dose:g}" for dose in np.unique(found.electrons_per_pixel)),
        "threshold": f"{found.threshold:g}",
        "version": bsevox_jax.__version__,
    }


def _moved(name, area, pixel_nm, laid):
    """The area as a mask of the images that were laid over each other."""
    places = []
    for axis, offset_nm, size in zip(area, laid.offset_nm, laid.images.shape[:2], strict=True):
        first = int(np.ceil((axis.start * pixel_nm - offset_nm) / VOXEL_NM - 1e-6))
        stop = int(np.floor((axis.stop * pixel_nm - offset_nm) / VOXEL_NM + 1e-6))
        if not (axis.start < axis.stop and 0 <= first < stop <= size):
            raise ValueError(
                f"--{name} must lie in the field that all images show; got {axis.start}:{axis.stop} pixels, "
                f"where it reaches from {offset_nm / pixel_nm:g} to "
                f"{(offset_nm + size * VOXEL_NM) / pixel_nm:g}. Give y0:y1,x0:x1 inside."
            )
        places.append(slice(first, stop))
    mask = np.zeros(laid.images.shape[:2], bool)
    mask[tuple(places)] = True
    return mask


def _key(images, folder):
    """What decides a volume, in a word."""
    decisive = hashlib.sha256(np.ascontiguousarray(images.stack).tobytes())
    decisive.update(repr((images.beam_energies_kev, images.electrons_per_pixel)).encode())
    decisive.update(checkpoint.load_export(folder).sha256.encode())
    return decisive.hexdigest()[:16]
