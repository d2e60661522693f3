"""Material files of Nebula: their rules, the same transport after the way out and back, and faults."""

import dataclasses
import os
import sys
from pathlib import Path

import h5py
import nebula_rules
import numpy as np
import pytest
from nebula_files import ENERGIES_KEV

from bsevox_jax import sim
from bsevox_jax.sim import nebula, tables


def test_material_files_follow_the_rules(materials):
    for path in materials:
        nebula_rules.check_material(path)
        assert os.path.getsize(path) < 40e6


def test_our_tables_come_back_as_they_were(materials):
    wanted, back = tables.shipped(("Si", "Cu")), nebula.read_materials(materials)
    for field in dataclasses.fields(wanted):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(wanted, field.name))
        assert type(getattr(back, field.name)) is type(getattr(wanted, field.name)), field.name


@pytest.mark.slow
def test_equal_tables_give_equal_files(materials, tmp_path):
    """Chunks of a data set are named after the hash of the material files."""
    nebula.write_material(tmp_path / "Si.mat", tables.shipped(("Si",)), "Si")
    assert (tmp_path / "Si.mat").read_bytes() == Path(materials[0]).read_bytes()


@pytest.mark.slow
def test_tables_of_nebula_give_our_film_yields(materials):
    """Read back without our own arrays, through the even shares and the losses W in place of w0."""
    foreign = nebula.read_materials(materials, foreign=True)
    assert foreign.material_names == ("vacuum", "Si", "Cu")
    for label in (1, 2):
        film = np.full((20, 20, 20), label, np.uint8)
        options = dict(electrons_per_pixel=60, beam_energies_kev=ENERGIES_KEV)
        ours = sim.simulate_bse(film, **options)
        theirs = sim.simulate_bse(film, cross_sections=foreign, seed=1, **options)
        for kind in ("counts", "primary_counts"):
            a, b = (getattr(images, kind).sum((0, 1)) for images in (ours, theirs))
            # The electrons that one primary frees come together: their number varies by more than its root.
            assert (abs(a - b) < 5 * np.sqrt(1.5 * (a + b))).all(), (label, kind, a, b)


def test_rates_of_nebula_are_ours(materials):
    foreign, ours = nebula.read_materials(materials, foreign=True), tables.shipped(("Si", "Cu"))
    for name in ("elastic_rate_per_nm", "inelastic_rate_per_nm"):
        ratio = getattr(foreign, name)[1:] / getattr(ours, name)[1:]
        np.testing.assert_allclose(ratio[:, ours.energies_kev > 0.05], 1, atol=0.01)
    for name in ("barrier_kev", "fermi_kev"):
        np.testing.assert_allclose(getattr(foreign, name), getattr(ours, name), rtol=1e-6)
    reached = ours.core_edges_kev[1:] < 5.4  # shells from which a loss of half the energy can free
    np.testing.assert_allclose(
        foreign.core_edges_kev[np.isfinite(foreign.core_edges_kev)],
        ours.core_edges_kev[1:][reached],
        rtol=1e-3,
    )


def test_losses_of_a_stock_file_beyond_half_the_energy_are_those_of_the_other_electron(materials, tmp_path):
    path = tmp_path / "stock.mat"
    path.write_bytes(Path(materials[0]).read_bytes())
    with h5py.File(path, "r+") as file:
        del file["bsevox_jax"]
        fermi_ev = float(file.attrs["fermi"]["value"])
        k_ev = file["/full_penn/energy"][()][:, None]
        losses = file["/full_penn/omega_icdf"][()]
        swapped = np.arange(losses.shape[1]) % 2 == 1  # every other event: the freed electron is the faster
        file["/full_penn/omega_icdf"][...] = np.sort(np.where(swapped, k_ev - fermi_ev - losses, losses), 1)
    stock, ours = nebula.read_materials([path]), nebula.read_materials(materials[:1], foreign=True)
    ratio = stock.loss_icdf_kev[1, 10:, 20:400] / ours.loss_icdf_kev[1, 10:, 20:400]
    assert (abs(ratio - 1) > 0.03).mean() < 0.002  # edges are steep


@pytest.mark.parametrize("fault", ["absent", "text", "other", "unit"])
def test_file_that_is_no_material_is_refused_in_one_line(materials, tmp_path, fault):
    path = tmp_path / "bad.mat"
    if fault == "text":
        path.write_text("no HDF5\n")
    elif fault == "other":
        h5py.File(path, "w").close()
    elif fault == "unit":
        path.write_bytes(Path(materials[0]).read_bytes())
        with h5py.File(path, "r+") as file:
            del file["bsevox_jax"]
            barrier = file.attrs["barrier"]
            barrier["unit"] = "K"
            file.attrs.modify("barrier", barrier)
    with pytest.raises(OSError, match="must exist|must be one of Nebula's") as error:
        nebula.read_materials([path])
    assert "\n" not in str(error.value) and "bad.mat" in str(error.value)


@pytest.mark.parametrize("field", ["fermi_kev", "provenance"])
def test_group_of_ours_without_a_field_is_refused_in_one_line(materials, tmp_path, field):
    path = tmp_path / "bad.mat"
    path.write_bytes(Path(materials[0]).read_bytes())
    with h5py.File(path, "r+") as file:
        group = file["bsevox_jax"]
        del (group if field in group else group.attrs)[field]
    with pytest.raises(
        ValueError, match=f"must hold all cross sections; got no {field} in .*bad.mat"
    ) as error:
        nebula.read_materials([path])
    assert "\n" not in str(error.value)


def test_missing_h5py_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(OSError, match="Run pip install h5py"):
        nebula.write_material(tmp_path / "Si.mat", tables.shipped(), "Si")
