"""Reconstructions in the files of other programs.

    found = reconstruct_files.reconstruct_files("stack.tif", None, "out")
    volumes.write("out", found.probability, found.voxel_nm, {"stack": "stack.tif"})

All files share the frame of `ORIENTATION`, so volumes and surfaces lie on each other. In three dimensions,
programs whose y points up show it turned about x, not mirrored; single slices they show upside down.

| format     | files                     | opens in                     | holds                              |
|------------|---------------------------|------------------------------|------------------------------------|
| `ome-tiff` | `volume.ome.tif`          | Fiji, napari, OMERO          | both, as two images; no origin     |
| `ome-zarr` | `volume.ome.zarr/`        | napari, Fiji, neuroglancer   | both, `is_cu` as labels            |
| `mrc`      | `volume.mrc`, `is_cu.mrc` | ChimeraX, IMOD, Dragonfly    | one each; lengths in angstrom      |
| `hdf5`     | `volume.h5`               | HyperSpy, silx, MATLAB       | both, as NeXus; axes with units    |
| `vti`      | `volume.vti`              | ParaView, PyVista, 3D Slicer | both, as cells                     |
| `stl`      | `surface_nm.stl`          | CAD, meshing                 | surface of Cu, no `about`          |
| `ply`      | `surface_nm.ply`          | MeshLab, Blender             | surface of Cu                      |

Both: the probability of Cu, float32, and `is_cu`, uint8, 1 where that exceeds the threshold. In HyperSpy:
`hs.load("volume.h5", reader="nexus", nxdata_only=True)`. `requirements-io.txt` has the packages.
"""

import importlib.util
import json
import os
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile

from bsevox_jax import imageio

ORIENTATION = (
    "x to the right of the images, y down the images, z depth below the surface (right-handed); lengths in "
    "nm, from the outer corner of the first voxel: its centre is half a voxel away along each axis"
)
_CHUNK = 64  # voxels along each axis: 1 MiB


def write(
    folder: str,
    probability: np.ndarray,
    voxel_nm: float,
    about: dict,
    *,
    formats: Sequence[str] = ("ome-tiff", "ome-zarr", "mrc", "hdf5", "vti", "stl", "ply"),
    threshold: float = 0.5,
) -> None:
    """Writes a reconstruction; see the module for the files. Those of the same name are replaced.

    Args:
        folder: of the files, made if missing.
        probability: of Cu, [y, x, z].
        voxel_nm: edge of a voxel.
        about: what JSON can hold, for instance checkpoint, assumptions and version.
        formats: of the module.
        threshold: probability above which a voxel is labelled Cu, and at which its surface lies.

    Raises:
        OSError: the files cannot be written; nothing is left behind.
        ValueError: an argument is impossible, or a package is missing; one line.
    """
    check(formats)
    probability, voxel_nm = imageio.check_probability(probability, voxel_nm, threshold), float(voxel_nm)
    facts = {
        "quantity": "probability of Cu",
        "axes": ORIENTATION,
        "voxel_nm": voxel_nm,
        "threshold": threshold,
    }
    text = imageio.json_text(facts | {"about": about})
    with imageio.whole_files(folder) as temporary:
        for name in dict.fromkeys(formats):
            FORMATS[name][1](temporary, probability, voxel_nm, threshold, text)


def check(formats: Sequence[str]) -> None:
    """Raises ValueError, in one line, unless all formats are known and what they need is installed."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"formats must be among {', '.join(FORMATS)}; got {name!r}. Correct it.")
        if (package := FORMATS[name][0]) and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{name} needs {package}; got none. Run pip install -r requirements-io.txt, or leave it out."
            )


def surface(
    probability: np.ndarray, voxel_nm: float, threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """The closed surface of Cu, by marching cubes (Lewiner et al. 2003, J. Graphics Tools 8, 1).

    Beyond the block lies no Cu: what a side of it cuts is closed there, exactly in the side where the
    probability is 1 and the threshold 0.5, within half a voxel of it elsewhere.

    Args:
        probability: of Cu, [y, x, z].
        voxel_nm: edge of a voxel.
        threshold: between 0 and 1.

    Returns:
        Corners (x, y, z) in nm, float32 [corner, 3], and triangles, int32 [triangle, 3], counter-clockwise as
        seen from outside. Both are empty where there is no Cu.

    Raises:
        ValueError: an argument is impossible; one line.
    """
    from skimage import measure

    probability = imageio.check_probability(probability, voxel_nm, threshold)
    if probability.max() <= threshold:
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)
    padded = np.pad(np.swapaxes(probability, 0, 1), 1)
    corners, triangles, _, _ = measure.marching_cubes(
        padded, threshold, gradient_direction="ascent", allow_degenerate=False
    )
    return ((corners - 0.5) * voxel_nm).astype(np.float32), triangles.astype(np.int32)  # 1 of the padding


def _zyx(volume):
    """[y, x, z] as all formats of volumes want it: slices [z, y, x], whose x is contiguous."""
    return np.ascontiguousarray(np.moveaxis(volume, -1, 0))


def _is_cu(probability, threshold):
    return (probability > threshold).astype(np.uint8)


def _write_ome_tiff(folder, probability, voxel_nm, threshold, text):
    large = probability.size * 5 > 2**31  # bytes; classic TIFF ends at 4 GiB
    images = {"probability": probability, "is_cu": _is_cu(probability, threshold)}
    scale = {f"PhysicalSize{axis}": voxel_nm for axis in "XYZ"}
    scale |= {f"PhysicalSize{axis}Unit": "nm" for axis in "XYZ"}
    with tifffile.TiffWriter(os.path.join(folder, "volume.ome.tif"), ome=True, bigtiff=large) as file:
        for name, volume in images.items():
            metadata = {"axes": "ZYX", "Name": name, "Description": text} | scale
            file.write(_zyx(volume), photometric="minisblack", metadata=metadata)


def _write_ome_zarr(folder, probability, voxel_nm, threshold, text):
    """Version 0.5, https://ngff.openmicroscopy.org/0.5/, at one resolution."""
    import zarr

    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    place = [
        {"type": "scale", "scale": [voxel_nm] * 3},
        {"type": "translation", "translation": [voxel_nm / 2] * 3},  # of the centre of the first voxel
    ]

    def add(group, name, volume, **more):
        datasets = [{"path": "0", "coordinateTransformations": place}]
        multiscales = [{"name": name, "axes": axes, "datasets": datasets}]
        group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales} | more
        chunks = tuple(min(_CHUNK, size) for size in volume.shape)
        group.create_array("0", data=volume, chunks=chunks, dimension_names=("z", "y", "x"))

    root = zarr.create_group(os.path.join(folder, "volume.ome.zarr"), zarr_format=3)
    add(root, "probability", _zyx(probability))
    root.attrs["bsevox_jax"] = json.loads(text)
    labels = root.create_group("labels", attributes={"ome": {"version": "0.5", "labels": ["is_cu"]}})
    colours = [{"label-value": 1, "rgba": [184, 115, 51, 255]}]  # copper
    image_label = {"colors": colours, "source": {"image": "../../"}}
    add(
        labels.create_group("is_cu"),
        "is_cu",
        _zyx(_is_cu(probability, threshold)),
        **{"image-label": image_label},
    )


def _write_mrc(folder, probability, voxel_nm, threshold, text):
    """MRC2014 (Cheng et al. 2015, J. Struct. Biol. 192, 146): modes 2 and 0.

    The text is an extended header of a type that the standard does not list, which readers skip.
    """
    import mrcfile

    volumes = {"volume": probability, "is_cu": _is_cu(probability, threshold).astype(np.int8)}
    for name, volume in volumes.items():
        with mrcfile.new(os.path.join(folder, f"{name}.mrc")) as file:
            file.set_data(_zyx(volume))
            file.set_extended_header(np.frombuffer(text.encode(), "V1"))
            file.header.exttyp = b"JSON"
            file.voxel_size = 10 * voxel_nm  # angstrom
            file.header.origin = (5 * voxel_nm,) * 3  # of the centre of the first voxel
            file.add_label("Cu in [z, y, x]: x right, y down, z depth; JSON in the extended header")


def _write_hdf5(folder, probability, voxel_nm, threshold, text):
    """NeXus NXdata, https://manual.nexusformat.org/classes/base_classes/NXdata.html."""
    import h5py

    # Made in memory, since h5py 3.16 does not survive that a disk is full.
    with h5py.File("volume.h5", "w", driver="core", backing_store=False) as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs.update({"NX_class": "NXentry", "default": "probability"})
        entry["title"] = "Probability of Cu below the surface"
        entry["about"] = text
        volumes = {"probability": probability, "is_cu": _is_cu(probability, threshold)}
        for name, volume in volumes.items():
            group = entry.create_group(name)
            group.attrs.update({"NX_class": "NXdata", "signal": name, "axes": ["z", "y", "x"]})
            data = group.create_dataset(name, data=_zyx(volume), compression="gzip", shuffle=True)
            data.attrs.update({"units": "", "long_name": f"{name} of [z, y, x]"})
            for axis, size in zip("zyx", data.shape, strict=True):
                centres = group.create_dataset(axis, data=(np.arange(size) + 0.5) * voxel_nm)
                centres.attrs.update({"units": "nm", "long_name": f"{axis}, see about"})
        file.flush()
        image = file.id.get_file_image()
    with open(os.path.join(folder, "volume.h5"), "wb") as file:
        file.write(image)


def _write_vti(folder, probability, voxel_nm, threshold, text):
    """https://docs.vtk.org/en/latest/vtk_file_formats/vtkxml_file_format.html, XML with raw data behind."""
    arrays = {"probability": _zyx(probability), "is_cu": _zyx(_is_cu(probability, threshold))}
    extent = "0 {2} 0 {1} 0 {0}".format(*arrays["probability"].shape)  # cells
    types = {"float32": "Float32", "uint8": "UInt8"}
    cells, offset = "", 0
    for name, array in arrays.items():
        cells += (
            f'<DataArray Name="{name}" type="{types[array.dtype.name]}" format="appended" offset="{offset}"/>'
        )
        offset += 8 + array.nbytes  # behind the number of bytes
    strings = {"about": text, "length_unit": "nm"}
    fields = "".join(
        f"<Array Name={quoteattr(name)} type='String' NumberOfTuples='1' format='ascii'>"
        f"{' '.join(map(str, value.encode() + bytes(1)))}</Array>"
        for name, value in strings.items()
    )
    head = (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="ImageData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        f'<ImageData WholeExtent="{extent}" Origin="0 0 0" Spacing="{voxel_nm} {voxel_nm} {voxel_nm}">\n'
        f"<FieldData>{fields}</FieldData>\n"
        f'<Piece Extent="{extent}"><CellData Scalars="probability">{cells}</CellData></Piece>\n'
        '</ImageData>\n<AppendedData encoding="raw">_'
    )
    with open(os.path.join(folder, "volume.vti"), "wb") as file:
        file.write(head.encode())
        for array in arrays.values():
            file.write(np.array(array.nbytes, "<u8").tobytes())
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        file.write(b"</AppendedData>\n</VTKFile>\n")


def _write_stl(folder, probability, voxel_nm, threshold, _):
    corners, triangles = surface(probability, voxel_nm, threshold)
    facets = np.zeros(
        len(triangles), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
    )
    facets["corners"] = corners[triangles]
    a, b, c = np.moveaxis(facets["corners"].astype(np.float64), 1, 0)
    normal = np.cross(b - a, c - a)
    facets["normal"] = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    head = b"binary; surface of Cu in nm, x right, y down, z depth, from the outer corner"
    with open(os.path.join(folder, "surface_nm.stl"), "wb") as file:
        file.write(head.ljust(80) + np.array(len(facets), "<u4").tobytes() + facets.tobytes())


def _write_ply(folder, probability, voxel_nm, threshold, text):
    corners, triangles = surface(probability, voxel_nm, threshold)
    faces = np.zeros(len(triangles), [("number", "u1"), ("corners", "<i4", 3)])
    faces["number"], faces["corners"] = 3, triangles
    head = (
        "ply\nformat binary_little_endian 1.0\n"
        f"comment surface of Cu, lengths in nm\ncomment {text}\n"
        f"element vertex {len(corners)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    with open(os.path.join(folder, "surface_nm.ply"), "wb") as file:
        file.write(head.encode() + corners.astype("<f4").tobytes() + faces.tobytes())


FORMATS = {  # name -> package that it needs beyond the requirements, writer
    "ome-tiff": (None, _write_ome_tiff),
    "ome-zarr": ("zarr", _write_ome_zarr),
    "mrc": ("mrcfile", _write_mrc),
    "hdf5": ("h5py", _write_hdf5),
    "vti": (None, _write_vti),
    "stl": ("skimage", _write_stl),
    "ply": ("skimage", _write_ply),
}
