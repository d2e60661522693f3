"""A 3D U-Net as baseline: the energy axis of the images is read as the depth axis of the volume.

Source: Cicek et al. (2016), with zero padding where the original's convolutions are valid.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsevox_jax.models.layers import batch_norm, conv3d, pad_depth, pad_space

conv_init = nn.initializers.he_normal()


class ConvBlock(nn.Module):
    """3x3x3 convolution of `[b, y, x, z, c]`, BatchNorm, ReLU."""

    width: int
    conv_impl: str
    dtype: str

    @nn.compact
    def __call__(self, x, *, train: bool):
        kernel = self.param("kernel", conv_init, (3, 3, 3, x.shape[-1], self.width)).astype(self.dtype)
        x = conv3d(pad_depth(pad_space(x, 1, "constant"), 1), kernel, self.conv_impl)
        return nn.relu(batch_norm(train, self.dtype, "norm")(x))


class Upsample(nn.Module):
    """Transposed 2x2x2 convolution of stride 2: every voxel becomes eight, without overlap."""

    dtype: str

    @nn.compact
    def __call__(self, x):
        b, ny, nx, nz, c = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (c, 8 * c)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,)).astype(self.dtype)
        x = (x @ kernel).reshape(b, ny, nx, nz, 2, 2, 2, c) + bias
        return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, 2 * ny, 2 * nx, 2 * nz, c)


class UNet3D(nn.Module):
    """Images `[b, y, x, e]` to logits `[b, y, x, z, class]`; as many z as e unless `energy_maps`."""

    base: int = 32  # width of the first convolution; the published one has 32, the small variant 16
    levels: int = 4  # resolutions; the published one has 4, the small variant 3
    energy_maps: int = 0  # learned matrices from energy to depth in front, each one channel; 0: none
    depth: int = 20  # voxels along z that the energy maps lead to
    conv_impl: str = "auto"  # auto, direct or rewrite: see layers.py
    dtype: str = "float32"  # of the computation; parameters and logits stay float32

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = images.astype(self.dtype)[..., None]
        if self.energy_maps:
            dense = nn.Dense(
                self.depth * self.energy_maps, dtype=self.dtype, use_bias=False, name="energy_map"
            )
            x = dense(x[..., 0]).reshape(*x.shape[:3], self.depth, self.energy_maps)
        skips = []
        for level in range(self.levels):
            if level:
                x = nn.max_pool(x, (2, 2, 2), (2, 2, 2))
            width = self.base * 2**level
            x = self._pair(x, (width, 2 * width), f"encoder{level}", train)
            skips.append(x)
        for level in reversed(range(self.levels - 1)):
            x, skip = Upsample(self.dtype, name=f"upsample{level}")(x), skips[level]
            x = jax.image.resize(x, (*skip.shape[:4], x.shape[-1]), "nearest")  # 4 -> 5 where pooling cut
            width = self.base * 2 ** (level + 1)
            x = self._pair(jnp.concatenate([skip, x], axis=-1), (width, width), f"decoder{level}", train)
        return nn.Dense(2, dtype=self.dtype, name="head")(x).astype(jnp.float32)

    def _pair(self, x, widths, name, train):
        for k, width in enumerate(widths):
            x = ConvBlock(width, self.conv_impl, self.dtype, name=f"{name}_conv{k}")(x, train=train)
        return x
