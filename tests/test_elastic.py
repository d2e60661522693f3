import csv
import dataclasses

import numpy as np
import pytest
from scipy.integrate import quad

from bsevox_jax.sim import elastic, elements

SI, CU = elements.MATERIALS["Si"], elements.MATERIALS["Cu"]

# ELSEPA, static exchange, free atom: sigma_el, sigma_tr1 in 1e-20 m^2 = 0.01 nm^2. F. Salvat, A. Jablonski,
# C. J. Powell, Comput. Phys. Commun. 165, 157 (2005).
ELSEPA = {
    (SI, 0.1): (5.6095, 2.2907),
    (SI, 1.0): (1.3762, 0.13385),
    (SI, 5.0): (0.39419, 0.010222),
    (CU, 0.1): (2.8696, 1.6495),
    (CU, 1.0): (1.3659, 0.32572),
    (CU, 5.0): (0.54353, 0.032109),
}


def symbols_and_numbers():
    lines = (elements.DATA_DIR / "lobato_2014.csv").read_text().splitlines()
    return [(row["symbol"], int(row["Z"])) for row in csv.DictReader(x for x in lines if x[0] != "#")]


def test_every_atom_is_neutral():
    for symbol, number in symbols_and_numbers():
        charge, _ = elements.screening(symbol)
        assert charge.sum() == pytest.approx(number, rel=1e-8)


@pytest.mark.parametrize("material", [SI, CU], ids=lambda m: m.name)
def test_electron_density_is_positive_and_holds_all_electrons(material):
    def electrons_per_bohr(r):
        return 4 * np.pi * r**2 * elastic.static_potential(material, np.array([r]))[1][0]

    electrons, _ = quad(electrons_per_bohr, 0, 30, limit=200, points=[0.01, 0.1, 1.0])
    assert electrons == pytest.approx(material.atomic_number, rel=1e-5)
    assert np.all(elastic.static_potential(material, np.geomspace(1e-4, 16, 1000))[1] > 0)


@pytest.mark.parametrize("material", [SI, CU], ids=lambda m: m.name)
def test_potential_and_density_obey_the_poisson_equation(material):
    r = np.linspace(0.5, 2.0, 16)
    h = 1e-3
    r_v = [(r + s * h) * elastic.static_potential(material, r + s * h)[0] for s in (-1, 0, 1)]
    laplacian = (r_v[0] - 2 * r_v[1] + r_v[2]) / h**2 / r
    np.testing.assert_allclose(laplacian, -4 * np.pi * elastic.static_potential(material, r)[1], rtol=1e-4)


@pytest.mark.parametrize("material, energy_kev", list(ELSEPA), ids=lambda v: getattr(v, "name", v))
def test_cross_sections_agree_with_elsepa(material, energy_kev):
    waves = elastic.partial_waves(material, energy_kev)
    total, transport = ELSEPA[material, energy_kev]
    assert elastic.cross_section_nm2(waves) == pytest.approx(total * 1e-2, rel=0.01)
    assert elastic.transport_cross_section_nm2(waves) == pytest.approx(transport * 1e-2, rel=0.003)


@pytest.mark.parametrize("atom", elastic.ATOMS)
def test_phase_shifts_and_integrated_angles_give_one_cross_section(atom):
    waves = elastic.partial_waves(CU, 3.0, atom=atom)
    edges, shares = elastic.angular_distribution(waves)
    assert (edges[0], edges[-1]) == (0, 1) and np.all(shares > 0)
    assert shares.sum() == pytest.approx(elastic.cross_section_nm2(waves), rel=1e-8)


@pytest.mark.parametrize("energy_kev", [0.06, 10.0])
def test_step_length_and_matching_radius_do_not_matter(energy_kev, monkeypatch):
    coarse = elastic.cross_section_nm2(elastic.partial_waves(CU, energy_kev))
    monkeypatch.setattr(elastic, "_STEPS_PER_RADIAN", 8.0)
    monkeypatch.setattr(elastic, "_STEPS_PER_E_FOLD", 24.0)
    fine = elastic.cross_section_nm2(elastic.partial_waves(CU, energy_kev))
    monkeypatch.setattr(elastic, "_FREE_RADIUS", 20.0)
    wide = elastic.cross_section_nm2(elastic.partial_waves(CU, energy_kev))
    assert coarse == pytest.approx(fine, rel=2e-5)
    assert wide == pytest.approx(fine, rel=2e-6)


def test_light_fast_limit_is_the_born_approximation():
    helium = dataclasses.replace(SI, name="He", atomic_number=2)
    energy_kev = 10.0
    waves = elastic.partial_waves(helium, energy_kev)
    charge, decay = elements.screening("He")
    gamma = 1 + energy_kev / elements.HARTREE_KEV / elements.SPEED_OF_LIGHT_AU**2
    mu = np.array([1e-5, 1e-4, 1e-3, 1e-2, 0.1])
    q2 = 4 * (waves.wave_number_per_nm * elements.BOHR_NM) ** 2 * mu[:, None]
    amplitude = (charge * (1 / (q2 + decay**2) + decay**2 / (q2 + decay**2) ** 2)).sum(1)
    born = (2 * gamma * amplitude * elements.BOHR_NM) ** 2
    # The rest is exchange (forward) and the second Born term, of order Z alpha/beta = 0.07.
    np.testing.assert_allclose(elastic.differential_nm2(waves, mu), born, rtol=0.02)


@pytest.mark.parametrize("material", [SI, CU], ids=lambda m: m.name)
def test_muffin_tin_ends_smoothly_at_its_radius(material):
    radius = material.muffin_tin_radius_nm / elements.BOHR_NM
    potential, _ = elastic.static_potential(material, radius * np.array([0.999, 1.0]), atom="muffin_tin")
    assert potential[1] == pytest.approx(0, abs=1e-12)
    assert abs(potential[0]) < 1e-5


@pytest.mark.parametrize("material", [SI, CU], ids=lambda m: m.name)
def test_solid_removes_forward_events_but_not_transport(material):
    free, solid = (elastic.partial_waves(material, 1.0, atom=atom) for atom in elastic.ATOMS)
    assert elastic.cross_section_nm2(solid) < 0.9 * elastic.cross_section_nm2(free)
    assert elastic.transport_cross_section_nm2(solid) == pytest.approx(
        elastic.transport_cross_section_nm2(free), rel=0.02
    )


def test_unknown_kind_of_atom_is_refused():
    with pytest.raises(ValueError, match="free, muffin_tin; got 'crystal'"):
        elastic.partial_waves(SI, 1.0, atom="crystal")
