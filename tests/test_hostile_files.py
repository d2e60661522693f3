"""Damaged and hostile recordings: each is read, or refused in one line, and nothing else happens."""

import functools
import os
import pickle
import struct
import sys
import time
import tracemalloc
from pathlib import Path

import h5py
import instrument_writers as writers
import numpy as np
import pytest
import tifffile
from recordings import ENERGIES_KEV, VENDORS, assert_refused, noisy_images, write_folder, write_general

from bsevox_jax import instrument_files


@pytest.fixture(scope="module")
def images():
    return noisy_images()


def test_folder_is_not_left_by_links(images, tmp_path):
    write_folder(tmp_path / "a", "jeol", images[..., :1], ENERGIES_KEV[:1])
    write_folder(tmp_path / "b", "jeol", images[..., 1:2], ENERGIES_KEV[1:2])
    outside = tmp_path / "b" / "site 7_2000 V.tif"
    os.symlink(outside, tmp_path / "a" / "link.tif")
    assert_refused("must lie in the folder itself; got the link or folder link.tif", tmp_path / "a")
    os.remove(tmp_path / "a" / "link.tif")
    os.rename(tmp_path / "a" / "site 7_500 V.txt", tmp_path / "elsewhere.txt")
    os.symlink(tmp_path / "elsewhere.txt", tmp_path / "a" / "site 7_500 V.txt")
    assert_refused("landing energy; got none", tmp_path / "a")  # the text behind the link is not read


def test_hdf5_does_not_reach_into_other_files(images, tmp_path):
    writers.write_hdf5(tmp_path / "secret.h5", images)
    images[..., 0].tofile(tmp_path / "raw")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = h5py.ExternalLink("secret.h5", "images")
    assert_refused("must hold one array of 3 axes; got 0", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", (1, 48, 40), np.uint8, external=[("raw", 0, 1920)])
    assert_refused("must be in the file; got images stored elsewhere", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        layout = h5py.VirtualLayout((48, 40, 3), np.uint8)
        layout[...] = h5py.VirtualSource("secret.h5", "images", (48, 40, 3))
        file.create_virtual_dataset("images", layout)
    assert_refused("must be in the file; got images stored elsewhere", tmp_path / "a.h5")


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("pickle was executed",)


@pytest.mark.parametrize("name", ["a.npy", "a.pkl", "a.hspy", "a.h5", "a.tif", "a.mrc"])
def test_pickle_is_not_executed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Malicious()))
    assert_refused("images must be", tmp_path / name, beam_energies_kev=[1.0], pixel_nm=1.0)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name, library", [("a.h5", "h5py"), ("a.mrc", "mrcfile")])
def test_missing_library_is_named(name, library, images, tmp_path, monkeypatch):
    write_general(tmp_path, images)
    monkeypatch.setitem(sys.modules, library, None)
    assert_refused(f"need {library}; got none. Install requirements-io.txt", tmp_path / name)


def test_missing_empty_and_unknown_are_refused(tmp_path):
    assert_refused("images must exist; got .*none.tif", tmp_path / "none.tif")
    assert_refused("must hold 1 to 256 files .tif; got 0", tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    assert_refused("a folder or a file .tif, .*; got .*a.png", tmp_path / "a.png")
    for name in ("a.tif", "a.h5", "a.mrc"):
        (tmp_path / name).write_bytes(b"")
        assert_refused("must be readable", tmp_path / name)


def declare(path, name):
    """Changes a file to declare an image of 2^20 x 2^20 pixels."""
    if name == "a.h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("images", (3, 2**20, 2**20), np.uint16, chunks=(1, 64, 64))
    elif name == "a.mrc":
        path.write_bytes(struct.pack("<2i", 2**20, 2**20) + path.read_bytes()[8:])
    elif name == "extended.mrc":
        data = (path.parent / "a.mrc").read_bytes()
        path.write_bytes(data[:92] + struct.pack("<i", 2**31 - 1) + data[96:])
    else:
        with tifffile.TiffFile(path, mode="r+") as file:
            for key in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                file.pages[0].tags[key].overwrite(2**20)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.h5", "a.mrc", "extended.mrc"])
def test_absurd_sizes_are_refused_before_they_are_allocated(name, images, tmp_path):
    given = {"beam_energies_kev": ENERGIES_KEV, "pixel_nm": 1.0}
    write_general(tmp_path, images)
    declare(tmp_path / name, name)
    tracemalloc.start()
    try:
        assert_refused("at most|pixels|must be readable", tmp_path / name, **given)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_deflated_data_that_expand_beyond_their_image_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4096, 4096), np.uint8), compression="zlib", rowsperstrip=4096)
    with tifffile.TiffFile(path, mode="r+") as file:
        for key, value in (("ImageLength", 32), ("RowsPerStrip", 32)):
            file.pages[0].tags[key].overwrite(value)
    assert_refused("data of page 0 .* are more than an image", path, beam_energies_kev=[1.0], pixel_nm=1.0)


def test_tiff_whose_chain_of_pages_breaks_off_is_refused(images, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.moveaxis(images, -1, 0), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        offsets = [page.offset for page in file.pages]
    data = path.read_bytes()
    place = data.rfind(struct.pack("<I", offsets[2]))  # the end of the second page names the third
    path.write_bytes(data[:place] + struct.pack("<I", 2**31) + data[place + 4 :])
    assert_refused("must be readable", path, beam_energies_kev=ENERGIES_KEV[:2], pixel_nm=1.0)


def damaged(data: bytes, seed: int) -> bytes:
    """Cut off, with flipped bits, an extreme number or a random stretch; half of it in the first kilobyte."""
    random = np.random.default_rng(seed)
    array = np.frombuffer(data, np.uint8).copy()
    place = int(random.integers(0, min(len(array), 1024) if seed % 2 else len(array)))
    kind = seed % 5
    if kind == 0:
        return data[:place]
    if kind in (1, 2):
        for at in random.integers(
            0, len(array) if seed % 2 else min(len(array), 1024), random.integers(1, 20)
        ):
            array[at] ^= 1 << random.integers(0, 8)
    elif kind == 3:
        extreme = random.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x10000]).item()
        raw = np.frombuffer(struct.pack("<I", extreme), np.uint8)
        array[place : place + 4] = raw[: len(array[place : place + 4])]
    else:
        array[place : place + 64] = random.integers(0, 256, len(array[place : place + 64]))
    return array.tobytes()


@functools.cache
def sound_files(kind: str, folder: Path) -> dict[str, bytes]:
    """Contents by name: the files of a recording, of which one is damaged at a time."""
    images, folder = noisy_images(), folder / f"sound {kind}"
    os.makedirs(folder)
    if kind in VENDORS:
        write_folder(folder, kind, images[..., :2], ENERGIES_KEV[:2])
        return {file.name: file.read_bytes() for file in folder.iterdir()}
    if kind == "deflate.tif":
        about = {"beam_energies_kev": ENERGIES_KEV, "pixel_nm": 1.0}
        stack = np.moveaxis(images, -1, 0)
        tifffile.imwrite(folder / kind, stack, compression="zlib", metadata=about, photometric="minisblack")
    else:
        write_general(folder, images)
    return {kind: (folder / kind).read_bytes()}


def check_damaged(kind, seeds, folder):
    sound = sound_files(kind, folder)
    given = {"beam_energies_kev": (0.5, 1.0, 1.5), "pixel_nm": 1.0} if kind in ("a.ome.tif", "a.mrc") else {}
    read, slowest = 0, 0.0
    for seed in seeds:
        place = folder / f"{kind} {seed}"
        os.makedirs(place)
        for k, (name, data) in enumerate(sorted(sound.items())):
            (place / name).write_bytes(damaged(data, seed) if k == seed % len(sound) else data)
        start = time.perf_counter()
        try:
            recording = instrument_files.read(place if kind in VENDORS else place / kind, **given)
        except (ValueError, OSError) as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, (kind, seed)
        else:
            read += 1
            assert recording.images.ndim == 3 and np.isfinite(recording.images).all()
            energies_kev = np.array(recording.beam_energies_kev)
            assert len(energies_kev) == recording.images.shape[2] and (np.diff(energies_kev) > 0).all()
            assert energies_kev[0] > 0 and recording.pixel_nm > 0 and np.isfinite(recording.pixel_nm)
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 5, (kind, slowest)  # seconds; it takes 0.01
    return read


KINDS = (*VENDORS, "deflate.tif", "a.ome.tif", "a.mrc", "a.h5", "a.hspy")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused_in_one_line(kind, tmp_path):
    assert check_damaged(kind, range(40), tmp_path) < 40


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_read_or_refused_in_one_line(kind, tmp_path):
    assert check_damaged(kind, range(1000, 1200), tmp_path) < 200
