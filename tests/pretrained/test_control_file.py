"""ControlNets as single files in the published layout, and as diffusers folders."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax.nets.controlnet import ControlNet
from diffjax.pretrained import (
    configs,
    load_model,
    load_single_file,
    open_single_file,
    save_control_file,
    save_model,
    to_state_dict,
)
from tests.parity import control_cases, sd_cases
from tests.pretrained import ldm


def published(state, blocks=1):
    """A ControlNet's state dict in the published layout, without its prefix."""
    out = {}
    for key, value in state.items():
        if key.startswith("controlnet_down_blocks."):
            number, leaf = key.split(".")[1:]
            out[f"zero_convs.{number}.0.{leaf}"] = value
        elif key.startswith("controlnet_mid_block."):
            out[f"middle_block_out.0.{key.split('.')[1]}"] = value
        elif key.startswith("controlnet_cond_embedding."):
            layers = ["conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"]
            name, _, leaf = key.partition(".")[2].rpartition(".")
            out[f"input_hint_block.{2 * layers.index(name)}.{leaf}"] = value
    rest = {k: v for k, v in state.items() if not k.startswith("controlnet_")}
    return out | ldm.unet(rest, blocks)


# No key tells what pools, and unions have diffusers' names alone.
CASES = [name for name in control_cases.NETS if name not in ("pooled", "union")]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("prefix", ["", "control_model."])
def test_the_published_layout_is_read(name, prefix, tmp_path):
    config = control_cases.NETS[name]
    net, params = sd_cases.random_params(config)
    path = tmp_path / "control.safetensors"
    save_file(ldm.under(prefix, published(to_state_dict(params))), path)
    family, parts = open_single_file(path)
    assert (family, list(parts)) == ("controlnet", ["controlnet"])
    keys = ("attention_head_dim", "norm_num_groups", "addition_time_embed_dim")
    overrides = {"controlnet": {key: config[key] for key in keys if key in config}}
    model = load_single_file(path, overrides=overrides)["controlnet"]
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    base = net.base.clone(depth=model.net.base.depth, heads=model.net.base.heads)
    assert model.net == net.clone(base=base)


@pytest.mark.parametrize("name", CASES)
def test_the_published_layout_is_written(name, tmp_path):
    net, params = sd_cases.random_params(control_cases.NETS[name])
    save_control_file(tmp_path / "control.safetensors", net, params)
    found = load_file(tmp_path / "control.safetensors")
    expected = ldm.under("control_model.", published(to_state_dict(params)))
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize(("width", "heads"), [(768, 8), (1024, [5, 10])])
def test_version_1_has_8_heads_and_others_heads_of_64_channels(width, heads, tmp_path):
    shape = {"middle_block.1.transformer_blocks.0.attn2.to_k.weight": (640, width)}
    shape |= {"middle_block.1.proj_in.weight": (640, 640, 1, 1)}
    shape |= {"input_blocks.0.0.weight": (320, 4, 3, 3), "input_blocks.2.0.op.weight": (1,)}
    shape |= {"input_blocks.1.0.in_layers.2.weight": (320,)}
    shape |= {"input_blocks.3.0.in_layers.2.weight": (640,)}
    shape |= {f"input_hint_block.{i}.weight": (16, 3, 3, 3) for i in range(0, 15, 2)}
    path = tmp_path / "control.safetensors"
    save_file({key: np.zeros(value, np.float32) for key, value in shape.items()}, path)
    config = open_single_file(path)[1]["controlnet"].config
    assert config["attention_head_dim"] == heads
    assert config["conditioning_embedding_out_channels"] == [16] * 4


@pytest.mark.parametrize("name", control_cases.NETS)
def test_folders(name, tmp_path):
    config = control_cases.NETS[name]
    net, params = sd_cases.random_params(config)
    described = configs.describe(net)
    assert configs.build(described) == net
    assert described["in_channels"] == config["in_channels"]
    save_model(tmp_path, net, params)
    model = load_model(tmp_path)
    assert model.net == net
    jax.tree.map(np.testing.assert_array_equal, model.params, params)


def test_networks_of_ours_alone_are_refused():
    net = sd_cases.random_params(control_cases.NETS["sd1"])[0]
    for other in (net.clone(lite=True), net.clone(hint_factor=1), net.clone(hint_encoder="paper")):
        with pytest.raises(ValueError, match="neither ControlNet-lite nor hint encoders"):
            configs.describe(other)
    union, params = sd_cases.random_params(control_cases.NETS["union"])
    with pytest.raises(ValueError, match="has no name in the published layout"):
        save_control_file("control.safetensors", union, params)
    with pytest.raises(ValueError, match="num_proj_channel=4 is not 8, the width of the first"):
        configs.build({**control_cases.NETS["union"], "num_proj_channel": 4})
    with pytest.raises(ValueError, match="have no class elsewhere"):
        configs.describe(ControlNet(net.base.clone(context_dim=0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"controlnet_conditioning_channel_order": "bgr"}, "channel_order='bgr'"),
        ({"out_channels": 4}, r"out_channels=4 \(unknown\)"),
        ({"down_block_types": ["Odd", "DownBlock2D"]}, "'Odd'"),
    ],
)
def test_unsupported_configs_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        configs.build({**control_cases.NETS["sd1"], **changes})
