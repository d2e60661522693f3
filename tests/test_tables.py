import dataclasses
import json

import jax
import numpy as np
import pytest

from bsevox_jax.sim import elements, tables


def test_shipped_materials_come_in_the_order_asked_for():
    both, swapped = tables.shipped(), tables.shipped(("Cu", "Si"))
    assert both.material_names == ("vacuum", "Si", "Cu")
    assert swapped.material_names == ("vacuum", "Cu", "Si")
    for one, other in zip(jax.tree.leaves(swapped), jax.tree.leaves(both.select(("Cu", "Si"))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_eight_materials_fit_into_one_set():
    names = tuple(elements.MATERIALS)[:8]
    eight = tables.shipped(names)
    assert eight.material_names == ("vacuum", *names)
    for label, name in enumerate(names, start=1):
        alone, edges = tables.shipped((name,)), elements.material(name).core_edges_kev
        for field in ("angle_icdf", "loss_icdf_kev", "elastic_rate_per_nm", "barrier_kev"):
            np.testing.assert_array_equal(getattr(eight, field)[label], getattr(alone, field)[1])
        np.testing.assert_allclose(eight.core_edges_kev[label, : len(edges)], edges, rtol=1e-6)
        assert np.all(np.isinf(eight.core_edges_kev[label, len(edges) :]))


def test_own_tables_join_shipped_ones():
    shipped = tables.shipped(("SiO2",))
    own = dataclasses.replace(tables.shipped(("Au",)), material_names=("vacuum", "mine"))
    joined = tables.combine(shipped, own)
    assert joined.material_names == ("vacuum", "SiO2", "mine")
    assert len(json.loads(joined.provenance)) == 2
    np.testing.assert_array_equal(joined.loss_icdf_kev[2], own.loss_icdf_kev[1])
    with pytest.raises(ValueError, match="differ in name, .* got SiO2, SiO2. Leave out"):
        tables.combine(shipped, shipped)
    other = dataclasses.replace(own, energies_kev=own.energies_kev * 2)
    with pytest.raises(ValueError, match="share their energies; those of SiO2, mine"):
        tables.combine(shipped, other)


@pytest.mark.parametrize("name", elements.MATERIALS)
def test_quantiles_ascend_and_stay_below_the_largest_loss(name):
    shipped = tables.shipped((name,))
    for field in ("angle_icdf", "loss_icdf_kev"):
        assert np.all(np.diff(getattr(shipped, field), axis=-1) >= 0)
    assert np.all(shipped.angle_icdf[1:, :, -1] == 1)
    largest = (shipped.energies_kev + shipped.barrier_kev[:, None] - shipped.fermi_kev[:, None]) / 2
    assert np.all(shipped.loss_icdf_kev[..., -1] <= largest * (1 + 1e-6))
    # The pole energy stays below the loss itself, which adds the dispersion of the pole.
    assert np.all(shipped.loss_icdf_kev[1:, :, -1] > 0.5 * largest[1:])


def test_vacuum_does_nothing():
    shipped = tables.shipped()
    assert shipped.material_names[0] == "vacuum"
    for name in ("elastic_rate_per_nm", "inelastic_rate_per_nm", "barrier_kev", "fermi_kev"):
        assert np.all(getattr(shipped, name)[0] == 0)
    assert np.all(np.isinf(shipped.core_edges_kev[0]))


def test_select_reorders_the_labels():
    shipped = tables.shipped()
    swapped = shipped.select(("Cu", "Si"))
    assert swapped.material_names == ("vacuum", "Cu", "Si")
    np.testing.assert_array_equal(swapped.angle_icdf, shipped.angle_icdf[[0, 2, 1]])
    with pytest.raises(ValueError, match="got Au, have Si, Cu"):
        shipped.select(("Si", "Au"))


def test_tables_survive_a_file(tmp_path):
    shipped = tables.shipped()
    tables.save(shipped, tmp_path / "copy.npz")
    copy = tables.load(tmp_path / "copy.npz")
    for field in dataclasses.fields(tables.CrossSections):
        np.testing.assert_array_equal(getattr(copy, field.name), getattr(shipped, field.name))
    assert jax.tree.structure(copy) == jax.tree.structure(shipped)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.npz"]


def test_shipped_files_are_small_and_name_their_sources():
    files = list(tables.SHIPPED_DIR.glob("*.npz"))
    assert len(files) == len(elements.MATERIALS) * len(tables.ATOMS)
    assert sum(file.stat().st_size for file in files) < 5e6
    for atom in tables.ATOMS:
        for record in json.loads(tables.shipped(tuple(elements.MATERIALS), atom=atom).provenance):
            assert record["atom"] == atom and {"elastic", "inelastic", "material"} <= record.keys()
            assert any("CC0" in line for line in record["energy_loss_function"])


def test_wrong_names_and_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "other.npz").write_text("not tables")
    cases = [
        (ValueError, "material must be one of Si, Cu, .*; got 'Xx'", lambda: tables.shipped(("Xx",))),
        (ValueError, "one or more materials; got none", lambda: tables.shipped(())),
        (ValueError, "atom must be one of muffin_tin, free; got 'gas'", lambda: tables.shipped(atom="gas")),
        (FileNotFoundError, "cross-section file must exist", lambda: tables.load(tmp_path / "none.npz")),
        (ValueError, "must be written by tables.save", lambda: tables.load(tmp_path / "other.npz")),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
