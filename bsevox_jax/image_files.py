"""Images out of one file: TIFF with the tags of its vendor, HDF5, HyperSpy or MRC.

Nothing is executed, nothing is read but the file and the text file beside it, and nothing is allocated before
its size is known.
"""

import contextlib
import importlib
import json
import logging
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tifffile

from bsevox_jax.sem_metadata import Refusal, Told, told_by

LARGEST_PIXELS = 2**28  # of all images together: ten of 5000 x 5000
LARGEST_TEXT = 2**20  # bytes of a text file beside an image
MOST_IMAGES = 256
PLAIN, LZW, PACKBITS, DEFLATE = (1,), (5,), (32773,), (8, 32946)  # of TIFF
FACTS = ("beam_energies_kev", "pixel_nm", "electrons_per_pixel", "dwell_s", "current_na")
UNIT_NM = {"pm": 1e-3, "Å": 0.1, "nm": 1.0, "um": 1e3, "µm": 1e3, "μm": 1e3, "mm": 1e6, "m": 1e9}
UNIT_KEV = {"eV": 1e-3, "V": 1e-3, "keV": 1.0, "kV": 1.0}


class Frame(NamedTuple):
    """One image: its name, grey values [y, x] with the data bar, what the file tells, and values of marks."""

    name: str
    grey: np.ndarray
    told: Told
    marks: tuple[int, ...] = ()


def frames(path: str, *, images: int | None = None, axes: str | None = None) -> list[Frame]:
    """The images of a folder of TIFF files, or of one file, in the order in which they are stored.

    Args:
        path: see `instrument_files.read`.
        images: their number, where the caller knows it.
        axes: order of the axes of an HDF5 data set, eyx or yxe.

    Raises:
        FileNotFoundError: no such file or folder.
        OSError: a file is damaged.
        Refusal: the file holds something else than grey images, or too much of it; one line.
    """
    if os.path.isdir(path):
        return _folder(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the images must exist; got {path}. Correct the path.")
    ending = os.path.splitext(path)[1].lower()
    if ending in (".tif", ".tiff"):
        return _tiff(path, LARGEST_PIXELS)
    if ending in (".h5", ".hdf5", ".hspy"):
        return _hdf5(path, images, axes)
    if ending == ".mrc":
        return _mrc(path)
    known = ".tif, .tiff, .h5, .hdf5, .hspy or .mrc"
    raise Refusal(f"images must be a folder or a file {known}; got {path}. Convert it.")


def _folder(path):
    names = []
    for entry in os.scandir(path):
        if entry.name.lower().endswith((".tif", ".tiff")):
            if entry.is_symlink() or not entry.is_file():
                raise Refusal(
                    f"images must lie in the folder itself; got the link or folder {entry.name}. Copy it."
                )
            names.append(entry.name)
    if not 0 < len(names) <= MOST_IMAGES:
        raise Refusal(f"a folder must hold 1 to {MOST_IMAGES} files .tif; got {len(names)} in {path}.")
    # Numbers ascend as numbers: 10kV.tif after 2kV.tif. They are at the odd places of the split.
    names.sort(
        key=lambda name: [
            (int(part), "") if k % 2 else (0, part) for k, part in enumerate(re.split("([0-9]+)", name))
        ]
    )
    found, left = [], LARGEST_PIXELS
    for name in names:
        pages = _tiff(os.path.join(path, name), left)
        if len(pages) != 1:
            raise Refusal(f"a file of a folder must hold one image; got {len(pages)} in {name}. Split it.")
        found += pages
        left -= pages[0].grey.size
    return found


@contextlib.contextmanager
def _readable(path) -> Iterator[None]:
    try:
        yield
    except Refusal:
        raise
    except Exception as error:  # a damaged file can fail at any depth of the readers, with any type
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise OSError(f"images must be readable; got {reason!r} in {path}. Copy the file anew.") from error


@contextlib.contextmanager
def _unbroken() -> Iterator[None]:
    """A chain of pages that breaks off, which tifffile only logs, is an error: images would be missing."""
    logger, handler, messages = logging.getLogger("tifffile"), logging.Handler(logging.ERROR), []
    handler.emit = lambda record: messages.append(record.getMessage())
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    if broken := [message for message in messages if "TiffPages" in message]:
        raise OSError(broken[0])


def _tiff(path, left):
    found, name = [], os.path.basename(path)
    with _readable(path), _unbroken(), tifffile.TiffFile(path, _multifile=False) as file:
        sidecar, facts = _sidecar(path), _described(file.pages[0].description)
        for k, page in enumerate(file.pages):
            if k == MOST_IMAGES:
                raise Refusal(f"a file must hold at most {MOST_IMAGES} images; got more in {path}. Split it.")
            if page.is_reduced:  # a thumbnail
                continue
            _check_page(page, f"page {k} of {path}", left)
            left -= math.prod(page.shape)
            of_page = told_by(page.tags, sidecar, page.shape)
            found.append(Frame(f"{name}, page {k}", page.asarray(), of_page, _marks(page)))
        found = _tell(found, facts, path)
    return [found[0]._replace(name=name)] if len(found) == 1 else found


def _check_page(page, name, left):
    """Refuses a page that is too large, not grey, or not wholly in its file."""
    # A palette with more colours than greys is none of an SEM.
    grey = page.photometric == 1 or (page.photometric == 3 and len(_marks(page)) < 2**page.bitspersample / 2)
    if page.ndim != 2 or page.samplesperpixel != 1 or not grey:
        raise Refusal(
            f"images must be grey, zero black; got photometric {int(page.photometric)}, shape "
            f"{page.shape} in {name}. Export them anew."
        )
    segment = math.prod(page.chunks)
    if max(math.prod(page.shape), segment) > left or page.dtype is None or page.dtype.kind not in "uif":
        raise Refusal(
            f"images must be numbers, {LARGEST_PIXELS} at most together; got {page.shape} {page.dtype} "
            f"in {name}. Crop them."
        )
    if page.compression not in PLAIN + LZW + PACKBITS + DEFLATE:
        raise Refusal(
            f"pages must be plain, LZW, PackBits or deflate; got compression {int(page.compression)} in "
            f"{name}. Save them plain."
        )
    file = page.parent.filehandle
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    expected = math.prod(-(-size // chunk) for size, chunk in zip(page.shape, page.chunks, strict=True))
    least = math.prod(page.shape) * page.bitspersample // 8
    short = page.compression in PLAIN and sum(size for _, size in parts) < least
    # tifffile reads what is missing as zeros.
    if short or len(parts) != expected or any(size < 1 or at + size > file.size for at, size in parts):
        raise OSError(f"data of {name} are missing")
    if page.compression in DEFLATE:
        most = segment * page.dtype.itemsize + 1
        for at, size in parts:
            file.seek(at)
            if len(zlib.decompressobj().decompress(file.read(size), most)) == most:
                raise OSError(f"data of {name} are more than an image")


def _marks(page):
    """Values that a palette does not show as their grey, as Zeiss keeps some for coloured marks."""
    if page.photometric != 3 or page.colormap is None:
        return ()
    greys = np.asarray(page.colormap) >> (16 - page.bitspersample)
    return tuple(np.flatnonzero((greys != np.arange(greys.shape[1])).any(axis=0)).tolist())


def _described(text):
    """Facts in the description of the first page: JSON, as of `imageio.write_stack`, or OME-XML."""
    if text.startswith("{"):
        return _facts(json.loads(text))
    if "<OME" not in text:
        return {}
    edges_nm = []
    for axis in "XY":
        size = re.search(rf'PhysicalSize{axis}="([^"]+)"', text)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', text)
        edges_nm.append(
            float(size[1]) * UNIT_NM.get(unit[1] if unit else "µm", 0) if size else 0
        )  # µm: OME's default
    return {"pixel_nm": _edge_nm(edges_nm)}


def _facts(about):
    arrays = {name: np.asarray(about[name], np.float64) for name in FACTS if name in about}
    return {
        name: array.item() if array.ndim == 0 else array.reshape(-1).tolist()
        for name, array in arrays.items()
    }


def _edge_nm(edges_nm):
    """Of two edges, which must agree; None if they are not told."""
    if not all(math.isfinite(edge) and edge > 0 for edge in edges_nm):
        return None
    if abs(edges_nm[0] - edges_nm[1]) > 0.01 * edges_nm[0]:
        raise Refusal(
            f"pixels must be square; got {edges_nm[0]:g} x {edges_nm[1]:g} nm. Resample the images."
        )
    return edges_nm[0]


def _sidecar(path):
    """Text of the file of the same name beside an image; empty if there is none."""
    stem, ending = os.path.splitext(path)
    for name in (f"{stem}.txt", f"{stem}.TXT", f"{stem}.hdr", f"{stem}-{ending[1:]}.hdr"):
        if os.path.isfile(name) and not os.path.islink(name):
            with open(name, "rb") as file:
                data = file.read(LARGEST_TEXT)
            wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
            return data.decode("utf-16" if wide else "utf-8-sig", errors="replace").lstrip()
    return ""


def _hdf5(path, images, axes):
    h5py, found = _library("h5py"), {}

    def collect(name, item):  # is not called for links
        if isinstance(item, h5py.Dataset) and item.ndim == 3 and item.dtype.kind in "uif":
            found[name] = item

    with _readable(path), h5py.File(path, "r") as file:
        file.visititems(collect)
        signals = [name for name in found if re.fullmatch(r"Experiments/[^/]+/data", name)]
        names = signals or list(found)
        if len(names) != 1:
            raise Refusal(
                f"a file must hold one array of 3 axes; got {len(names)} in {path}. Save one of them."
            )
        data = found[names[0]]
        if data.is_virtual or data.external:
            raise Refusal(
                f"images must be in the file; got {names[0]} stored elsewhere in {path}. Copy them."
            )
        if not 0 < data.size <= LARGEST_PIXELS:
            raise Refusal(
                f"images must have 1 to {LARGEST_PIXELS} pixels; got {data.shape} in {path}. Crop them."
            )
        order, facts = (
            _hyperspy(data.parent)
            if signals
            else (data.attrs.get("axes"), _facts({**file.attrs, **data.attrs}))
        )
        if images is not None:  # and so their energies
            facts.pop("beam_energies_kev", None)
        count = images or np.size(facts.get("beam_energies_kev", ()))
        order = axes or order or _axes_of(data.shape, count, path)
        if order not in ("eyx", "yex", "yxe"):
            raise Refusal(f"axes must be eyx or yxe; got {order} in {path}. Give axes=.")
        return _split(np.moveaxis(data[()], order.index("e"), 0), facts, path)


def _library(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Refusal(f"such images need {name}; got none. Install requirements-io.txt.") from error


def _axes_of(shape, count, path):
    """The axis of the energies is the only one as long as there are energies."""
    places = [k for k in (0, 2) if shape[k] == count]
    if len(places) != 1 or shape[1] == count:
        raise Refusal(
            f"the axis of the energies must be clear; got shape {shape}, {count} energies in {path}. "
            "Give axes=, eyx or yxe, or beam_energies_kev=."
        )
    return "eyx" if places == [0] else "yxe"


def _hyperspy(group):
    """Order of the axes and facts of a signal of HyperSpy: the axis of navigation is that of the energies."""
    stored = [dict(group[f"axis-{k}"].attrs) for k in range(3)]
    order = "".join("e" if axis["navigate"] else str(axis["name"])[:1].lower() for axis in stored)
    if sorted(order) != ["e", "x", "y"]:
        return order, {}
    energy, *sides = (stored[order.index(axis)] for axis in "eyx")
    facts = {
        "pixel_nm": _edge_nm([abs(float(axis["scale"])) * UNIT_NM.get(axis["units"], 0) for axis in sides])
    }
    if unit_kev := UNIT_KEV.get(energy["units"]):
        values = group[f"axis-{order.index('e')}"].get("axis")  # only if the steps are not even
        if values is None and energy["size"] <= MOST_IMAGES:
            values = energy["offset"] + energy["scale"] * np.arange(energy["size"])
        if np.size(values) <= MOST_IMAGES:
            facts["beam_energies_kev"] = (np.asarray(values, np.float64) * unit_kev).tolist()
    return order, facts


def _mrc(path):
    mrcfile = _library("mrcfile")
    with _readable(path), warnings.catch_warnings():
        warnings.simplefilter("error")  # of a file that is longer than its header tells
        _check_mrc_header(path)
        with mrcfile.mmap(path, mode="r") as file:  # so that a header can claim no more than there is
            data = file.data
            if data.ndim != 3 or data.dtype.kind not in "uif" or not 0 < data.size <= LARGEST_PIXELS:
                raise Refusal(
                    f"images must be numbers, 3 axes, {LARGEST_PIXELS} at most; got {data.shape} "
                    f"{data.dtype} in {path}. Save one image per energy."
                )
            edges_nm = [float(file.voxel_size[axis]) / 10 for axis in "xy"]  # from Angstrom
            return _split(np.array(data), {"pixel_nm": _edge_nm(edges_nm)}, path)


def _check_mrc_header(path):
    """Refuses an extended header (size: word 24, MRC2014) longer than the file: it would be allocated."""
    with open(path, "rb") as file:
        header = file.read(1024)
    if len(header) < 1024:
        raise OSError("the header is not complete")
    (extended,) = struct.unpack_from(">I" if header[212] == 0x11 else "<I", header, 92)
    if extended > os.path.getsize(path):
        raise OSError("the extended header is longer than the file")


def _split(images, facts, path):
    """Frames of images [e, y, x]."""
    if len(images) > MOST_IMAGES:
        raise Refusal(
            f"a file must hold at most {MOST_IMAGES} images; got {len(images)} in {path}. Split it."
        )
    name = os.path.basename(path)
    return _tell([Frame(f"{name}, image {k}", image, Told()) for k, image in enumerate(images)], facts, path)


def _tell(found: Sequence[Frame], facts: dict, path: str) -> list[Frame]:
    """Frames with the facts of their file, which are one for all or one for each."""
    told = [{} for _ in found]
    for name, values in facts.items():
        each = values if isinstance(values, list) else [values] * len(found)
        if len(each) != len(found):
            raise Refusal(
                f"{name} must be one per image; got {len(each)} for {len(found)} in {path}. Repair the file."
            )
        for k, value in enumerate(each):
            if value is not None:
                told[k]["beam_energy_kev" if name == "beam_energies_kev" else name] = value
    return [frame._replace(told=frame.told._replace(**more)) for frame, more in zip(found, told, strict=True)]
