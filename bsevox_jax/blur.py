"""Images as a blur of the copper below, depth by depth: what the classical methods undo.

To first order in the copper, an image is that of pure silicon plus the copper of each depth, spread by a
point-spread function of that depth and beam energy. Between mirror walls such a blur is diagonal in the
cosine transform (DCT-II) along y and x: one small matrix from depths to energies per frequency. A field cut
out of a larger specimen has no mirrors: its volume then reaches beyond the images by a margin, out of which
copper blurs into them, and the mirrors stand beyond that.

Volumes are fractions of Cu [..., y, x, z] in Si, images yields [..., y, x, e]; nothing knows of vacuum.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bsevox_jax import data, forward
from bsevox_jax.examples import Examples

ROUNDING = 1e-4  # of kernels in float32, relative to the largest
FORMLESS = 0.05  # sum of a point-spread function, relative to the largest of its energy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operator:
    """What a blur does to each frequency.

    Attributes:
        transfer: [v, u, e, z], from the cosine transform of depths to that of energies.
        background: [e], yields of silicon.
        margin: pixels by which a volume reaches beyond its images on all sides; 0 between mirror walls.
    """

    transfer: jax.Array
    background: jax.Array
    margin: int = dataclasses.field(default=0, metadata={"static": True})


def apply(operator: Operator, copper: jax.Array) -> jax.Array:
    """The contrast [..., y, x, e], yields beyond those of silicon, of volumes [..., y, x, z]."""
    return within(operator, filtered(operator.transfer, copper))


def adjoint(operator: Operator, contrast: jax.Array) -> jax.Array:
    """The transpose of `apply`: [..., y, x, e] to [..., y, x, z]."""
    return filtered(operator.transfer.swapaxes(2, 3), beyond(operator, contrast, "constant"))


def within(operator: Operator, fields: jax.Array) -> jax.Array:
    """Fields [..., y, x, c] of the volume without its margin."""
    inside = slice(operator.margin, -operator.margin or None)
    return fields[..., inside, inside, :]


def beyond(operator: Operator, fields: jax.Array, mode: str) -> jax.Array:
    """Fields [..., y, x, c] of the images with a margin, filled as `jnp.pad` does in this mode."""
    margin = (operator.margin, operator.margin)
    return jnp.pad(fields, [*[(0, 0)] * (fields.ndim - 3), margin, margin, (0, 0)], mode)


def of_kernels(
    kernels: np.ndarray, background: np.ndarray, shape: tuple[int, int], *, margin: int = 0
) -> Operator:
    """The operator of point-spread functions.

    Args:
        kernels: [y, x, e, z] of odd sizes y and x, symmetric in both: contrast around a voxel full of Cu.
        background: [e], yields of silicon.
        shape: pixels (y, x) of the images.
        margin: see `Operator`; half the size of the kernels for a field without mirrors.

    Raises:
        ValueError: a size is even, or a kernel is not symmetric.
    """
    kernels = np.asarray(kernels, np.float64)
    if kernels.shape[0] % 2 == 0 or kernels.shape[1] % 2 == 0:
        raise ValueError(
            f"kernels must have a middle, so odd sizes; got {kernels.shape[:2]}. Cut or extend them."
        )
    if not all(
        np.allclose(kernels, np.flip(kernels, axis), atol=ROUNDING * np.abs(kernels).max()) for axis in (0, 1)
    ):
        raise ValueError("kernels must be symmetric in y and x; got others. Average them with their mirrors.")
    # Mirrors at the sides continue the field symmetrically about its edge, so a symmetric kernel acts on each
    # cosine by its own cosine series.
    series = [
        np.cos(np.pi * np.outer(np.arange(n), np.arange(-(k // 2), k // 2 + 1)) / n)
        for n, k in zip(np.add(shape, 2 * margin), kernels.shape[:2], strict=True)
    ]
    transfer = np.einsum("vi,uj,ijez->vuez", *series, kernels)
    return Operator(jnp.asarray(transfer, jnp.float32), jnp.asarray(background, jnp.float32), margin)


def of_pairs(examples: Examples, *, ridge: float) -> Operator:
    """The linear operator that fits pairs of volumes and images best on average, frequency by frequency.

    Args:
        examples: without vacuum; `of_silicon_and_copper` takes those of a set.
        ridge: added to the covariance of the copper, in units of its mean.
    """
    copper = data.copper(examples.labels).astype(np.float64)
    transfer, background = regressed(copper, examples.counts / examples.electrons_per_pixel, ridge=ridge)
    return Operator(jnp.asarray(transfer, jnp.float32), jnp.asarray(background, jnp.float32))


def regressed(inputs: np.ndarray, outputs: np.ndarray, *, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """The best linear map between pairs of fields, frequency by frequency.

    Args:
        inputs: [n, y, x, a].
        outputs: [n, y, x, b].
        ridge: added to the covariance of the inputs, in units of its mean.

    Returns:
        Matrices float64 [v, u, b, a], and what the outputs [b] are where the inputs are 0.
    """
    vertical, horizontal = map(_cosines, inputs.shape[1:3])
    mean_input, mean_output = (fields.mean((0, 1, 2)) for fields in (inputs, outputs))
    of_inputs, of_outputs = (
        np.einsum("vy,ux,nyxc->vunc", vertical, horizontal, fields, optimize=True)
        for fields in (inputs - mean_input, outputs - mean_output)
    )
    covariance = of_inputs.swapaxes(2, 3) @ of_inputs
    together = of_outputs.swapaxes(2, 3) @ of_inputs
    size = covariance.shape[-1]
    strength = ridge * np.trace(covariance, axis1=2, axis2=3).mean() / size
    transfer = np.linalg.solve(covariance + strength * np.eye(size), together.swapaxes(2, 3)).swapaxes(2, 3)
    return transfer, mean_output - transfer[0, 0] @ mean_input


def of_model(model: forward.ImageModel, shape: tuple[int, int], *, open_sides: bool = False) -> Operator:
    """The derivative of an image model at pure silicon.

    Args:
        model: see `forward.load`.
        shape: pixels (y, x) of the images.
        open_sides: whether the field was cut out of a larger specimen, instead of lying between mirrors.
    """
    reach, depth = forward.reach(model.network), forward.depth(model)
    side = 2 * reach + 1  # the mirrored voxels lie just out of reach

    def yields(copper):
        return forward.expect(model, jnp.stack([1 - copper, copper], axis=-1)).yields

    silicon = jnp.zeros((side, side, depth))
    voxels = (
        jnp.zeros((depth, side, side, depth)).at[jnp.arange(depth), reach, reach, jnp.arange(depth)].set(1)
    )
    background, kernels = jax.jit(jax.vmap(lambda voxel: jax.jvp(yields, (silicon,), (voxel,))))(voxels)
    kernels = np.moveaxis(np.asarray(kernels), 0, -1)
    return of_kernels(kernels, background[0, reach, reach], shape, margin=reach if open_sides else 0)


def with_sums(operator: Operator, sums: np.ndarray) -> Operator:
    """The operator with point-spread functions of the same forms and other sums.

    Args:
        operator: gives the forms.
        sums: [e, z], contrast over a layer of copper per its fraction, as of uniform layers. Where a function
            sums to next to nothing it has no form, and is left as it is.
    """
    old, sums = np.asarray(operator.transfer[0, 0], np.float64), np.asarray(sums, np.float64)
    formed = np.abs(old) > FORMLESS * np.abs(old).max(1, keepdims=True)
    factor = np.where(formed, sums / np.where(formed, old, 1), 1)
    return dataclasses.replace(operator, transfer=jnp.asarray(operator.transfer * factor, jnp.float32))


def of_silicon_and_copper(examples: Examples) -> Examples:
    """The specimens without vacuum."""
    full = np.flatnonzero((examples.labels > 0).all((1, 2, 3)))
    return dataclasses.replace(
        examples,
        counts=examples.counts[full],
        labels=examples.labels[full],
        families=None if examples.families is None else tuple(examples.families[k] for k in full),
    )


def non_negative(operator: Operator) -> Operator:
    """The operator without the negative parts of its point-spread functions."""
    transfer = np.asarray(operator.transfer, np.float64)
    # A symmetric kernel has as many numbers as there are frequencies: its middle, and pairs of others.
    series = [
        np.where(np.arange(n), 2, 1) * np.cos(np.pi * np.outer(np.arange(n), np.arange(n)) / n)
        for n in transfer.shape[:2]
    ]
    kernels = np.einsum("iv,ju,vuez->ijez", *map(np.linalg.inv, series), transfer, optimize=True)
    transfer = np.einsum("vi,uj,ijez->vuez", *series, np.maximum(kernels, 0), optimize=True)
    return dataclasses.replace(operator, transfer=jnp.asarray(transfer, jnp.float32))


def filtered(transfer: jax.Array, fields: jax.Array) -> jax.Array:
    """Fields [..., y, x, a] with each frequency through its matrix [v, u, b, a]; [..., y, x, b]."""
    vertical, horizontal = (jnp.asarray(_cosines(n), jnp.float32) for n in fields.shape[-3:-1])
    spectrum = jnp.einsum("vy,ux,...yxa->...vua", vertical, horizontal, fields)
    spectrum = jnp.einsum("vuba,...vua->...vub", transfer, spectrum)
    return jnp.einsum("vy,ux,...vub->...yxb", vertical, horizontal, spectrum)


def filtered_each(transfer: jax.Array, fields: jax.Array) -> jax.Array:
    """Fields [..., y, x, e, z] with each frequency times a number [v, u, e, z]."""
    vertical, horizontal = (jnp.asarray(_cosines(n), jnp.float32) for n in fields.shape[-4:-2])
    spectrum = transfer * jnp.einsum("vy,ux,...yxez->...vuez", vertical, horizontal, fields)
    return jnp.einsum("vy,ux,...vuez->...yxez", vertical, horizontal, spectrum)


def _cosines(n):
    """The orthonormal cosine transform DCT-II, float64 [frequency, pixel]."""
    k = np.arange(n)
    matrix = np.sqrt(2 / n) * np.cos(np.pi * np.outer(k, k + 0.5) / n)
    matrix[0] /= np.sqrt(2)
    return matrix
