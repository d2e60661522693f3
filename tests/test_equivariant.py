"""The network of the image model: what it promises whatever its weights are."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsevox_jax import data, models
from bsevox_jax.models import equivariant
from bsevox_jax.models.equivariant import INVERSE, ORDER, PRODUCT

DEPTH = 3
NETWORK = models.build("equivariant", energies=2, width=3, first_size=5, dilations=(1, 2), hidden=6)
REACH = 2 + 1 + 2


@pytest.fixture(scope="module")
def weights():
    """Drawn in every leaf, so that nothing is zero or symmetric because it was initialised so."""
    volume, rng = jnp.zeros((1, 4, 4, DEPTH, 2)), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: NETWORK.init(jax.random.key(0), volume, train=False))

    def draw(leaf):
        scale = 2 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, shapes)


def soft_volume(*shape, seed=0):
    """Fractions [y, x, z, material] with some vacuum everywhere."""
    return np.random.default_rng(seed).dirichlet(np.ones(3), (*shape, DEPTH))[..., :2].astype(np.float32)


@functools.partial(jax.jit, static_argnames="side_walls")
def outputs(weights, volume, side_walls="mirror"):
    """[y, x, e, 2] of one volume."""
    return NETWORK.clone(side_walls=side_walls).apply(weights, volume[None], train=False)[0]


def test_products_are_the_group_table_of_the_symmetries_of_data():
    square = np.arange(18).reshape(3, 3, 2)
    forms = [np.asarray(data.transform(square, g)) for g in range(ORDER)]
    assert data.SYMMETRIES == ORDER == len({form.tobytes() for form in forms})
    for g, h in itertools.product(range(ORDER), repeat=2):
        np.testing.assert_array_equal(equivariant.turned(forms[h], g), data.transform(forms[h], g))
        np.testing.assert_array_equal(data.transform(forms[h], g), forms[PRODUCT[g, h]])
    for rows in (PRODUCT, PRODUCT.T):
        assert (np.sort(rows, axis=1) == np.arange(ORDER)).all()
    for g, h, k in itertools.product(range(ORDER), repeat=3):
        assert PRODUCT[PRODUCT[g, h], k] == PRODUCT[g, PRODUCT[h, k]]
    each = np.arange(ORDER)
    assert (PRODUCT[each, INVERSE] == 0).all() and (PRODUCT[INVERSE, each] == 0).all()


@pytest.mark.parametrize("side_walls", ["mirror", "periodic"])
def test_images_turn_with_the_volume(weights, side_walls):
    volume = soft_volume(6, 9)
    images = np.asarray(outputs(weights, volume, side_walls))
    for symmetry in range(ORDER):
        turned = outputs(weights, equivariant.turned(volume, symmetry), side_walls)
        expected = equivariant.turned(images, symmetry)
        np.testing.assert_allclose(turned, expected, atol=1e-5, err_msg=str(symmetry))
        if symmetry in (1, 2, 3):  # of the same shape
            assert abs(expected - images).max() > 0.1, "images without features turn into themselves"


def test_a_convolution_tells_the_eight_attitudes_apart(weights):
    """The copies of a feature differ: the symmetry is in their exchange, not in round kernels."""
    lift = equivariant.GroupConv(3, 5).bind({"params": weights["params"]["lift"]})
    features = np.asarray(lift(soft_volume(6, 6).reshape(1, 6, 6, 1, -1)))[0]
    apart = [
        abs(features[..., g, :] - features[..., h, :]).max() for g, h in itertools.combinations(range(8), 2)
    ]
    assert min(apart) > 0.1


@pytest.mark.parametrize("side_walls, surroundings", [("mirror", "symmetric"), ("periodic", "wrap")])
@pytest.mark.parametrize(
    "field",
    [pytest.param((7, 4), marks=pytest.mark.slow), (2, 3), pytest.param((1, 1), marks=pytest.mark.slow)],
)
def test_field_with_side_walls_is_the_middle_of_its_explicit_surroundings(
    weights, side_walls, surroundings, field
):
    """Also for fields smaller than the network reaches, where the walls are seen in each other."""
    volume, margin = soft_volume(*field), REACH + 1
    wide = np.pad(volume, [(margin, margin)] * 2 + [(0, 0)] * 2, surroundings)
    for other_walls in ("mirror", "periodic"):
        middle = outputs(weights, wide, other_walls)[margin:-margin, margin:-margin]
        np.testing.assert_allclose(outputs(weights, volume, side_walls), middle, atol=1e-5)


def test_a_voxel_changes_pixels_as_far_away_as_the_network_reaches_and_no_farther(weights):
    volume = soft_volume(2 * REACH + 3, 2 * REACH + 3)
    changed = volume.copy()
    changed[REACH + 1, REACH + 1] = 0
    difference = abs(np.asarray(outputs(weights, volume) - outputs(weights, changed))).max((2, 3))
    assert (difference[1:-1, 1:-1] > 0).all()
    difference[1:-1, 1:-1] = 0
    assert (difference < 1e-6).all()


def test_pure_silicon_is_the_same_whatever_lies_at_its_side_walls(weights):
    silicon = np.zeros((4, 6, DEPTH, 2), np.float32)
    silicon[..., 0] = 1
    mirror, periodic = (np.asarray(outputs(weights, silicon, walls)) for walls in ("mirror", "periodic"))
    np.testing.assert_allclose(mirror, np.broadcast_to(mirror[0, 0], mirror.shape), atol=1e-6)
    np.testing.assert_allclose(periodic, mirror, atol=1e-6)


def test_images_are_smooth_in_the_fractions(weights):
    """Gradients are central differences, in single directions and at hard volumes too."""
    rng, soft = np.random.default_rng(2), soft_volume(4, 5)
    weight = rng.normal(size=(4, 5, 2, 2)).astype(np.float32)
    gradient_of = jax.jit(jax.grad(lambda volume: (weight * outputs(weights, volume)).sum()))
    gradient = np.asarray(gradient_of(soft), np.float64)
    directions = rng.normal(size=(6, *soft.shape)).astype(np.float32)
    directions[:3] = np.eye(soft.size)[[7, 40, 101]].reshape(3, *soft.shape)  # one voxel each

    def difference(direction, step):
        ends = [np.asarray(outputs(weights, soft + s * step * direction), np.float64) for s in (1, -1)]
        return (weight * (ends[0] - ends[1])).sum() / (2 * step)

    for direction in directions / np.sqrt((directions**2).sum((1, 2, 3, 4), keepdims=True)):
        numerical = (4 * difference(direction, 0.02) - difference(direction, 0.04)) / 3  # of fourth order
        assert abs((gradient * direction).sum() - numerical) < 5e-5 * np.linalg.norm(gradient)
    for hard in (np.zeros_like(soft), np.round(soft)):
        assert np.isfinite(gradient_of(hard)).all()
