"""ColumnUNet: a two-dimensional U-Net whose features become the depth of every column.

Electrons of up to about 2 keV stop within the box, so depth is mostly in the first images; the others see
whole columns. The map from images to volume is near-local in y and x, with long tails that the side walls
reflect. Full resolution keeps sharp what is near, and coarser levels carry the tails (after U-Net,
Ronneberger et al., 2015). Depth is no axis of the convolutions but lies in their features: on a CPU a
two-dimensional convolution with many features runs several times faster than a three-dimensional one with
few. Nothing depends on the size of the field, whose borders are mirrors.
"""

import flax.linen as nn
import jax.numpy as jnp

from bsevox_jax.models.layers import EPSILON, pad_space


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; small at the start, which keeps deep stacks trainable."""

    dtype: str

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        y = conv(y, x.shape[-1], self.dtype, "conv1")
        y = conv(nn.relu(y), x.shape[-1], self.dtype, "conv2")
        scale = self.param("scale", nn.initializers.constant(0.2), x.shape[-1:])
        return x + scale.astype(self.dtype) * y


class ColumnUNet(nn.Module):
    """Images `[b, y, x, e]` to logits `[b, y, x, z, class]`, of any field."""

    widths: tuple[int, ...] = (64, 128, 160)  # features at full, half, quarter resolution, and so on
    blocks: tuple[int, ...] = (1, 1, 2)  # on the way down and again up; those of the coarsest level once
    depth: int = 20  # voxels along z
    dtype: str = "float32"  # of the computation; parameters and logits stay float32

    @nn.compact
    def __call__(self, images, *, train: bool):
        del train  # no layer behaves differently in training
        coarsest = len(self.widths) - 1
        ny, nx = images.shape[1:3]
        x = conv(_to_multiple(images.astype(self.dtype), 2**coarsest), self.widths[0], self.dtype, "stem")
        finer = []
        for k in range(coarsest):
            x = self._blocks(x, k, "down")
            finer.append(x)
            x = self._dense(_folded(self._norm(x, f"down{k}_norm")), self.widths[k + 1], f"down{k}")
        x = self._blocks(x, coarsest, "middle")
        for k in reversed(range(coarsest)):
            x = self._dense(self._norm(x, f"up{k}_norm"), 4 * self.widths[k], f"up{k}")
            x = self._blocks(finer[k] + _unfolded(x), k, "up")
        x = self._dense(self._norm(x, "head_norm"), 2 * self.depth, "head")[:, :ny, :nx]
        return x.reshape(*x.shape[:3], self.depth, 2).astype(jnp.float32)

    def _blocks(self, x, level, name):
        for k in range(self.blocks[level]):
            x = Block(self.dtype, name=f"{name}{level}_block{k}")(x)
        return x

    def _norm(self, x, name):
        return nn.LayerNorm(EPSILON, dtype=self.dtype, name=name)(x)

    def _dense(self, x, features, name):
        return nn.Dense(features, dtype=self.dtype, name=name)(x)


def reach(network: ColumnUNet) -> int:
    """How far away, in pixels, an image can change a voxel; the coarsest pixel divides it."""
    *finer, coarsest = network.blocks
    convolutions = 1 + sum(4 * n * 2**k for k, n in enumerate(finer)) + 2 * coarsest * 2 ** len(finer)
    return -(-convolutions // 2 ** len(finer)) * 2 ** len(finer) + 2 ** len(finer)


def conv(x, features: int, dtype: str, name: str):
    """A 3x3 convolution; the border pixel is repeated, as by reflecting walls."""
    return nn.Conv(features, (3, 3), padding="VALID", dtype=dtype, name=name)(pad_space(x, 1, "symmetric"))


def _to_multiple(x, pixels):
    """Images continued beyond the far sides, as mirrors there would, until `pixels` divides their sizes."""
    missing = [-n % pixels for n in x.shape[1:3]]
    return jnp.pad(x, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric")


def _folded(x):
    """Squares of 2 x 2 pixels as one pixel with four times the features."""
    b, ny, nx, c = x.shape
    x = x.reshape(b, ny // 2, 2, nx // 2, 2, c).swapaxes(2, 3)
    return x.reshape(b, ny // 2, nx // 2, 4 * c)


def _unfolded(x):
    b, ny, nx, c = x.shape
    x = x.reshape(b, ny, nx, 2, 2, c // 4).swapaxes(2, 3)
    return x.reshape(b, 2 * ny, 2 * nx, c // 4)
