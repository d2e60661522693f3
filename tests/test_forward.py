"""The image model: side walls, soft and hard volumes, its errors, and what it refuses."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsevox_jax import checkpoint, data, forward, models, sim

DEPTH, ENERGIES_KEV = 4, (1.0, 2.0, 5.0)
NETWORK = models.build("equivariant", energies=3, width=2, first_size=3, dilations=(1,), rays=3, hidden=5)
FEATURES = 3 + 2 + 5  # inputs of the last layer: rays, the residual layer, the last
MARGIN = 3  # the network reaches 2 pixels


def draw_weights(network, depth):
    """Weights drawn in every leaf."""
    volume, rng = jnp.zeros((1, 4, 4, depth, 2)), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), volume, train=False))

    def draw(leaf):
        scale = 2 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, dict(shapes)) | {"batch_stats": {}}


@pytest.fixture(scope="module")
def model():
    """Drawn, with weights of the last layer that scatter by a few percent and not independently."""
    root = 0.01 * np.random.default_rng(3).normal(size=(3, FEATURES + 1, FEATURES + 1)).astype(np.float32)
    covariance = root @ root.swapaxes(1, 2)
    mean_yields = np.array([0.1, 0.25, 0.4], np.float32)
    weights = draw_weights(NETWORK, DEPTH)
    return forward.ImageModel(weights, mean_yields, covariance, NETWORK, ENERGIES_KEV, sha256="drawn")


_expect = jax.jit(forward.expect, static_argnames="side_walls")  # the model is an argument like any other


def expect(model, volume, side_walls="mirror"):
    return forward.Expected(*map(np.asarray, _expect(model, volume, side_walls=side_walls)))


def draw_labels(*leading):
    """Labels of a field that is not square."""
    return np.random.default_rng(0).integers(0, 3, (*leading, 4, 5, DEPTH)).astype(np.uint8)


def draw_matter(*leading):
    """The same with something in every column."""
    labels = draw_labels(*leading)
    labels[..., -1] = np.maximum(labels[..., -1], 1)
    return labels


def surrounded(labels, by):
    return np.pad(labels, [(MARGIN, MARGIN)] * 2 + [(0, 0)], by)


def middle(field):
    return field[MARGIN:-MARGIN, MARGIN:-MARGIN]


def test_open_side_walls_are_an_explicit_margin_of_vacuum(model):
    labels = draw_labels()
    alone = expect(model, labels, "open")
    for field, wide in zip(alone, expect(model, surrounded(labels, "constant"), "periodic"), strict=True):
        np.testing.assert_allclose(field, middle(wide), atol=1e-6)
    assert abs(alone.yields - expect(model, labels).yields).max() > 0.01


@pytest.mark.parametrize("walls, by", [("mirror", "symmetric"), ("periodic", "wrap")])
def test_side_walls_are_their_explicit_surroundings(model, walls, by):
    labels = draw_labels()
    wide = expect(model, surrounded(labels, by), "open").yields
    np.testing.assert_allclose(expect(model, labels, walls).yields, middle(wide), atol=1e-6)


def test_labels_and_their_fractions_give_the_same_images(model):
    labels = draw_labels()
    fractions = np.stack([labels == 1, labels == 2], axis=-1).astype(np.float32)
    np.testing.assert_array_equal(forward.soft_volume(labels), fractions)
    for ours, theirs in zip(expect(model, labels), expect(model, fractions), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_leading_axes_are_a_batch(model):
    labels = draw_labels(2, 3)
    images = expect(model, labels, "open")
    assert {field.shape for field in images} == {(2, 3, 4, 5, 3)}
    for field, alone in zip(images, expect(model, labels[1, 2], "open"), strict=True):
        assert field.dtype == np.float32 and alone.shape == (4, 5, 3)
        np.testing.assert_allclose(field[1, 2], alone, atol=1e-6)


def test_images_are_differentiable_in_the_volume(model):
    soft = np.full((4, 5, DEPTH, 2), 0.3, np.float32)
    gradient = jax.jit(jax.grad(lambda v: forward.expect(model, v, side_walls="open").yields.sum()))(soft)
    assert np.isfinite(gradient).all() and (np.asarray(gradient) != 0).all()


def test_yields_are_chances_and_untrained_outputs_the_mean_yields(model):
    images = expect(model, draw_matter())
    assert ((images.yields > 0) & (images.yields < 1)).all() and (images.excess > 0).all()
    head = jax.tree.map(np.zeros_like, model.weights["params"]["head"])
    silent = model.weights | {"params": model.weights["params"] | {"head": head}}
    images = expect(dataclasses.replace(model, weights=silent), draw_matter())
    np.testing.assert_allclose(images.yields, np.broadcast_to(model.mean_yields, (4, 5, 3)), rtol=1e-6)
    np.testing.assert_allclose(images.excess, 0.1, rtol=5e-3)


def test_variance_is_that_of_a_binomial_raised_by_the_excess():
    images = forward.Expected(np.array([0.25, 0.5]), np.array([0.2, 0.0]), np.array([0.1, 0.1]))
    np.testing.assert_allclose(images.variance(100), [100 * 0.25 * 0.75 * 1.2, 25])
    np.testing.assert_allclose(images.variance(np.array([100, 10])), [22.5, 2.5])


@pytest.mark.slow
def test_nothing_comes_back_where_there_is_no_matter_and_the_way_there_is_smooth(model):
    labels = draw_matter()
    labels[1, 2] = 0
    images = expect(model, labels)
    assert (images.yields[1, 2] == 0).all() and (images.errors[1, 2] == 0).all()
    assert (np.delete(images.yields.reshape(20, 3), 5 + 2, 0) > 0).all()
    slope = jax.grad(lambda volume: forward.expect(model, volume).yields[1, 2].sum())
    assert (slope(forward.soft_volume(labels))[1, 2] > 0).all(), "any matter in an empty column is seen"


def features_of(model, labels):
    """Inputs [y, x, f] of the last layer."""
    apply = jax.jit(functools.partial(model.network.apply, train=False, with_features=True))
    return np.asarray(apply(model.weights, forward.soft_volume(labels)[None])[1][0], np.float64)


def test_errors_are_the_scatter_of_yields_when_the_last_weights_scatter(model):
    labels, rng, draws = draw_matter(), np.random.default_rng(5), 4000
    features = features_of(model, labels)
    images = expect(model, labels)
    head = {name: np.asarray(leaf) for name, leaf in model.weights["params"]["head"].items()}
    for e, mean in enumerate(model.mean_yields):
        weights = np.append(head["kernel"].reshape(FEATURES, 3, 2)[:, e, 0], head["bias"].reshape(3, 2)[e, 0])
        drawn = rng.multivariate_normal(weights, model.covariance[e], draws)
        log_odds = features @ drawn[:, :FEATURES].T + drawn[:, FEATURES] + np.log(mean / (1 - mean))
        yields = 1 / (1 + np.exp(-log_odds))
        np.testing.assert_allclose(images.yields[..., e], np.median(yields, axis=-1), rtol=0.01)
        # Relative standard error of a standard deviation, and the curvature of the logistic function.
        np.testing.assert_allclose(images.errors[..., e], yields.std(-1), rtol=4 / np.sqrt(2 * draws) + 0.02)


def test_fisher_information_is_the_sum_over_the_pixels():
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(2, 3, 4, 5)), rng.random((2, 3, 4, 3))
    expected = np.zeros((3, 6, 6))
    for b, y, x in np.ndindex(2, 3, 4):
        f = np.append(features[b, y, x], 1)
        expected += weight[b, y, x][:, None, None] * np.outer(f, f)
    np.testing.assert_allclose(forward.fisher(features, weight), expected, rtol=1e-5, atol=1e-6)


def test_fisher_information_is_the_curvature_of_the_binomial_likelihood():
    rng, dose = np.random.default_rng(1), 100
    features, log_odds = rng.normal(size=(1, 3, 4, 5)), rng.normal(-1, 0.5, (1, 3, 4, 3))
    yields = 1 / (1 + np.exp(-log_odds))

    def log_likelihood(change):
        z = log_odds + features @ change[:5] + change[5]
        return (dose * yields * z - dose * jax.nn.softplus(z)).sum()

    curvature = jax.jit(jax.hessian(log_likelihood))(jnp.zeros((6, 3)))
    found = forward.fisher(features, dose * yields * (1 - yields))
    np.testing.assert_allclose(found, -np.einsum("fege->efg", curvature), rtol=1e-4, atol=1e-2)


def test_size_of_the_errors_is_what_is_found_on_held_out_counts_and_their_form_that_of_the_fit(model):
    labels, dose, variance_of = draw_labels(2), 200, {}
    images = expect(model, labels)
    for electrons in (dose, 5000):
        variance_of[electrons] = images.variance(electrons)
    training = data.Examples(np.round(dose * images.yields), labels, dose, ENERGIES_KEV, "set")
    bare = dataclasses.replace(training, counts=dose * images.yields)  # as good as can be: no larger factor
    fit = functools.partial(forward.with_errors, model.network, model.weights, model.mean_yields, training)
    covariance = fit(bare)["errors"]["covariance"]
    seen = (labels > 0).any(-1)
    variance = images.yields * (1 - images.yields)
    weight = seen[..., None] * dose * variance / (1 + images.excess)
    features = np.stack([features_of(model, volume) for volume in labels])
    information = np.asarray(forward.fisher(features, weight), np.float64) + np.eye(FEATURES + 1)
    np.testing.assert_allclose(covariance, np.linalg.inv(information), rtol=1e-3, atol=1e-6)

    errors = expect(dataclasses.replace(model, covariance=covariance), labels).errors
    sign = np.where(np.arange(3) % 2, 1, -1)
    factor = 9 - 3 * np.log(ENERGIES_KEV)
    off = np.sqrt(variance_of[5000] / 5000**2 + factor * errors**2)
    counts = np.where(seen[..., None], 5000 * (images.yields + sign * off), 5000)  # vacuum does not count
    held_out = data.Examples(counts, labels, 5000, ENERGIES_KEV, "set")
    weights = fit(held_out)
    of_held_out = weights["errors"]["covariance"]
    np.testing.assert_allclose(of_held_out, factor[:, None, None] * covariance, rtol=2e-3)
    assert weights["params"] is model.weights["params"]


@pytest.mark.parametrize(
    "shape, walls, message",
    [
        (
            (4, 5, DEPTH + 1),
            "mirror",
            r"labels \[..., y, x, 4\] or fractions .*; got \(4, 5, 5, 2\)\. Cut or",
        ),
        ((4, 5, DEPTH - 1, 2), "open", r"got \(4, 5, 3, 2\)"),
        ((4, 5, DEPTH, 3), "mirror", r"got \(4, 5, 4, 3\)"),
        ((4, 5, DEPTH), "absorbing", r"one of mirror, periodic, open; got 'absorbing'\. Use mirror"),
    ],
)
def test_other_depths_materials_and_walls_are_refused_in_one_line(model, shape, walls, message):
    volume = np.zeros(shape, np.uint8 if len(shape) == 3 else np.float32)
    with pytest.raises(ValueError, match=message) as error:
        forward.expect(model, volume, side_walls=walls)
    assert "\n" not in str(error.value)


def write_export(path, **changes):
    """An export of the network of `model`; `changes` are of its config and its weights."""
    config = {"model": {"name": "equivariant", "energies": 3, "width": 2, "first_size": 3,
                        "dilations": [1], "rays": 3, "hidden": 5}, "task": "images"}  # fmt: skip
    config |= changes.get("config", {})
    weights = draw_weights(NETWORK, DEPTH) | changes.get("weights", {})
    statistics = data.Normalisation(np.array([0.1, 0.25, 0.4], np.float32), np.ones(3, np.float32))
    examples = data.Examples(np.zeros((1, 4, 5, 3), np.uint16), draw_labels(1), 9, ENERGIES_KEV, "set")
    config = {name: value for name, value in config.items() if value is not None}
    checkpoint.export(str(path), weights, config, statistics, examples)
    return str(path)


def test_loaded_model_is_the_exported_one(model, tmp_path):
    covariance = np.asarray(model.covariance)
    loaded = forward.load(write_export(tmp_path / "with", weights={"errors": {"covariance": covariance}}))
    assert loaded.beam_energies_kev == ENERGIES_KEV
    for ours, theirs in zip(expect(loaded, draw_labels()), expect(model, draw_labels()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)
    bare = expect(forward.load(write_export(tmp_path / "without")), draw_labels())
    assert (bare.errors == 0).all() and (bare.yields == expect(model, draw_labels()).yields).all()


@pytest.mark.parametrize("task", ["volumes", None])
def test_network_that_learnt_volumes_is_refused_in_one_line(tmp_path, task):
    path = write_export(tmp_path / "export", config={"task": task})
    with pytest.raises(ValueError, match="must have learnt images; got volumes in .*export") as error:
        forward.load(path)
    assert "\n" not in str(error.value)


def test_missing_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="must have a config.json") as error:
        forward.load(str(tmp_path / "absent"))
    assert "\n" not in str(error.value)


def test_shipped_model_loads_and_is_small():
    model = forward.load()
    assert model.beam_energies_kev == sim.PAPER_ENERGIES_KEV == tuple(model.beam_energies_kev)
    inputs = len(model.weights["params"]["head"]["kernel"]) + 1
    assert model.covariance.shape == (20, inputs, inputs)
    assert sum(path.stat().st_size for path in Path(forward.SHIPPED).rglob("*") if path.is_file()) < 4e6
    images = expect(model, sim.phantoms.nanocube(1))
    assert {field.shape for field in images} == {(20, 20, 20)}
    assert np.isfinite(images).all() and (images.excess > 0).all() and (images.errors >= 0).all()
    assert (images.yields[2, 2, :6] > images.yields[15, 15, :6]).all(), "the cube lies at the surface"
