"""What Nebula and common sense ask of its files, checked without the code that writes them."""

import re

import h5py
import numpy as np

MIRROR, VACUUM, DETECTOR, TERMINATOR = -122, -123, -124, -127
TOP_NM = 5.0  # of the specimen
RECORD = np.dtype(
    {"names": ["x", "y", "z", "dx", "dy", "dz", "E", "px", "py"], "formats": ["f4"] * 7 + ["i4"] * 2}
)


def read_triangles(path) -> tuple[np.ndarray, np.ndarray]:
    """Materials (inside, outside) [n, 2] and corners [n, 3, 3] of a `.tri` file."""
    with open(path, "rb") as file:
        content = file.read().decode("ascii")
    assert "\r" not in content, "a line with a carriage return is fatal"
    materials, corners = [], []
    for line in content.split("\n"):
        if not line or line.lstrip(" \t").startswith("#"):
            continue
        columns = line.split()
        assert len(columns) == 11, f"11 columns, not {line!r}"
        materials.append([int(column) for column in columns[:2]])
        corners.append(np.reshape([float(column) for column in columns[2:]], (3, 3)))
    return np.array(materials), np.array(corners)


def normals(corners):
    """Twice the area, along the normal, [n, 3]."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def hits(corners, start, way):
    """Distances along a ray at which it passes the triangles, inf where it does not, [n]."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = np.cross(way, second)
    determinant = (first * across).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = start - corners[:, 0]
        u = (offset * across).sum(1) / determinant
        turned = np.cross(offset, first)
        v = (turned @ way) / determinant
        distance = (second * turned).sum(1) / determinant
        inside = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0) & (determinant != 0)
    return np.where(inside, distance, np.inf)


def walk(materials, corners, start, way, material):
    """Materials met along a ray, [(distance, material), ...], from `material` on; every side must fit."""
    distances = hits(corners, start, way)
    met = [(0.0, material)]
    for number in np.argsort(distances):
        if distances[number] == np.inf:
            break
        inside, outside = materials[number]
        towards_outside = normals(corners[number : number + 1])[0] @ way > 0
        before, after = (inside, outside) if towards_outside else (outside, inside)
        if before != after:  # detectors, mirrors and terminators have one side only
            assert before == met[-1][1], f"a face says {before} where the ray is in {met[-1][1]}"
            met.append((distances[number], after))
    return met


def voxelise(materials, corners, voxel_nm=1.0) -> np.ndarray:
    """Labels [y, x, z] of the box, met on rays from the detector down through the middles of the voxels."""
    size = corners.reshape(-1, 3).max(0)
    nx, ny = (round(length / voxel_nm) for length in size[:2])
    nz = round((size[2] - 1 - TOP_NM) / voxel_nm)
    labels = np.zeros((ny, nx, nz), np.uint8)
    middles = TOP_NM + (np.arange(nz) + 0.5) * voxel_nm
    for y, x in np.ndindex(ny, nx):
        # Not exactly the middle, where the diagonals of rectangles pass.
        start = np.array([(x + 0.503) * voxel_nm, (y + 0.4968) * voxel_nm, 1e-6])
        met = walk(materials, corners, start, np.array([0.0, 0.0, 1.0]), VACUUM)
        distance, found = zip(*met, strict=True)
        at = np.array(found)[np.searchsorted(distance, middles - 1e-6) - 1]
        labels[y, x] = np.where(at == VACUUM, 0, at + 1)
    return labels


def check_geometry(path, labels, voxel_nm=1.0, rays=100, seed=0):
    """The rules of a geometry file of a block of labels [y, x, z]."""
    materials, corners = read_triangles(path)
    ny, nx, nz = labels.shape
    size = np.array([nx, ny, nz]) * voxel_nm
    box = np.array([*size[:2], size[2] + TOP_NM + 1])
    np.testing.assert_allclose(corners.reshape(-1, 3).min(0), 0, atol=1e-9)
    np.testing.assert_allclose(corners.reshape(-1, 3).max(0), box, rtol=1e-6)
    special = (materials < 0) & (materials != VACUUM)
    assert (special.all(1) | ~special.any(1)).all()
    assert set(materials[special]) == {MIRROR, DETECTOR, TERMINATOR}
    assert materials[~special].max(initial=0) < max(1, labels.max())

    _check_box(materials[special[:, 0]][:, 0], corners[special[:, 0]], box)
    check_shapes(corners)
    faces = ~special[:, 0]
    grid = (corners[faces] - [0, 0, TOP_NM]) / voxel_nm
    np.testing.assert_allclose(grid, np.round(grid), atol=1e-4)
    grid = np.round(grid).astype(int)
    assert not _on_wall(grid, (nx, ny)).any(), "a face lies on a mirror"
    check_no_overlap(grid)
    for label in range(1, int(labels.max()) + 1):
        _check_closed(materials[faces], grid, label - 1, labels == label)
    np.testing.assert_array_equal(voxelise(materials, corners, voxel_nm), labels)
    _check_rays(materials, corners, labels, voxel_nm, rays, np.random.default_rng(seed))


def check_shapes(corners):
    lengths = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    legs = np.sort(lengths, axis=1)
    assert (legs[:, 0] > 0).all()
    assert (legs[:, 1] / legs[:, 0] < 8.01).all(), "a triangle is long and thin"
    area = np.linalg.norm(normals(corners), axis=1) / 2
    np.testing.assert_allclose(area, legs[:, 0] * legs[:, 1] / 2, rtol=1e-9)  # right-angled


def _check_box(ids, corners, box):
    """Detector, terminator and mirrors each cover their sides."""
    for axis, name in enumerate("xyz"):
        for at, wanted in ((0.0, DETECTOR if name == "z" else MIRROR),
                           (box[axis], TERMINATOR if name == "z" else MIRROR)):  # fmt: skip
            there = np.isclose(corners[:, :, axis], at).all(1) & (ids == wanted)
            area = np.linalg.norm(normals(corners[there]), axis=1).sum() / 2
            np.testing.assert_allclose(area, np.prod(np.delete(box, axis)), rtol=1e-6)


def _on_wall(grid, sides):
    """Whether all corners of a triangle lie on one and the same wall."""
    walls = [grid[..., axis] == at for axis, side in enumerate(sides) for at in (0, side)]
    return np.stack(walls).all(-1).any(0)


def check_no_overlap(grid):
    """No point of a plane lies in two triangles."""
    random = np.random.default_rng(0)
    vectors = normals(grid.astype(float))
    for axis in range(3):
        along = np.abs(vectors[:, axis]) > 0
        for plane in np.unique(grid[along][:, 0, axis]):
            flat = np.delete(grid[along & (grid[:, 0, axis] == plane)], axis, axis=2).astype(float)
            points = random.uniform(flat.min((0, 1)), flat.max((0, 1)), (300, 2))
            edges = np.roll(flat, -1, axis=1) - flat
            offset = points[:, None, None] - flat
            side = edges[..., 0] * offset[..., 1] - edges[..., 1] * offset[..., 0]
            inside = (side > 0).all(-1) | (side < 0).all(-1)
            assert inside.sum(1).max(initial=0) <= 1, "triangles overlap"


def _check_closed(materials, grid, material, voxels):
    """The faces of a material close around its voxels, but for the walls."""
    ny, nx, nz = voxels.shape
    out = materials[:, 1] == material
    mine = grid[(materials == material).any(1)].copy()
    flip = out[(materials == material).any(1)]
    mine[flip] = mine[flip][:, ::-1]  # all normals now point out of the material
    vectors = normals(mine.astype(float)) / 2
    walls = (nx * voxels[:, -1].sum(), ny * voxels[-1].sum(), 0)  # flux through the far walls
    for axis in range(3):  # divergence theorem with the field (x, 0, 0) and its like
        volume = (vectors[:, axis] * mine[:, 0, axis]).sum() + walls[axis]
        assert volume == voxels.sum(), f"{volume} voxels of {voxels.sum()} are enclosed along axis {axis}"

    balance = {}
    for corners in mine:
        for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            steps = max(abs(b - a)) if (a == b).sum() == 2 else 1  # a diagonal only meets its equal
            for k in range(steps):
                ends = tuple(a + (b - a) * k // steps), tuple(a + (b - a) * (k + 1) // steps)
                key = min(ends), max(ends)
                balance[key] = balance.get(key, 0) + (1 if ends[0] < ends[1] else -1)
    for ends, sum_of_turns in balance.items():
        if sum_of_turns:
            assert _on_wall(np.array(ends), (nx, ny)), f"an edge is open at {ends}"


def _check_rays(materials, corners, labels, voxel_nm, rays, random):
    """On oblique rays from anywhere the materials are those of the voxels passed."""
    ny, nx, nz = labels.shape
    size = np.array([nx, ny, nz]) * voxel_nm
    ids = np.where(labels > 0, labels.astype(int) - 1, VACUUM)

    def at(point):
        x, y, z = np.floor((point - [0, 0, TOP_NM]) / voxel_nm).astype(int)
        return ids[min(y, ny - 1), min(x, nx - 1), z] if 0 <= z < nz else VACUUM

    for _ in range(rays):
        start = random.uniform(0, 1, 3) * size + [0, 0, TOP_NM]
        way = random.normal(size=3)
        way /= np.linalg.norm(way)
        met = walk(materials, corners, start, way, at(start))
        ends = hits(corners, start, way)[(materials < VACUUM).any(1) | (materials == MIRROR).any(1)]
        distances = [distance for distance, _ in met] + [ends.min()]
        for (_, material), a, b in zip(met, distances[:-1], distances[1:], strict=True):
            if b - a > 1e-6:
                assert at(start + way * (a + b) / 2) == material


def check_electrons(path, labels, energies_kev, electrons_per_pixel, voxel_nm=1.0):
    """The rules of a file of primaries of a block of labels."""
    electrons = np.fromfile(path, RECORD)
    ny, nx, _ = labels.shape
    shape = (ny * nx, len(energies_kev))
    with open(path, "rb") as file:
        assert len(file.read()) == 36 * np.prod(shape) * electrons_per_pixel
    for name, length in (("x", nx), ("y", ny)):
        assert ((electrons[name] > 0) & (electrons[name] < length * voxel_nm)).all()
    assert ((electrons["z"] > 0) & (electrons["z"] < TOP_NM)).all(), "primaries start in the vacuum above"
    way = np.stack([electrons[name] for name in ("dx", "dy", "dz")])
    np.testing.assert_allclose(np.linalg.norm(way, axis=0), 1, rtol=1e-5)
    assert (way[2] > 0).all()
    np.testing.assert_allclose(electrons["E"], 1000 * np.array(energies_kev)[electrons["py"]], rtol=1e-6)
    counts = np.zeros(shape, int)
    np.add.at(counts, (electrons["px"], electrons["py"]), 1)
    assert (counts == electrons_per_pixel).all()
    return electrons


SCALES = {  # dataset: scales of its first axes
    "/kieft/elastic/imfp": ("/kieft/elastic/energy",),
    "/kieft/elastic/costheta_icdf": ("/kieft/elastic/energy", None),
    "/full_penn/imfp": ("/full_penn/energy",),
    "/full_penn/omega_icdf": ("/full_penn/energy", None),
    "/full_penn/q_icdf": ("/full_penn/energy", None, None),
    "/ionization/binding_icdf": ("/ionization/energy", "/ionization/loss_frac", None),
}
UNITS = {"imfp": "nm^-1", "costheta_icdf": "", "omega_icdf": "eV", "q_icdf": "nm^-1", "binding_icdf": "eV"}


def check_material(path):
    """The rules of a material file for the default build."""
    with h5py.File(path) as file:
        for name in ("name", "cstool_version"):
            _check_string(file.attrs.get_id(name).dtype)
        for name, unit in (("fermi", "eV"), ("barrier", "eV"), ("phonon_loss", "eV"), ("effective_A", "g")):
            value = file.attrs[name]
            assert value.dtype.names == ("value", "unit") and value.dtype["value"] == np.float64
            _check_string(value.dtype["unit"])
            assert value["unit"] == unit.encode()
        for name, scales in SCALES.items():
            _check_table(file, name, scales)
        fermi_ev = float(file.attrs["fermi"]["value"])
        losses, k_ev = file["/full_penn/omega_icdf"][()], file["/full_penn/energy"][()]
        assert (losses > 0).all() and (np.diff(losses) >= 0).all() and k_ev[0] > fermi_ev
        assert (losses <= (k_ev - fermi_ev)[:, None]).all()
        angles = file["/kieft/elastic/costheta_icdf"][()]
        assert (np.diff(angles) >= 0).all() and angles.min() >= -1 and angles.max() <= 1
        momenta = file["/full_penn/q_icdf"][()]
        assert momenta.shape[2] >= 512 and (momenta >= 0).all() and (np.diff(momenta) >= -1e-4).all()
        bindings = file["/ionization/binding_icdf"][()]
        assert (bindings >= 0).all() and (np.diff(bindings) >= 0).all()


def _check_string(kind):
    about = h5py.check_string_dtype(kind)
    assert about.length is None, "a string of fixed length crashes Nebula"
    assert about.encoding == "ascii", "a string of UTF-8 in a compound is not read"


def _check_table(file, name, scales):
    data = file[name]
    assert data.ndim == len(scales) and np.isfinite(data[()]).all()
    _check_string(data.attrs.get_id("units").dtype)
    assert data.attrs["units"] == UNITS[name.rsplit("/", 1)[1]]
    for axis, scale in enumerate(scales):
        if scale is None:
            assert len(data.dims[axis]) == 0
            continue
        (attached,) = data.dims[axis].values()
        assert attached.name == scale and len(attached) == data.shape[axis]
        assert attached.dtype == np.float64, "Nebula refuses the rounding of other scales"
        assert re.fullmatch("|eV", attached.attrs["units"])
        values = attached[()]
        even = values[0] * (values[-1] / values[0]) ** (np.arange(len(values)) / (len(values) - 1))
        np.testing.assert_allclose(values, even, rtol=0, atol=1.1e-6)
