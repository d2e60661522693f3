import numpy as np
import pytest

from bsevox_jax import sim

ENERGIES_KEV = (1.0, 6.0, 10.0)
STRONG = sim.Biasing(above_kev=0.5, angle_share=0.05, angle_chance=0.2)  # also where it does not pay


def cube():
    labels = np.ones((8, 8, 20), np.uint8)
    labels[2:6, 2:6, 3:12] = 2
    return labels


def yields(**options):
    return sim.simulate_yields(cube(), beam_energies_kev=ENERGIES_KEV, **options)


def plain(electrons, seed=1):
    return sim.simulate_bse(cube(), electrons_per_pixel=electrons, beam_energies_kev=ENERGIES_KEV, seed=seed)


def assert_same_yields(images, estimate):
    """By kind and energy; the counts of one primary are a little more than binomial."""
    pixels = images.counts[..., 0].size
    kinds = (
        (images.counts, estimate.yields),
        (images.primary_counts, estimate.primary_yields),
        (images.counts - images.primary_counts, estimate.yields - estimate.primary_yields),
    )
    error = np.sqrt((estimate.standard_errors**2).sum((0, 1))) / pixels
    for counts, expected in kinds:
        mean = counts.mean((0, 1)) / images.electrons_per_pixel
        plain_error = np.sqrt(1.2 * mean / images.electrons_per_pixel / pixels)
        assert (np.abs(expected.mean((0, 1)) - mean) < 4 * np.hypot(error, plain_error)).all()


@pytest.mark.slow
def test_weights_leave_the_yields_as_they_are():
    assert_same_yields(plain(1500), yields(electrons_per_pixel=1500, biasing=STRONG))


@pytest.mark.slow
@pytest.mark.parametrize("biasing", [STRONG, sim.Biasing()])
def test_weights_leave_the_yields_of_a_million_electrons_as_they_are(biasing):
    assert_same_yields(plain(16_000), yields(electrons_per_pixel=16_000, biasing=biasing))


@pytest.mark.slow
def test_electrons_below_the_threshold_are_counted_as_by_the_plain_walk():
    none = sim.Biasing(above_kev=20.0)
    estimate = yields(electrons_per_pixel=40, seed=1, biasing=none)
    images = plain(40)
    np.testing.assert_allclose(estimate.yields * 40, images.counts, atol=1e-4)
    np.testing.assert_allclose(estimate.primary_yields * 40, images.primary_counts, atol=1e-4)


@pytest.mark.slow
@pytest.mark.slow
def test_standard_errors_are_the_scatter_of_repeats():
    repeats = [yields(electrons_per_pixel=100, seed=seed) for seed in range(8)]
    values = np.array([r.yields for r in repeats])
    variance = np.mean([r.standard_errors**2 for r in repeats], (0, 1, 2))
    scatter = values.var(0, ddof=1).mean((0, 1))
    spread = 5 * np.sqrt(2 / (7 * 64))  # of a variance from 64 pixels of 8 repeats
    np.testing.assert_allclose(scatter / variance, 1, atol=1.5 * spread)  # weights have long tails


@pytest.mark.slow
def test_fast_electrons_scatter_less_than_in_the_plain_walk():
    estimate = yields(electrons_per_pixel=1000)
    binomial = np.sqrt((estimate.yields * (1 - estimate.yields) / 1000).mean((0, 1)))
    errors = np.sqrt((estimate.standard_errors**2).mean((0, 1)))
    assert errors[2] < 0.9 * binomial[2]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"angle_share": 0.0}, "must lie between 0 and 1"),
        ({"above_kev": np.nan}, "above_kev must be 0 or more"),
    ],
)
def test_broken_biasing_is_refused_with_the_rule(changes, rule):
    with pytest.raises(ValueError, match=rule):
        yields(electrons_per_pixel=10, biasing=sim.Biasing(**changes))
