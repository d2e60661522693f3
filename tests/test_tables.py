import dataclasses
import json

import jax
import numpy as np
import pytest

from bsevox_jax.sim import elastic, elements, inelastic, tables

SI, CU = elements.MATERIALS["Si"], elements.MATERIALS["Cu"]
LABELS = {1: SI, 2: CU}
ROWS = (0, 20, 44, 63)
SHARES = -np.diff(np.exp(tables.LOG_QUANTILES))


def sampled(row, weight):
    """Values of a tabulated row at one interpolation weight in every interval of ln c."""
    row = row.astype(float)
    return row[:-1] + weight * np.diff(row)


def sampled_mean(row, function=lambda value: value):
    """Mean of a function over the draws from a row; a draw is linear in ln c between two quantiles."""
    weights = (np.arange(32) + 0.5) / 32
    densities = np.exp(weights * tables.LOG_QUANTILES[1])
    means = [function(sampled(row, weight)) for weight in weights]
    return SHARES @ np.average(means, axis=0, weights=densities)


@pytest.mark.parametrize("atom", elastic.ATOMS)
@pytest.mark.parametrize("label", LABELS)
def test_sampled_angles_have_the_transport_cross_section(atom, label):
    shipped = tables.shipped(atom)
    for row in ROWS:
        kinetic_kev = tables.ENERGIES_KEV[row] + LABELS[label].barrier_kev
        waves = elastic.partial_waves(LABELS[label], kinetic_kev, atom=atom)
        expected = elastic.transport_cross_section_nm2(waves) / elastic.cross_section_nm2(waves)
        assert 2 * sampled_mean(shipped.angle_icdf[label, row]) == pytest.approx(expected, rel=1.5e-3)


@pytest.mark.parametrize("label", LABELS)
def test_sampled_losses_have_the_stopping_power(label):
    material, shipped = LABELS[label], tables.shipped()
    for row in ROWS:
        t_kev = float(tables.ENERGIES_KEV[row] + material.barrier_kev)
        limit = (t_kev - material.fermi_kev) / 2 / elements.HARTREE_KEV

        def mean_loss_kev(w0_kev, t=t_kev / elements.HARTREE_KEV, limit=limit):
            w0 = w0_kev / elements.HARTREE_KEV
            x_min, x_max = inelastic.momentum_range(t, w0, limit)
            ratio = inelastic.pole_momentum(x_max, w0) / inelastic.pole_momentum(x_min, w0)
            some = x_max > x_min
            return w0_kev * np.log(np.where(some, x_max / x_min, np.e)) / np.log(np.where(some, ratio, np.e))

        stopping = shipped.inelastic_rate_per_nm[label, row] * sampled_mean(
            shipped.loss_icdf_kev[label, row], mean_loss_kev
        )
        expected = inelastic.losses(material, t_kev).stopping_kev_per_nm
        assert stopping == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("atom", elastic.ATOMS)
def test_shipped_tables_are_what_the_code_computes(atom):
    shipped = tables.shipped(atom)
    for label, material in LABELS.items():
        for row in ROWS:
            kinetic_kev = tables.ENERGIES_KEV[row] + material.barrier_kev
            waves = elastic.partial_waves(material, kinetic_kev, atom=atom)
            losses = inelastic.losses(material, kinetic_kev)
            expected = {
                "elastic_rate_per_nm": material.atoms_per_nm3 * elastic.cross_section_nm2(waves),
                "inelastic_rate_per_nm": losses.rate_per_nm,
                "angle_icdf": tables.complementary_quantiles(*elastic.angular_distribution(waves)),
                "loss_icdf_kev": tables.complementary_quantiles(losses.edges_kev, losses.cell_rates_per_nm),
            }
            for name, value in expected.items():
                np.testing.assert_allclose(getattr(shipped, name)[label, row], value, rtol=1e-5)


def test_build_of_one_material_equals_its_shipped_rows():
    built, shipped = tables.build(("Cu",)), tables.shipped().select(("Cu",))
    assert built.material_names == shipped.material_names == ("vacuum", "Cu")
    for one, other in zip(jax.tree.leaves(built), jax.tree.leaves(shipped), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_quantiles_ascend_and_stay_below_the_largest_loss():
    shipped = tables.shipped()
    for name in ("angle_icdf", "loss_icdf_kev"):
        assert np.all(np.diff(getattr(shipped, name), axis=-1) >= 0)
    assert np.all(shipped.angle_icdf[1:, :, -1] == 1)
    largest = (shipped.energies_kev + shipped.barrier_kev[:, None] - shipped.fermi_kev[:, None]) / 2
    assert np.all(shipped.loss_icdf_kev[..., -1] <= largest * (1 + 1e-6))
    # The pole energy stays below the loss itself, which adds the dispersion of the pole.
    assert np.all(shipped.loss_icdf_kev[1:, :, -1] > 0.5 * largest[1:])


def test_quantiles_of_a_uniform_distribution_are_exact():
    quantiles = tables.complementary_quantiles(np.linspace(2.0, 3.0, 11), np.ones(10))
    np.testing.assert_allclose(quantiles[1:-1], 3.0 - np.exp(tables.LOG_QUANTILES[1:-1]), rtol=1e-12)
    assert quantiles[0] == pytest.approx(2.0, abs=3e-4)
    assert sampled_mean(quantiles) == pytest.approx(2.5, rel=1e-4)


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
    files = list(elements.DATA_DIR.glob("cross_sections_*.npz"))
    assert len(files) == len(elastic.ATOMS) and sum(f.stat().st_size for f in files) < 2e6
    for atom in elastic.ATOMS:
        record = json.loads(tables.shipped(atom).provenance)
        assert record["atom"] == atom and {"elastic", "inelastic", "materials"} <= record.keys()


def test_wrong_names_and_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "other.npz").write_text("not tables")
    cases = [
        (
            ValueError,
            "material must be one of Si, Cu; got 'Xx'",
            lambda: tables.build(("Xx",)),
        ),
        (ValueError, "atom must be one of free, muffin_tin; got 'gas'", lambda: tables.shipped("gas")),
        (FileNotFoundError, "cross-section file must exist", lambda: tables.load(tmp_path / "none.npz")),
        (ValueError, "must be written by tables.save", lambda: tables.load(tmp_path / "other.npz")),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
