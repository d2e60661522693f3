"""Recordings of one small field in every format that is read, for tests."""

import os

import instrument_writers as writers
import numpy as np
import pytest

from bsevox_jax import instrument_files

ENERGIES_KEV, PIXEL_NM, DWELL_S, CURRENT_NA = (0.5, 2.0, 10.0), 2.0, 1e-6, 0.1
VENDORS = {
    name: getattr(writers, f"write_{name}") for name in ("thermo", "zeiss", "tescan", "jeol", "hitachi")
}
TELL_DOSE = {"thermo", "zeiss", "tescan"}


def noisy_images():
    """uint8 [y, x, e]."""
    noise = np.random.default_rng(0)
    images = np.stack([noise.poisson(60 + 30 * k, (48, 40)) for k in range(3)], axis=-1)
    return np.where(images % 9 == 0, images + 1, images).astype(np.uint8)  # Zeiss keeps these for marks


def write_folder(folder, vendor, images, energies_kev=ENERGIES_KEV, **options):
    """One file per energy; the names sort otherwise as texts than as numbers."""
    os.makedirs(folder, exist_ok=True)
    for k, energy_kev in enumerate(energies_kev):
        options = {"pixel_nm": PIXEL_NM, "dwell_s": DWELL_S, "current_na": CURRENT_NA} | options
        name = folder / f"site 7_{energy_kev * 1e3:g} V.tif"
        VENDORS[vendor](name, images[..., k], beam_energy_kev=energy_kev, **options)
    return folder


def write_general(folder, images):
    """One file of each general format, and what must be given with it."""
    writers.write_ome(folder / "a.ome.tif", images, pixel_nm=PIXEL_NM)
    writers.write_mrc(folder / "a.mrc", images.astype(np.uint16), pixel_nm=PIXEL_NM)
    even_kev = (0.5, 1.0, 1.5)
    about = {"beam_energies_kev": even_kev, "pixel_nm": PIXEL_NM}
    writers.write_hdf5(folder / "a.h5", images, axes="yxe", electrons_per_pixel=40.0, **about)
    writers.write_hyperspy(folder / "a.hspy", images, **about)
    told = {name: {"beam_energies_kev": even_kev} for name in ("a.ome.tif", "a.mrc")}
    return told | {"a.h5": {}, "a.hspy": {}}


def assert_refused(match, path, **given):
    with pytest.raises((ValueError, OSError), match=match) as error:
        instrument_files.read(path, **given)
    assert "\n" not in str(error.value)
