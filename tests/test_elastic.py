import csv

import numpy as np
import pytest
from scipy.integrate import quad

from bsevox_jax.sim import elastic, elements

SI, CU = elements.material("Si"), elements.material("Cu")

# ELSEPA, static exchange, free atom: sigma_el, sigma_tr1 in 1e-20 m^2 = 0.01 nm^2. F. Salvat, A. Jablonski,
# C. J. Powell, Comput. Phys. Commun. 165, 157 (2005).
ELSEPA = {
    ("Si", 0.1): (5.6095, 2.2907),
    ("Si", 1.0): (1.3762, 0.13385),
    ("Si", 5.0): (0.39419, 0.010222),
    ("Cu", 0.1): (2.8696, 1.6495),
    ("Cu", 1.0): (1.3659, 0.32572),
    ("Cu", 5.0): (0.54353, 0.032109),
}
# The same and sigma_tr2, as PENELOPE uses them: F. Salvat, PENELOPE 2008 database, from ELSEPA.
ELSEPA_TR2 = {
    ("O", 0.1): (2.53585, 1.57677, 1.32595),
    ("O", 1.0): (0.542228, 0.0611315, 0.120436),
    ("Al", 0.1): (5.39618, 2.11341, 1.80326),
    ("Al", 1.0): (1.25971, 0.120459, 0.203584),
    ("Ti", 0.1): (7.03075, 3.04328, 2.88866),
    ("Ti", 10.0): (0.410034, 0.00687076, 0.0155157),
    ("Ge", 0.1): (4.59813, 1.6467, 2.18246),
    ("Ge", 1.0): (1.78528, 0.358377, 0.379195),
    ("W", 0.1): (10.9979, 1.475, 2.92274),
    ("W", 1.0): (2.90353, 0.681614, 0.592658),
    ("W", 10.0): (0.855787, 0.0418675, 0.0673319),
    ("Au", 0.1): (9.02431, 1.96225, 3.52568),
    ("Au", 1.0): (2.50439, 0.693439, 0.632546),
    ("Au", 10.0): (0.810816, 0.0454773, 0.0710616),
}


def symbols_and_numbers():
    lines = (elements.DATA_DIR / "lobato_2014.csv").read_text().splitlines()
    return [(row["symbol"], int(row["Z"])) for row in csv.DictReader(x for x in lines if x[0] != "#")]


def test_every_atom_is_neutral():
    for symbol, number in symbols_and_numbers():
        charge, _ = elements.screening(symbol)
        assert charge.sum() == pytest.approx(number, rel=1e-8)


@pytest.mark.parametrize("symbol", ["Si", "Cu", "Au"])
def test_electron_density_is_positive_and_holds_all_electrons(symbol):
    def electrons_per_bohr(r):
        return 4 * np.pi * r**2 * elastic.static_potential(symbol, np.array([r]))[1][0]

    electrons, _ = quad(electrons_per_bohr, 0, 30, limit=200, points=[0.01, 0.1, 1.0])
    assert electrons == pytest.approx(elements.element(symbol).atomic_number, rel=1e-5)
    assert np.all(elastic.static_potential(symbol, np.geomspace(1e-4, 16, 1000))[1] > 0)


@pytest.mark.parametrize("symbol", ["Si", "Cu", "Au"])
def test_potential_and_density_obey_the_poisson_equation(symbol):
    r = np.linspace(0.5, 2.0, 16)
    h = 1e-3
    r_v = [(r + s * h) * elastic.static_potential(symbol, r + s * h)[0] for s in (-1, 0, 1)]
    laplacian = (r_v[0] - 2 * r_v[1] + r_v[2]) / h**2 / r
    np.testing.assert_allclose(laplacian, -4 * np.pi * elastic.static_potential(symbol, r)[1], rtol=1e-4)


@pytest.mark.parametrize("symbol, energy_kev", list(ELSEPA))
def test_cross_sections_agree_with_elsepa(symbol, energy_kev):
    waves = elastic.partial_waves(symbol, energy_kev)
    total, transport = ELSEPA[symbol, energy_kev]
    assert elastic.cross_section_nm2(waves) == pytest.approx(total * 1e-2, rel=0.01)
    assert elastic.transport_cross_section_nm2(waves) == pytest.approx(transport * 1e-2, rel=0.003)


@pytest.mark.parametrize("symbol, energy_kev", list(ELSEPA_TR2))
def test_cross_sections_of_light_and_heavy_atoms_agree_with_elsepa(symbol, energy_kev):
    waves = elastic.partial_waves(symbol, energy_kev)
    total, *transport = ELSEPA_TR2[symbol, energy_kev]
    assert elastic.cross_section_nm2(waves) == pytest.approx(total * 1e-2, rel=0.015)
    for order, expected in enumerate(transport, start=1):
        computed = elastic.transport_cross_section_nm2(waves, order)
        assert computed == pytest.approx(expected * 1e-2, rel=0.01)


@pytest.mark.parametrize("radius_nm", [None, CU.muffin_tin_radius_nm], ids=["free", "muffin_tin"])
def test_phase_shifts_and_integrated_angles_give_one_cross_section(radius_nm):
    waves = elastic.partial_waves("Cu", 3.0, muffin_tin_radius_nm=radius_nm)
    edges, shares = elastic.angular_distribution(waves)
    assert (edges[0], edges[-1]) == (0, 1) and np.all(shares > 0)
    assert shares.sum() == pytest.approx(elastic.cross_section_nm2(waves), rel=1e-8)


@pytest.mark.parametrize("symbol", ["Cu", "Au"])
@pytest.mark.parametrize("energy_kev", [0.06, 10.0])
def test_step_length_and_matching_radius_do_not_matter(symbol, energy_kev, monkeypatch):
    coarse = elastic.cross_section_nm2(elastic.partial_waves(symbol, energy_kev))
    monkeypatch.setattr(elastic, "_STEPS_PER_RADIAN", 8.0)
    monkeypatch.setattr(elastic, "_STEPS_PER_E_FOLD", 24.0)
    fine = elastic.cross_section_nm2(elastic.partial_waves(symbol, energy_kev))
    monkeypatch.setattr(elastic, "_FREE_RADIUS", 20.0)
    wide = elastic.cross_section_nm2(elastic.partial_waves(symbol, energy_kev))
    assert coarse == pytest.approx(fine, rel=2e-5)
    assert wide == pytest.approx(fine, rel=2e-6)


def test_light_fast_limit_is_the_born_approximation():
    energy_kev = 10.0
    waves = elastic.partial_waves("He", energy_kev)
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
    radius_nm = material.muffin_tin_radius_nm
    r = radius_nm / elements.BOHR_NM * np.array([0.999, 1.0])
    potential, _ = elastic.static_potential(material.name, r, muffin_tin_radius_nm=radius_nm)
    assert potential[1] == pytest.approx(0, abs=1e-12)
    assert abs(potential[0]) < 1e-5


@pytest.mark.parametrize("material", [SI, CU], ids=lambda m: m.name)
def test_solid_removes_forward_events_but_not_transport(material):
    free, solid = (
        elastic.partial_waves(material.name, 1.0, muffin_tin_radius_nm=radius_nm)
        for radius_nm in (None, material.muffin_tin_radius_nm)
    )
    assert elastic.cross_section_nm2(solid) < 0.9 * elastic.cross_section_nm2(free)
    assert elastic.transport_cross_section_nm2(solid) == pytest.approx(
        elastic.transport_cross_section_nm2(free), rel=0.02
    )


def test_unknown_element_is_refused():
    with pytest.raises(ValueError, match="H to Lr.; got 'Xx'"):
        elastic.partial_waves("Xx", 1.0)
