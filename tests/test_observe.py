import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bsevox_jax import data, observe

ENERGIES_KEV = (1.0, 2.0, 4.0)
OFF = dict(symmetries=False, lowest_electrons_per_pixel=200, highest_electrons_per_pixel=200)


def microscope(**settings):
    """One that leaves the yields as they are counted."""
    yields = data.Normalisation(np.zeros(3, np.float32), np.ones(3, np.float32))
    return observe.Microscope(normalisation=yields, beam_energies_kev=ENERGIES_KEV, **(OFF | settings))


def example(pixels=6):
    """Yields of a random image."""
    rng = np.random.default_rng(0)
    yields = rng.uniform(0.05, 0.4, (pixels, pixels, 3))
    labels = rng.integers(0, 3, (pixels, pixels, 4)).astype(np.uint8)
    return {"yields": np.float32(yields), "excess": np.full(yields.shape, 0.15, np.float32), "labels": labels}


def observed(microscope, example, draws=400):
    """Images and labels of draws of one example, in yields."""
    keys = jax.random.split(jax.random.key(0), draws)
    return jax.device_get(jax.jit(jax.vmap(lambda key: microscope(key, example)))(keys))


@pytest.mark.parametrize("n", [1, 10, 100, 1000, 10_000])
def test_binomial_inverts_the_distribution(n):
    p = np.float32([0, 1e-4, 0.01, 0.2, 0.5, 0.7, 0.97])[:, None]
    uniform = ((np.arange(20_000) + 0.5) / 20_000).astype(np.float32)
    drawn = np.asarray(jax.jit(observe.binomial, static_argnums=1)(jnp.tile(uniform, (len(p), 1)), n, p))
    expected = stats.binom.ppf(np.float64(uniform), n, np.float64(p))
    assert abs(drawn - expected).max() <= 1
    exact = (n * p * (1 - p) <= observe.SUMMED_VARIANCE)[:, 0]
    differ = (drawn != expected).mean(1)
    assert (differ[exact] < 3e-4).all(), "only where rounding decides"
    assert (differ < 3e-3).all()
    # The mean of a thousand pixels and their scatter are as right as counts can be.
    for found, wanted in ((drawn.mean(1), expected.mean(1)), (drawn.var(1), expected.var(1))):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_binomial_of_extreme_uniforms_and_chances_stays_within_its_trials():
    uniform = jnp.array([0.0, 0.5, 1 - 2**-24])
    for p in (0.0, 1e-7, 0.999999, 1.0):
        drawn = np.asarray(observe.binomial(uniform, 30.0, jnp.full(3, p)))
        assert (drawn >= 0).all() and (drawn <= 30).all() and abs(drawn[1] - 30 * p) < 1


@pytest.mark.parametrize(
    "y, excess, n", [(0.012, 0.05, 100), (0.3, 0.1, 100), (0.3, 0.3, 1000), (0.9, 0.2, 50)]
)
def test_counts_have_the_mean_and_variance_of_the_image_model(y, excess, n):
    draws = 200_000
    expected = observe.chances(jnp.full(draws, y), jnp.full(draws, excess))
    counts = np.asarray(observe.draw_counts(jax.random.key(1), expected, n), np.float64)
    variance = n * y * (1 - y) * (1 + excess)
    assert abs(counts.mean() - n * y) < 5 * np.sqrt(variance / draws)
    # Standard error of a variance; the kurtosis is below 3 + 4 / variance.
    assert abs(counts.var() / variance - 1) < 5 * np.sqrt((2 + 4 / variance) / draws)
    assert counts.min() >= 0


def test_impossible_chances_are_cut():
    counts = observe.draw_counts(jax.random.key(0), jnp.array([[-0.1, 1.2, 0.5], [-0.1, 0.2, 0.9]]), 20)
    assert counts[0] == 0 and counts[1] >= 20 and 20 <= counts[2] <= 40
    one, two = observe.chances(jnp.array([0.3, 1.0]), jnp.array([9.0, 0.1]))
    np.testing.assert_allclose(one + 2 * two, [0.3, 1.0], rtol=1e-6)
    assert (one >= 0).all() and (two >= 0).all()


def test_no_two_observations_are_alike_and_doses_are_log_uniform_about_the_same_mean():
    wide, sample = dict(lowest_electrons_per_pixel=20, highest_electrons_per_pixel=2000), example()
    images, _ = observed(microscope(**wide), sample)
    assert len({image.tobytes() for image in images}) == len(images)
    assert (abs(images.mean(0) - sample["yields"]) < 5 * images.std(0) / np.sqrt(len(images))).all()
    doses = 1 / np.array([np.diff(np.unique(image)).min() for image in images])  # yields come in steps of it
    assert 19 < doses.min() < 25 and 1600 < doses.max() < 2001
    assert abs(np.log(doses).mean() - np.log(200)) < 5 * np.log(100) / np.sqrt(12 * len(doses))


def test_symmetry_turns_image_and_labels_alike_and_the_detector_adds_its_noise():
    sample = example()
    sample["yields"] = np.where(sample["labels"][..., :3] == 2, np.float32(0.9), 0.01)
    images, labels = observed(microscope(symmetries=True, noise_electrons=3.0), sample)
    assert len({volume.tobytes() for volume in labels}) == 8
    np.testing.assert_array_equal(images > 0.5, labels[..., :3] == 2)
    dark = images[labels[..., :3] != 2]
    added = dark.var() - 0.01 * 0.99 * 1.15 / 200
    assert abs(added / (3 / 200) ** 2 - 1) < 0.05


@pytest.fixture(scope="module")
def distorted():
    """Effect -> yields [draw, y, x, e] of an instrument with that effect alone."""
    effects = {
        "none": {},
        "gain_error": dict(gain_error=0.1),
        "offset_error": dict(offset_error=0.02),
        "probe_fwhm_nm": dict(probe_fwhm_nm=(1.0, 3.0)),
        "drift_nm": dict(drift_nm=0.5),
        "energy_error": dict(energy_error=0.05),
    }
    sample = example()

    def yields(key):
        expected = observe.chances(sample["yields"], sample["excess"])
        found = {name: microscope(**settings).distort(key, expected) for name, settings in effects.items()}
        return {name: one + 2 * two for name, (one, two) in found.items()}

    return jax.device_get(jax.jit(jax.vmap(yields))(jax.random.split(jax.random.key(2), 400)))


def test_gain_and_offset_spread_each_energy_alone(distorted):
    y = example()["yields"]
    factors, offsets = distorted["gain_error"] / y, distorted["offset_error"] - y
    for found, mean, spread in ((factors, 1, 0.1), (offsets, 0, 0.02)):
        each = found[:, 0, 0]
        np.testing.assert_allclose(found, np.broadcast_to(found[:, :1, :1], found.shape), atol=1e-4)
        assert (abs(each.mean(0) - mean) < 5 * spread / np.sqrt(400)).all()
        assert (abs(each.std(0) / spread - 1) < 5 / np.sqrt(2 * 400)).all()
        assert abs(np.corrcoef(each.T)[0, 1]) < 5 / np.sqrt(400)


def test_probe_drift_and_energies_change_from_example_to_example_and_keep_the_level(distorted):
    y = example()["yields"]
    np.testing.assert_allclose(distorted["none"], np.broadcast_to(y, distorted["none"].shape), rtol=1e-6)
    for name in ("probe_fwhm_nm", "drift_nm", "energy_error"):
        images = distorted[name]
        assert len({image.tobytes() for image in images}) > 390 and images.std(0).max() > 1e-3, name
        assert y.min() - 1e-6 <= images.min() and images.max() <= y.max() + 1e-6, name
    np.testing.assert_allclose(
        distorted["probe_fwhm_nm"].mean((1, 2)), np.tile(y.mean((0, 1)), (400, 1)), rtol=1e-5
    )


def test_energies_are_missing_as_often_as_told_and_wholly():
    images = jnp.ones((5, 4, 20))
    draws = jax.vmap(lambda key: observe.lacking(key, images, 0.5))(jax.random.split(jax.random.key(4), 2000))
    missing = np.asarray(draws == 0)
    assert (missing == missing[:, :1, :1]).all()  # all over the field
    share = missing[:, 0, 0].mean(1)
    complete = (share == 0).mean()
    # Every second one lacks none; of the others with a share s from 0 to 1/2, (1 - s)^20 on average.
    expected = 0.5 + 0.5 * (1 - 0.5**21) / (21 * 0.5)
    assert abs(complete - expected) < 5 * np.sqrt(expected * (1 - expected) / 2000)
    assert abs(share.mean() - 0.125) < 5 * share.std() / np.sqrt(2000) and share.max() < 0.9
    whole, lacking = (microscope(**m)(jax.random.key(0), example())[0] for m in ({}, {"missing": 0.9}))
    assert ((lacking == whole) | (lacking == 0)).all()
    with pytest.raises(ValueError, match="missing must be from 0 and below 1; got 1"):
        microscope(missing=1)


def test_effects_are_named():
    assert microscope().effects == "none"
    assert microscope(drift_nm=0.5, probe_fwhm_nm=(0, 1)).effects == "probe_fwhm_nm (0, 1), drift_nm 0.5"


def test_blur_conserves_the_mean_does_nothing_at_zero_and_has_its_width():
    images = jnp.asarray(example(pixels=15)["yields"])
    np.testing.assert_array_equal(observe.blurred(images, 0.0), images)
    blurred = observe.blurred(images, 3.0)
    np.testing.assert_allclose(blurred.mean((0, 1)), images.mean((0, 1)), rtol=1e-5)
    assert blurred.std() < 0.5 * images.std()
    spot = observe.blurred(jnp.zeros((15, 15, 1)).at[7, 7].set(1.0), 3.0)[..., 0]
    offset = np.arange(15) - 7
    for axis in (0, 1):
        variance = (spot.sum(1 - axis) * offset**2).sum()
        np.testing.assert_allclose(np.sqrt(8 * np.log(2) * variance), 3.0, rtol=1e-2)


def test_shift_moves_whole_pixels_between_mirrors_and_interpolates_between_them():
    images = jnp.asarray(example()["yields"])
    np.testing.assert_array_equal(observe.shifted(images, jnp.zeros((2, 3))), images)
    moved = observe.shifted(images, jnp.array([[1.0, 0.0, -2.0], [0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(moved[..., 0], jnp.concatenate([images[1:, :, 0], images[-1:, :, 0]]))
    np.testing.assert_allclose(moved[:, :-1, 1], images[:, 1:, 1])
    np.testing.assert_allclose(moved[..., 2], jnp.concatenate([images[1::-1, :, 2], images[:-2, :, 2]]))
    half = observe.shifted(images, jnp.full((2, 3), 0.0).at[0].set(0.5))
    np.testing.assert_allclose(half[:-1], (images[1:] + images[:-1]) / 2, rtol=1e-6)


def test_recalibration_reads_between_the_energies_and_holds_the_ends():
    images = jnp.asarray(example()["yields"])
    np.testing.assert_allclose(observe.recalibrated(images, ENERGIES_KEV, 0.0), images, rtol=1e-6)
    higher = observe.recalibrated(images, ENERGIES_KEV, 0.1)
    np.testing.assert_allclose(higher[..., 0], 0.9 * images[..., 0] + 0.1 * images[..., 1], rtol=1e-5)
    np.testing.assert_allclose(higher[..., 1], 0.9 * images[..., 1] + 0.1 * images[..., 2], rtol=1e-5)
    np.testing.assert_allclose(higher[..., 2], images[..., 2], rtol=1e-6)
