import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from bsevox_jax.sim import elastic, elements, inelastic, tables, tabulate

ROWS = (0, 20, 44, 63)
SHARES = -np.diff(np.exp(tables.LOG_QUANTILES))
SI, CU = elements.material("Si"), elements.material("Cu")
each_material = pytest.mark.parametrize("material", elements.MATERIALS.values(), ids=lambda m: m.name)


@pytest.fixture
def few_energies(monkeypatch):
    monkeypatch.setattr(tables, "ENERGIES_KEV", np.array([0.05, 0.5, 5.0]))


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


def transport_share(material, kinetic_kev, atom):
    """Mean of 1 - cos over the elastic events of all atoms of a material."""
    radius_nm = material.muffin_tin_radius_nm if atom == "muffin_tin" else None
    total = transport = 0.0
    for symbol, number in material.composition:
        waves = elastic.partial_waves(symbol, kinetic_kev, muffin_tin_radius_nm=radius_nm)
        total += number * elastic.cross_section_nm2(waves)
        transport += number * elastic.transport_cross_section_nm2(waves)
    return transport / total


@pytest.mark.parametrize("atom", tables.ATOMS)
@each_material
def test_sampled_angles_have_the_transport_cross_section(atom, material):
    shipped = tables.shipped((material.name,), atom=atom)
    for row in ROWS:
        kinetic_kev = tables.ENERGIES_KEV[row] + material.barrier_kev
        expected = transport_share(material, kinetic_kev, atom)
        assert 2 * sampled_mean(shipped.angle_icdf[1, row]) == pytest.approx(expected, rel=1.5e-3)


@each_material
def test_sampled_losses_have_the_stopping_power(material):
    shipped = tables.shipped((material.name,))
    for row in ROWS:
        t_kev = float(tables.ENERGIES_KEV[row] + material.barrier_kev)
        limit = (t_kev - material.fermi_kev) / 2 / elements.HARTREE_KEV

        def mean_loss_kev(w0_kev, t=t_kev / elements.HARTREE_KEV, limit=limit):
            w0 = w0_kev / elements.HARTREE_KEV
            x_min, x_max = inelastic.momentum_range(t, w0, limit)
            ratio = inelastic.pole_momentum(x_max, w0) / inelastic.pole_momentum(x_min, w0)
            some = x_max > x_min
            return w0_kev * np.log(np.where(some, x_max / x_min, np.e)) / np.log(np.where(some, ratio, np.e))

        stopping = shipped.inelastic_rate_per_nm[1, row] * sampled_mean(
            shipped.loss_icdf_kev[1, row], mean_loss_kev
        )
        expected = inelastic.losses(material, t_kev).stopping_kev_per_nm
        assert stopping == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("atom", tables.ATOMS)
@each_material
def test_shipped_tables_are_what_the_code_computes(atom, material, monkeypatch):
    rows = [10, 50]
    monkeypatch.setattr(tables, "ENERGIES_KEV", tables.ENERGIES_KEV[rows])
    built, shipped = tabulate.build(material, atom=atom), tables.shipped((material.name,), atom=atom)
    assert built.material_names == shipped.material_names
    for one, other in zip(jax.tree.leaves(built), jax.tree.leaves(shipped), strict=True):
        assert one.dtype == np.float32
        other = other[:, rows] if other.ndim > 1 and other.shape[1] == 64 else other
        other = other[rows] if other.shape == (64,) else other
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_order_and_scale_of_a_formula_do_not_matter(few_energies):
    silica = elements.material("SiO2")
    built = [
        tabulate.build(dataclasses.replace(silica, composition=elements.composition(formula)))
        for formula in ("SiO2", "O2Si", "Si2O4")
    ]
    for other in built[1:]:
        for one, two in zip(jax.tree.leaves(built[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6)


def test_rate_of_a_compound_is_the_sum_over_its_atoms(few_energies):
    silica = elements.material("SiO2")
    built = tabulate.build(silica, atom="free")
    formulas_per_nm3 = silica.atoms_per_nm3 / 3
    for energy_kev, rate_per_nm in zip(tables.ENERGIES_KEV, built.elastic_rate_per_nm[1], strict=True):
        silicon, oxygen = (
            elastic.cross_section_nm2(elastic.partial_waves(symbol, energy_kev + silica.barrier_kev))
            for symbol in ("Si", "O")
        )
        assert rate_per_nm == pytest.approx(formulas_per_nm3 * (silicon + 2 * oxygen), rel=1e-6)


def test_mixture_with_a_trace_is_nearly_the_element(few_energies):
    pure = tabulate.build(SI)
    trace = tabulate.build(dataclasses.replace(SI, composition=elements.composition("SiCu0.0001")))
    np.testing.assert_allclose(pure.angle_icdf, trace.angle_icdf, rtol=2e-3)
    np.testing.assert_allclose(pure.elastic_rate_per_nm, trace.elastic_rate_per_nm, rtol=1e-3)


def test_quantiles_of_a_uniform_distribution_are_exact():
    quantiles = tables.complementary_quantiles(np.linspace(2.0, 3.0, 11), np.ones(10))
    np.testing.assert_allclose(quantiles[1:-1], 3.0 - np.exp(tables.LOG_QUANTILES[1:-1]), rtol=1e-12)
    assert quantiles[0] == pytest.approx(2.0, abs=3e-4)
    assert sampled_mean(quantiles) == pytest.approx(2.5, rel=1e-4)


def test_command_makes_the_tables_of_a_new_material(few_energies, tmp_path, capsys):
    silica = elements.material("SiO2")
    given = ["--formula=O2Si", "--density_g_cm3=2.2", f"--elf={silica.elf_path}", "--name=glass"]
    given += ["--gap_ev=9", "--affinity_ev=0.9", "--loss_onset_ev=8", "--nearest_neighbour_nm=0.161"]
    tabulate.main([*given, f"--output={tmp_path / 'glass.npz'}"])
    said = capsys.readouterr().err
    assert "f-sum 29.62 of 30 electrons, ps-sum 0.519" in said and "gap 9 eV" in said
    made, expected = tables.load(tmp_path / "glass.npz"), tabulate.build(silica)
    assert made.material_names == ("vacuum", "glass")
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["glass.npz"]


def test_command_without_arguments_makes_the_same_bytes_each_time(few_energies, tmp_path, monkeypatch):
    monkeypatch.setattr(elements, "MATERIALS", {"Si": SI})
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        monkeypatch.setattr(tables, "SHIPPED_DIR", folder)
        tabulate.main([])
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    assert contents[0].keys() == {"Si_free.npz", "Si_muffin_tin.npz"}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"formula": "sio2"}, "formula must be symbols of elements"),
        ({"density_g_cm3": "0"}, "density_g_cm3 must be above 0; got 0"),
        ({"density_g_cm3": "heavy"}, "invalid float value: 'heavy'"),
        ({"elf": "none.csv"}, "file of the energy-loss function must exist; got none.csv"),
        ({"output": "nowhere/mine.npz"}, "folder of --output must exist; got nowhere/mine.npz"),
        ({"atom": "gas"}, "atom must be one of muffin_tin, free; got 'gas'"),
        ({"elf": None}, "got no --elf"),
    ],
)
def test_command_refuses_in_one_line_with_status_2(
    changed, message, few_energies, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    given = {"formula": "Cu", "density_g_cm3": "8.96", "elf": str(CU.elf_path), "output": "cu.npz"} | changed
    with pytest.raises(SystemExit) as caught:
        tabulate.main([f"--{name}={value}" for name, value in given.items() if value is not None])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--output=mine.npz", "--atom=muffin_tin", "--gap_ev=1"])
def test_command_without_a_formula_takes_no_other_option(option, tmp_path, monkeypatch, capsys):
    """Nothing is rebuilt by a slip."""
    monkeypatch.setattr(tables, "SHIPPED_DIR", tmp_path / "tables")
    with pytest.raises(SystemExit) as caught:
        tabulate.main([option])
    assert caught.value.code == 2
    name = option.split("=")[0]
    assert f"a new material needs --formula; got {name} without it. Give it, or" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_energy_loss_function_without_losses_is_refused(few_energies, tmp_path):
    (tmp_path / "mine.csv").write_text("energy,elf\n5000,0.1\n6000,0.1\n")
    with pytest.raises(ValueError, match="allow losses at every energy; got none for Cu at 0.0645 keV"):
        tabulate.build(elements.own_material("Cu", 8.96, tmp_path / "mine.csv"))


@pytest.mark.slow
def test_command_works_from_a_shell(tmp_path):
    command = [sys.executable, "-m", "bsevox_jax.sim.tabulate", "--formula=Si", "--density_g_cm3=2.33"]
    command += [f"--elf={SI.elf_path}", f"--output={tmp_path / 'si.npz'}", "--fermi_ev=12.5", "--gap_ev=1.1"]
    command += ["--affinity_ev=4.05", "--nearest_neighbour_nm=0.2352"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Si, muffin_tin atom: 64/64 energies" in done.stderr
    made, shipped = tables.load(tmp_path / "si.npz"), tables.shipped(("Si",))
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(shipped), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
