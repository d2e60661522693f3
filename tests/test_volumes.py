"""Every format is read back by its own library, or, where that is large (VTK), by its specification."""

import io
import json
import os
import sys
import xml.etree.ElementTree

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import trimesh
import zarr
from rsciio import nexus

from bsevox_jax import volumes

VOXEL_NM = 0.5
ABOUT = {"checkpoint_sha256": "ab12", "assumptions": ["no drift", 'µ < 1 & "quoted"'], "version": "1"}
NAMES = ["is_cu.mrc", "surface_nm.ply", "surface_nm.stl", "volume.h5", "volume.mrc", "volume.ome.tif",
         "volume.ome.zarr", "volume.vti"]  # fmt: skip


@pytest.fixture(scope="module")
def probability():
    return np.random.default_rng(0).random((5, 4, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(probability, tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes") / "new" / "folder"
    volumes.write(folder, probability, VOXEL_NM, ABOUT)
    return folder


def assert_holds(read_zyx, volume_yxz):
    np.testing.assert_array_equal(read_zyx, np.transpose(volume_yxz, (2, 0, 1)))


def assert_tells(text):
    told = json.loads(text)
    assert told["about"] == ABOUT and (told["voxel_nm"], told["threshold"]) == (VOXEL_NM, 0.5)
    assert told["axes"] == volumes.ORIENTATION


def test_ome_tiff_comes_back_at_scale(folder, probability):
    with tifffile.TiffFile(folder / "volume.ome.tif") as file:
        assert file.is_ome and [series.name for series in file.series] == ["probability", "is_cu"]
        assert {series.axes for series in file.series} == {"ZYX"}
        assert_holds(file.series[0].asarray(), probability)
        assert_holds(file.series[1].asarray(), probability > 0.5)
        assert [series.dtype.name for series in file.series] == ["float32", "uint8"]
        images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    for image in images:
        assert {image["Pixels"][f"PhysicalSize{axis}"] for axis in "XYZ"} == {VOXEL_NM}
        assert {image["Pixels"][f"PhysicalSize{axis}Unit"] for axis in "XYZ"} == {"nm"}
        assert_tells(image["Description"])


def test_ome_zarr_comes_back_at_scale_and_place_with_its_labels(folder, probability):
    root = zarr.open_group(folder / "volume.ome.zarr", mode="r")
    assert root.attrs["bsevox_jax"]["about"] == ABOUT
    assert root["labels"].attrs["ome"]["labels"] == ["is_cu"]
    assert_holds(root["0"][:], probability)
    assert_holds(root["labels/is_cu/0"][:], probability > 0.5)
    assert root["labels/is_cu/0"].dtype == np.uint8
    for group in (root, root["labels/is_cu"]):
        assert group.attrs["ome"]["version"] == "0.5"
        (image,) = group.attrs["ome"]["multiscales"]
        assert [(axis["name"], axis["unit"]) for axis in image["axes"]] == [(a, "nanometer") for a in "zyx"]
        scale, translation = image["datasets"][0]["coordinateTransformations"]
        assert scale["scale"] == [VOXEL_NM] * 3 and translation["translation"] == [VOXEL_NM / 2] * 3


def test_mrc_comes_back_in_angstrom(folder, probability):
    for name, volume in (("volume", probability), ("is_cu", probability > 0.5)):
        complaints = io.StringIO()
        mrcfile.validate(folder / f"{name}.mrc", print_file=complaints)
        assert complaints.getvalue().splitlines()[1:] == [
            "Extended header type is undefined or unrecognised: exttyp = 'JSON'"
        ]
        with mrcfile.open(folder / f"{name}.mrc") as file:
            assert_holds(file.data, volume)
            assert file.voxel_size.tolist() == (5, 5, 5) and file.header.origin.tolist() == (2.5, 2.5, 2.5)
            assert_tells(file.extended_header.tobytes())
            assert "z depth" in file.get_labels()[1]


def test_hdf5_says_what_it_holds_and_hyperspy_reads_it(folder, probability):
    with h5py.File(folder / "volume.h5") as file:
        entry = file[file.attrs["default"]]
        assert_tells(entry["about"][()])
        for name, volume in (("probability", probability), ("is_cu", probability > 0.5)):
            group = entry[name]
            assert group.attrs["NX_class"] == "NXdata"
            assert_holds(group[group.attrs["signal"]][:], volume)
            for axis, size in zip(group.attrs["axes"], group[name].shape, strict=True):
                np.testing.assert_array_equal(group[axis], (np.arange(size) + 0.5) * VOXEL_NM)
                assert group[axis].attrs["units"] == "nm"
    signals = nexus.file_reader(folder / "volume.h5", nxdata_only=True)
    signals = {signal["metadata"]["General"]["title"]: signal for signal in signals}
    assert_holds(signals["probability"]["data"], probability)
    assert_holds(signals["is_cu"]["data"], probability > 0.5)
    for axis in signals["probability"]["axes"]:
        assert (axis["scale"], axis["offset"], axis["units"]) == (VOXEL_NM, VOXEL_NM / 2, "nm"), axis


def test_vti_comes_back_as_cells(folder, probability):
    xml_part, _, raw = (folder / "volume.vti").read_bytes().partition(b'<AppendedData encoding="raw">_')
    root = xml.etree.ElementTree.fromstring(xml_part + b"</VTKFile>")
    assert (root.get("type"), root.get("byte_order"), root.get("header_type")) == (
        "ImageData", "LittleEndian", "UInt64")  # fmt: skip
    image = root.find("ImageData")
    assert (image.get("WholeExtent"), image.get("Spacing")) == ("0 4 0 5 0 3", "0.5 0.5 0.5")
    assert image.find("Piece").get("Extent") == image.get("WholeExtent") and image.get("Origin") == "0 0 0"
    types, volumes_yxz = {"Float32": "<f4", "UInt8": "u1"}, [probability, probability > 0.5]
    for array, volume in zip(image.iterfind("Piece/CellData/DataArray"), volumes_yxz, strict=True):
        start, dtype = int(array.get("offset")), np.dtype(types[array.get("type")])
        size = int(np.frombuffer(raw, "<u8", 1, start)[0])
        assert_holds(np.frombuffer(raw, dtype, size // dtype.itemsize, start + 8).reshape(3, 5, 4), volume)
    codes = {array.get("Name"): array.text.split() for array in image.iterfind("FieldData/Array")}
    about, unit = (bytes(map(int, codes[name])).rstrip(b"\0") for name in ("about", "length_unit"))
    assert_tells(about)
    assert unit == b"nm"


@pytest.mark.parametrize("name", ["surface_nm.stl", "surface_nm.ply"])
def test_mesh_file_comes_back_closed(folder, probability, name):
    corners, triangles = volumes.surface(probability, VOXEL_NM)
    mesh = trimesh.load_mesh(folder / name)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert len(mesh.faces) == len(triangles)
    np.testing.assert_allclose(mesh.triangles, corners[triangles], atol=1e-6)
    if name.endswith("ply"):
        comment = (folder / name).read_bytes().split(b"\ncomment ")[2].split(b"\nelement")[0]
        assert_tells(comment)


def enclosed_nm3(corners, triangles):
    """Volume by the divergence theorem, positive if all normals point outwards."""
    a, b, c = np.moveaxis(corners[triangles].astype(np.float64), 1, 0)
    return (a * np.cross(b, c)).sum() / 6


def assert_closed(triangles):
    """Every edge belongs to two triangles, once in each direction."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    there, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 1).all()
    np.testing.assert_array_equal(there, np.unique(edges[:, ::-1], axis=0))


def test_cube_has_the_volume_of_a_cube_without_its_edges():
    """Marching cubes makes of it the sum of a cube between voxel centres and an octahedron."""
    block = np.zeros((14, 13, 12))
    block[1:11, 2:12, 0:10] = 1  # cut by the surface
    corners, triangles = volumes.surface(block, VOXEL_NM)
    assert_closed(triangles)
    voxels = 9**3 + 6 * 9**2 / 2 + 12 * 9 / 8 + 1 / 6
    assert enclosed_nm3(corners, triangles) == pytest.approx(voxels * VOXEL_NM**3, rel=1e-5)
    np.testing.assert_array_equal(corners.min(0), np.multiply((2, 1, 0), VOXEL_NM))
    np.testing.assert_array_equal(corners.max(0), np.multiply((12, 11, 10), VOXEL_NM))


def test_ball_has_the_volume_of_a_ball_and_lies_where_it_is():
    centre_nm, radius_nm = np.array([6.2, 5.1, 4.7]), 3.9  # x, y, z
    y, x, z = np.indices((22, 26, 20)) * VOXEL_NM + VOXEL_NM / 2
    distance = np.sqrt((x - centre_nm[0]) ** 2 + (y - centre_nm[1]) ** 2 + (z - centre_nm[2]) ** 2)
    ball = np.clip(0.5 + (radius_nm - distance) / 2, 0, 1)  # 0.5 at the radius
    corners, triangles = volumes.surface(ball, VOXEL_NM)
    assert_closed(triangles)
    assert enclosed_nm3(corners, triangles) == pytest.approx(4 / 3 * np.pi * radius_nm**3, rel=0.01)
    np.testing.assert_allclose(np.linalg.norm(corners - centre_nm, axis=1), radius_nm, atol=0.02)


def test_volume_without_cu_has_files_with_an_empty_surface(tmp_path):
    volumes.write(tmp_path, np.zeros((3, 4, 5)), 1.0, {})
    assert sorted(os.listdir(tmp_path)) == NAMES
    assert (tmp_path / "surface_nm.stl").stat().st_size == 84
    assert b"element face 0\n" in (tmp_path / "surface_nm.ply").read_bytes()


def test_writing_again_replaces_files_and_folders(tmp_path):
    for value in (0.25, 0.75):
        volumes.write(tmp_path, np.full((2, 2, 2), value), 1.0, {}, formats=("ome-zarr", "mrc"))
    assert sorted(os.listdir(tmp_path)) == ["is_cu.mrc", "volume.mrc", "volume.ome.zarr"]
    assert (zarr.open_group(tmp_path / "volume.ome.zarr")["0"][:] == 0.75).all()


def test_full_disk_leaves_the_old_files(tmp_path, smallest_files):
    volumes.write(tmp_path, np.full((2, 2, 2), 0.25), 1.0, {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    noise = np.random.default_rng(0).random((32, 32, 32))
    for name in ("ome-tiff", "ome-zarr", "mrc", "hdf5", "vti", "stl", "ply"):
        with smallest_files(20_000), pytest.raises(OSError, match="files must be writable") as error:
            volumes.write(tmp_path, noise, 1.0, {}, formats=(name,))
        assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"formats": ("vti", "raw")}, "formats must be among ome-tiff, .*; got 'raw'"),
        ({"probability": np.zeros((2, 2))}, r"probability must be numbers \[y, x, z\]; got float64 of shape"),
        ({"probability": np.full((2, 2, 2), np.nan)}, "from 0 to 1; got nan to nan"),
        ({"probability": np.full((2, 2, 2), 1.5)}, "from 0 to 1; got 1.5 to 1.5"),
        ({"voxel_nm": 0}, "voxel_nm must be positive; got 0"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1; got 1.0"),
        ({"about": {"weights": np.zeros(3)}}, "must fit into JSON; got .*ndarray"),
        ({"about": {"loss": float("nan")}}, "must fit into JSON; got .*JSON compliant"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(tmp_path, change, message):
    right = {"probability": np.zeros((2, 2, 2)), "voxel_nm": 1.0, "about": {}}
    with pytest.raises(ValueError, match=message) as error:
        volumes.write(tmp_path / "new", **(right | change))
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def test_missing_package_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mrcfile", None)
    with pytest.raises(ValueError, match="mrc needs mrcfile; got none. Run pip install -r requirements-io"):
        volumes.write(tmp_path, np.zeros((2, 2, 2)), 1.0, {}, formats=("vti", "mrc"))
    assert not os.listdir(tmp_path)
