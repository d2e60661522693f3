"""The optimisers: what each does to which weights."""

import jax
import numpy as np
import optax
import pytest

from bsevox_jax.step import make_optimiser

LEARNING_RATE = 0.01
SETTINGS = dict(b1=0.9, b2=0.99, eps=1e-8, warmup_steps=0, final_learning_rate=1e-4, steps=100)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 4, 6), "dense": (5, 7), "bias": (6,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gradients(params):
    """Drawn, and far larger along one direction of every weight."""

    def draw(p):
        return np.random.default_rng(p.size).normal(size=p.shape).astype(np.float32) + 10

    return jax.tree.map(draw, params)


def update(optimiser, params):
    return jax.device_get(jax.jit(optimiser.update)(gradients(params), optimiser.init(params), params)[0])


def first_update(name, params, weight_decay=0.0):
    """At the full learning rate."""
    settings = dict(learning_rate=LEARNING_RATE, weight_decay=weight_decay, **SETTINGS)
    return update(make_optimiser(name=name, **settings)[0], params)


def test_muon_moves_all_directions_of_a_convolution_about_alike_and_adamw_does_not(params):
    spread = {}
    for name in ("muon", "adamw"):
        singular = np.linalg.svd(first_update(name, params)["conv"].reshape(-1, 6), compute_uv=False)
        spread[name] = singular.max() / singular.min()
    # Five steps of the iteration of Jordan et al. (2024) bring all singular values to between 0.7 and 1.2.
    assert spread["muon"] < 1.75 and spread["adamw"] > 100


def test_muon_steps_are_as_long_as_those_of_adamw_in_training(params):
    kernel = first_update("muon", params)["conv"]
    assert np.sqrt((kernel**2).mean()) == pytest.approx(0.2 * LEARNING_RATE, rel=0.25)


def test_under_muon_all_but_convolutions_follow_adam_and_only_convolutions_decay(params):
    updates = {decay: first_update("muon", params, decay) for decay in (0.0, 0.1)}
    adam = update(optax.nadam(LEARNING_RATE, b1=0.9, b2=0.99), params)
    for name in ("dense", "bias"):
        np.testing.assert_array_equal(updates[0.1][name], updates[0.0][name])
        np.testing.assert_allclose(updates[0.0][name], adam[name], rtol=1e-5)
    decayed = updates[0.1]["conv"] - updates[0.0]["conv"]
    np.testing.assert_allclose(decayed, -LEARNING_RATE * 0.1 * params["conv"], rtol=1e-3, atol=1e-7)


def test_adamw_is_that_of_optax_and_biases_do_not_decay(params):
    found, without = (first_update("adamw", params, decay) for decay in (0.1, 0.0))
    plain = update(optax.adamw(LEARNING_RATE, b1=0.9, b2=0.99, weight_decay=0.1), params)
    for name in ("conv", "dense"):
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-5)
    np.testing.assert_array_equal(found["bias"], without["bias"])
