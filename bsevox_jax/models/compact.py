"""ColumnMixer: full resolution, cheap global mixing, and the depth of every column from its energies.

Electrons of up to about 2 keV stop within the box, so depth is mostly in the first images; the others see
whole columns. The map from images to volume is near-local in y and x, with long tails that the side walls
reflect. Hence no pooling: dense 3x3 convolutions for what is near, one matrix along y and one along x for
what is far (after MLP-Mixer, Tolstikhin et al., 2021), and a lift from features to depth per column. The
convolutions are dense because a training step with depthwise ones takes twice as long on a CPU.
"""

import flax.linen as nn
import jax.numpy as jnp

from bsevox_jax.models.layers import EPSILON, conv3d, pad_depth, pad_space

mixer_init = nn.initializers.normal(0.02)


class Residual(nn.Module):
    """x + scale * branch, the scale per channel and small at the start, which keeps deep stacks trainable."""

    dtype: str

    @nn.compact
    def __call__(self, x, branch):
        scale = self.param("scale", nn.initializers.constant(0.1), x.shape[-1:])
        return x + scale.astype(self.dtype) * branch


class Local(nn.Module):
    """Two 3x3 convolutions per residual branch; the border pixel is repeated, as by reflecting walls."""

    dtype: str

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        for k in (1, 2):
            y = nn.relu(y) if k == 2 else y
            conv = nn.Conv(x.shape[-1], (3, 3), padding="VALID", dtype=self.dtype, name=f"conv{k}")
            y = conv(pad_space(y, 1, "symmetric"))
        return Residual(self.dtype, name="add")(x, y)


class Axial(nn.Module):
    """Mixes all pixels of a line along y and all of a line along x, one matrix per channel group."""

    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x):
        b, ny, nx, c = x.shape
        along_y = self.param("along_y", mixer_init, (self.groups, ny, ny)).astype(self.dtype)
        along_x = self.param("along_x", mixer_init, (self.groups, nx, nx)).astype(self.dtype)
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x).reshape(b, ny, nx, self.groups, -1)
        mixed = jnp.einsum("guy,byxgc->buxgc", along_y, y) + jnp.einsum("gvx,byxgc->byvgc", along_x, y)
        return Residual(self.dtype, name="add")(x, mixed.reshape(x.shape))


class Refine(nn.Module):
    """A 3x3x3 convolution plus a matrix along z per feature, then a perceptron, on `[b, y, x, z, f]`."""

    conv_impl: str
    dtype: str

    @nn.compact
    def __call__(self, x):
        nz, f = x.shape[3:]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 3, f, f)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (f,)).astype(self.dtype)
        along_z = self.param("along_z", mixer_init, (nz, nz, f)).astype(self.dtype)
        padded = pad_depth(pad_space(x, 1, "symmetric"), 1)
        y = conv3d(padded, kernel, self.conv_impl) + bias + jnp.einsum("wzf,byxzf->byxwf", along_z, x)
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(y)
        y = nn.relu(nn.Dense(2 * f, dtype=self.dtype, name="expand")(y))
        return Residual(self.dtype, name="add")(x, nn.Dense(f, dtype=self.dtype, name="contract")(y))


class ColumnMixer(nn.Module):
    """Images `[b, y, x, e]` to logits `[b, y, x, z, class]`."""

    width: int = 64  # features per pixel
    layers: int = 4  # pairs of a local and an axial layer
    refine: int = 0  # three-dimensional layers after the lift; 0: the lift gives the logits
    depth_features: int = 8  # features per voxel between the lift and the logits; unused at refine = 0
    groups: int = 8  # channel groups of the axial matrices
    depth: int = 20  # voxels along z
    conv_impl: str = "auto"  # auto, direct or rewrite: see layers.py
    dtype: str = "float32"  # of the computation; parameters and logits stay float32

    @nn.compact
    def __call__(self, images, *, train: bool):
        del train  # no layer behaves differently in training
        x = images.astype(self.dtype)
        stem = nn.Conv(self.width, (3, 3), padding="VALID", dtype=self.dtype, name="stem")
        x = stem(pad_space(x, 1, "symmetric"))
        for k in range(self.layers):
            x = Local(self.dtype, name=f"local{k}")(x)
            x = Axial(self.groups, self.dtype, name=f"axial{k}")(x)
        x = nn.LayerNorm(EPSILON, dtype=self.dtype, name="lift_norm")(x)
        features = self.depth_features if self.refine else 2
        x = nn.Dense(self.depth * features, dtype=self.dtype, name="lift")(x)
        x = x.reshape(*x.shape[:3], self.depth, features)
        if self.refine:
            embedding = self.param("depth_embedding", nn.initializers.zeros, (self.depth, features))
            x = x + embedding.astype(self.dtype)
            for k in range(self.refine):
                x = Refine(self.conv_impl, self.dtype, name=f"refine{k}")(x)
            x = nn.Dense(2, dtype=self.dtype, name="head")(x)
        return x.astype(jnp.float32)
