"""The electrons that Nebula takes (`.pri`) and returns: one record of 36 bytes, nm and eV, native byte order.

The tags of a record pass to all descendants of a primary: `px` holds the pixel y * nx + x, `py` the index of
the beam energy.
"""

import os

import numpy as np

from bsevox_jax.sim.files import whole_file
from bsevox_jax.sim.instrument import FWHM_PER_SIGMA, Instrument, accepts, beam_direction, check_instrument
from bsevox_jax.sim.nebula.geometry import GAP_ABOVE_NM
from bsevox_jax.sim.specimen import Specimen
from bsevox_jax.sim.transport import Electron

RECORD = np.dtype(
    [(name, "=f4") for name in ("x", "y", "z", "dx", "dy", "dz", "E")] + [("px", "=i4"), ("py", "=i4")]
)
START_NM = 2.0  # z of the primaries, in the vacuum between detector and specimen
MARGIN = 1e-4  # voxels kept from the mirrors, where a start would be unsafe


def primaries(
    specimen: Specimen,
    *,
    electrons_per_pixel: int,
    beam_energies_kev,
    instrument: Instrument = Instrument(),  # noqa: B008, frozen
    seed: int = 0,
    specimen_id: int = 0,
) -> np.ndarray:
    """Primary electrons of all energies and pixels of one specimen.

    Args:
        specimen: labels [y, x, z]; only its size is used.
        electrons_per_pixel: primaries per pixel and energy, uniform over the pixel.
        beam_energies_kev: one image each.
        instrument: its probe and its tilt; electrons meet the pixel in the plane of the surface. What starts
            behind a mirror comes back from it.
        seed, specimen_id: name the random positions.

    Returns:
        `RECORD` [energy, pixel, electron], flattened.
    """
    check_instrument(instrument)
    ny, nx, _ = specimen.labels.shape
    energies_ev = 1000 * np.asarray(beam_energies_kev, np.float64)
    electrons = np.zeros((len(energies_ev), ny, nx, electrons_per_pixel), RECORD)
    electrons["px"] = np.arange(ny * nx).reshape(ny, nx, 1)
    electrons["py"] = np.arange(len(energies_ev))[:, None, None, None]
    electrons["E"] = energies_ev[:, None, None, None]
    electrons["z"] = START_NM
    direction = [float(cosine) for cosine in beam_direction(instrument)]
    electrons["dz"] = direction[2]
    random = np.random.default_rng((seed, specimen_id))
    blur = _blur(random, electrons.shape, instrument)
    pixels = np.arange(nx)[:, None], np.arange(ny)[:, None, None]
    for axis, name in enumerate("xy"):
        position = random.random(electrons.shape, np.float32)
        position += pixels[axis].astype(np.float32)
        position *= specimen.voxel_nm
        position += blur[axis] - (GAP_ABOVE_NM - START_NM) * direction[axis] / direction[2]
        length_nm, margin_nm = (nx, ny)[axis] * specimen.voxel_nm, MARGIN * specimen.voxel_nm
        electrons[name], mirrored = _between_mirrors(position, length_nm, margin_nm)
        electrons[f"d{name}"] = np.where(mirrored, -direction[axis], direction[axis])
    return electrons.ravel()


def _between_mirrors(position, length_nm, margin_nm):
    """Positions brought back between mirrors at 0 and `length_nm`, and whether that turns their direction."""
    walls = np.floor(position / length_nm)
    mirrored = walls % 2 == 1
    position = position - walls * np.float32(length_nm)
    position = np.where(mirrored, length_nm - position, position)
    return np.clip(position, margin_nm, length_nm - margin_nm), mirrored


def _blur(random, shape, instrument):
    """Shifts of the probe along x and y in the plane of the surface, which a tilted beam meets obliquely."""
    if instrument.probe_fwhm_nm == 0:
        return 0.0, 0.0
    sigma_nm = instrument.probe_fwhm_nm / FWHM_PER_SIGMA
    along, aside = sigma_nm * random.standard_normal((2, *shape), np.float32)
    along /= np.cos(instrument.tilt_rad)
    cos, sin = np.cos(instrument.tilt_azimuth_rad), np.sin(instrument.tilt_azimuth_rad)
    return along * cos - aside * sin, along * sin + aside * cos


def write_electrons(path: str | os.PathLike, electrons: np.ndarray) -> None:
    """Writes records [n] to a file."""
    with whole_file(path) as temporary:
        electrons.astype(RECORD, copy=False).tofile(temporary)


def read_electrons(path: str | os.PathLike) -> np.ndarray:
    """Reads a `.pri` file, or the output of Nebula: `RECORD` [n].

    Raises:
        FileNotFoundError: no such file.
        OSError: the size is not that of whole records; one line.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the file of electrons must exist; got {path}. Correct the path.")
    size = os.path.getsize(path)
    if size % RECORD.itemsize:
        raise OSError(
            f"a file of electrons must hold whole records of {RECORD.itemsize} bytes; got {size} bytes in "
            f"{path}. Run Nebula again: it was interrupted, or the disk is full."
        )
    return np.fromfile(path, RECORD)


def count(
    electrons: np.ndarray,
    shape: tuple[int, int, int],
    instrument: Instrument = Instrument(),  # noqa: B008, frozen
) -> np.ndarray:
    """Counts detected electrons within the energy and angle window of the instrument.

    Args:
        electrons: `RECORD` [n] of Nebula's output.
        shape: pixels along y, x, and energies.
        instrument: its window.

    Returns:
        int32 counts [y, x, e].

    Raises:
        ValueError: a tag outside the images, or a number that is not finite; one line.
    """
    ny, nx, energies = shape
    names = RECORD.names[:7]
    if not all(np.isfinite(electrons[name]).all() for name in names):
        raise ValueError("detected electrons must have finite numbers; got NaN or inf. Run Nebula again.")
    for tag, size in (("px", ny * nx), ("py", energies)):
        values = electrons[tag]
        if len(values) and not (0 <= values.min() and values.max() < size):
            raise ValueError(
                f"tag {tag} of detected electrons must be 0 to {size - 1}; got {values.min()} to "
                f"{values.max()}. Read the output with the settings of its primaries."
            )
    way = np.stack([electrons[name] for name in ("dx", "dy", "dz")])  # of any length
    ux, uy, uz = way / np.maximum(np.linalg.norm(way, axis=0), 1e-30)
    energy_kev = electrons["E"] / 1000
    leaving = Electron(None, None, None, ux, uy, uz, energy_kev, None)
    inside = np.asarray(accepts(instrument, leaving)) & (energy_kev >= instrument.lowest_energy_kev)
    cells = electrons["px"].astype(np.int64) * energies + electrons["py"]
    counts = np.bincount(cells[inside], minlength=ny * nx * energies)
    return counts.reshape(ny, nx, energies).astype(np.int32)
