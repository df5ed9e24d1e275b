"""ControlNet: sizes of the published networks, and what holds before any training, bit by bit."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.model import ControlNetwork
from diffjax.nets.controlnet import ControlNet, copy_base
from diffjax.nets.unet import UNet
from diffjax.pretrained import configs
from diffjax.pretrained.state_dict import from_state_dict, list_state_shapes
from diffjax.types import ConfigError
from tests.parity import cases, control_cases

GOLDEN = Path(__file__).parents[1] / "golden" / "controlnet.npz"
SD = dict(_class_name="ControlNetModel")
XL = dict(
    block_out_channels=[320, 640, 1280],
    down_block_types=["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    transformer_layers_per_block=[1, 2, 10],
    attention_head_dim=[5, 10, 20],
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    use_linear_projection=True,
    cross_attention_dim=2048,
)
SD2 = dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
UNION = dict(
    _class_name="ControlNetUnionModel", conditioning_embedding_out_channels=[16, 32, 96, 256]
)
PUBLISHED = {
    "sd1": (dict(cross_attention_dim=768), 361_279_120),
    "sd2": (SD2, 364_228_240),
    "xl": (XL, 1_251_014_160),
    **{
        f"union-{kinds}": (XL | UNION | {"num_control_type": kinds}, count)
        for kinds, count in ((6, 1_255_958_800), (8, 1_256_614_800))
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_the_published_networks(name):
    options, count = PUBLISHED[name]
    config = SD | options
    shapes = configs.shapes(configs.build(config), config)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
    if name == "sd1":
        hint = jax.tree.leaves(shapes["controlnet_cond_embedding"])
        assert sum(math.prod(leaf.shape) for leaf in hint) == 1_086_480
        zero = [v for k, v in shapes.items() if k.startswith(("controlnet_d", "controlnet_m"))]
        assert len(zero) == 13
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(zero)) == 11_479_680


@pytest.mark.parametrize("name", control_cases.NETS)
def test_recorded_residuals_of_diffusers(name):
    with np.load(GOLDEN) as recorded:
        ours = control_cases.digest(control_cases.ours(control_cases.NETS[name]))
        assert cases.relative_error(ours, recorded[name]) < 1e-5


# ---- a small base of pixels ---------------------------------------------------------------------

BASE = UNet(
    channels=8, multipliers=(1, 2), blocks=1, attention_levels=(1,), norm_groups=2, out_channels=1
)
Z = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
T = jnp.array([3.0, 700.0])
HINT = jax.random.uniform(jax.random.key(2), (2, 8, 8, 1))
INPUTS = (jax.random.key(0), Z, T, {"hint": HINT})


def scattered(like, seed=5):
    """Parameters away from where training starts, so that every part of a network counts."""
    return from_state_dict(cases.random_state(list_state_shapes(like), seed=seed), like)


def net_of(**options):
    return ControlNet(BASE, hint_channels=1, hint_widths=(4, 8), hint_factor=1, **options)


@functools.cache
def start(net):
    """(parameters of the base, those of the ControlNet copied from it)."""
    base = scattered(jax.eval_shape(BASE.init, *INPUTS[:3])["params"])
    return base, copy_base(jax.jit(net.init)(*INPUTS)["params"], base)


@functools.cache
def both(net):
    """``(base, control, hint, scale) -> (output of the base alone, controlled output)``."""

    @jax.jit
    def run(base, control, hint, scale):
        residuals = net.apply({"params": control}, Z, T, {"hint": hint})
        scaled = jax.tree.map(lambda r: scale * r, residuals)
        plain = BASE.apply({"params": base}, Z, T)
        return plain, BASE.apply({"params": base}, Z, T, {"control": scaled})

    return run


def test_at_the_start_the_output_is_the_bases_bit_by_bit():
    net = net_of()
    plain, controlled = both(net)(*start(net), HINT, 1.0)
    np.testing.assert_array_equal(plain, controlled)
    assert np.abs(plain).max() > 0.1


def test_scale_zero_is_no_control_bit_by_bit_and_scale_one_is_control():
    net = net_of()
    base, control = start(net)
    run, control = both(net), scattered(control)
    plain, controlled = run(base, control, HINT, 0.0)
    np.testing.assert_array_equal(plain, controlled)
    assert np.abs(run(base, control, HINT, 1.0)[1] - plain).max() > 0.1
    moved = run(base, control, HINT[::-1], 1.0)[1]
    assert np.abs(run(base, control, HINT, 1.0)[1] - moved).max() > 0.03


def test_at_the_start_only_zero_convolutions_have_a_gradient():
    net = net_of()
    base, control = start(net)

    def loss(control):
        residuals = net.apply({"params": control}, Z, T, {"hint": HINT})
        return jnp.square(BASE.apply({"params": base}, Z, T, {"control": residuals}) - Z).mean()

    gradients = jax.jit(jax.grad(loss))(control)
    nonzero = {k for k, v in gradients.items() if any(np.any(x) for x in jax.tree.leaves(v))}
    # That of the hint encoder moves once the others have.
    assert nonzero == {f"controlnet_down_blocks.{i}" for i in range(4)} | {"controlnet_mid_block"}


@pytest.mark.parametrize("lite", [False, True])
def test_gaussian_convolutions_change_the_base_at_once(lite):
    net = net_of(connections="gaussian", lite=lite)
    plain, controlled = both(net)(*start(net), HINT, 1.0)
    assert np.abs(plain - controlled).max() > 0.1


def test_lite_starts_as_the_base_and_is_smaller():
    lite, full = net_of(lite=True), net_of()
    plain, controlled = both(lite)(*start(lite), HINT, 1.0)
    np.testing.assert_array_equal(plain, controlled)
    sizes = [sum(v.size for v in jax.tree.leaves(start(net)[1])) for net in (lite, full)]
    assert sizes[0] < 0.6 * sizes[1]
    shapes = [jax.eval_shape(lambda n=n: n.init_with_output(*INPUTS)[0]) for n in (lite, full)]
    assert shapes[0] == shapes[1]


def test_copies_are_the_bases_and_the_rest_is_fresh():
    base, control = start(net_of())
    shared = set(base) & set(control)
    assert {"conv_in", "time_embedding", "down_blocks.1.attentions.0"} <= shared
    assert not any(name.startswith(("up_blocks", "conv_out")) for name in shared)
    for name in shared:
        jax.tree.map(np.testing.assert_array_equal, base[name], control[name])
    own = {k.partition(".")[0] for k in set(control) - set(base)}
    assert own == {"controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"}


def test_a_base_that_reads_more_channels_gives_those_of_z():
    net, concat = net_of(), {"concat": jnp.ones((2, 8, 8, 2))}
    base = scattered(jax.eval_shape(BASE.init, *INPUTS[:3], concat)["params"])
    control = copy_base(start(net)[1], base)
    np.testing.assert_array_equal(control["conv_in"]["kernel"], base["conv_in"]["kernel"][:, :, :1])

    def residuals():
        return net.apply({"params": control}, Z, T, {"hint": HINT, **concat})

    assert jax.eval_shape(residuals)[1].shape == (2, 4, 4, 16)


@pytest.mark.parametrize(
    ("kind", "factor"), [("released", 1), ("released", 4), ("paper", 8), ("paper", 1)]
)
def test_hints_are_brought_to_the_size_of_the_features(kind, factor):
    net = net_of(hint_encoder=kind).clone(hint_factor=factor, hint_widths=(4, 6, 8))
    hint = {"hint": jnp.ones((2, 8 * factor, 8 * factor, 1))}
    shapes = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), Z, T, hint)[0])
    assert shapes[0][0].shape == (2, 8, 8, 8) and shapes[1].shape == (2, 4, 4, 16)


def test_folded_pixels():
    base = BASE.clone(patch=2)
    for lite in (False, True):
        net = ControlNet(base, 1, (4, 8), hint_factor=2, lite=lite)
        shapes = jax.eval_shape(
            lambda net=net: net.init_with_output(jax.random.key(0), Z, T, {"hint": HINT})[0]
        )
        assert shapes[0][0].shape == (2, 4, 4, 8)


@pytest.mark.parametrize("factor", [0, 3, 4, -2])
def test_a_factor_that_the_encoder_does_not_reach_is_refused(factor):
    net = net_of().clone(hint_factor=factor)
    with pytest.raises(ConfigError, match=rf"^hint_factor is {factor}, but .* by one of 1, 2"):
        jax.eval_shape(lambda: net.init(*INPUTS[:3], {"hint": HINT}))


def test_folded_pixels_of_a_smaller_hint():
    """Two pixels of the hint for a patch of four pixels of z."""
    net = ControlNet(BASE.clone(patch=4, multipliers=(1,)), 1, (4, 8), hint_factor=2)
    shapes = jax.eval_shape(lambda: ControlNetwork(net).init(jax.random.key(0), Z, T))
    assert shapes["conv_in"]["kernel"].shape == (3, 3, 16 * Z.shape[-1], 8)


@pytest.mark.parametrize("shape", [(2, 16, 8, 1), (2, 8, 8, 3), (1, 8, 8, 1), None])
def test_hints_of_another_shape_are_refused(shape):
    hint = None if shape is None else jnp.zeros(shape)
    with pytest.raises(ValueError, match=r"cond\['hint'\] of shape \(2, 8, 8, 1\).*got"):
        jax.eval_shape(lambda: net_of().init(*INPUTS[:3], {"hint": hint}))


def test_residuals_of_another_base_are_refused():
    shapes = jax.eval_shape(lambda: net_of().init_with_output(*INPUTS)[0])
    residuals, middle = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
    for wrong, message in (
        ((residuals[:-1], middle), "3 control residuals for 4 skips"),
        (([r[:, ::2, ::2] for r in residuals], middle), r"residual \(2, 4, 4, 8\) does not fit"),
        ((residuals, middle[..., :8]), r"residual \(2, 4, 4, 8\) does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda w=wrong: BASE.init(*INPUTS[:3], {"control": w}))


def test_parameters_of_another_base_are_refused():
    other = jax.eval_shape(lambda: BASE.clone(channels=16).init(*INPUTS[:3])["params"])
    with pytest.raises(ValueError, match="the ControlNet is for another base"):
        copy_base(start(net_of())[1], other)


def test_unknown_options_are_named():
    for options in (dict(connections="ones"), dict(hint_encoder="unet")):
        with pytest.raises(ValueError, match=r"choose one of"):
            jax.eval_shape(lambda o=options: net_of(**o).init(*INPUTS))
