"""Equivariant: volumes `[b, y, x, z, material]` to images `[b, y, x, e, channel]` that turn with them.

The symmetries of the square act on a specimen and on its images alike. The network obeys them by
construction: every feature comes in eight copies, one for each symmetry, and each kernel is used in its
eight attitudes (group convolution: Cohen and Welling, 2016, Sec. 6). Side walls are exact: beyond a mirror
the features are those of the mirrored specimen, with their copies exchanged, so what was learnt of a small
field holds for a large one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ORDER = 8  # symmetries of the square
SMALL = 1e-3  # added to a mean square that is divided by
MIRRORS = {1: 2, 2: 1}  # axis of [b, y, x, ...] -> the symmetry that reverses it


def turned(array, symmetry: int):
    """One symmetry of the square on the first two axes; numbered as in `data.transform`."""
    array = array.swapaxes(0, 1) if symmetry & 4 else array
    array = array[::-1] if symmetry & 2 else array
    return array[:, ::-1] if symmetry & 1 else array


def turned_each(batch, symmetry: int):
    """The same symmetry on the second and third axes of a batch."""
    return jax.vmap(lambda array: turned(array, symmetry))(batch)


def _products() -> np.ndarray:
    """[g, h] -> the symmetry that does h first and then g."""
    square = np.arange(9).reshape(3, 3)
    number = {turned(square, g).tobytes(): g for g in range(ORDER)}
    return np.array(
        [[number[turned(turned(square, h), g).tobytes()] for h in range(ORDER)] for g in range(ORDER)]
    )


PRODUCT = _products()
INVERSE = np.argmin(PRODUCT, axis=1)  # where the product is 0, the identity


def pad(x, pixels: int, side_walls: str):
    """Features `[b, y, x, copy, c]` with what lies beyond mirror or periodic side walls on all sides."""
    return _pad_axis(_pad_axis(x, 1, pixels, side_walls), 2, pixels, side_walls)


def _pad_axis(x, axis, pixels, side_walls):
    n = x.shape[axis]
    if pixels > n:  # a field smaller than the kernel: what surrounds it has walls of the same kind
        return _pad_axis(_pad_axis(x, axis, n, side_walls), axis, pixels - n, side_walls)
    first, last = (lax.slice_in_dim(x, *ends, axis=axis) for ends in ((0, pixels), (n - pixels, n)))
    if side_walls == "periodic":
        first, last = last, first
    else:
        first, last = (_mirrored(strip, axis) for strip in (first, last))
    return jnp.concatenate([first, x, last], axis)


def _mirrored(x, axis):
    """Features of the mirrored specimen: the pixels reversed, and the copies exchanged."""
    x = jnp.flip(x, axis)
    return x if x.shape[3] == 1 else x[:, :, :, PRODUCT[MIRRORS[axis]]]


class GroupConv(nn.Module):
    """Convolution that commutes with the symmetries: `[b, y, x, copy, c]` to `[b, y, x, 8, features]`.

    The first layer of a network takes one copy, the input itself.
    """

    features: int
    size: int
    dilation: int = 1
    side_walls: str = "mirror"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        if self.size % 2 == 0:
            raise ValueError(f"a kernel must have an odd size, and so a middle; got {self.size}. Use 5.")
        copies, c = x.shape[3:]
        normal = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1, 2, 3))
        kernel = self.param("kernel", normal, (self.size, self.size, copies, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        seen_from = [kernel if copies == 1 else kernel[:, :, PRODUCT[INVERSE[g]]] for g in range(ORDER)]
        attitudes = jnp.stack([turned(k, g) for g, k in enumerate(seen_from)], axis=4)
        padded = pad(x, self.size // 2 * self.dilation, self.side_walls)
        y = lax.conv_general_dilated(
            padded.reshape(*padded.shape[:3], -1).astype(self.dtype),
            attitudes.reshape(self.size, self.size, copies * c, -1).astype(self.dtype),
            (1, 1),
            "VALID",
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y.reshape(*y.shape[:3], ORDER, self.features) + bias.astype(self.dtype)


class Scale(nn.Module):
    """Features of every pixel over their root mean square, times a factor per feature."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return x * scale * (SMALL + (x**2).mean((3, 4), keepdims=True)) ** -0.5


class Rays(nn.Module):
    """Every column as seen from above, through what lies on top: `[b, y, x, z, c]` to `[b, y, x, rays]`.

    Each ray has its own attenuation and brightness of every material, as for electrons that go straight down
    and up again; all else is left to the layers that follow.
    """

    rays: int

    @nn.compact
    def __call__(self, fractions):
        nz, c = fractions.shape[3:]
        normal = nn.initializers.normal(1.0)
        attenuation = nn.softplus(self.param("attenuation", normal, (c, self.rays)) - 1.5)  # 1/nm, about 0.2
        brightness = self.param("brightness", nn.initializers.normal(0.5), (c, self.rays))
        above = np.tril(np.ones((nz, nz), np.float32), -1) + 0.5 * np.eye(nz, dtype=np.float32)
        passed_nm = jnp.einsum("wz,byxzc->byxwc", above, fractions)
        return (jnp.exp(-passed_nm @ attenuation) * (fractions @ brightness)).sum(3)


class Equivariant(nn.Module):
    """Volumes `[b, y, x, z, material]`, fractions, to `[b, y, x, e, 2]`; smooth in the fractions."""

    materials: int = 2  # in the order of the labels; the first is the matrix
    energies: int = 20
    width: int = 12  # features of each of the eight copies
    first_size: int = 5  # pixels of the first kernel, which sees all depths at once
    dilations: tuple[int, ...] = (1, 2, 4, 2, 1)  # of the residual layers; they reach as far as an electron
    rays: int = 32  # columns seen through different attenuations
    hidden: int = 64  # features per pixel of the last layer, beside those of all layers
    side_walls: str = "mirror"  # or periodic
    dtype: str = "float32"  # of the convolutions; parameters and outputs stay float32

    @nn.compact
    def __call__(self, volume, *, train: bool, with_features: bool = False):
        """With features: the outputs, and the inputs `[b, y, x, f]` of the last, linear layer."""
        del train  # no layer behaves differently in training
        conv = dict(side_walls=self.side_walls, dtype=self.dtype)
        vacuum = 1 - volume.sum(-1, keepdims=True)
        # The first material, the matrix, is zero everywhere: what differs from it is what shows.
        content = jnp.concatenate([vacuum, volume[..., 1:]], axis=-1)
        x = content.reshape(*content.shape[:3], 1, -1)
        rays = Rays(self.rays, name="rays")(jnp.concatenate([vacuum, volume], axis=-1))
        x = GroupConv(self.width, self.first_size, name="lift", **conv)(x)
        x = x + GroupConv(self.width, 3, name="lift_rays", **conv)(rays[..., None, :])
        features = [jnp.tanh(rays)]
        for k, dilation in enumerate(self.dilations):
            y = nn.gelu(Scale(name=f"scale{k}")(x))
            y = nn.gelu(GroupConv(self.width, 3, dilation, name=f"spread{k}", **conv)(y))
            x = x + GroupConv(self.width, 1, name=f"mix{k}", **conv)(y)
            features.append(y.mean(3))
        features.append(nn.gelu(GroupConv(self.hidden, 1, name="gather", **conv)(nn.gelu(x))).mean(3))
        features = jnp.concatenate(features, axis=-1).astype(jnp.float32)
        head = nn.Dense(2 * self.energies, name="head", kernel_init=nn.initializers.normal(0.01))
        outputs = head(features).reshape(*features.shape[:3], self.energies, 2)
        return (outputs, features) if with_features else outputs
