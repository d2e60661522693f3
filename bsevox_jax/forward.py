"""The image model: the images expected of a volume, differentiable, in milliseconds.

A network (`models.equivariant`) fitted to the counts of the Monte Carlo simulator. It gives the expected
yield of every pixel and energy, how much more the counts scatter than a binomial (one primary may free
several electrons that are counted), and its own standard error. Volumes may be soft: voxels that hold
fractions of the materials.
"""

import dataclasses
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bsevox_jax import checkpoint, models
from bsevox_jax.examples import Examples
from bsevox_jax.sim.specimen import SIDE_WALLS

SHIPPED = os.path.join(checkpoint.SHIPPED, "forward")
ROWS = 16  # volumes at a time
# Softplus of it is 0.1, about what is found: freed electrons that come in pairs add a tenth to the variance.
EXCESS_OFFSET = -2.25


class Expected(NamedTuple):
    """What a microscope would count, per pixel and energy; each float32 [..., y, x, e].

    Attributes:
        yields: detected electrons per primary.
        excess: variance of the counts over that of a binomial, minus one.
        errors: standard error of `yields`, of the model itself; zero where it was not calibrated.
    """

    yields: jax.Array
    excess: jax.Array
    errors: jax.Array

    def variance(self, electrons_per_pixel: jax.Array | float) -> jax.Array:
        """Variance of the counts about the true mean of a pixel, at a dose."""
        return electrons_per_pixel * self.yields * (1 - self.yields) * (1 + self.excess)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImageModel:
    """A fitted model.

    Attributes:
        weights: variables of the network.
        mean_yields: [e], of the training set, which the outputs are relative to.
        covariance: [e, f, f] of the weights of the last layer and their bias, log-odds squared.
        network: linen module.
        beam_energies_kev: [e].
        sha256: of what the folder holds.
    """

    weights: dict
    mean_yields: np.ndarray
    covariance: np.ndarray
    network: Any = dataclasses.field(metadata={"static": True})
    beam_energies_kev: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    sha256: str = dataclasses.field(metadata={"static": True})


def load(path: str = SHIPPED) -> ImageModel:
    """Reads a fitted model: the shipped one, or what a run of configs/forward.py exported.

    Raises:
        FileNotFoundError, OSError: missing or damaged.
        ValueError: the folder holds another kind of network.
    """
    exported = checkpoint.load_export(path)
    if (task := exported.config.get("task", "volumes")) != "images":  # older exports have none
        raise ValueError(
            f"an image model must have learnt images; got {task} in {path}. Give another folder."
        )
    weights = {name: exported.weights[name] for name in ("params", "batch_stats")}
    network = models.build(**exported.config["model"])
    inputs = weights["params"]["head"]["kernel"].shape[0] + 1  # of the last layer, with the bias
    shape = (len(exported.beam_energies_kev), inputs, inputs)
    covariance = exported.weights.get("errors", {}).get("covariance", np.zeros(shape, np.float32))
    mean_yields, energies_kev = exported.normalisation.mean, exported.beam_energies_kev
    return ImageModel(weights, mean_yields, covariance, network, energies_kev, exported.sha256)


def soft_volume(labels: jax.Array, materials: int = 2) -> jax.Array:
    """Fractions, float32 [..., y, x, z, material], of labels [..., y, x, z] (0 vacuum, 1 Si, 2 Cu)."""
    return jax.nn.one_hot(labels.astype(jnp.int32) - 1, materials)


def statistics(outputs: jax.Array, mean_yields: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Log-odds of the yields and excess variance, each [..., e], of outputs [..., e, 2] of the network."""
    log_odds = outputs[..., 0] + jnp.log(mean_yields) - jnp.log1p(-mean_yields)
    return log_odds, jax.nn.softplus(outputs[..., 1] + EXCESS_OFFSET)


def expect(model: ImageModel, volume: jax.Array, *, side_walls: str = "mirror") -> Expected:
    """The images expected of volumes; differentiable in the volumes.

    Args:
        model: see `load`.
        volume: labels, integers [..., y, x, z], or fractions of the materials [..., y, x, z, material], whose
            sum is at most 1 and leaves the vacuum. Voxels of 1 nm, as many in depth as in training.
        side_walls: what lies beside the field: mirror, periodic or open (vacuum). The shipped model was not
            fitted to blocks that stand alone: with open walls its yields are up to 20 % too low.

    Raises:
        ValueError: another depth, or unknown side walls.
    """
    if jnp.issubdtype(volume.dtype, jnp.integer):
        volume = soft_volume(volume, model.network.materials)
    _check(model, volume, side_walls)
    batch = volume.reshape(-1, *volume.shape[-4:])
    # Beyond the margin the network sees the mirrored field, twice as far away.
    margin = -(-reach(model.network) // 2) if side_walls == "open" else 0
    batch = jnp.pad(batch, ((0, 0), (margin, margin), (margin, margin), (0, 0), (0, 0)))
    network = model.network.clone(side_walls="mirror" if side_walls == "open" else side_walls)
    outputs, features = network.apply(model.weights, batch, train=False, with_features=True)
    log_odds, excess = statistics(outputs, model.mean_yields)
    # A beam that meets nothing falls straight through; no pixel without matter was trained on.
    meets = 1 - jnp.prod(1 - batch.sum(-1), axis=-1)[..., None]
    p = jax.nn.sigmoid(log_odds)
    yields = meets * p
    errors = meets * p * (1 - p) * jnp.sqrt(_variance(features, model.covariance))
    inside = slice(margin, -margin or None)
    fields = [field[:, inside, inside] for field in (yields, excess, errors)]
    return Expected(*(field.reshape(*volume.shape[:-4], *field.shape[1:]) for field in fields))


def expect_all(model: ImageModel, labels: np.ndarray, *, side_walls: str = "mirror") -> Expected:
    """The images expected of any number of labels [n, y, x, z], a few at a time; numpy arrays."""
    parts = np.array_split(labels, -(-len(labels) // ROWS))
    images = [_expect(model, jnp.asarray(part), side_walls=side_walls) for part in parts]
    return Expected(*(np.concatenate(field) for field in zip(*images, strict=True)))


_expect = jax.jit(expect, static_argnames="side_walls")


def fisher(features: jax.Array, weight: jax.Array) -> jax.Array:
    """Fisher information [e, f, f] of the last layer: inputs [b, y, x, f - 1], weights [b, y, x, e].

    The last layer is a logistic regression on the features; McCullagh and Nelder (1989), Sec. 4.4.
    """
    f = _with_bias(features)
    return jnp.einsum("byxe,byxf,byxg->efg", weight, f, f)


def with_errors(
    network: Any, weights: dict, mean_yields: np.ndarray, training: Examples, held_out: Examples
) -> dict:
    """The weights, and the covariance of the last layer, {"errors": {"covariance": [e, f, f]}}.

    Its form follows from the counts of the training set, as for any logistic regression. Its size is a
    factor, linear in the logarithm of the energy: the squared error found on specimens of a higher dose that
    were not trained on, over the expected; at least 1.

    Args:
        network, weights, mean_yields: as of `ImageModel`.
        training: what the network was fitted to.
        held_out: at a higher dose, so that the error shows behind the noise.
    """

    @jax.jit
    def pieces(labels):
        volume = soft_volume(labels, network.materials)
        outputs, features = network.apply(weights, volume, train=False, with_features=True)
        log_odds, excess = statistics(outputs, mean_yields)
        p = jax.nn.sigmoid(log_odds)
        return features, p, p * (1 - p) * (1 + excess), jnp.any(labels > 0, axis=-1)[..., None]

    def add_up(examples, function):
        total = 0.0
        for k in range(0, len(examples), ROWS):
            features, p, variance, seen = pieces(examples.labels[k : k + ROWS])
            share = examples.counts[k : k + ROWS] / examples.electrons_per_pixel
            total = total + np.asarray(function(features, p, variance, seen, share), np.float64)
        return total

    dose = training.electrons_per_pixel

    def information(features, p, variance, seen, share):
        return fisher(features, seen * dose * (p * (1 - p)) ** 2 / variance)

    # A unit normal prior keeps what no pixel has shown finite.
    found = add_up(training, information)
    covariance = np.linalg.inv(found + np.eye(found.shape[-1])).astype(np.float32)

    def squares(features, p, variance, seen, share):
        noise = variance / held_out.electrons_per_pixel
        expected = (p * (1 - p)) ** 2 * _variance(features, covariance)
        found = (share - p) ** 2 - noise
        return jnp.stack([(seen * of / noise).sum((0, 1, 2)) for of in (found, expected)])

    found, expected = add_up(held_out, squares)
    log_energies = np.log(training.beam_energies_kev)
    line = np.stack([np.ones_like(log_energies), log_energies], axis=-1)
    coefficients = np.linalg.lstsq(expected[:, None] * line, found)[0]
    factor = np.maximum(line @ coefficients, 1).astype(np.float32)
    return weights | {"errors": {"covariance": covariance * factor[:, None, None]}}


def _variance(features, covariance):
    """Variance of the log-odds [b, y, x, e]."""
    f = _with_bias(features)
    return jnp.maximum(jnp.einsum("byxf,efg,byxg->byxe", f, covariance, f), 0)


def _with_bias(features):
    return jnp.concatenate([features, jnp.ones_like(features[..., :1])], axis=-1)


def reach(network) -> int:
    """How far away, in pixels, a voxel can change a pixel."""
    return network.first_size // 2 + sum(network.dilations)


def depth(model: ImageModel) -> int:
    """Voxels along z of the volumes that a model takes."""
    return model.weights["params"]["lift"]["kernel"].shape[3] // model.network.materials


def _check(model, volume, side_walls):
    if side_walls not in SIDE_WALLS:
        raise ValueError(
            f"side_walls must be one of {', '.join(SIDE_WALLS)}; got {side_walls!r}. Use mirror."
        )
    materials, voxels = model.network.materials, depth(model)
    if volume.shape[-2:] != (voxels, materials):
        raise ValueError(
            f"a volume must be labels [..., y, x, {voxels}] or fractions [..., y, x, {voxels}, {materials}]; "
            f"got {volume.shape}. Cut or fill it to {voxels} voxels of 1 nm."
        )
