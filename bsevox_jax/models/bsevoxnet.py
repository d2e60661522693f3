"""BSE-VoxNets: a hybrid of convolutions and S2-MLP blocks from 20 x 20 images to a 20^3 volume.

Sources: the BSE-VoxNets paper; S2-MLPv2 (Yu et al., 2021) for the shifts and the split attention; FastViT
(Vasu et al., 2023) for the convolutional feed-forward network; Xiao et al. (2021) for the strided stem.
The parameters and operations of every setting in its Table 2 are held by `tests/test_models.py`.
"""

import flax.linen as nn
import jax.numpy as jnp

from bsevox_jax.models.layers import (
    EPSILON,
    Affine,
    batch_norm,
    conv3d_single,
    depthwise_conv,
    pad_space,
    shift,
    torch_uniform,
    upsample_bicubic,
)

PIXELS = 20  # of a side; the decoder's 24 less the 4 of the last kernel
HEAD_DEPTH = 24  # channels that become the depth axis, before the last kernel takes 4


def _gelu(x):
    return nn.gelu(x, approximate=False)


def _dense(features, dtype, *, use_bias=True, name=None):
    return nn.Dense(features, use_bias=use_bias, kernel_init=torch_uniform, dtype=dtype, name=name)


class SplitAttention(nn.Module):
    """Weighs three feature groups `[b, y, x, c]` per channel, by their sum over all positions."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, groups):
        c = groups[0].shape[-1]
        pooled = sum(groups).sum(axis=(1, 2))  # a sum, not a mean, as published
        hidden = _gelu(_dense(c, self.dtype, use_bias=False, name="squeeze")(pooled))
        scores = _dense(len(groups) * c, self.dtype, use_bias=False, name="expand")(hidden)
        weights = nn.softmax(scores.reshape(-1, len(groups), c), axis=1)
        return sum(weights[:, k, None, None] * group for k, group in enumerate(groups))


class S2Attention(nn.Module):
    """Spatial-shift token mixing: expand, shift two thirds in opposite orders, weigh, contract."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        u1, u2, u3 = jnp.split(_dense(3 * c, self.dtype, name="expand")(x), 3, axis=-1)
        groups = (shift(u1, 1, 2), shift(u2, 2, 1), u3)
        return _dense(c, self.dtype, name="contract")(SplitAttention(self.dtype, name="attention")(groups))


class ConvFFN(nn.Module):
    """Depthwise 3x3 convolution and BatchNorm, then a two-layer perceptron per pixel."""

    ratio: int  # hidden width over width
    dropout: float
    depthwise: bool  # False leaves the perceptron alone, the ablation "FFN"
    conv_impl: str
    dtype: str

    @nn.compact
    def __call__(self, x, *, train: bool):
        c = x.shape[-1]
        if self.depthwise:
            kernel = self.param("depthwise", torch_uniform, (3, 3, 1, c)).astype(self.dtype)
            x = depthwise_conv(pad_space(x, 1, "constant"), kernel, self.conv_impl)
            x = batch_norm(train, self.dtype, "norm")(x)
        x = _gelu(_dense(self.ratio * c, self.dtype, name="expand")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = _dense(c, self.dtype, name="contract")(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class Block(nn.Module):
    """One S2-MLP block: token mixing, then ConvFFN, each normalised first and added to its input."""

    dropout: float
    conv_ffn: bool
    conv_impl: str
    dtype: str

    @nn.compact
    def __call__(self, x, *, train: bool):
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="mixing_norm")(x)
        x = x + S2Attention(self.dtype, name="mixing")(y)
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="ffn_norm")(x)
        ffn = ConvFFN(3, self.dropout, self.conv_ffn, self.conv_impl, self.dtype, name="ffn")
        return x + ffn(y, train=train)


class Sope(nn.Module):
    """Successive overlapping patch embedding: affine, then strided convolutions with BatchNorm, affine."""

    widths: tuple[int, ...]  # one convolution of stride 2 for each
    last_gelu: bool
    dtype: str

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = Affine(self.dtype, name="affine_in")(x)
        for k, width in enumerate(self.widths, start=1):
            # Explicit padding: "SAME" pads even sizes at one end only, which is another function.
            conv = nn.Conv(width, (3, 3), 2, padding=1, use_bias=False, dtype=self.dtype,
                           kernel_init=torch_uniform, name=f"conv{k}")  # fmt: skip
            x = batch_norm(train, self.dtype, f"norm{k}")(conv(x))
            x = _gelu(x) if k < len(self.widths) or self.last_gelu else x
        return Affine(self.dtype, name="affine_out")(x)


class BSEVoxNet(nn.Module):
    """Images `[b, y, x, e]` of 20 x 20 pixels to logits `[b, y, x, z, class]`; the defaults are Moderate.

    Raises:
      ValueError: an image is not 20 x 20 pixels, or `conv_impl` is unknown.
    """

    widths: tuple[int, int] = (384, 768)  # channels of stage 1 (5 x 5 positions) and stage 2 (3 x 3)
    blocks: tuple[int, int] = (10, 17)  # S2-MLP blocks of the stages, N1 and N2
    dropout: float = 0.0  # in every ConvFFN; the paper does not give one
    sope: bool = True  # False: one strided convolution per patch embedding (ablation)
    s2: bool = True  # False: no S2-MLP blocks (ablation)
    conv_ffn: bool = True  # False: no depthwise convolution and BatchNorm in any ConvFFN (ablation)
    conv_impl: str = "auto"  # auto, direct or rewrite: see layers.py
    dtype: str = "float32"  # of the computation; parameters and logits stay float32

    @nn.compact
    def __call__(self, images, *, train: bool):
        if images.shape[1:3] != (PIXELS, PIXELS):
            raise ValueError(
                f"BSEVoxNet reads {PIXELS} x {PIXELS} pixels; got {images.shape[1:3]}. Tile the images."
            )
        x = images.astype(self.dtype)
        for stage, width in enumerate(self.widths, start=1):
            x = self._embed(x, stage, width, train)
            for k in range(self.blocks[stage - 1] if self.s2 else 0):
                name = f"stage{stage}_block{k}"
                block = Block(self.dropout, self.conv_ffn, self.conv_impl, self.dtype, name=name)
                x = block(x, train=train)
        for k in range(3):  # 3 -> 6 -> 12 -> 24 pixels
            x = upsample_bicubic(x)
            ffn = ConvFFN(4, self.dropout, self.conv_ffn, self.conv_impl, self.dtype, name=f"decoder_ffn{k}")
            x = x + ffn(x, train=train)
        x = _dense(HEAD_DEPTH, self.dtype, name="head_depth")(x)
        kernel = self.param("head_kernel", torch_uniform, (5, 5, 5, 1, 2)).astype(self.dtype)
        return conv3d_single(x, kernel, self.conv_impl).astype(jnp.float32)

    def _embed(self, x, stage, width, train):
        """SOPE-4 (20 -> 5 pixels) before stage 1, SOPE-2 (5 -> 3) before stage 2."""
        if self.sope:
            widths = (width // 2, width) if stage == 1 else (width,)
            return Sope(widths, stage == 2, self.dtype, name=f"sope{stage}")(x, train=train)
        size, padding = ((4, 4), 0) if stage == 1 else ((2, 2), 1)
        return nn.Conv(width, size, size, padding=padding, dtype=self.dtype, kernel_init=torch_uniform,
                       name=f"patch{stage}")(x)  # fmt: skip


def operations(widths: tuple[int, int], blocks: tuple[int, int]) -> dict[str, int]:
    """Operations of one sample: `macs`, and `thop`, the count behind "FLOPs" in the paper's Table 2.

    thop 0.1.1 adds to the multiply-accumulates 4 per normalised element, 8 per channel of a three-way
    softmax and 259 per output element of a bicubic upsampling; it charges nothing for activations and sums.
    """
    (c1, c2), (n1, n2) = widths, blocks
    positions = 6**2 + 12**2 + 24**2  # of the decoder
    stem = 9000 * c1 + 225 * c1**2 // 2 + 81 * c1 * c2
    stages = n1 * (254 * c1**2 + 225 * c1) + n2 * (94 * c2**2 + 81 * c2)
    decoder = 8 * positions * c2**2 + 9 * positions * c2
    head = 24**2 * HEAD_DEPTH * c2 + 250 * PIXELS**3
    macs = stem + stages + decoder + head
    normalised = 75 * c1 * (1 + n1) + 9 * c2 + 27 * n2 * c2 + positions * c2
    return {"macs": macs, "thop": macs + 4 * normalised + 8 * (n1 * c1 + n2 * c2) + 259 * positions * c2}
