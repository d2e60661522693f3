"""The shape fit: with an image model of a few lines, and slowly with the shipped image model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsevox_jax import fit, forward, likelihood

BLOCK = (20, 20, 20)
# Parameters as in the module: faces or centre (y, x, z), faces or radius.
BODIES = {
    "box": (4.3, 6.2, 3.4, 11.1, 12.6, 9.2),
    "cylinder along y": (5.4, 9.2, 6.7, 15.3, 3.4, 0),
    "cylinder along x": (10.4, 3.6, 5.8, 3.2, 14.5, 0),
    "cylinder along z": (9.2, 10.7, 2.4, 3.6, 0, 8.3),
    "layer": (0, 0, 4.4, 20, 20, 7.7),
}
volume_of = jax.jit(fit.volume_of, static_argnames="block")


def body(name, parameters=None, block=BLOCK):
    parameters = np.array(BODIES[name] if parameters is None else parameters, np.float32)
    return volume_of(np.array(fit.SHAPES[name].is_round), parameters, block)


def truth(name, parameters=None):
    parameters = np.array(BODIES[name] if parameters is None else parameters)
    return {quantity: weights @ parameters for quantity, weights in fit.quantities(fit.SHAPES[name]).items()}


def pulls(found, wanted):
    return np.array([(found.parameters[k] - v) / found.standard_errors[k] for k, v in wanted.items()])


@jax.jit
def expected_of(model, volume):
    return forward.expect(model, volume)


@dataclasses.dataclass(frozen=True)
class Blur:
    """A network that needs no training: copper is brighter, less so the deeper, and blurred laterally."""

    materials: int = 2

    def clone(self, side_walls):
        return self

    def apply(self, weights, batch, *, train, with_features):
        params = weights["params"]
        seen = jnp.einsum("byxz,ze->byxe", batch[..., 1], params["attenuation"])
        features = jnp.einsum("byxe,vy,ux->bvue", seen, params["blur"], params["blur"])
        outputs = features @ params["head"]["kernel"] + params["head"]["bias"]
        return outputs.reshape(*outputs.shape[:-1], -1, self.materials), features


@pytest.fixture(scope="module")
def small():
    """An image model of four energies, for a block of 12 x 12 x 10 nm."""
    middles, reach_nm = np.arange(12) + 0.5, np.array([1.5, 3, 6, 12])
    blur = sum(
        np.exp(-((middles - at) ** 2)) for at in (m[:, None] for m in (middles, -middles, 24 - middles))
    )
    params = {
        "attenuation": np.exp(-middles[:10, None] / reach_nm) / reach_nm,
        "blur": blur / blur.sum(1, keepdims=True),
        "head": {"kernel": np.kron(np.eye(4), [1.5, 0]), "bias": np.zeros(8)},
        "lift": {"kernel": np.zeros((1, 1, 1, 20))},  # of which only the depth is read
    }
    return dataclasses.replace(
        forward.load(),
        weights={"params": jax.tree.map(np.float32, params)},
        mean_yields=np.array([0.15, 0.17, 0.19, 0.2], np.float32),
        covariance=np.zeros((4, 5, 5), np.float32),
        network=Blur(),
        beam_energies_kev=(1.0, 2.0, 3.0, 4.0),
    )


def test_a_box_and_a_layer_cover_their_exact_volume():
    box = np.array(BODIES["box"], np.float32)
    exact = likelihood.box((box[:3] + box[3:]) / 2, box[3:] - box[:3], BLOCK)
    np.testing.assert_allclose(body("box"), exact, atol=1e-6)
    layer = np.asarray(body("layer"))
    np.testing.assert_allclose(layer[..., 1].sum((0, 1, 2)), 400 * 3.3, rtol=1e-5)
    np.testing.assert_allclose(layer[3, 5, 3:9, 1], [0, 0.6, 1, 1, 0.7, 0], atol=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_a_cylinder_covers_its_volume(axis):
    name, (a, b) = f"cylinder along {'yxz'[axis]}", [k for k in range(3) if k != axis]
    rng = np.random.default_rng(axis)
    for radius, tolerance in ((1.5, 0.025), (3, 0.01), (7, 0.005)):
        for _ in range(10):
            low, high = np.zeros(3), np.zeros(3)
            low[[a, b]], low[axis] = rng.uniform(9, 11, 2), 3.3
            high[a], high[axis] = radius, 9.7
            copper = np.asarray(body(name, [*low, *high]))[..., 1]
            np.testing.assert_allclose(copper.sum(), np.pi * radius**2 * 6.4, rtol=tolerance)
            assert copper.min() >= 0 and copper.max() <= 1


def test_reported_numbers_are_centres_and_sizes():
    wanted = dict(y_nm=7.7, x_nm=9.4, z_nm=6.3, size_y_nm=6.8, size_x_nm=6.4, size_z_nm=5.8)
    assert truth("box") == pytest.approx(wanted)
    wanted = dict(y_nm=9.2, x_nm=10.7, z_nm=5.35, radius_nm=3.6, length_nm=5.9)
    assert truth("cylinder along z") == pytest.approx(wanted)
    assert truth("layer") == pytest.approx(dict(z_nm=6.05, thickness_nm=3.3))


@pytest.mark.parametrize(
    "name, parameters",
    [
        pytest.param("box", (3.3, 0, 2.2, 8.4, 6.6, 7.3), marks=pytest.mark.slow),
        pytest.param("cylinder along z", (5.6, 6.2, 1.4, 3.2, 0, 6.7), marks=pytest.mark.slow),
        ("layer", (0, 0, 2.4, 12, 12, 5.7)),
    ],
)
def test_body_is_found_within_its_errors(small, name, parameters):
    expected = expected_of(small, body(name, parameters, (12, 12, 10)))
    dose = 10_000
    counts = np.random.default_rng(4).binomial(dose, np.asarray(expected.yields, np.float64))
    found = fit.fit(small, counts, dose)
    assert found.shape == name
    wanted = truth(name, parameters)
    if name == "box":  # cut off by a side of the block
        assert found.standard_errors["x_nm"] == pytest.approx(found.standard_errors["size_x_nm"] / 2)
    assert (np.abs(pulls(found, wanted)) < 4).all(), (found.parameters, found.standard_errors)
    assert max(found.standard_errors.values()) < 1
    assert 0.8 < found.chi2_per_dof < 1.1
    np.testing.assert_allclose(
        found.volume.sum(), body(name, parameters, (12, 12, 10))[..., 1].sum(), rtol=0.1
    )


@pytest.mark.parametrize("dose", [0, -5, np.inf, np.nan])
def test_no_dose_is_refused(small, dose):
    with pytest.raises(ValueError, match="electrons_per_pixel must be above 0 and finite; got .*Give the"):
        fit.fit(small, np.ones((12, 12, 4)), dose)


@pytest.mark.parametrize("shape", [(12, 12, 3), (1, 12, 12, 4), (12, 12)])
def test_images_of_other_energies_are_refused(small, shape):
    with pytest.raises(ValueError, match=r"counts must be \[y, x, 4\], an image for each energy .*; got"):
        fit.fit(small, np.ones(shape), 1000)


@pytest.fixture(scope="module")
def shipped():
    """The shipped image model, taken to be true."""
    model = forward.load()
    return dataclasses.replace(model, covariance=np.zeros_like(model.covariance))


def noisy(expected, dose, rng):
    """Counts of the variance that the model expects."""
    return dose * expected.yields + np.sqrt(expected.variance(dose)) * rng.normal(size=expected.yields.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_every_shape_is_found_by_the_shipped_model(shipped, name):
    yields = np.asarray(expected_of(shipped, body(name)).yields, np.float64)
    found = fit.fit(shipped, np.random.default_rng(1).binomial(1000, yields), 1000)
    assert found.shape == name
    assert (np.abs(pulls(found, truth(name))) < 4).all(), (found.parameters, found.standard_errors)


@pytest.mark.slow
def test_errors_are_those_of_repeated_fits(shipped):
    expected, rng, draws = expected_of(shipped, body("cylinder along z")), np.random.default_rng(2), 20
    found = [fit.fit(shipped, noisy(expected, 1000, rng), 1000) for _ in range(draws)]
    assert all(each.shape == "cylinder along z" for each in found)
    of_draws = np.array([pulls(each, truth("cylinder along z")) for each in found])
    assert (np.abs(of_draws.mean(0)) < 4 / np.sqrt(draws)).all(), of_draws.mean(0)
    assert (np.abs(of_draws.std(0) - 1) < 4 / np.sqrt(2 * draws)).all(), of_draws.std(0)
