"""The likelihood of images, and what they can tell, with a small network that was not trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsevox_jax import forward, likelihood, models

SHAPE = (8, 8, 10)
DOSE = 400.0
PARAMETERS = jnp.array([4.2, 2.6, 3.3])  # y of the middle, depth of the middle, edge


def volume_of(parameters):
    y, z, size = parameters
    return likelihood.box(jnp.stack([y, jnp.float32(4), z]), jnp.stack([size, 3, 2.5]), SHAPE)


@pytest.fixture(scope="module")
def model():
    """Three energies, and weights of the last layer that are not quite known; see the first test."""
    network = models.build("equivariant", energies=3, width=2, first_size=3, dilations=(), rays=4, hidden=8)
    start = jax.jit(lambda key: network.init(key, volume_of(PARAMETERS)[None], train=False))
    params = dict(start(jax.random.key(1))["params"])
    params["lift"] = params["lift"] | {"kernel": 3 * params["lift"]["kernel"]}
    of_feature = jnp.where(jnp.arange(12) < 4, 6, 150)[:, None]  # the rays, which hardly vary, come first
    params["head"] = params["head"] | {"kernel": of_feature * params["head"]["kernel"]}
    root = np.random.default_rng(2).normal(size=(3, 13, 13)) * 0.01
    return dataclasses.replace(
        forward.load(),
        weights={"params": params},
        mean_yields=np.array([0.1, 0.2, 0.3], np.float32),
        covariance=(root @ root.transpose(0, 2, 1)).astype(np.float32),
        network=network,
        beam_energies_kev=(1.0, 2.0, 3.0),
    )


@pytest.fixture(scope="module")
def expect():
    """(model, parameters) -> `forward.Expected`."""
    return jax.jit(lambda model, parameters: forward.expect(model, volume_of(parameters)))


@pytest.fixture(scope="module")
def expected(expect, model):
    return expect(model, PARAMETERS)


@pytest.fixture(scope="module")
def slopes(model):
    """Derivatives of the yields [y, x, e, p]."""
    return jax.jit(jax.jacfwd(lambda p: forward.expect(model, volume_of(p)).yields))(PARAMETERS)


@pytest.fixture(scope="module")
def likelihood_of(model):
    """(counts [n, y, x, e], parameters, dose [e]) -> log-likelihoods [n] and scores [n, p]."""

    def value(parameters, counts, dose):
        value = likelihood.log_likelihood(model, counts, volume_of(parameters), dose)
        return value, value

    both = jax.jit(jax.jacfwd(value, has_aux=True))

    def of(counts, parameters=PARAMETERS, dose=DOSE):
        rows = np.zeros((-(-len(counts) // 8) * 8, *counts.shape[1:]), np.float32)
        rows[: len(counts)] = counts  # few shapes, few programs
        scores, values = both(parameters, rows, jnp.broadcast_to(jnp.float32(dose), 3))
        return values[: len(counts)], scores[: len(counts)]

    return of


@pytest.fixture(scope="module")
def chi2_map():
    return jax.jit(likelihood.chi2_map)


@pytest.fixture(scope="module")
def information(model):
    return np.asarray(likelihood.fisher_information(model, volume_of, PARAMETERS), np.float64)


def with_head(model, kernel, bias):
    return dataclasses.replace(
        model, weights={"params": model.weights["params"] | {"head": {"kernel": kernel, "bias": bias}}}
    )


def drawn(variance, mean, number, seed=3):
    """Counts [number, y, x, e] of a given mean and variance."""
    return mean + np.sqrt(variance) * np.random.default_rng(seed).normal(size=(number, *mean.shape))


def test_network_of_these_tests_is_no_trivial_one(expected):
    assert 0.02 < expected.yields.min() and expected.yields.max() < 0.9
    assert (expected.yields.std((0, 1)) > 0.002).all() and (expected.excess.std((0, 1)) > 0.002).all()


@pytest.mark.slow
def test_gradient_is_that_of_finite_differences_at_constant_excess(model, expected):
    head = model.weights["params"]["head"]  # outputs are log-odds and excess in turn
    constant = with_head(model, head["kernel"].at[:, 1::2].set(0), head["bias"])
    counts = jnp.round(1.3 * DOSE * expected.yields)
    f = jax.jit(jax.value_and_grad(likelihood.log_likelihood, argnums=2))
    volume = volume_of(PARAMETERS)
    _, gradient = f(constant, counts, volume, DOSE)
    step = 1e-3 * jnp.sign(gradient) * jax.random.uniform(jax.random.key(4), volume.shape)
    higher, lower = (f(constant, counts, volume + sign * step, DOSE)[0] for sign in (1, -1))
    np.testing.assert_allclose((gradient * step).sum(), (higher - lower) / 2, rtol=0.01)


def test_score_is_that_of_the_yields_alone(expected, slopes, likelihood_of):
    """The excess changes with the volume too, but takes no part in the gradient."""
    counts = jnp.round(1.3 * DOSE * expected.yields)
    _, (score,) = likelihood_of(counts[None])
    pulls = (counts - DOSE * expected.yields) / expected.variance(1.0)
    np.testing.assert_allclose(score, jnp.einsum("yxe,yxep->p", pulls, slopes), rtol=1e-3)


def test_truth_is_stationary_and_best(expected, likelihood_of):
    counts = DOSE * expected.yields
    (value, _), (at_truth, off) = likelihood_of(jnp.stack([counts, 1.01 * counts]))
    assert jnp.abs(at_truth).max() < 1e-3 * jnp.abs(off).max()
    assert -1e-6 < value <= 0
    shifted = [PARAMETERS.at[k].add(shift) for k in range(3) for shift in (-0.5, 0.5)]
    assert all(likelihood_of(counts[None], parameters)[0] < -1e-3 for parameters in shifted)


def test_no_counts_and_more_than_the_dose_are_allowed(expected, slopes, likelihood_of):
    counts = jnp.stack([jnp.full(expected.yields.shape, count) for count in (0.0, 10.0, 12.0)])
    values, scores = likelihood_of(counts, dose=10)
    y = expected.yields
    binomial = counts * jnp.log(y) + (10 - counts) * jnp.log1p(-y)  # 0 at the best yields, 0 and 1
    np.testing.assert_allclose(values, (binomial / (1 + expected.excess)).sum((1, 2, 3)), rtol=1e-5)
    pulls = (counts - 10 * y) / expected.variance(1.0)
    np.testing.assert_allclose(scores, jnp.einsum("nyxe,yxep->np", pulls, slopes), rtol=1e-3)


def test_energy_without_electrons_says_nothing(model, expected, likelihood_of, chi2_map):
    dose = jnp.array([DOSE, 0, DOSE])
    counts = (1.1 * dose * expected.yields)[None]
    (none,), (score,) = likelihood_of(counts, dose=dose)
    (all_three,), _ = likelihood_of(1.1 * DOSE * expected.yields[None])
    assert all_three < none < 0 and jnp.isfinite(score).all()
    chi2 = chi2_map(model, counts, volume_of(PARAMETERS), dose)
    assert (chi2[..., 1] < 1e-5).all() and (chi2[..., ::2] > 0.01).all()


def test_leading_axes_are_those_of_counts_and_volumes(model, expected, likelihood_of, chi2_map):
    counts = jnp.stack([f * DOSE * expected.yields for f in (0.9, 1.0, 1.2)])
    values, _ = likelihood_of(counts)
    assert values.shape == (3,) and values.argmax() == 1
    volumes = jnp.stack([volume_of(PARAMETERS)] * 3)
    each = jax.jit(likelihood.log_likelihood)(model, counts, volumes, DOSE)
    np.testing.assert_allclose(each, values, atol=1e-3)
    assert chi2_map(model, counts, volumes[0], DOSE).shape == (3, 8, 8, 3)


def test_chi2_of_counts_of_the_models_own_variance_and_errors_is_one(model, expected, chi2_map):
    assert (expected.errors > 0).all()
    variance = expected.variance(DOSE) + (DOSE * expected.errors) ** 2
    counts = drawn(variance, DOSE * expected.yields, 100)
    chi2 = chi2_map(model, counts, volume_of(PARAMETERS), DOSE)
    for per_energy in np.moveaxis(np.asarray(chi2), -1, 0):
        assert abs(per_energy.mean() - 1) < 4 * np.sqrt(2 / per_energy.size)


def test_information_is_the_covariance_of_the_score(expected, information, likelihood_of):
    number = 2000
    _, scores = likelihood_of(drawn(expected.variance(DOSE), DOSE * expected.yields, number))
    found = np.cov(np.asarray(scores, np.float64).T)
    wanted = DOSE * information.sum(0)
    spread = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / number)
    assert (np.abs(found - wanted) < 4 * spread).all()


def test_information_of_energies_adds_up(information, expected, slopes):
    """That of all images is that of each, as for one long list of independent counts."""
    slopes, variance = (np.asarray(x, np.float64) for x in (slopes, expected.variance(1.0)))
    dose = np.array([100.0, 200, 50])
    rows = (slopes * np.sqrt(dose / variance)[..., None]).reshape(-1, 3)
    np.testing.assert_allclose(np.tensordot(dose, information, 1), rows.T @ rows, rtol=1e-4)


def test_scatter_of_the_model_is_that_of_its_last_layer(model, expect, expected, slopes):
    """A covariance of rank one: the score moves along one direction, as when the head moves along it."""
    direction = np.random.default_rng(5).normal(size=(3, 13)).astype(np.float32)
    sure = dataclasses.replace(model, covariance=np.einsum("ef,eg->efg", direction, direction))
    scatter = likelihood.model_scatter(sure, volume_of, PARAMETERS)
    head, step = model.weights["params"]["head"], 1e-3

    def yields(sign):
        kernel = head["kernel"].at[:, ::2].add(sign * step * direction[:, :-1].T)
        return expect(with_head(model, kernel, head["bias"].at[::2].add(sign * step * direction[:, -1])),
                      PARAMETERS).yields  # fmt: skip

    change = (yields(1) - yields(-1)) / (2 * step) / expected.variance(1.0)
    score = np.einsum("yxe,yxep->ep", change, slopes)
    wanted = np.einsum("ep,eq->epq", score, score)
    np.testing.assert_allclose(scatter, wanted, atol=0.01 * np.abs(wanted).max())


def test_more_electrons_are_never_worse_and_errors_fall_with_the_root_of_the_dose(information):
    base = np.array([100.0, 200, 50])
    errors = likelihood.standard_errors(np.tensordot(base, information, 1))
    assert (errors > 0).all() and np.isfinite(errors).all()
    for extra in (*np.diag([1.0, 10, 100]), np.full(3, 7.0)):
        more = likelihood.standard_errors(np.tensordot(base + extra, information, 1))
        assert (more <= errors * (1 + 1e-9)).all()
    four_fold = likelihood.standard_errors(np.tensordot(4 * base, information, 1))
    np.testing.assert_allclose(four_fold, errors / 2)


def test_errors_of_the_model_do_not_depend_on_the_dose(information):
    information, root = information.sum(0), np.random.default_rng(6).normal(size=(3, 3))
    floors = [likelihood.standard_errors(n * information, n**2 * root @ root.T) for n in (1.0, 1000.0)]
    np.testing.assert_allclose(*floors)
    inverse = np.linalg.inv(information)
    np.testing.assert_allclose(floors[0], np.linalg.norm(inverse @ root, axis=1), rtol=1e-6)


def test_what_images_do_not_tell_has_an_infinite_error():
    np.testing.assert_array_equal(likelihood.standard_errors(np.zeros((2, 2))), [np.inf, np.inf])
    twins = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 4]])  # only the sum of the first two is known
    np.testing.assert_allclose(likelihood.standard_errors(twins), [np.inf, np.inf, 0.5])
    scaled = np.diag([1e-12, 1e6, 0])  # small is not unknown: it may be a matter of the unit
    np.testing.assert_allclose(likelihood.standard_errors(scaled), [1e6, 1e-3, np.inf])


@pytest.mark.parametrize("information", [np.full((2, 2), np.nan), np.ones((3, 2, 2)), np.ones((2, 3))])
def test_information_that_is_no_matrix_is_refused(information):
    with pytest.raises(ValueError, match=r"information must be a finite matrix \[p, p\]; got shape"):
        likelihood.standard_errors(information)


@pytest.fixture(scope="module")
def depth_modes(model):
    """Of a column of 4 x 4 pixels, at a low and at a high dose."""
    return [likelihood.depth_modes(model, dose, width_nm=4, shape=SHAPE) for dose in (10.0, 1e7)]


def test_depth_modes_are_orthogonal_and_more_are_resolved_with_more_electrons(depth_modes):
    few, many = depth_modes
    np.testing.assert_allclose(few.profiles @ few.profiles.T, np.eye(10), atol=1e-9)
    assert (np.diff(few.standard_errors[np.isfinite(few.standard_errors)]) > 0).all()
    np.testing.assert_allclose(many.standard_errors[:3], few.standard_errors[:3] / 1000, rtol=1e-4)
    assert few.resolved < many.resolved <= 10


def test_likelihood_along_a_depth_mode_falls_by_half_at_one_standard_error(model, depth_modes):
    dose, modes = 1e7, depth_modes[1]
    copper = np.zeros((3, *SHAPE), np.float32)
    copper[1:, 2:6, 2:6] = modes.standard_errors[0] * modes.profiles[0]
    copper[1] *= -1
    volumes = jnp.stack([1 - copper, copper], axis=-1)
    counts = dose * jax.jit(forward.expect)(model, volumes).yields[0]
    losses = jax.jit(likelihood.log_likelihood)(model, counts, volumes, dose)
    np.testing.assert_allclose(losses, [0, -0.5, -0.5], atol=0.05)
    np.testing.assert_allclose(losses[1:].mean(), -0.5, atol=0.01)


def test_whole_voxel_box_is_exact():
    volume = np.asarray(likelihood.box(np.array([4.0, 3, 5]), np.array([2.0, 4, 6]), SHAPE))
    wanted = np.zeros(SHAPE)
    wanted[3:5, 1:5, 2:8] = 1
    np.testing.assert_array_equal(volume[..., 1], wanted)
    np.testing.assert_array_equal(volume.sum(-1), np.ones(SHAPE))
    cut_off = likelihood.box(np.array([0.0, 4, 5]), np.array([3.0, 2, 2]), SHAPE)
    assert cut_off[..., 1].sum() == 1.5 * 2 * 2


def test_box_covers_its_volume_and_moves_with_its_centre():
    centre, size = np.array([3.7, 4.2, 5.1], np.float32), np.array([2.3, 0.4, 3.9], np.float32)
    copper = np.asarray(likelihood.box(centre, size, SHAPE))[..., 1]
    np.testing.assert_allclose(copper.sum(), size.prod(), rtol=1e-5)
    for axis in range(3):
        middles = np.arange(SHAPE[axis]) + 0.5
        mean = (copper.sum(tuple({0, 1, 2} - {axis})) * middles).sum() / copper.sum()
        assert abs(mean - centre[axis]) < 0.5  # the mean of voxels, not of the box
        moved = np.asarray(likelihood.box(centre + np.eye(3)[axis], size, SHAPE))[..., 1]
        np.testing.assert_allclose(moved, np.roll(copper, 1, axis), atol=1e-5)


@pytest.mark.parametrize("size", [(2.0, 4.0, 6.0), (2.3, 3.7, 5.9)])
def test_volume_of_a_box_grows_by_the_area_of_its_faces(size):
    """Also where faces lie between voxels."""
    size = jnp.array(size)
    volume = jax.jit(lambda size: likelihood.box(jnp.array([4.0, 3, 5]), size, SHAPE)[..., 1].sum())
    slopes = jax.jacfwd(volume)(size)
    np.testing.assert_allclose(slopes, size.prod() / size, rtol=1e-5)


def test_wrong_depth_and_side_walls_are_refused(model, expected):
    with pytest.raises(ValueError, match="Cut or fill it to 10 voxels"):
        likelihood.log_likelihood(model, expected.yields, volume_of(PARAMETERS)[:, :, 1:], DOSE)
    with pytest.raises(ValueError, match="side_walls must be one of"):
        likelihood.fisher_information(model, volume_of, PARAMETERS, side_walls="brick")


@pytest.mark.slow
def test_pixels_without_matter_say_nothing_unless_they_count_electrons(model):
    labels = jnp.ones(SHAPE, jnp.uint8).at[:3].set(0)
    counts = jnp.round(DOSE * forward.expect(model, labels).yields)
    level, slopes = jax.jit(jax.value_and_grad(lambda c: likelihood.log_likelihood(model, c, labels, DOSE)))(
        counts
    )
    assert -1 < level <= 0 and np.isfinite(slopes).all()
    chi2 = likelihood.chi2_map(model, counts, labels, DOSE)
    assert (chi2[:3] < 1e-3).all() and np.isfinite(chi2).all()
    stray = counts.at[1, 2, 0].set(1)
    assert likelihood.log_likelihood(model, stray, labels, DOSE) < level - 5
