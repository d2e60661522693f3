"""Files in and out: image stacks, volumes, and the one place where axes become TIFF pages and back.

A stack on disk is an `.npz` (counts [y, x, e], beam_energies_kev, electrons_per_pixel), an `.npy` (the counts
alone) or a TIFF with one page per energy, ascending. What a file does not say, the caller must.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import tifffile


@dataclasses.dataclass(frozen=True)
class Stack:
    """Images of one field of view.

    Attributes:
        counts: int32 [y, x, e], backscattered electrons.
        beam_energies_kev: [e] ascending.
        electrons_per_pixel: dose, incident electrons per pixel and energy.
    """

    counts: np.ndarray
    beam_energies_kev: tuple[float, ...]
    electrons_per_pixel: int


def read_stack(
    path: str,
    *,
    beam_energies_kev: Sequence[float] | None = None,
    electrons_per_pixel: int | None = None,
) -> Stack:
    """Reads an `.npz`, `.npy` or TIFF stack and checks it.

    Args:
        path: the file; its ending decides the format.
        beam_energies_kev: [e], where the file does not tell.
        electrons_per_pixel: dose, where the file does not tell.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file is damaged.
        ValueError: counts, energies or dose are missing, impossible or contradictory; one line.
    """
    readers = {
        ".npz": _read_npz,
        ".npy": _read_npy,
        ".tif": _read_tiff,
        ".tiff": _read_tiff,
    }
    ending = os.path.splitext(path)[1].lower()
    if ending not in readers:
        raise ValueError(f"a stack must be a file {', '.join(readers)}; got {path}. Convert it.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the stack must exist; got {path}. Correct the path.")
    try:
        counts, told = readers[ending](path)
        names = ("beam_energies_kev", "electrons_per_pixel")
        told = {name: np.asarray(told[name], np.float64) for name in names if name in told}
    except Exception as error:  # a damaged file can fail at any depth of the readers, with any type
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise OSError(f"the stack must be a readable {ending} file; got {reason!r} in {path}.") from error
    energies = _agree("beam_energies_kev", told.get("beam_energies_kev"), beam_energies_kev, path)
    dose = _agree("electrons_per_pixel", told.get("electrons_per_pixel"), electrons_per_pixel, path)
    return check_stack(counts, energies, dose)


def check_stack(counts: np.ndarray, beam_energies_kev: Sequence[float], electrons_per_pixel: float) -> Stack:
    """The stack, if it can be one.

    Raises:
        ValueError: the first broken rule, the value received and the remedy, in one line.
    """
    counts = np.asarray(counts)
    energies = _check_images("counts", counts, beam_energies_kev)
    dose = np.asarray(electrons_per_pixel, np.float64)
    if dose.size != 1 or not 1 <= dose < 2**31 or dose != np.floor(dose):
        raise ValueError(
            f"electrons_per_pixel must be a whole number from 1; got {listed(dose)}. Give beam current x "
            "dwell time / elementary charge."
        )
    _check_counts(counts, energies, dose.item())
    return Stack(counts.astype(np.int32), tuple(energies.tolist()), int(dose.item()))


def check_yields(yields: np.ndarray, beam_energies_kev: Sequence[float]) -> tuple[float, ...]:
    """The energies of images of yields [y, x, e], electrons back per electron in, if they can be that.

    Raises:
        ValueError: the first broken rule, the value received and the remedy, in one line.
    """
    energies = _check_images("yields", yields, beam_energies_kev)
    means = yields.mean(axis=(0, 1), dtype=np.float64)
    if not np.isfinite(means).all():
        raise ValueError("yields must be finite; got NaN or infinite pixels. Repeat or repair these images.")
    worst = means[np.abs(means - 0.5).argmax()]
    if not -0.05 <= worst <= 1:
        raise ValueError(
            f"yields must be 0 to 1 on average; got a mean of {worst:.4g}. Give counts as integers, or "
            "divide them by electrons per pixel."
        )
    return tuple(energies.tolist())


def places(known_kev: Sequence[float], beam_energies_kev: Sequence[float]) -> list[int] | None:
    """Where each energy is among the known ones, within 0.1 %; None if one is not."""
    known, wanted = (np.asarray(of, np.float64).reshape(-1) for of in (known_kev, beam_energies_kev))
    nearest = np.abs(wanted[:, None] - known).argmin(axis=1)
    return nearest.tolist() if np.allclose(known[nearest], wanted, rtol=1e-3) else None


def _check_images(name, images, beam_energies_kev):
    """The energies as float64 [e], if they fit images [y, x, e]."""
    energies = np.asarray(beam_energies_kev, np.float64).reshape(-1)
    if images.ndim != 3 or 0 in images.shape:
        raise ValueError(f"{name} must be [y, x, e]; got shape {images.shape}. Stack one image per energy.")
    if images.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be numbers; got dtype {images.dtype}. Save counts as integers.")
    if len(energies) != images.shape[2]:
        raise ValueError(
            f"every image needs its beam energy; got {images.shape[2]} images and {len(energies)} energies. "
            "Give beam_energies_kev in the order of the images."
        )
    if not (np.isfinite(energies).all() and (energies > 0).all() and (np.diff(energies) > 0).all()):
        raise ValueError(
            f"beam_energies_kev must be positive and ascend; got {listed(energies)}. Sort the images."
        )
    return energies


def _check_counts(counts, energies, dose):
    if not np.isfinite(counts).all():
        raise ValueError(
            f"counts must be finite; got {(~np.isfinite(counts)).sum()} NaN or infinite pixels. Repeat or "
            "repair these images."
        )
    if counts.min() < 0:
        raise ValueError(
            f"counts must not be negative; got {counts.min():g}. Undo the offset of the detector."
        )
    if counts.dtype.kind == "f" and (counts != np.round(counts)).any():
        value = counts[counts != np.round(counts)][0]
        raise ValueError(f"counts must be whole numbers; got {value:g}. Give electrons, not yields.")
    yields = counts.mean(axis=(0, 1), dtype=np.float64) / dose
    if yields.max() > 1:
        raise ValueError(
            "counts must not exceed electrons_per_pixel on average; got a mean of "
            f"{yields.max() * dose:.4g} at {energies[yields.argmax()]:g} keV and {dose:.0f} electrons per "
            "pixel. Give electrons, not grey values, and their dose."
        )


def _agree(name, told, given, path):
    """What the file tells or the caller gives; ValueError if neither does, or both and they differ."""
    if told is None and given is None:
        raise ValueError(f"a stack needs {name}; got none in {path}. Give --{name}.")
    if told is not None and given is not None:
        if np.shape(told) != np.shape(given) or not np.allclose(told, given, rtol=1e-6):
            raise ValueError(
                f"{name} must be that of the file; got {listed(given)}, where {path} has {listed(told)}. "
                f"Leave --{name} out."
            )
    return given if told is None else told


def listed(values) -> str:
    """Numbers as a message names them, twenty at most."""
    return ", ".join(f"{value:g}" for value in np.ravel(values)[:20])


def _read_npz(path):
    with np.load(path) as file:
        return file["counts"], {name: file[name] for name in file.files if name != "counts"}


def _read_npy(path):
    return np.load(path), {}


def _read_tiff(path):
    with tifffile.TiffFile(path) as file:
        pages = [page.asarray() for page in file.pages]
        told = (file.shaped_metadata or [{}])[0]
    if any(page.ndim != 2 for page in pages):
        raise ValueError(f"pages must be grey images, not of shape {pages[0].shape}")
    return np.stack(pages, axis=-1), told


def write_stack(folder: str, stack: Stack) -> None:
    """Writes `stack.npz` and `stack.tif` with energies and dose to a folder that `whole_files` gave."""
    about = {
        "beam_energies_kev": list(stack.beam_energies_kev),
        "electrons_per_pixel": stack.electrons_per_pixel,
    }
    np.savez_compressed(os.path.join(folder, "stack.npz"), counts=stack.counts, **about)
    pages = np.moveaxis(stack.counts, -1, 0)
    pages = pages.astype(np.uint16 if pages.max() < 2**16 else np.uint32)
    tifffile.imwrite(os.path.join(folder, "stack.tif"), pages, photometric="minisblack", metadata=about)


def write_volume(
    folder: str, probability: np.ndarray, voxel_nm: float, about: dict, threshold: float = 0.5
) -> None:
    """Writes a reconstruction to a folder that `whole_files` gave.

    `volume.npz` holds all, [y, x, z]; `volume.tif` the probability as a Z stack, which ImageJ opens at scale.

    Args:
        folder: of the files.
        probability: of Cu, float32 [y, x, z].
        voxel_nm: edge of a voxel.
        about: further arrays and strings for the `.npz`.
        threshold: above which a voxel is copper.
    """
    np.savez_compressed(
        os.path.join(folder, "volume.npz"),
        probability=probability,
        is_cu=(probability > threshold).astype(np.uint8),  # the network does not tell Si from vacuum
        voxel_nm=voxel_nm,
        **about,
    )
    tifffile.imwrite(
        os.path.join(folder, "volume.tif"),
        np.moveaxis(probability, -1, 0).astype(np.float32),
        imagej=True,
        resolution=(1 / voxel_nm, 1 / voxel_nm),
        metadata={"axes": "ZYX", "spacing": voxel_nm, "unit": "nm", "min": 0.0, "max": 1.0},
    )


def check_probability(probability: np.ndarray, voxel_nm: float, threshold: float) -> np.ndarray:
    """The probability as float32, if it, the voxels and the threshold can be those of a reconstruction.

    Raises:
        ValueError: the first broken rule, the value received and the remedy, in one line.
    """
    probability = np.asarray(probability)
    if probability.ndim != 3 or 0 in probability.shape or probability.dtype.kind not in "buif":
        received = f"{probability.dtype} of shape {probability.shape}"
        raise ValueError(f"probability must be numbers [y, x, z]; got {received}. Give one volume.")
    if not (probability.min() >= 0 and probability.max() <= 1):  # false for NaN
        received = f"{probability.min():g} to {probability.max():g}"
        raise ValueError(f"probability must be from 0 to 1; got {received}. Give probabilities, not logits.")
    if not (np.isfinite(voxel_nm) and voxel_nm > 0):
        raise ValueError(f"voxel_nm must be positive; got {voxel_nm}. Give the edge of a voxel in nm.")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1; got {threshold}. Take 0.5.")
    return probability.astype(np.float32)


def json_text(facts: dict) -> str:
    """Facts as one line of JSON in ASCII.

    Raises:
        ValueError: JSON cannot hold them; one line.
    """
    try:
        return json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"facts must fit into JSON; got {error}. Give texts, finite numbers, lists and dicts."
        ) from error


@contextlib.contextmanager
def whole_files(folder: str) -> Iterator[str]:
    """A temporary folder; its files move to `folder`, made if missing, once all are complete.

    If anything fails, nothing is left behind.

    Raises:
        OSError: the disk is full or the folder cannot be written; one line.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    existing = folder
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    temporary = None
    try:
        temporary = tempfile.mkdtemp(prefix=".unfinished-", dir=existing)
        yield temporary
        os.makedirs(folder, exist_ok=True)
        for name in os.listdir(temporary):
            target = os.path.join(folder, name)
            if os.path.isdir(target):  # which nothing can take the place of
                os.replace(target, tempfile.mkdtemp(prefix=".replaced-", dir=temporary))
            os.replace(os.path.join(temporary, name), target)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise OSError(
            f"files must be writable; got {reason!r} for {folder}. Free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def unfinished(folder: str, key: str) -> Iterator[str]:
    """The path of a file that outlives a stop, and is removed once all that follows has succeeded.

    Args:
        folder: of the results.
        key: of what decides the content.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    path = os.path.join(folder, f".unfinished-{key}.npy")
    yield path
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
