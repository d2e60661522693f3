"""The measures of the study of resolution, on volumes whose resolution is known."""

import numpy as np
import pytest
from absl import flags
from scipy.ndimage import gaussian_filter

from benchmarks import resolution

TRUTH = np.stack([(labels == 2).astype(np.float32) for labels in resolution.STRUCTURES.values()])


@pytest.fixture(autouse=True, scope="module")
def _flags():
    flags.FLAGS.mark_as_parsed()


def blurred(sigma_nm):
    return resolution.of_structures(np.stack([gaussian_filter(volume, sigma_nm) for volume in TRUTH]))


def test_truth_resolves_everything_and_an_even_volume_nothing():
    perfect, blind = resolution.of_structures(TRUTH), resolution.of_structures(np.full_like(TRUTH, 0.3))
    for kind in ("grating", "plates"):
        for period, by_top in perfect["contrast"][kind].items():
            assert by_top and all(value == 1 for value in by_top.values())
            assert all(abs(value) < 1e-6 for value in blind["contrast"][kind][period].values())
    gaps = resolution.GAPS_NM
    assert {gap for by_top in perfect["smallest_gap_nm"].values() for gap in by_top.values()} == {gaps[0]}
    assert {gap for by_top in blind["smallest_gap_nm"].values() for gap in by_top.values()} == {None}
    assert max(map(abs, perfect["layer_depth_error_nm"].values())) < 1e-5


def test_blur_takes_the_contrast_of_fine_gratings_first_and_loses_small_cubes():
    little, much = blurred(0.6), blurred(1.2)
    for found in (little, much):
        contrast = [found["contrast"]["grating"][period][5] for period in (2, 4, 6)]
        assert contrast == sorted(contrast) and contrast[0] < 0.8
    assert much["contrast"]["grating"][4][5] < little["contrast"]["grating"][4][5]
    assert little["smallest_gap_nm"]["pair x"][5] == 1 and much["smallest_gap_nm"]["pair x"][5] is None


def test_surface_distance_is_the_shift_of_a_slab():
    slab = np.zeros((20, 20, 20), bool)
    slab[:, :, 4:10] = True
    assert resolution.surface_distance(slab, slab) == 0
    assert resolution.surface_distance(slab, np.roll(slab, 2, axis=2)) == 2
    assert np.isnan(resolution.surface_distance(slab, np.zeros_like(slab)))


def test_probabilities_that_come_true_are_calibrated_and_bold_ones_are_not():
    p = np.random.default_rng(0).uniform(size=(40, 20, 20, 20))
    labels = 1 + (np.random.default_rng(1).uniform(size=p.shape) < p)
    assert resolution.calibration(p, labels)["expected_calibration_error"] < 0.005
    bold = resolution.calibration((p > 0.5).astype(float), labels)["expected_calibration_error"]
    np.testing.assert_allclose(bold, 0.25, atol=0.01)


def test_half_of_the_copper_is_a_volume_bias_of_minus_half():
    labels = np.ones((10, 20, 20, 20), int)
    for k, volume in enumerate(labels):
        volume[:, : k + 1, :10] = 2
    found = resolution.of_bodies((labels == 2) * 0.5, labels)["by_size"]
    np.testing.assert_allclose([row["volume_bias_percent"] for row in found], -50)
    assert all(low < high for low, high in (row["cu_nm3"] for row in found))
