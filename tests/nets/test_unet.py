import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffjax.nets.layers import GroupNorm, timestep_embedding
from diffjax.nets.resampling import depth_to_space, space_to_depth
from diffjax.nets.unet import UNet
from diffjax.remat import resolve_remat
from diffjax.types import ConfigError
from tests.filled import fill

TINY = {
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "out_channels": 1,
    "norm_groups": 2,
}


def shapes(size, depth=3, /, **options):
    net = UNet(**options)
    batch = jnp.zeros((1, size, size, depth))
    label = {"label": jnp.zeros(1, int)}
    return jax.eval_shape(lambda: net.init(jax.random.key(0), batch, jnp.zeros(1), label))["params"]


def count(size, options):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(size, **options)))


IDDPM = {"scale_shift": True, "heads": 4, "out_channels": 6, "blocks": 3}
ADM = {"scale_shift": True, "resblock_updown": True, "out_channels": 6, "num_classes": 1000}
# name: (size, options, parameters); integers exact, floats in millions to the digit given
COUNTS = {
    "ddpm cifar10": (32, {}, 35_746_307),
    "ddpm 256": (256, {"multipliers": (1, 1, 2, 2, 4, 4), "attention_levels": (4,)}, 113_673_219),
    "ddpm 256 large": (
        256,
        {"channels": 192, "multipliers": (1, 1, 2, 2, 4, 4), "attention_levels": (4,)},
        255_677_955,
    ),
    "ddim celeba64": (64, {"multipliers": (1, 2, 2, 2, 4), "attention_levels": (2,)}, 78.7),
    "iddpm cifar10": (32, {"attention_levels": (1, 2), **IDDPM}, 52.5),
    "iddpm imagenet64": (
        64,
        {"multipliers": (1, 2, 3, 4), "attention_levels": (2, 3), **IDDPM},
        121.1,
    ),
    "iddpm imagenet64 conditional": (
        64,
        {
            "channels": 192,
            "multipliers": (1, 2, 3, 4),
            "attention_levels": (2, 3),
            "num_classes": 1000,
            **IDDPM,
        },
        273.0,
    ),
    "adm 64": (
        64,
        {
            "channels": 192,
            "blocks": 3,
            "multipliers": (1, 2, 3, 4),
            "attention_levels": (1, 2, 3),
            "head_channels": 64,
            **ADM,
        },
        295.9,
    ),
    "adm 128": (
        128,
        {
            "channels": 256,
            "multipliers": (1, 1, 2, 3, 4),
            "attention_levels": (2, 3, 4),
            "heads": 4,
            **ADM,
        },
        421.5,
    ),
    "adm 256": (
        256,
        {
            "channels": 256,
            "multipliers": (1, 1, 2, 2, 4, 4),
            "attention_levels": (3, 4, 5),
            "head_channels": 64,
            **ADM,
        },
        553.8,
    ),
    "adm 512": (
        512,
        {
            "channels": 256,
            "multipliers": (0.5, 1, 1, 2, 2, 4, 4),
            "attention_levels": (4, 5, 6),
            "head_channels": 64,
            **ADM,
        },
        559.0,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    size, options, expected = COUNTS[name]
    found = count(size, options)
    assert found == expected if isinstance(expected, int) else round(found / 1e6, 1) == expected


def test_names_are_those_of_diffusers():
    names = set(flatten_dict(shapes(8, 1, attention_levels=(1,), **TINY), sep="."))
    assert {
        "conv_in.kernel",
        "time_embedding.linear_1.kernel",
        "down_blocks.0.resnets.0.norm1.scale",
        "down_blocks.0.resnets.0.time_emb_proj.bias",
        "down_blocks.0.downsamplers.0.conv.kernel",
        "down_blocks.1.resnets.0.conv_shortcut.kernel",
        "down_blocks.1.attentions.0.group_norm.scale",
        "down_blocks.1.attentions.0.to_q.kernel",
        "mid_block.attentions.0.to_out.0.bias",
        "up_blocks.0.upsamplers.0.conv.bias",
        "up_blocks.1.resnets.1.conv2.kernel",
        "conv_norm_out.bias",
        "conv_out.kernel",
    } <= names
    updown = set(flatten_dict(shapes(8, 1, resblock_updown=True, **TINY), sep="."))
    assert "down_blocks.0.downsamplers.0.norm1.scale" in updown
    assert "up_blocks.0.upsamplers.0.conv2.kernel" in updown


def test_starts_near_zero_and_trains_on_every_parameter():
    net = UNet(attention_levels=(1,), scale_shift=True, **TINY)
    z = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    params = jax.jit(net.init)(jax.random.key(0), z, jnp.zeros(2))["params"]
    out = jax.jit(net.apply)({"params": params}, z, jnp.array([3.0, 900.0]))
    assert out.shape == z.shape
    assert float(jnp.abs(out).max()) < 1e-3
    rng = np.random.default_rng(2)
    lively = jax.tree.map(
        lambda p: np.asarray(np.asarray(p) + 0.1 * rng.normal(size=p.shape), "f4"), params
    )

    def loss(p):
        return (net.apply({"params": p}, z, jnp.array([3.0, 900.0])) ** 2).sum()

    grads = flatten_dict(jax.jit(jax.grad(loss))(lively), sep=".")
    dead = [k for k, g in grads.items() if not np.abs(g).max() > 0]
    # A key's bias shifts all logits of a query alike, which softmax does not see.
    assert [k for k in dead if not k.endswith("to_k.bias")] == []


def test_remat_computes_again_what_it_says_and_changes_nothing():
    z = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    nets = {r: UNet(attention_levels=(), remat=r, **TINY) for r in ("none", "products", "blocks")}
    params = fill(nets["none"], z, jnp.zeros(2), spread=0.1)

    def gradient(net):
        return jax.grad(lambda p: (net.apply({"params": p}, z, jnp.ones(2)) ** 2).mean())

    traced = {name: jax.jit(gradient(net)).trace(params) for name, net in nets.items()}
    values = {k: jax.tree.leaves(t.lower().compile()(params)) for k, t in traced.items()}
    for name in ("products", "blocks"):
        for a, b in zip(values["none"], values[name], strict=True):
            assert np.asarray(a) == pytest.approx(np.asarray(b), rel=1e-4, abs=1e-6)
    texts = {name: str(program.jaxpr) for name, program in traced.items()}
    products = {
        k: t.count("conv_general_dilated[") + t.count("dot_general[") for k, t in texts.items()
    }
    norms = {k: t.count(" rsqrt ") for k, t in texts.items()}
    assert products["none"] == products["products"] < products["blocks"]
    assert norms["none"] < norms["products"] <= norms["blocks"]
    for name, count in products.items():  # what auto stands for is said while it is traced
        with resolve_remat(name):
            text = str(jax.make_jaxpr(gradient(nets["none"].clone(remat="auto")))(params))
        assert text.count("conv_general_dilated[") + text.count("dot_general[") == count
        assert text.count(" rsqrt ") == norms[name]
    with pytest.raises(ValueError, match="unknown remat 'most'; choose one of auto, blocks, none"):
        jax.eval_shape(UNet(remat="most", **TINY).init, jax.random.key(0), z, jnp.zeros(2))


def test_bf16_computes_in_bf16_and_returns_float32():
    net = UNet(attention_levels=(1,), dtype=jnp.bfloat16, **TINY)
    z = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
    variables = jax.eval_shape(net.init, jax.random.key(0), z, jnp.zeros(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    run = functools.partial(net.apply, capture_intermediates=True)
    out, state = jax.eval_shape(run, variables, z, jnp.zeros(1))
    assert out.dtype == jnp.float32
    inner = state["intermediates"]["down_blocks.0.resnets.0"]["__call__"][0]
    assert inner.dtype == jnp.bfloat16


def test_patches_fold_and_unfold():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    folded = space_to_depth(x, 2)
    assert folded.shape == (2, 3, 2, 12)
    assert np.array_equal(folded[0, 0, 0], x[0, :2, :2].reshape(-1))
    assert np.array_equal(depth_to_space(folded, 2), x)
    assert shapes(16, 1, patch=2, **TINY)["conv_out"]["kernel"].shape[-1] == 4


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_timestep_embedding(flip, shift):
    t = np.array([0.0, 1.0, 999.0])
    freqs = 10000.0 ** (-np.arange(4) / (4 - shift))
    waves = [np.sin(t[:, None] * freqs), np.cos(t[:, None] * freqs)]
    expected = np.concatenate(waves[::-1] if flip else waves, 1)
    out = timestep_embedding(jnp.asarray(t), 8, flip_sin_to_cos=flip, freq_shift=shift)
    assert np.asarray(out) == pytest.approx(expected, abs=2e-4)


def test_group_norm_matches_its_definition():
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 5, 5, 12)).astype(np.float32)
    norm = GroupNorm(groups=4, eps=1e-6)
    out = np.asarray(jax.jit(norm.init_with_output)(jax.random.key(0), x)[0])
    grouped = x.reshape(2, 25, 4, 3).astype(np.float64)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
    assert out == pytest.approx(expected, abs=1e-5)


def test_group_norm_refuses_groups_that_do_not_divide():
    x = jnp.zeros((1, 2, 2, 12))
    with pytest.raises(ValueError, match="norm_groups=8 does not divide 12 channels"):
        jax.eval_shape(GroupNorm(groups=8).init, jax.random.key(0), x)


def test_bad_input():
    net = UNet(**TINY)
    key, t = jax.random.key(0), jnp.zeros(1)
    with pytest.raises(ValueError, match=r"multiples of 2, got \(1, 7, 8, 1\)"):
        jax.eval_shape(net.init, key, jnp.zeros((1, 7, 8, 1)), t)
    with pytest.raises(ValueError, match="needs cond"):
        jax.eval_shape(
            UNet(num_classes=3, **TINY).init,
            jax.random.key(0),
            jnp.zeros((1, 8, 8, 1)),
            jnp.zeros(1),
        )


@pytest.mark.parametrize("name", ["heads", "depth"])
def test_options_by_level_are_given_for_every_level(name):
    options = TINY | {"attention_levels": (1,), "context_dim": 4, name: (1,)}
    z, t, cond = jnp.zeros((1, 4, 4, 1)), jnp.zeros(1), {"context": jnp.zeros((1, 2, 4))}
    with pytest.raises(ConfigError, match=rf"{name}=\(1,\) has 1 entries, .* has a level 2: give"):
        jax.eval_shape(UNet(**options).init, jax.random.key(0), z, t, cond)
    jax.eval_shape(UNet(**options | {name: (1, 1)}).init, jax.random.key(0), z, t, cond)


def test_the_program_does_not_grow_with_the_depth_of_transformers():
    def size(depth):
        net = UNet(**TINY | {"attention_levels": (1,), "context_dim": 4, "depth": (1, depth)})
        z, t, cond = jnp.zeros((1, 4, 4, 1)), jnp.zeros(1), {"context": jnp.zeros((1, 2, 4))}
        params = jax.eval_shape(net.init, jax.random.key(0), z, t, cond)
        return len(jax.jit(net.apply).lower(params, z, t, cond).as_text())

    assert size(10) < 1.02 * size(2)


def test_time_and_span_are_embedded_side_by_side():
    net = UNet(channels=8, multipliers=(1,), blocks=1, norm_groups=2, span_dim=12)
    z, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jnp.array([0.3, 0.8])

    def told(span):
        ids = jnp.broadcast_to(jnp.asarray(span, jnp.float32), (2,))[:, None]
        return {"added": {"text_embeds": jnp.zeros((2, 0)), "time_ids": ids}}

    fresh = net.init(jax.random.key(1), z, t, told(0.1))["params"]
    assert fresh["time_embedding"]["linear_1"]["kernel"].shape == (24, 32)
    assert not any("add_embedding" in name for name in fresh)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), fresh)
    outs = [
        net.apply({"params": params}, z, time, told(span))
        for time, span in ((t, 0.1), (t, 0.2), (t + 0.1, 0.1), (t, [0.1, 0.2]))
    ]
    for i, a in enumerate(outs):
        assert all(np.abs(a - b).max() > 1e-4 for b in outs[i + 1 :])
    np.testing.assert_allclose(outs[3][0], outs[0][0], atol=1e-5)  # each image has its own span
    np.testing.assert_allclose(outs[3][1], outs[1][1], atol=1e-5)
    with pytest.raises(ValueError, match="needs cond"):
        net.apply({"params": params}, z, t, {})


@pytest.mark.parametrize("first, width", [(0.5, 4), (1, 8), (2, 8)])
def test_the_first_convolution_is_as_narrow_as_the_first_level(first, width):
    net = UNet(channels=8, multipliers=(first, 1), blocks=1, norm_groups=2)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)), jnp.zeros(1))
    assert shapes["params"]["conv_in"]["kernel"].shape[-1] == width
