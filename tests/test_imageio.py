import os
import resource

import numpy as np
import pytest
import tifffile

from bsevox_jax import imageio

ENERGIES_KEV, DOSE = (0.5, 1.0, 2.5), 40


@pytest.fixture
def stack():
    counts = np.random.default_rng(0).poisson(9, (5, 4, 3)).astype(np.int32)
    return imageio.Stack(counts, ENERGIES_KEV, DOSE)


def assert_same(a, b):
    np.testing.assert_array_equal(a.counts, b.counts)
    assert a.counts.dtype == b.counts.dtype == np.int32
    assert (a.beam_energies_kev, a.electrons_per_pixel) == (b.beam_energies_kev, b.electrons_per_pixel)


@pytest.mark.parametrize("name", ["stack.npz", "stack.tif"])
def test_written_stack_comes_back(stack, tmp_path, name):
    with imageio.whole_files(tmp_path / "new" / "folder") as folder:
        imageio.write_stack(folder, stack)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["stack.npz", "stack.tif"]
    assert_same(imageio.read_stack(str(tmp_path / "new" / "folder" / name)), stack)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32, np.float64])
def test_plain_files_need_energies_and_dose_from_the_caller(stack, tmp_path, dtype):
    np.save(tmp_path / "a.npy", stack.counts.astype(dtype))
    if dtype != np.int64:
        tifffile.imwrite(tmp_path / "a.tiff", np.moveaxis(stack.counts, -1, 0).astype(dtype), metadata=None,
                         photometric="minisblack")  # fmt: skip
    for name in sorted(os.listdir(tmp_path)):
        path = str(tmp_path / name)
        read = imageio.read_stack(path, beam_energies_kev=ENERGIES_KEV, electrons_per_pixel=DOSE)
        assert_same(read, stack)
        with pytest.raises(
            ValueError, match="needs beam_energies_kev; got none in .* Give --beam_energies_kev"
        ):
            imageio.read_stack(path, electrons_per_pixel=DOSE)
        with pytest.raises(ValueError, match="needs electrons_per_pixel; got none"):
            imageio.read_stack(path, beam_energies_kev=ENERGIES_KEV)


def test_caller_and_file_must_not_contradict_each_other(stack, tmp_path):
    with imageio.whole_files(tmp_path) as folder:
        imageio.write_stack(folder, stack)
    path = str(tmp_path / "stack.tif")
    assert_same(imageio.read_stack(path, electrons_per_pixel=DOSE, beam_energies_kev=ENERGIES_KEV), stack)
    with pytest.raises(ValueError, match="must be that of the file; got 41, where .* has 40"):
        imageio.read_stack(path, electrons_per_pixel=41)
    with pytest.raises(ValueError, match="got 0.5, 1, where .* has 0.5, 1, 2.5"):
        imageio.read_stack(path, beam_energies_kev=(0.5, 1.0))


def changed(counts, value):
    counts = counts.astype(float if isinstance(value, float) else int)
    counts[1, 2, 0] = value
    return counts


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: {"counts": c[..., 0]}, r"counts must be \[y, x, e\]; got shape \(5, 4\)"),
        (lambda c: {"counts": c[None]}, r"got shape \(1, 5, 4, 3\)"),
        (lambda c: {"counts": c[:0]}, r"got shape \(0, 4, 3\)"),
        (lambda c: {"counts": c[..., :2]}, "got 2 images and 3 energies"),
        (lambda c: {"counts": c.astype(complex)}, "got dtype complex128"),
        (lambda c: {"counts": c > 3}, "got dtype bool"),
        (lambda c: {"counts": c.astype(str)}, "got dtype <U"),
        (lambda c: {"counts": changed(c, -2)}, "must not be negative; got -2"),
        (lambda c: {"counts": changed(c, 0.25)}, "must be whole numbers; got 0.25"),
        (lambda c: {"counts": changed(c, np.nan)}, "must be finite; got 1 NaN"),
        (lambda c: {"counts": changed(c, np.inf)}, "must be finite; got 1 NaN"),
        (lambda c: {"counts": c * 40}, r"must not exceed electrons_per_pixel on average; got a mean of \d+"),
        (lambda c: {"electrons_per_pixel": 0}, "electrons_per_pixel must be a whole number from 1; got 0"),
        (
            lambda c: {"electrons_per_pixel": np.nan},
            "electrons_per_pixel must be a whole number from 1; got nan",
        ),
        (lambda c: {"electrons_per_pixel": 12.5}, "got 12.5"),
        (lambda c: {"electrons_per_pixel": (40, 41)}, "got 40, 41"),
        (lambda c: {"beam_energies_kev": (1.0, 0.5, 2.5)}, "must be positive and ascend; got 1, 0.5, 2.5"),
        (lambda c: {"beam_energies_kev": (0.0, 0.5, 2.5)}, "must be positive and ascend; got 0, 0.5, 2.5"),
        (
            lambda c: {"beam_energies_kev": (0.5, np.nan, 2.5)},
            "must be positive and ascend; got 0.5, nan, 2.5",
        ),
    ],
)
def test_what_is_no_stack_is_refused_in_one_line(stack, tmp_path, change, message):
    right = {"counts": stack.counts, "beam_energies_kev": ENERGIES_KEV, "electrons_per_pixel": DOSE}
    np.savez(tmp_path / "a.npz", **(right | change(stack.counts)))
    with pytest.raises(ValueError, match=message) as error:
        imageio.read_stack(str(tmp_path / "a.npz"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.tif"])
@pytest.mark.parametrize(
    "content", [b"", b"no image", b"PK\x03\x04 half", b"II*\x00\x08\x00", b"\x93NUMPY\x01\x00"]
)
def test_damaged_file_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OSError, match="must be a readable") as error:
        imageio.read_stack(str(tmp_path / name), beam_energies_kev=ENERGIES_KEV, electrons_per_pixel=DOSE)
    assert "\n" not in str(error.value)


def test_cut_tiff_is_refused(stack, tmp_path):
    with imageio.whole_files(tmp_path) as folder:
        imageio.write_stack(folder, stack)
    path = tmp_path / "stack.tif"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(OSError, match="must be a readable"):
        imageio.read_stack(str(path))


def test_colour_images_and_unknown_or_missing_files_are_refused(tmp_path):
    given = {"beam_energies_kev": ENERGIES_KEV, "electrons_per_pixel": DOSE}
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((3, 5, 4, 3), np.uint8), photometric="rgb")
    with pytest.raises(OSError, match="pages must be grey images"):
        imageio.read_stack(str(tmp_path / "rgb.tif"), **given)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="must be a file .npz, .npy, .tif, .tiff; got .*a.png"):
        imageio.read_stack(str(tmp_path / "a.png"), **given)
    with pytest.raises(FileNotFoundError, match="must exist; got .*none.tif"):
        imageio.read_stack(str(tmp_path / "none.tif"), **given)


def test_volume_opens_in_imagej_as_z_slices_with_voxels_in_nm(tmp_path):
    probability = np.random.default_rng(0).random((5, 4, 3)).astype(np.float32)
    with imageio.whole_files(tmp_path) as folder:
        imageio.write_volume(folder, probability, 0.5, {"version": "1"}, threshold=0.4)
    with tifffile.TiffFile(tmp_path / "volume.tif") as file:
        assert file.is_imagej and file.series[0].axes == "ZYX"
        np.testing.assert_array_equal(file.asarray(), np.transpose(probability, (2, 0, 1)))
        assert (file.imagej_metadata["unit"], file.imagej_metadata["spacing"]) == ("nm", 0.5)
        assert file.pages[0].tags["XResolution"].value == (2, 1)
    with np.load(tmp_path / "volume.npz") as file:
        np.testing.assert_array_equal(file["probability"], probability)
        np.testing.assert_array_equal(file["is_cu"], probability > 0.4)
        assert file["is_cu"].dtype == np.uint8 and file["version"] == "1"


def test_failure_leaves_old_files_and_nothing_new(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError):
        with imageio.whole_files(tmp_path) as folder:
            for name in ("a", "b"):
                with open(os.path.join(folder, name), "w") as file:
                    file.write("new")
            raise RuntimeError
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_full_disk_is_one_line_and_leaves_nothing(stack, tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100, hard)
    )  # a write beyond it fails half-way, as on a full disk
    try:
        with pytest.raises(OSError, match="must be writable; got .*Free some space") as error:
            with imageio.whole_files(tmp_path / "new") as folder:
                imageio.write_stack(folder, stack)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("parent", ["file", "/proc"])
def test_folder_that_cannot_be_written_is_one_line(tmp_path, parent):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="must be writable; got .*choose another folder") as error:
        with imageio.whole_files(os.path.join(tmp_path, parent, "new")):
            pass
    assert "\n" not in str(error.value)


def test_whole_folder_takes_the_place_of_an_older_one(tmp_path):
    for name in ("old", "new"):
        with imageio.whole_files(tmp_path) as folder:
            os.mkdir(os.path.join(folder, "volume"))
            np.save(os.path.join(folder, "volume", name), 0)
    assert os.listdir(tmp_path) == ["volume"] and os.listdir(tmp_path / "volume") == ["new.npy"]
