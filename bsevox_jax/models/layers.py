"""Building blocks of the networks: convolutions in the form the backend runs fast, and the paper's layers.

Volumes are kept `[b, y, x, z, features]`, feature maps `[b, y, x, features]`. XLA's CPU backend has no fast
code for depthwise and three-dimensional convolutions; both are therefore also written as operations it has
(`conv_impl`), with the same parameters and the same result.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# PyTorch's default: uniform with bound 1/sqrt(fan_in). Biases start at zero.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
EPSILON = 1e-5  # of LayerNorm and BatchNorm, PyTorch's default


def uses_rewrites(conv_impl: str) -> bool:
    """Whether convolutions are rewritten: `auto` does so on the CPU only, where it is 4 to 20 times faster.

    Raises:
      ValueError: `conv_impl` is none of `auto`, `direct`, `rewrite`.
    """
    if conv_impl not in ("auto", "direct", "rewrite"):
        raise ValueError(f"conv_impl must be auto, direct or rewrite; got {conv_impl!r}. Use auto.")
    return conv_impl == "rewrite" or (conv_impl == "auto" and jax.default_backend() == "cpu")


def pad_space(x, pixels: int, mode: str):
    """Pads y and x, axes 1 and 2; `symmetric` repeats the edge pixel, as reflecting side walls do."""
    return jnp.pad(x, [(0, 0), (pixels, pixels), (pixels, pixels)] + [(0, 0)] * (x.ndim - 3), mode=mode)


def pad_depth(x, voxels: int):
    """Pads z, axis 3, with zeros."""
    return jnp.pad(x, [(0, 0)] * 3 + [(voxels, voxels), (0, 0)])


def _conv(x, kernel, groups=1):
    layouts = {4: ("NHWC", "HWIO", "NHWC"), 5: ("NHWDC", "HWDIO", "NHWDC")}
    strides = (1,) * (x.ndim - 2)
    return lax.conv_general_dilated(
        x, kernel, strides, "VALID", dimension_numbers=layouts[x.ndim], feature_group_count=groups
    )


def depthwise_conv(x, kernel, conv_impl: str = "auto"):
    """Depthwise two-dimensional convolution without padding.

    Args:
      x: `[b, y, x, c]`, padded by the caller.
      kernel: `[ky, kx, 1, c]`.
      conv_impl: `rewrite` sums shifted slices times a vector over the channels.
    """
    if not uses_rewrites(conv_impl):
        return _conv(x, kernel, groups=x.shape[-1])
    ky, kx = kernel.shape[:2]
    ny, nx = x.shape[1] - ky + 1, x.shape[2] - kx + 1
    return sum(x[:, i : i + ny, j : j + nx] * kernel[i, j, 0] for i in range(ky) for j in range(kx))


def conv3d(x, kernel, conv_impl: str = "auto"):
    """Three-dimensional convolution without padding.

    Args:
      x: `[b, y, x, z, c_in]`, padded by the caller.
      kernel: `[ky, kx, kz, c_in, c_out]`.
      conv_impl: `rewrite` puts the kz shifted copies side by side as channels and z into the batch, which
        leaves one two-dimensional convolution.
    """
    if not uses_rewrites(conv_impl):
        return _conv(x, kernel)
    ky, kx, kz, c_in, c_out = kernel.shape
    depth = x.shape[3] - kz + 1
    slices = jnp.moveaxis(x, 3, 1)
    folded = jnp.concatenate([slices[:, k : k + depth] for k in range(kz)], axis=-1)
    out = _conv(folded.reshape(-1, *folded.shape[2:]), kernel.reshape(ky, kx, kz * c_in, c_out))
    return jnp.moveaxis(out.reshape(x.shape[0], depth, *out.shape[1:]), 1, 3)


def conv3d_single(x, kernel, conv_impl: str = "auto"):
    """Three-dimensional convolution of one channel, without padding.

    Args:
      x: `[b, y, x, z]`.
      kernel: `[ky, kx, kz, 1, c]`.
      conv_impl: `rewrite` takes z as channels; the kernel becomes a band matrix from depth to depth.

    Returns:
      `[b, y - ky + 1, x - kx + 1, z - kz + 1, c]`.
    """
    if not uses_rewrites(conv_impl):
        return _conv(x[..., None], kernel)
    ky, kx, kz, _, c = kernel.shape
    depth = x.shape[-1] - kz + 1
    shifts = np.stack([np.eye(x.shape[-1], depth, -k, dtype=np.float32) for k in range(kz)])
    band = jnp.einsum("kdz,uvkc->uvdzc", jnp.asarray(shifts, kernel.dtype), kernel[:, :, :, 0])
    out = _conv(x, band.reshape(ky, kx, x.shape[-1], depth * c))
    return out.reshape(*out.shape[:-1], depth, c)


def bicubic_matrix(n: int) -> np.ndarray:
    """The matrix `[2n, n]` of bicubic upsampling by two, corners aligned, with a = -0.75.

    Source: Keys (1981), Eq. (4) with general a; PyTorch's convention for the borders (taps clamped).
    """
    a = -0.75
    matrix = np.zeros((2 * n, n))
    for k in range(2 * n):
        start, t = divmod(k * (n - 1) / (2 * n - 1), 1)
        near = [(a + 2) * d**3 - (a + 3) * d**2 + 1 for d in (t, 1 - t)]
        far = [a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a for d in (1 + t, 2 - t)]
        taps = np.clip(int(start) + np.arange(-1, 3), 0, n - 1)
        np.add.at(matrix[k], taps, [far[0], near[0], near[1], far[1]])
    return matrix


def upsample_bicubic(x):
    """Doubles y and x of `[b, y, x, c]`."""
    along_y, along_x = (jnp.asarray(bicubic_matrix(n), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("vx,byxc->byvc", along_x, jnp.einsum("uy,byxc->buxc", along_y, x))


def shift(x, first_axis: int, second_axis: int):
    """Moves four channel quarters by one pixel; the pixel left free repeats the border.

    Quarters 1 and 2 move along `first_axis` by +1 and -1, quarters 3 and 4 along `second_axis`.
    Source: Yu et al. (2021), S2-MLPv2, Eqs. (5) and (6). Public PyTorch ports assign in place between
    overlapping slices, which for +1 copies line 0 over the whole axis on the CPU; this is the shift as meant.
    """
    moves = [(first_axis, 1), (first_axis, -1), (second_axis, 1), (second_axis, -1)]
    quarters = jnp.split(x, 4, axis=-1)
    return jnp.concatenate([_move(q, *move) for q, move in zip(quarters, moves, strict=True)], axis=-1)


def _move(x, axis, step):
    n = x.shape[axis]
    ranges = [(0, 1), (0, n - 1)] if step == 1 else [(1, n), (n - 1, n)]
    return jnp.concatenate([lax.slice_in_dim(x, *r, axis=axis) for r in ranges], axis)


def batch_norm(train: bool, dtype: str, name: str) -> nn.BatchNorm:
    """BatchNorm as PyTorch's; in training its statistics are those of the global batch, of all devices."""
    axis_name = "batch" if train else None
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=EPSILON,
        axis_name=axis_name,
        dtype=dtype,
        name=name,
    )


class Affine(nn.Module):
    """alpha * x + beta per channel; starts as the identity."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        alpha = self.param("alpha", nn.initializers.ones, x.shape[-1:])
        beta = self.param("beta", nn.initializers.zeros, x.shape[-1:])
        return alpha.astype(self.dtype) * x + beta.astype(self.dtype)
