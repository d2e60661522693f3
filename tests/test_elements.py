import dataclasses

import numpy as np
import pytest

from bsevox_jax.sim import elements

HEADER = "# my film\nenergy_eV,elf\n"


def test_formula_gives_atoms_in_any_order_and_notation():
    assert elements.composition("SiO2") == (("O", 2.0), ("Si", 1.0)) == elements.composition("O2Si")
    assert elements.composition("OSiO") == elements.composition("SiO2")
    assert elements.composition("Si0.8Ge0.2") == (("Si", 0.8), ("Ge", 0.2))
    assert elements.composition("Co") != elements.composition("CO")


@pytest.mark.parametrize("formula", ["", "sio2", "Si(OH)4", "Si-O", "2Si", "Si O2", "Xy2", "SiO0", "Si1.2.3"])
def test_other_formulas_are_refused_in_one_line(formula):
    with pytest.raises(ValueError, match="; got ") as caught:
        elements.composition(formula)
    assert "\n" not in str(caught.value)


def test_compound_of_one_element_is_the_element():
    silicon = elements.material("Si")
    tripled = dataclasses.replace(silicon, composition=elements.composition("Si3"))
    assert tripled.atoms_per_nm3 == pytest.approx(silicon.atoms_per_nm3, rel=1e-15)
    assert tripled.atomic_fractions == silicon.atomic_fractions == (("Si", 1.0),)
    assert tripled.core_edges_kev == silicon.core_edges_kev


def test_number_density_follows_from_density_and_formula():
    silica = elements.material("SiO2")
    assert silica.atoms_per_nm3 == pytest.approx(3 * 2.20 / 60.084 * 602.214, rel=1e-4)
    assert silica.electrons_per_formula == 30
    assert sum(fraction for _, fraction in silica.atomic_fractions) == pytest.approx(1)


def test_core_edges_are_those_of_the_x_ray_data_booklet():
    """G. P. Williams, X-ray Data Booklet (LBNL, 2009), table 1-1, within 1 eV."""
    booklet_ev = {
        "O": (41.6, 543.1),
        "Al": (72.5, 117.8, 1559.6),
        "Si": (99.8, 149.7, 1839.0),
        "Ti": (32.6, 58.7, 453.8, 560.9, 4966.0),
        "Cu": (75.1, 122.5, 932.7, 1096.7, 8979.0),
        "Ge": (29.2, 120.8, 180.1, 1217.0, 1414.6, 11103.0),
        "Au": (57.2, 84.0, 107.2, 335.1, 546.3, 762.1, 2206.0, 2743.0, 3425.0, 11919.0, 14353.0, 80725.0),
    }
    for symbol, edges_ev in booklet_ev.items():
        np.testing.assert_allclose(1e3 * np.array(elements.element(symbol).core_edges_kev), edges_ev, atol=1)


def test_core_edges_of_a_compound_are_those_of_its_elements():
    edges = elements.material("SiO2").core_edges_kev
    assert edges == (0.0416, 0.0998, 0.1497, 0.5431, 1.839)


def test_every_shipped_material_is_complete():
    for name, material in elements.MATERIALS.items():
        assert material.name == name and material.elf_path.is_file()
        assert 0.01 < material.barrier_kev < 0.025
        # Half the distance of nearest neighbours is less than that of close-packed spheres.
        close_packed_nm = 2 ** (1 / 6) * material.atoms_per_nm3 ** (-1 / 3) / 2
        assert 0.5 * close_packed_nm < material.muffin_tin_radius_nm < 1.02 * close_packed_nm


def test_shipped_optical_data_name_source_and_licence():
    for path in elements.DATA_DIR.glob("*.csv"):
        comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any("J. " in line or "Acta" in line or "Data" in line for line in comments), path
        if path.name.startswith("elf_"):
            assert any("CC0" in line for line in comments) and any(
                "public domain" in line for line in comments
            )


@pytest.mark.parametrize(
    "content, message",
    [
        (HEADER + "1,0.1\n2,x\n", "lines eV,value; got .*mine.csv"),
        (HEADER + "1,0.1,3\n2,0.2,3\n", "lines eV,value; got .*mine.csv"),
        (HEADER + "2,0.1\n1,0.2\n", "ascending energies and positive values; got .*mine.csv"),
        (HEADER + "1,0.1\n2,0\n", "ascending energies and positive values; got .*mine.csv"),
        (HEADER + "1,0.1\n2,nan\n", "ascending energies and positive values; got .*mine.csv"),
        (HEADER + "1,0.1\n", "ascending energies and positive values; got .*mine.csv"),
    ],
)
def test_damaged_energy_loss_functions_are_refused_in_one_line(content, message, tmp_path):
    (tmp_path / "mine.csv").write_text(content)
    mine = elements.own_material("Si", 2.33, tmp_path / "mine.csv")
    with pytest.raises(ValueError, match=message) as caught:
        elements.energy_loss_function(mine)
    assert "\n" not in str(caught.value)


def test_energies_of_the_file_are_ev(tmp_path):
    (tmp_path / "mine.csv").write_text(HEADER + "1.5,0.1\n20,0.2\n")
    energies_kev, values = elements.energy_loss_function(
        elements.own_material("Si", 2.33, tmp_path / "mine.csv")
    )
    np.testing.assert_allclose(energies_kev, [0.0015, 0.02])
    np.testing.assert_array_equal(values, [0.1, 0.2])


def test_own_material_assumes_close_packing_and_the_gap_as_onset(tmp_path):
    copper = elements.material("Cu")
    own = elements.own_material("Cu", copper.density_g_cm3, tmp_path / "no.csv")
    assert own.muffin_tin_radius_nm == pytest.approx(copper.muffin_tin_radius_nm, rel=2e-3)
    assert own.loss_onset_kev == 0.3e-3
    assert elements.own_material("SiO2", 2.2, tmp_path / "no.csv", gap_kev=0.009).loss_onset_kev == 0.009
    for wrong in (
        {"density_g_cm3": 0.0},
        {"fermi_kev": -1.0},
        {"nearest_neighbour_nm": 0.0},
        {"gap_kev": -1.0},
    ):
        with pytest.raises(ValueError, match="; got "):
            elements.own_material(
                **{"formula": "Cu", "density_g_cm3": 8.96, "elf_path": tmp_path / "no.csv"} | wrong
            )
