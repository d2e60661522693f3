"""The networks against the paper's counts, and their layers against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsevox_jax import losses, metrics, models
from bsevox_jax.models import bsevoxnet, layers

LITE = {"widths": (192, 384), "blocks": (2, 5)}
SMALL = {"widths": (192, 384), "blocks": (4, 14)}
MEDIUM = {"widths": (384, 768), "blocks": (7, 17)}
MODERATE = {"widths": (384, 768), "blocks": (10, 17)}
TINY = {"widths": (16, 32), "blocks": (1, 1)}

# Parameters, BatchNorm statistics, multiply-accumulates, operations as thop counts them: Table 2 of the paper
# says 16M / 1.1B, 36M / 1.2B, 173M / 5B, 179M / 5.1B.
PAPER = [
    (LITE, 15_823_610, 8_256, 1_001_855_360, 1_078_617_728),
    (SMALL, 35_523_578, 15_936, 1_145_696_384, 1_222_977_920),
    (MEDIUM, 172_760_378, 38_784, 4_835_408_384, 4_990_593_536),
    (MODERATE, 178_980_026, 41_088, 4_948_029_056, 5_103_569_024),
]


@pytest.mark.parametrize("sizes, parameters, statistics, macs, thop", PAPER)
def test_bsevoxnet_has_the_parameters_and_operations_of_the_paper(sizes, parameters, statistics, macs, thop):
    assert bsevoxnet.operations(**sizes) == {"macs": macs, "thop": thop}
    c2 = sizes["widths"][1]
    interpolation = sum(2 * n * n * n * c2 + 4 * n * n * n * c2 for n in (3, 6, 12))
    counted = models.count(models.build("bsevoxnet", **sizes))
    assert counted == {"parameters": parameters, "statistics": statistics, "macs": macs + interpolation}


@pytest.mark.parametrize(
    "ablation, moderate, small",
    [("sope", 176_925_586, 35_030_866), ("s2", 17_569_466, 4_416_506), ("conv_ffn", 178_768_826, 35_443_322)],
)
def test_ablations_change_only_their_part(ablation, moderate, small):
    for sizes, expected in ((MODERATE, moderate), (SMALL, small)):
        model = models.build("bsevoxnet", **sizes, **{ablation: False})
        assert models.count(model)["parameters"] == expected


@pytest.mark.parametrize(
    "name, fields, parameters, mega_macs",
    [
        ("compact", {}, 1_908_104, 157.29),
        ("compact", {"widths": (32, 64, 96), "blocks": (1, 1, 1)}, 425_416, 39.32),
        ("unet3d", {"base": 32, "levels": 4}, 19_071_394, 7400),
        ("unet3d", {"base": 32, "levels": 3}, 4_584_866, 6450),
        ("unet3d", {"base": 16, "levels": 3}, 1_147_090, 1615),
    ],
)
def test_compact_and_unet_have_their_stated_size(name, fields, parameters, mega_macs):
    counted = models.count(models.build(name, **fields))
    assert counted["parameters"] == parameters
    assert counted["macs"] / 1e6 == pytest.approx(mega_macs, rel=2e-3)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("bsevoxnet", LITE), ("bsevoxnet", LITE | {"sope": False}), ("bsevoxnet", LITE | {"s2": False}),
        ("compact", {}), ("compact", {"widths": (8,), "blocks": (1,)}),
        ("unet3d", {}), ("unet3d", {"energy_maps": 16}),
    ],
)  # fmt: skip
def test_images_become_a_volume_of_two_logits(name, fields):
    model = models.build(name, **fields, dtype="bfloat16")
    images = jnp.zeros((3, 20, 20, 20))
    logits, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))
    assert logits.shape == (3, 20, 20, 20, 2)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((logits, variables))} == {"float32"}


def test_bsevoxnet_passes_through_the_published_grids():
    model = models.build("bsevoxnet", **TINY)
    images = jnp.zeros((1, 20, 20, 20))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    _, state = jax.eval_shape(
        lambda v: model.apply(v, images, train=False, capture_intermediates=True), variables
    )
    outputs = state["intermediates"]

    def pixels(*path):
        node = outputs
        for name in path:
            node = node[name]
        return node["__call__"][0].shape[1:3]

    assert [pixels("sope1", "conv1"), pixels("sope1", "conv2"), pixels("sope2")] == [(10, 10), (5, 5), (3, 3)]
    assert [pixels(f"decoder_ffn{k}") for k in range(3)] == [(6, 6), (12, 12), (24, 24)]


@pytest.mark.slow
def test_compact_serves_any_field_as_if_mirrors_continued_it():
    model = models.build("compact", widths=(6, 8, 8), blocks=(1, 1, 1), depth=4)
    images = jax.random.normal(jax.random.key(0), (1, 9, 6, 5))
    variables = model.init(jax.random.key(1), images, train=False)
    logits = model.apply(variables, images, train=False)
    continued = jnp.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="symmetric")
    expected = model.apply(variables, continued, train=False)[:, :9, :6]
    assert logits.shape == (1, 9, 6, 4, 2)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_bsevoxnet_names_the_image_size_it_needs():
    model = models.build("bsevoxnet", **TINY)
    with pytest.raises(ValueError, match="20 x 20 pixels; got"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 24, 24, 20)), train=False))


def test_build_names_the_unknown_model_or_field():
    with pytest.raises(ValueError, match="bsevoxnet, compact, unet3d, equivariant; got 'resnet'"):
        models.build("resnet")
    with pytest.raises(ValueError, match="got widht"):
        models.build("compact", widht=3)
    with pytest.raises(ValueError, match="auto, direct or rewrite; got 'fast'"):
        layers.uses_rewrites("fast")


def test_shift_moves_the_quarters_and_repeats_the_border():
    up, down = [0, 0, 1, 2, 3], [1, 2, 3, 4, 4]
    y, x = np.indices((5, 5))
    ramp = jnp.asarray(np.repeat((10 * y + x)[None, :, :, None], 4, axis=-1))
    first_y = np.asarray(layers.shift(ramp, 1, 2))[0]
    first_x = np.asarray(layers.shift(ramp, 2, 1))[0]
    along_y = [10 * np.array(rows)[:, None] + np.arange(5) for rows in (up, down)]
    along_x = [10 * np.arange(5)[:, None] + np.array(columns) for columns in (up, down)]
    np.testing.assert_array_equal(np.moveaxis(first_y, -1, 0), along_y + along_x)
    np.testing.assert_array_equal(np.moveaxis(first_x, -1, 0), along_x + along_y)


def test_bicubic_matrices_interpolate():
    golden = [[1, 0, 0], [0.612, 0.460, -0.072], [0.176, 0.920, -0.096]]
    np.testing.assert_allclose(layers.bicubic_matrix(3)[:3], golden, atol=1e-12)
    for n in (3, 6, 12):
        matrix = layers.bicubic_matrix(n)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)


def test_upsampling_applies_the_matrix_to_both_axes():
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 4)).astype(np.float32)
    expected = np.einsum("uy,vx,byxc->buvc", layers.bicubic_matrix(3), layers.bicubic_matrix(6), x)
    np.testing.assert_allclose(layers.upsample_bicubic(jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.slow
def test_split_attention_without_scores_is_the_mean_of_the_groups():
    groups = list(jax.random.normal(jax.random.key(0), (3, 2, 5, 5, 8)))
    attention = bsevoxnet.SplitAttention()
    variables = attention.init(jax.random.key(1), groups)
    variables["params"]["expand"]["kernel"] *= 0
    np.testing.assert_allclose(attention.apply(variables, groups), sum(groups) / 3, atol=1e-6)


def test_split_attention_orders_its_scores_by_group():
    groups = list(jax.random.normal(jax.random.key(0), (3, 2, 5, 5, 8)))
    attention = bsevoxnet.SplitAttention()
    variables = attention.init(jax.random.key(1), groups)
    squeeze, expand = (np.asarray(variables["params"][name]["kernel"]) for name in ("squeeze", "expand"))
    pooled = np.asarray(sum(groups)).sum((1, 2))
    scores = np.asarray(jax.nn.gelu(pooled @ squeeze, approximate=False)) @ expand
    exponents = np.exp([scores[:, 8 * k : 8 * k + 8] for k in range(3)])
    weights = exponents / exponents.sum(axis=0)
    expected = sum(weights[k][:, None, None] * np.asarray(groups[k]) for k in range(3))
    np.testing.assert_allclose(attention.apply(variables, groups), expected, atol=1e-4)


@pytest.mark.parametrize(
    "convolution, x_shape, kernel_shape",
    [
        (layers.depthwise_conv, (2, 9, 8, 6), (5, 3, 1, 6)),
        (layers.conv3d, (2, 6, 7, 8, 3), (3, 3, 3, 3, 4)),
        (layers.conv3d_single, (2, 9, 8, 10), (5, 5, 5, 1, 2)),
    ],
)
def test_rewritten_convolutions_equal_the_direct_ones(convolution, x_shape, kernel_shape):
    x = jax.random.normal(jax.random.key(0), x_shape)
    kernel = jax.random.normal(jax.random.key(1), kernel_shape)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_pullback(conv_impl):
        out, pullback = jax.vjp(lambda *operands: convolution(*operands, conv_impl), x, kernel)
        return out, *pullback(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    for rewritten, direct in zip(value_and_pullback("rewrite"), value_and_pullback("direct"), strict=True):
        np.testing.assert_allclose(rewritten, direct, atol=1e-4)


@pytest.mark.slow
def test_bsevoxnet_is_the_same_function_under_both_implementations():
    images = jax.random.normal(jax.random.key(0), (2, 20, 20, 20))
    rewritten, direct = (
        models.build("bsevoxnet", **TINY, s2=False, conv_impl=impl) for impl in ("rewrite", "direct")
    )
    variables = jax.jit(lambda: direct.init(jax.random.key(1), images, train=False))()
    expected, actual = (
        jax.jit(lambda v, m=model: m.apply(v, images, train=False))(variables)
        for model in (direct, rewritten)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def geometric_specimens(n: int):
    """Ellipsoids of Cu and their blurred projections, weighted by depth as the beam energy would."""
    generator = np.random.default_rng(0)
    grid = np.stack(np.indices((20, 20, 20)), axis=-1) + 0.5
    centres, radii = generator.uniform(4, 16, (n, 2, 3)), generator.uniform(2, 5, (n, 2, 3))
    centres[..., 2] *= 0.6
    scaled = (grid - centres[:, :, None, None, None]) / radii[:, :, None, None, None]
    labels = ((scaled**2).sum(-1) < 1).any(axis=1)
    ranges_nm = np.geomspace(1, 40, 20)
    weights = np.exp(-np.arange(20)[:, None] / ranges_nm) / ranges_nm
    blur = np.exp(-0.5 * (np.arange(20)[:, None] - np.arange(20)) ** 2)
    blur /= blur.sum(axis=1, keepdims=True)
    images = np.einsum("nyxz,ze,uy,vx->nuve", labels, weights, blur, blur, optimize=True)
    images = (images - images.mean((0, 1, 2))) / images.std((0, 1, 2))
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels)


def overfit(model, learning_rate: float, steps: int) -> float:
    """Cu IoU on eight specimens after training on them."""
    images, labels = geometric_specimens(8)
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    params, rest = variables["params"], {"batch_stats": variables.get("batch_stats", {})}
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def loss(params, rest):
        def apply(x):
            return model.apply({"params": params, **rest}, x, train=True, mutable=list(rest))

        # An axis of one replica, for BatchNorm to average over.
        logits, new = jax.tree.map(lambda a: a[0], jax.vmap(apply, axis_name="batch")(images[None]))
        plain = losses.weighted_cross_entropy(logits, labels, mode="onehot_softmax", lam=0.5, normalise="n")
        return plain + losses.lovasz(
            logits, labels, kind="softmax", classes="cu", per_sample=True
        ), rest | new

    @jax.jit
    def step(params, rest, opt_state):
        (_, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest)
        updates, opt_state = optimiser.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), rest, opt_state

    opt_state = optimiser.init(params)
    for _ in range(steps):
        params, rest, opt_state = step(params, rest, opt_state)
    logits = jax.jit(lambda v: model.apply(v, images, train=False))({"params": params, **rest})
    sums = metrics.sample_sums(metrics.cu_probability(logits), labels)
    return metrics.summarise(sums)["iou_cu_mean"]


@pytest.mark.slow
def test_compact_overfits_eight_specimens():
    assert overfit(models.build("compact", widths=(32, 64), blocks=(1, 1)), 1e-2, 280) > 0.99


@pytest.mark.slow
def test_lite_overfits_eight_specimens():
    assert overfit(models.build("bsevoxnet", **LITE), 1e-3, 300) > 0.99
