import os

import numpy as np
import pytest
import small_export

from bsevox_jax import calibration, check, checkpoint
from bsevox_jax.calibrate import calibrate


def overconfident(n=200_000, seed=0):
    """Probabilities whose log-odds are twice what they should be and shifted, and the truth."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-2, 2, n)
    is_cu = rng.random(n) < 1 / (1 + np.exp(-odds))
    return 1 / (1 + np.exp(-2 * odds - 1)), is_cu


def test_a_curve_makes_probabilities_mean_what_they_say():
    p, is_cu = overconfident()
    curve = calibration.fit_curve(p, is_cu)
    np.testing.assert_allclose(curve[:2], 0.5, atol=0.02)  # the temperature was one half
    assert curve[2] == pytest.approx(-0.5, abs=0.02)
    before = calibration.reliability(p, is_cu)["expected_calibration_error"]
    q, is_cu = overconfident(seed=1)
    after = calibration.reliability(calibration.bent(q, curve), is_cu)["expected_calibration_error"]
    assert before > 0.03 and after < 0.003


def test_the_curve_never_falls_and_keeps_the_ends():
    p = np.linspace(0, 1, 1001)
    is_cu = np.random.default_rng(0).random(1001) < 1 - p  # a network that is always wrong
    q = calibration.bent(p, calibration.fit_curve(p, is_cu))
    assert (np.diff(q) >= 0).all() and q.min() >= 0 and q.max() <= 1
    np.testing.assert_allclose(calibration.bent(p, (1.0, 1.0, 0.0)), p, atol=2e-6)


@pytest.fixture
def run(tmp_path):
    config, splits = small_export.write(tmp_path)
    return config, str(tmp_path / "run"), splits


def test_calibration_is_found_beside_the_weights_and_of_these_weights_only(run):
    config, workdir, splits = run
    found = calibrate(config, workdir)
    folder = os.path.join(workdir, "export")
    export = checkpoint.load_export(folder)
    loaded = calibration.load(folder, export)
    assert loaded.curve == found.curve and loaded.threshold == found.threshold
    assert loaded.about["specimens"] == len(splits["validation"]) == len(loaded.reference.chi2)
    np.testing.assert_allclose(loaded.reference.features, found.reference.features, rtol=1e-5)
    other = found.about | {"sha256": "another"}
    calibration.save(folder, calibration.Calibration(found.curve, {}, 0.5, found.reference, other))
    with pytest.raises(OSError, match="that of the weights; got another"):
        calibration.load(folder, export)
    with open(os.path.join(folder, calibration.FILE), "wb") as file:
        file.write(b"no zip")
    with pytest.raises(OSError, match="readable; got a damaged"):
        calibration.load(folder, export)
    os.remove(os.path.join(folder, calibration.FILE))
    assert calibration.load(folder, export) is None


def test_of_the_reference_nearly_none_are_outside():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(41, 41))  # features hang together

    def drawn(n):
        return rng.normal(size=(n, 41)) @ mixed

    features, chi2 = drawn(300), np.ones(300)
    features[:30] *= 30  # of specimens that no network makes out
    chi2[:30] = 3.0
    reference = check.Reference(features, chi2)
    assert reference.outside(drawn(2000)).mean() < 0.06
    far = drawn(2000) + 12 * np.sqrt((mixed**2).sum(0)) * (np.arange(41) == 7)
    assert reference.outside(far).mean() > 0.95
    assert reference.of([0, 5]).features.shape == (300, 4)
