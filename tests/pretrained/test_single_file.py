"""Networks in single-file layout are the networks they were made of."""

import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.pretrained import load_single_file, open_single_file
from diffjax.pretrained.state_dict import to_state_dict
from tests.parity import cases, sd_cases
from tests.pretrained import ldm

CONTEXT = {"v1": ("sd1", "sd1-inpainting"), "v2": ("sd2",), "xl": ("xl",), "refiner": ("refiner",)}
CASES = [(family, name) for family, names in CONTEXT.items() for name in names]
OPEN = sd_cases.TEXTS["openclip"]
PLAIN = {**OPEN, "architectures": ["CLIPTextModel"]}  # as SD 2 uses it, without projection


def _autoencoder_shapes(widths=(8, 16), blocks=1, latent=4):
    """Keys and shapes of a diffusers autoencoder."""
    shapes = {}

    def conv(name, out, into, size=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, size, size), (out,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def res(name, into, out):
        norm(f"{name}.norm1", into), conv(f"{name}.conv1", out, into)
        norm(f"{name}.norm2", out), conv(f"{name}.conv2", out, out)
        if into != out:
            conv(f"{name}.conv_shortcut", out, into, 1)

    def mid(name, width):
        res(f"{name}.resnets.0", width, width), res(f"{name}.resnets.1", width, width)
        norm(f"{name}.attentions.0.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes[f"{name}.attentions.0.{part}.weight"] = (width, width)
            shapes[f"{name}.attentions.0.{part}.bias"] = (width,)

    def side(name, order, count, kind):
        into = order[0]
        for i, width in enumerate(order):
            for j in range(count):
                res(f"{name}.{kind}_blocks.{i}.resnets.{j}", into, width)
                into = width
            if i < len(order) - 1:
                conv(f"{name}.{kind}_blocks.{i}.{kind}samplers.0.conv", width, width)
        norm(f"{name}.conv_norm_out", order[-1])

    conv("encoder.conv_in", widths[0], 3), side("encoder", widths, blocks, "down")
    mid("encoder.mid_block", widths[-1]), conv("encoder.conv_out", 2 * latent, widths[-1])
    conv("decoder.conv_in", widths[-1], latent), mid("decoder.mid_block", widths[-1])
    side("decoder", widths[::-1], blocks + 1, "up"), conv("decoder.conv_out", 3, widths[0])
    conv("quant_conv", 2 * latent, 2 * latent, 1), conv("post_quant_conv", latent, latent, 1)
    return shapes


AUTOENCODER = cases.random_state(_autoencoder_shapes(), seed=3)


@functools.cache
def _made(kind):
    config = {"open": OPEN, "plain": PLAIN, **sd_cases.UNETS, **sd_cases.TEXTS}[kind]
    return sd_cases.random_params(config)


def _state(kind):
    return to_state_dict(_made(kind)[1])


def checkpoint(family, unet):
    """A single file's state dict, and the parts it is made of."""
    parts = {"unet": _state(unet), "vae": AUTOENCODER}
    file = ldm.under("model.diffusion_model.", ldm.unet(parts["unet"], 1))
    file |= ldm.under("first_stage_model.", ldm.autoencoder(AUTOENCODER, 2))
    if family in ("v1", "xl"):
        parts["text_encoder"] = _state("clip")
        prefix = "cond_stage_model" if family == "v1" else "conditioner.embedders.0"
        file |= ldm.under(f"{prefix}.transformer.", parts["text_encoder"])
    if family == "v2":
        parts["text_encoder"] = _state("plain")
        file |= ldm.under("cond_stage_model.model.", ldm.open_clip(_state("plain"), extra=True))
    if family in ("xl", "refiner"):
        parts["text_encoder_2"] = _state("open")
        prefix = f"conditioner.embedders.{int(family == 'xl')}.model."
        file |= ldm.under(prefix, ldm.open_clip(_state("open"), extra=False))
    return file, parts


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def saved(request, tmp_path_factory):
    family, unet = request.param
    file, parts = checkpoint(family, unet)
    path = tmp_path_factory.mktemp(family) / "model.safetensors"
    save_file({**file, "alphas_cumprod": np.ones(3, np.float32)}, path)
    return path, family, unet, parts


def test_every_weight_is_found_under_its_name(saved):
    path, family, _, parts = saved
    name, found = open_single_file(path)
    assert name == family
    assert set(found) == set(parts)
    for part, state in parts.items():
        weights = found[part].weights
        assert set(weights) == set(state), part
        for key, value in state.items():
            np.testing.assert_array_equal(weights[key], value, err_msg=key)


def test_networks_are_described(saved):
    path, family, unet, _ = saved
    found = open_single_file(path)[1]
    ours = found["unet"].config
    theirs = sd_cases.UNETS[unet]
    same = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block")
    for key in (*same, "in_channels", "out_channels", "cross_attention_dim"):
        assert ours[key] == theirs[key], key
    assert ours["use_linear_projection"] == theirs.get("use_linear_projection", False)
    assert ours.get("projection_class_embeddings_input_dim") == theirs.get(
        "projection_class_embeddings_input_dim"
    )
    by_width = [width // 64 for width in theirs["block_out_channels"]]
    assert ours["attention_head_dim"] == (8 if family == "v1" else by_width)
    vae = found["vae"].config
    assert (vae["block_out_channels"], vae["layers_per_block"]) == ([8, 16], 1)
    assert vae["latent_channels"] == 4
    assert vae["scaling_factor"] == (0.13025 if family in ("xl", "refiner") else 0.18215)


def test_networks_compute_the_same(saved):
    """The family's constants are those of large models, so small ones override them."""
    path, _, unet, parts = saved
    theirs = sd_cases.UNETS[unet]
    keys = ("attention_head_dim", "norm_num_groups", "addition_time_embed_dim")
    overrides = {"unet": {key: theirs[key] for key in keys if key in theirs}}
    overrides |= {f"text_encoder{i}": {"num_attention_heads": 2} for i in ("", "_2")}
    wanted = [part for part in parts if part != "vae"]
    models = load_single_file(path, parts=wanted, overrides=overrides)
    assert list(models) == wanted
    for part, model in models.items():
        jax.tree.map(np.testing.assert_array_equal, to_state_dict(model.params), parts[part])
    assert models["unet"].net == _made(unet)[0].clone(
        depth=models["unet"].net.depth, heads=models["unet"].net.heads
    )


def test_averaged_weights(tmp_path):
    file, parts = checkpoint("v1", "sd1")
    prefix = "model.diffusion_model."
    for key in [k for k in file if k.startswith(prefix)]:
        bare = key.removeprefix("model.").replace(".", "")
        name = "model_ema.diffusion_model" + bare.removeprefix("diffusion_model")
        file[name] = file[key] + 1
    path = tmp_path / "model.safetensors"
    save_file(file, path)
    plain, averaged = open_single_file(path)[1], open_single_file(path, ema=True)[1]
    for key, value in parts["unet"].items():
        np.testing.assert_array_equal(plain["unet"].weights[key], value)
        np.testing.assert_array_equal(averaged["unet"].weights[key], value + 1)


def test_absent_averages_are_said(tmp_path):
    save_file(checkpoint("v1", "sd1")[0], tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no averaged weights"):
        open_single_file(tmp_path / "model.safetensors", ema=True)


def test_keys_that_belong_nowhere_are_named(tmp_path):
    file = checkpoint("v1", "sd1")[0]
    file["model.diffusion_model.input_blocks.1.0.adapter.weight"] = np.ones(1, np.float32)
    del file["model.diffusion_model.out.2.bias"]
    save_file(file, tmp_path / "model.safetensors")
    options = {"unet": {"attention_head_dim": 2, "norm_num_groups": 4}}
    with pytest.raises(ValueError, match=r"conv_out\.bias.*unexpected.*adapter\.weight"):
        load_single_file(tmp_path / "model.safetensors", parts=["unet"], overrides=options)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "first_stage_model.", "cond_stage"])
def test_files_without_a_part_are_no_checkpoints(tmp_path, prefix):
    file = {k: v for k, v in checkpoint("v1", "sd1")[0].items() if not k.startswith(prefix)}
    save_file(file, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no checkpoint of|no autoencoder"):
        open_single_file(tmp_path / "model.safetensors")


def test_unknown_parts_are_named(tmp_path):
    save_file(checkpoint("v1", "sd1")[0], tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unknown part 'safety_checker'; choose one of text_enc"):
        load_single_file(tmp_path / "model.safetensors", parts=["safety_checker"])
