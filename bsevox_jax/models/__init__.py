"""The networks: images `[b, y, x, e]` to logits `[b, y, x, z, class]`, class 1 = Cu.

`equivariant` goes the other way, from volumes to images.
"""

import math

import jax
import jax.numpy as jnp

from bsevox_jax.models.bsevoxnet import BSEVoxNet
from bsevox_jax.models.compact import ColumnUNet
from bsevox_jax.models.equivariant import Equivariant
from bsevox_jax.models.unet3d import UNet3D

ANY_FIELD = ("compact",)  # networks that serve fields of other sizes than they were trained on


def build(name: str, **fields):
    """The network `name` with the given hyper-parameters, the fields of its class.

    Raises:
      ValueError: no network has this name, or the network has no such field.
    """
    models = {
        "bsevoxnet": BSEVoxNet,
        "compact": ColumnUNet,
        "unet3d": UNet3D,
        "equivariant": Equivariant,
    }
    if name not in models:
        raise ValueError(f"model name must be one of {', '.join(models)}; got {name!r}. Correct model.name.")
    known = sorted(set(models[name].__dataclass_fields__) - {"parent", "name"})
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(
            f"{name} has the fields {', '.join(known)}; got {', '.join(unknown)}. Correct these."
        )
    return models[name](**fields)


def count(model, image_shape=(20, 20, 20)) -> dict[str, int]:
    """Parameters and BatchNorm statistics of a network, and multiply-accumulates of one image stack.

    Nothing is computed or allocated. The operations are those of the plain convolutions and matrix products,
    interpolation included, whatever the backend rewrites them to.
    """
    if hasattr(model, "conv_impl"):
        model = model.clone(conv_impl="direct")
    images = jnp.zeros((1, *image_shape))
    trace = jax.make_jaxpr(
        lambda: model.init_with_output(jax.random.key(0), images, train=False), return_shape=True
    )
    operations, (_, variables) = trace()
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables.items()}
    statistics = sizes.get("batch_stats", 0)
    return {"parameters": sizes["params"], "statistics": statistics, "macs": _macs(operations.jaxpr)}


def _macs(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in equation.invars if hasattr(v.aval, "shape")]
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += out * math.prod(shapes[0][axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += out * math.prod(shapes[1]) // shapes[1][features]
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                total += _macs(inner.jaxpr)
    return total
