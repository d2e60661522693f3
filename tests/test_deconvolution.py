import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsevox_jax import blur, data, deconvolution, forward, likelihood
from bsevox_jax.evaluate import iou_cu
from bsevox_jax.examples import Examples
from bsevox_jax.sim import phantoms, shapes

FIELD, ENERGIES, DEPTHS = (10, 8), 6, 4
BACKGROUND = np.linspace(0.3, 0.05, ENERGIES)


def small_kernels(seed=0):
    """Symmetric, wider than half of the field, and mostly but not all positive."""
    rng = np.random.default_rng(seed)
    half = (
        rng.uniform(-0.01, 0.04, (5, 4, ENERGIES, DEPTHS))
        * 0.6 ** np.add.outer(np.arange(5), np.arange(4))[..., None, None]
    )
    rows = np.concatenate([half[:0:-1], half])
    return np.concatenate([rows[:, :0:-1], rows], axis=1)


@pytest.fixture(scope="module")
def small():
    return blur.of_kernels(small_kernels(), BACKGROUND, FIELD)


@pytest.fixture(scope="module")
def at_silicon():
    return blur.of_model(forward.load(), (20, 20))


def test_operator_is_a_convolution_between_mirrors(small):
    kernels, f = small_kernels(), np.random.default_rng(1).uniform(size=(*FIELD, DEPTHS))
    padded = np.pad(f, [(4, 4), (3, 3), (0, 0)], mode="symmetric")
    expected = sum(
        padded[i : i + FIELD[0], j : j + FIELD[1]] @ kernels[i, j].T for i in range(9) for j in range(7)
    )
    np.testing.assert_allclose(blur.apply(small, f), expected, atol=1e-6)


def test_adjoint_is_the_transpose(small):
    rng = np.random.default_rng(2)
    f, r = rng.normal(size=(3, *FIELD, DEPTHS)), rng.normal(size=(3, *FIELD, ENERGIES))
    forth = (blur.apply(small, f) * r).sum((1, 2, 3))
    back = (blur.adjoint(small, r) * f).sum((1, 2, 3))
    np.testing.assert_allclose(forth, back, rtol=1e-4, atol=1e-5)


def test_copper_beyond_an_open_field_blurs_into_it():
    kernels, background = small_kernels(), BACKGROUND
    f = np.random.default_rng(1).uniform(size=(FIELD[0] + 8, FIELD[1] + 8, DEPTHS))
    expected = sum(
        f[i : i + FIELD[0], 1 + j : 1 + j + FIELD[1]] @ kernels[i, j].T for i in range(9) for j in range(7)
    )
    opened = blur.of_kernels(kernels, background, FIELD, margin=4)
    np.testing.assert_allclose(blur.apply(opened, f), expected, atol=1e-6)
    r = np.random.default_rng(2).normal(size=(*FIELD, ENERGIES))
    np.testing.assert_allclose(
        (expected * r).sum(), (f * np.asarray(blur.adjoint(opened, r))).sum(), rtol=1e-4
    )


@pytest.mark.parametrize("method", ["em", "tv", "wiener"])
def test_a_field_cut_out_of_a_larger_one_is_better_solved_without_mirrors(method):
    """A plate of copper lies just beyond one side, and nothing of it within."""
    kernels, dose = np.maximum(small_kernels(), 0), 1e5
    f = np.zeros((FIELD[0] + 8, FIELD[1] + 8, DEPTHS))
    f[:, :4, 1:3], f[7:10, 6:9, 1] = 1, 1
    opened = blur.of_kernels(kernels, BACKGROUND, FIELD, margin=4)
    yields = BACKGROUND + blur.apply(opened, f)
    settings = dict(strength=0.3, model_error=0.0, iterations=500)

    def error(operator):
        found = {
            "em": lambda: deconvolution.em(operator, yields, cycles=50),
            "tv": lambda: deconvolution.tv(operator, yields, dose, **settings),
            "wiener": lambda: deconvolution.wiener(operator, yields, dose).mean,
        }[method]()
        assert found.shape == (*FIELD, DEPTHS) and np.isfinite(found).all()
        return np.abs(found - f[4:-4, 4:-4]).mean()

    walled = error(blur.of_kernels(kernels, BACKGROUND, FIELD))
    assert error(opened) < {"em": 0.7, "tv": 0.1, "wiener": 1}[method] * walled


def test_forms_are_kept_where_the_sums_of_kernels_are_given(small):
    sums = np.asarray(small.transfer[0, 0]) * np.linspace(0.5, 2, DEPTHS)
    found = blur.with_sums(small, sums)
    np.testing.assert_allclose(found.transfer[0, 0], sums, rtol=1e-5)
    np.testing.assert_allclose(
        found.transfer[3, 2] / small.transfer[3, 2], sums / small.transfer[0, 0], rtol=1e-3
    )


def test_kernels_without_a_middle_or_symmetry_are_refused():
    kernels = small_kernels()
    with pytest.raises(ValueError, match="odd sizes; got"):
        blur.of_kernels(kernels[1:], BACKGROUND, FIELD)
    kernels[0] *= 2
    with pytest.raises(ValueError, match="symmetric in y and x"):
        blur.of_kernels(kernels, BACKGROUND, FIELD)


def test_regression_finds_the_operator_that_made_the_pairs(small):
    rng, dose = np.random.default_rng(3), 10**9
    labels = 1 + (rng.uniform(size=(200, *FIELD, DEPTHS)) < 0.4).astype(np.uint8)
    yields = BACKGROUND + np.asarray(blur.apply(small, labels == data.COPPER_LABEL))
    energies_kev = tuple(range(1, ENERGIES + 1))
    examples = Examples(np.round(yields * dose).astype(np.int64), labels, dose, energies_kev, "pairs")
    found = blur.of_pairs(examples, ridge=1e-6)
    np.testing.assert_allclose(found.transfer, small.transfer, atol=1e-3)
    np.testing.assert_allclose(found.background, BACKGROUND, atol=1e-3)


def test_specimens_with_vacuum_are_left_out():
    labels = np.ones((3, *FIELD, DEPTHS), np.uint8)
    labels[1, 0, 0, 0] = phantoms.VACUUM
    counts = np.arange(3)[:, None, None, None] * np.ones((3, *FIELD, 2), int)
    kept = blur.of_silicon_and_copper(Examples(counts, labels, 5, (1.0, 2.0), "", ("a", "b", "c")))
    assert kept.families == ("a", "c") and set(kept.counts.ravel()) == {0, 2}


def test_only_negative_parts_of_the_kernels_are_taken_away(small):
    clipped = blur.of_kernels(np.maximum(small_kernels(), 0), BACKGROUND, FIELD)
    np.testing.assert_allclose(blur.non_negative(small).transfer, clipped.transfer, atol=1e-5)
    again = blur.non_negative(clipped)
    np.testing.assert_allclose(again.transfer, clipped.transfer, atol=1e-5)


def test_posterior_goes_from_the_prior_to_the_truth_as_the_dose_grows(small):
    f = np.random.default_rng(4).uniform(size=(*FIELD, DEPTHS))
    yields = BACKGROUND + blur.apply(small, f)
    blind, seeing = (deconvolution.wiener(small, yields, dose) for dose in (1e-6, 1e10))
    np.testing.assert_allclose(blind.standard_deviation, deconvolution.PRIOR_FRACTION, rtol=1e-4)
    assert np.abs(blind.mean).max() < 1e-3 and (blind.modes == 0).all()
    np.testing.assert_allclose(seeing.mean, f, atol=0.02)
    assert seeing.standard_deviation.max() < 0.01 and (seeing.modes == DEPTHS).all()


def test_posterior_is_as_wide_as_its_errors(small):
    """Copper and noise as the posterior assumes them: the errors have its standard deviation."""
    dose, n = 1e4, 100
    copper, noise = jax.random.split(jax.random.key(5))
    f = deconvolution.PRIOR_FRACTION * jax.random.normal(copper, (n, *FIELD, DEPTHS))
    sigma = np.sqrt(BACKGROUND * (1 - BACKGROUND) / dose)
    yields = BACKGROUND + blur.apply(small, f) + sigma * jax.random.normal(noise, (n, *FIELD, ENERGIES))
    found = deconvolution.wiener(small, yields, dose)
    np.testing.assert_allclose((found.mean - f).std((0, 1, 2)), found.standard_deviation, rtol=0.04)
    assert found.standard_deviation.max() < 0.9 * deconvolution.PRIOR_FRACTION


def fourteen_phantoms():
    makers = [*shapes.STRUCTURES["nanocube"].values(), *shapes.STRUCTURES["nanowire_lying"].values()]
    makers += list(shapes.SHAPES.values())[:5]
    return np.stack([np.asarray(make()) for make in makers])


def images_of(operator, labels, dose):
    """Yields by the operator itself, with noise."""
    mean = jnp.clip(operator.background + blur.apply(operator, labels == phantoms.COPPER), 1e-6, 1)
    return mean + jnp.sqrt(mean * (1 - mean) / dose) * jax.random.normal(jax.random.key(6), mean.shape)


@pytest.mark.slow
def test_bodies_are_found_in_images_of_the_operator_itself(at_silicon):
    """Fourteen phantoms at 10^6 electrons per pixel: IoU from 0.98 in at least twelve."""
    labels, dose = fourteen_phantoms(), 1e6
    settings = dict(strength=0.3, model_error=0.0, iterations=1500, refreshes=1)
    found = deconvolution.tv(at_silicon, images_of(at_silicon, labels, dose), dose, **settings)
    iou = np.array(iou_cu(found, labels))
    assert len(iou) == 14 and (iou >= 0.98).sum() >= 12, iou


@pytest.mark.slow
def test_the_most_likely_volume_explains_the_images_and_is_not_always_the_true_one(at_silicon):
    """The same images through positive kernels. Likelihood alone does not tell the truth from its like."""
    operator, labels, dose = blur.non_negative(at_silicon), fourteen_phantoms(), 1e6
    yields = np.clip(images_of(operator, labels, dose), 1e-6, 1 - 1e-6)
    found = deconvolution.em(operator, yields, cycles=500)

    def misfit(f):
        mean = np.clip(operator.background + blur.apply(operator, f), 1e-6, 1 - 1e-6)
        terms = yields * np.log(yields / mean) + (1 - yields) * np.log((1 - yields) / (1 - mean))
        return dose * terms.astype(np.float64).sum((1, 2, 3)) / yields[0].size

    iou = np.array(iou_cu(found, labels))
    explained = misfit(found) < 1.1 * misfit(labels == phantoms.COPPER)  # one half per pixel and energy
    assert explained.sum() >= 10 and (iou >= 0.98).sum() >= 5 and iou.mean() > 0.85, (explained, iou)
    assert (explained & (iou < 0.9)).any()


def test_every_cycle_of_expectation_maximisation_is_more_likely(small):
    operator = blur.non_negative(small)
    f = np.random.default_rng(8).uniform(size=(*FIELD, DEPTHS)) > 0.7
    yields = BACKGROUND + np.asarray(blur.apply(operator, f))
    assert yields.max() < 1

    def divergence(cycles):
        found = deconvolution.em(operator, yields, cycles=cycles)
        assert 0 <= found.min() and found.max() <= 1
        mean = BACKGROUND + np.asarray(blur.apply(operator, found))
        return (yields * np.log(yields / mean) + (1 - yields) * np.log((1 - yields) / (1 - mean))).sum()

    path = [divergence(cycles) for cycles in (0, 1, 2, 5, 10, 50, 200)]
    assert path == sorted(path, reverse=True) and path[-1] < 1e-3 * path[0]


def test_total_variation_ends_where_no_voxel_can_lower_the_sum(small):
    """A strictly better neighbour of the solution would contradict that the problem is convex."""
    rng, dose, strength = np.random.default_rng(7), 1e4, 0.5
    f = np.zeros((*FIELD, DEPTHS))
    f[3:7, 2:5, 1:3] = 1
    mean = BACKGROUND + np.asarray(blur.apply(small, f))
    yields = mean + np.sqrt(mean * (1 - mean) / dose) * rng.normal(size=mean.shape)
    settings = dict(strength=strength, model_error=0.0, iterations=1500, refreshes=0)
    found = np.asarray(deconvolution.tv(small, yields, dose, **settings))
    assert found.min() >= 0 and found.max() <= 1
    weight = (BACKGROUND * (1 - BACKGROUND) / dose) ** -0.5

    def objective(g):
        misfit = weight * (np.asarray(blur.apply(small, g)) - (yields - BACKGROUND))
        steps = np.stack([np.diff(g, axis=a, append=np.take(g, [-1], axis=a)) for a in range(3)])
        return 0.5 * (misfit**2).sum() + strength * np.sqrt((steps**2).sum(0)).sum()

    least = objective(found)
    assert least < objective(f) and least < objective(np.zeros_like(f))
    for _ in range(50):
        other = np.clip(found + rng.normal(scale=10 ** rng.uniform(-3, -1), size=found.shape), 0, 1)
        assert objective(other) > least * (1 - 1e-4)


def test_blind_separation_has_no_scale_and_fills_the_range(small):
    f = np.zeros((*FIELD, DEPTHS))
    f[3:7, 2:5, 1:3] = 1
    yields = BACKGROUND + np.asarray(blur.apply(small, f))
    settings = dict(beam_energies_kev=tuple(np.linspace(0.5, 3, ENERGIES)), depth=DEPTHS, iterations=30)
    found = deconvolution.blind(yields, **settings)
    assert found.shape == f.shape and found.min() == 0 and found.max() == 1
    np.testing.assert_allclose(deconvolution.blind(3 * yields, **settings), found, atol=1e-3)
    assert found[3:7, 2:5].mean() > found[:, 6:].mean()  # bright where the copper is


@pytest.mark.slow
def test_climbing_the_likelihood_explains_the_images_better():
    model, dose = forward.load(), 1000.0
    labels = np.ones((1, 8, 8, 20), np.uint8)
    labels[0, 2:6, 2:6, 1:5] = phantoms.COPPER
    counts = dose * forward.expect(model, jnp.asarray(labels)).yields
    start = jnp.full(labels.shape, 0.2)
    settings = dict(strength=0.3, learning_rate=0.3, iterations=60)
    found = deconvolution.map_estimate(model, counts, dose, start, **settings)
    before, after = (
        likelihood.log_likelihood(model, counts, jnp.stack([1 - f, f], -1), dose)[0] for f in (start, found)
    )
    assert before < 50 * after < 0
    assert iou_cu(np.asarray(found), labels)[0] > 0.7 > iou_cu(np.asarray(start), labels)[0]


@pytest.mark.slow
def test_derivative_of_the_image_model_foretells_a_little_copper(at_silicon):
    model = forward.load()
    f = np.zeros((20, 20, 20), np.float32)
    f[2:5, 7:12, 3:6] = 0.01  # near a side, whose mirror must count
    volume = jnp.stack([1 - f, f], axis=-1)
    expected = forward.expect(model, volume).yields - at_silicon.background
    found = blur.apply(at_silicon, f)
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
