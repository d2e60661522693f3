import jax
import numpy as np
import pytest
from scipy import ndimage

from bsevox_jax import check, forward, observe, registration, sim

DOSE = 1000


@pytest.fixture(scope="module")
def model():
    return forward.load()


def images(model, labels, *, dose=DOSE, seed=0, gain=1.0, probe_fwhm_nm=0.0):
    """Yields as drawn at a dose, [n, y, x, e]."""
    expected = forward.expect_all(model, labels)
    sigma = probe_fwhm_nm * observe.SIGMAS_PER_FWHM
    chances = np.asarray(observe.chances(gain * expected.yields, expected.excess))
    if sigma:
        chances = ndimage.gaussian_filter(chances, (0, 0, sigma, sigma, 0), mode="reflect")
    return np.asarray(observe.draw_counts(jax.random.key(seed), chances, float(dose))) / dose


@pytest.fixture(scope="module")
def specimens():
    keys = jax.random.split(jax.random.key(3), 24)
    labels = np.asarray(jax.vmap(sim.phantoms.random_specimen)(keys))
    return labels[(labels > 0).all((1, 2, 3))]


@pytest.fixture(scope="module")
def reference(model, specimens):
    """Of true volumes: what nothing but noise makes."""
    yields = images(model, specimens)
    found = [
        check.check(model, y, DOSE, (v == 2).astype(np.float32))
        for y, v in zip(yields, specimens, strict=True)
    ]
    return check.Reference(np.concatenate([c.features for c in found]), np.array([c.chi2 for c in found]))


def judged(model, reference, yields, labels, **settings):
    return check.check(model, yields, DOSE, (labels == 2).astype(np.float32), reference=reference, **settings)


def test_chi2_of_the_true_volume_is_one_and_it_explains_its_images(model, reference, specimens):
    yields = images(model, specimens[:4], seed=7)
    for y, labels in zip(yields, specimens[:4], strict=True):
        found = judged(model, reference, y, labels)
        degrees = y.size
        # The image model's own error in the variance makes it smaller, by a few percent at most.
        assert 0.93 < found.chi2 < 1 + 4 * np.sqrt(2 / degrees)
        assert found.explains and found.chi2_map.shape == (20, 20) and found.chi2_by_energy.shape == (20,)
        assert found.probe_fwhm_nm == 0


def test_a_wrong_volume_does_not_explain_its_images(model, reference):
    cube = np.asarray(sim.phantoms.nanocube(2))
    y = images(model, cube[None], seed=8)[0]
    found = judged(model, reference, y, np.roll(cube, 5, axis=0))
    assert found.chi2 > 1.5 and found.explains is False and found.in_range is False and found.flagged.all()
    assert any("does NOT explain" in line for line in found.sentences)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda y: y[..., ::-1],
        pytest.param(lambda y: np.moveaxis(y, -1, 0), marks=pytest.mark.slow),
        lambda y: np.concatenate([y[..., :3], y[..., 2:3], y[..., 4:]], axis=-1),
        lambda y: 1.2 * y,
        lambda y: 0.8 * y,
    ],
    ids=["energy order", "axes", "filled energy", "gain 1.2", "gain 0.8"],
)
def test_spoilt_images_of_a_true_volume_are_out_of_range(model, reference, specimens, spoil):
    y = images(model, specimens[1:2], seed=9)[0]
    assert judged(model, reference, spoil(y), specimens[1]).in_range is False


def test_a_dose_ten_times_lower_than_told_is_out_of_range_unless_the_noise_is_not_known(
    model, reference, specimens
):
    y = images(model, specimens[2:3], dose=DOSE // 10, seed=10)[0]
    found = judged(model, reference, y, specimens[2])
    assert found.in_range is False and 8 < found.chi2 < 12
    found = judged(model, reference, y, specimens[2], noise=1.0)
    assert found.noise.mean() == pytest.approx(10, rel=0.1) and found.chi2 == pytest.approx(1, abs=0.1)


def test_the_width_of_the_probe_is_found(model):
    cube = np.asarray(sim.phantoms.nanocube(1))
    y = images(model, cube[None], probe_fwhm_nm=2.0)[0]
    found = check.check(model, y, DOSE, (cube == 2).astype(np.float32))
    assert found.probe_fwhm_nm == 2.0 and found.explains and found.in_range is None


@pytest.mark.slow
def test_vacuum_around_a_wire_is_no_misfit(model):
    labels = np.asarray(sim.phantoms.nanowire(4, "z"))
    y = images(model, labels[None])[0]
    found = check.check(model, y, DOSE, (labels == 2).astype(np.float32))
    assert found.chi2 < 1.2 and (found.chi2_map[labels.sum(-1) == 0] == 0).all()


@pytest.mark.slow
def test_a_stack_without_some_energies_is_checked_on_the_others(model, reference, specimens):
    places = list(range(0, 20, 2))
    y = images(model, specimens[:1], seed=7)[0][..., places]
    found = judged(model, reference, y, specimens[0], places=places)
    assert found.explains and found.expected.shape == y.shape


@pytest.mark.slow
def test_large_fields_are_judged_square_by_square(model, reference):
    labels = np.ones((60, 40, 20), np.uint8)
    labels[5:50, 10:14, 4:9] = 2
    y = images(model, labels[None], seed=3)[0]
    y[20:, 20:] *= 1.2  # two of six squares; of one, chance could be the reason
    found = judged(model, reference, y, labels)
    assert found.in_range is False and found.flagged[20:, 20:].all() and found.flagged.mean() < 0.4


@pytest.mark.slow
def test_noise_that_interpolation_left_uneven_is_no_other_dose(model, reference):
    """Half a pixel off takes half of the noise, a whole one nothing: turned images have stripes of both."""
    labels = np.ones((60, 60, 20), np.uint8)
    labels[20:40, 25:32, 3:8] = 2
    y = images(model, labels[None], seed=12)[0]
    angle = np.linspace(-0.03, 0.03, 20)
    known = registration.Registration(np.zeros((20, 2)), angle, np.ones(20), *[None] * 2, ())
    laid = registration.resample(y, known, 1.0)
    first = np.array(laid.offset_nm).astype(int)
    seen = labels[tuple(slice(a, a + n) for a, n in zip(first, laid.images.shape[:2], strict=True))]
    told, untold = (judged(model, reference, laid.images, seen, noise=noise) for noise in (laid.noise, 1.0))
    assert told.in_range and not told.flagged.any()
    spread = [found.features[:, 20:40].std(0).mean() for found in (told, untold)]
    assert spread[0] < 0.8 * spread[1]
