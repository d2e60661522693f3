import dataclasses

import numpy as np
import pytest

from bsevox_jax.sim import reach, tables


@pytest.fixture(scope="module")
def both():
    return tables.shipped(("Si", "Cu"))


def test_reach_grows_with_energy_and_ends_where_nothing_counts(both):
    found = reach.reach_nm(both, 0.05)
    assert (np.diff(found) >= 0).all() and (found[both.energies_kev <= 0.05] == 0).all()
    assert (reach.reach_nm(both, 0.5) <= found).all()


def test_mixture_reaches_farther_than_each_of_its_materials(both):
    """Copper lets slow electrons through, silicon fast ones."""
    alone = [reach.reach_nm(tables.shipped((name,)), 0.05) for name in ("Si", "Cu")]
    mixed = reach.reach_nm(both, 0.05)
    assert (mixed >= np.maximum(*alone) * (1 - 1e-3)).all()
    assert (mixed > 1.005 * np.maximum(*alone)).any()


def test_single_kind_of_loss_that_ends_an_electron_is_reached_exponentially(both):
    """Where any loss ends the electron and frees nothing, F = exp(-x/lambda)."""
    rate_per_nm = 0.3
    shape = both.loss_icdf_kev.shape
    fatal = dataclasses.replace(
        both,
        inelastic_rate_per_nm=np.full(shape[:2], rate_per_nm),
        loss_icdf_kev=np.full(shape, 0.02),
        barrier_kev=np.zeros(3),
        fermi_kev=np.zeros(3),
        core_edges_kev=np.full((3, 1), np.inf),
    )
    row = np.searchsorted(both.energies_kev, 0.1)
    found = reach.reach_nm(fatal, cutoff_kev=float(both.energies_kev[row]) - 0.005)[row]
    assert found == pytest.approx(-np.log(reach.LOST_ELECTRONS) / rate_per_nm, rel=0.01)


def test_nothing_stops_an_electron_without_losses(both):
    lossless = dataclasses.replace(both, inelastic_rate_per_nm=np.zeros_like(both.inelastic_rate_per_nm))
    found = reach.reach_nm(lossless, 0.05)
    assert np.isinf(found[both.energies_kev > 0.05]).all()
