"""Networks in single-file layout are the networks they were made of."""

import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.pretrained import load_single_file, open_single_file
from diffjax.pretrained.state_dict import to_state_dict
from tests.parity import ae_cases, sd_cases
from tests.pretrained import ldm

CONTEXT = {"v1": ("sd1", "sd1-inpainting"), "v2": ("sd2",), "xl": ("xl",), "refiner": ("refiner",)}
CASES = [(family, name) for family, names in CONTEXT.items() for name in names]
OPEN = sd_cases.TEXTS["openclip"]
PLAIN = {**OPEN, "architectures": ["CLIPTextModel"]}  # as SD 2 uses it, without projection


@functools.cache
def _made(kind):
    several = {**sd_cases.UNETS, **sd_cases.TEXTS, **ae_cases.AUTOENCODERS}
    config = {"open": OPEN, "plain": PLAIN, **several}[kind]
    return sd_cases.random_params(config)


def _state(kind):
    return to_state_dict(_made(kind)[1])


def checkpoint(family, unet, vae="kl"):
    """A single file's state dict, and the parts it is made of."""
    parts = {"unet": _state(unet), "vae": _state(vae)}
    file = ldm.under("model.diffusion_model.", ldm.unet(parts["unet"], 1))
    file |= ldm.under("first_stage_model.", ldm.autoencoder(parts["vae"], 2))
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
    overrides |= {"vae": {"norm_num_groups": 4}}
    overrides |= {f"text_encoder{i}": {"num_attention_heads": 2} for i in ("", "_2")}
    models = load_single_file(path, overrides=overrides)
    assert set(models) == set(parts)
    for part, model in models.items():
        jax.tree.map(np.testing.assert_array_equal, to_state_dict(model.params), parts[part])
    scale = models["vae"].config["scaling_factor"]
    assert models["vae"].net == _made("kl")[0].clone(scaling_factor=scale)
    assert models["unet"].net == _made(unet)[0].clone(
        depth=models["unet"].net.depth, heads=models["unet"].net.heads
    )


@pytest.mark.parametrize("kind", ["kl-attention", "vq"])
def test_other_autoencoders_of_latent_diffusion(tmp_path, kind):
    file, parts = checkpoint("v1", "sd1", kind)
    save_file(file, tmp_path / "model.safetensors")
    overrides = {"vae": {"norm_num_groups": 4}}
    model = load_single_file(tmp_path / "model.safetensors", parts=["vae"], overrides=overrides)
    assert model["vae"].net == _made(kind)[0]
    jax.tree.map(np.testing.assert_array_equal, to_state_dict(model["vae"].params), parts["vae"])


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


def test_text_encoders_without_their_prefix(tmp_path):
    file, parts = checkpoint("v1", "sd1")
    bare = {key.replace(".transformer.text_model.", ".transformer."): v for key, v in file.items()}
    assert set(bare) != set(file)
    save_file(bare, tmp_path / "model.safetensors")
    found = open_single_file(tmp_path / "model.safetensors")[1]["text_encoder"]
    assert set(found.weights) == set(parts["text_encoder"])
    assert found.config["num_hidden_layers"] == 3


@pytest.mark.parametrize("extra", [False, True])
def test_the_last_text_layer_of_sd2_may_be_left_out(tmp_path, extra):
    file, _ = checkpoint("v2", "sd2")
    state = to_state_dict(sd_cases.random_params({**PLAIN, "num_hidden_layers": 23})[1])
    text = ldm.under("cond_stage_model.model.", ldm.open_clip(state, extra=extra))
    file = {k: v for k, v in file.items() if not k.startswith("cond_stage_model.")} | text
    save_file(file, tmp_path / "model.safetensors")
    found = open_single_file(tmp_path / "model.safetensors")[1]["text_encoder"]
    assert found.config["num_hidden_layers"] == 23
    assert set(found.weights) == set(state)


@pytest.mark.parametrize(
    ("key", "kind"), [("edm_mean", "Playground 2.5"), ("edm_vpred.sigma_max", "CosXL")]
)
def test_kinds_that_are_not_supported_are_named(tmp_path, key, kind):
    save_file({key: np.ones(4, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"it has {key} \({kind}"):
        open_single_file(tmp_path / "model.safetensors")
