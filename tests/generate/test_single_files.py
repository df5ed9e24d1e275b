"""A single file becomes the parts that a folder of the same model has."""

import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import diffjax
from diffjax.pretrained import load_scheduler, open_safetensors, pipelines
from diffjax.pretrained.single_file import load_single_file
from diffjax.pretrained.state_dict import to_state_dict
from tests.parity import control_cases, sd_cases
from tests.parity import generate_cases as g
from tests.pretrained import ldm, test_control_file, words

CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sd1-inpainting": "StableDiffusionInpaintPipeline",
    "sd2": "StableDiffusionPipeline",
    "xl": "StableDiffusionXLPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}


def _checkpoint(family, parts):
    """The state dict of a single file."""
    file = ldm.under("model.diffusion_model.", ldm.unet(to_state_dict(parts.unet.params), 1))
    vae = ldm.autoencoder(to_state_dict(parts.vae.params), 2)
    file |= ldm.under("first_stage_model.", vae)
    for name, text in parts.texts.items():
        state, place = to_state_dict(text.model.params), "conditioner.embedders"
        if family in ("sd1", "sd1-inpainting"):
            file |= ldm.under("cond_stage_model.transformer.", state)
        elif family == "sd2":
            file |= ldm.under("cond_stage_model.model.", ldm.open_clip(state, extra=True))
        elif name == "text_encoder":
            file |= ldm.under(f"{place}.0.transformer.", state)
        else:
            last = f"{place}.{len(parts.texts) - 1}.model."
            file |= ldm.under(last, ldm.open_clip(state, extra=False))
    return file


SLOW = ("sd1", "sd1-inpainting", "refiner")
FAMILIES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CLASSES
]


@pytest.fixture(params=FAMILIES)
def family(request, monkeypatch):
    """The constants of a family are those of large models; here, of small ones."""
    given = g.FAMILIES[request.param]
    keys = ("attention_head_dim", "norm_num_groups", "addition_time_embed_dim")
    overrides = {"unet": {key: given["unet"][key] for key in keys if key in given["unet"]}}
    overrides |= {"vae": {"norm_num_groups": 2}}
    overrides |= {name: {"num_attention_heads": 2} for name in ("text_encoder", "text_encoder_2")}
    patched = functools.partial(load_single_file, overrides=overrides)
    monkeypatch.setattr(pipelines, "load_single_file", patched)
    return request.param


def test_parts_are_those_of_a_folder(family, tmp_path):
    wanted = g.pipeline(family).parts
    file = _checkpoint(family, wanted)
    if family == "sd2":  # training code leaves a ControlNet beside its base; it is not loaded
        control = sd_cases.random_params(control_cases.NETS[family])[1]
        file |= ldm.under("control_model.", test_control_file.published(to_state_dict(control)))
    save_file(file, tmp_path / "model.safetensors")
    tokenizer = words.write(tmp_path / "tokenizer", length=g.LENGTH)
    with pytest.raises(ValueError, match=r"model\.safetensors holds no tokenizer"):
        diffjax.load(tmp_path / "model.safetensors")
    pipe = diffjax.load(tmp_path / "model.safetensors", tokenizer=tokenizer)
    found = pipe.parts
    for ours, theirs in ((found.unet, wanted.unet), (found.vae, wanted.vae)):
        jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert list(found.texts) == list(wanted.texts)
    for name, text in found.texts.items():
        other = wanted.texts[name]
        jax.tree.map(np.testing.assert_array_equal, text.model.params, other.model.params)
        assert text.tokenizer.plain("a red cat").ids.tolist() == (
            other.tokenizer.plain("a red cat").ids.tolist()
        )
    assert found.manifest["_class_name"] == CLASSES[family]
    predicts = "v_prediction" if family == "sd2" else "epsilon"
    assert found.scheduler["prediction_type"] == predicts
    side = {"sd1": 64, "sd1-inpainting": 64, "sd2": 96}.get(family, 128)
    assert pipe.native_size() == (2 * side, 2 * side)
    if family == "sd2":
        path = tmp_path / "model.safetensors"
        pipe = diffjax.load(path, tokenizer=tokenizer, prediction="epsilon")
        assert pipe.native_size() == (2 * 64, 2 * 64)


@pytest.mark.parametrize(
    ("family", "channels", "keys", "predicts"),
    [
        ("v1", 4, (), "epsilon"),
        ("v1", 4, ("v_pred",), "v_prediction"),
        ("v2", 4, (), "v_prediction"),
        ("v2", 9, (), "epsilon"),
        ("v2", 4, ("global_step",), "epsilon"),
        ("xl", 4, ("ztsnr",), "epsilon"),
        ("xl", 4, ("v_pred", "ztsnr"), "v_prediction"),
        ("v1", 4, ("v_pred", "ztsnr"), "v_prediction"),
    ],
)
def test_keys_that_say_what_is_predicted(tmp_path, family, channels, keys, predicts):
    marks = {key: np.array([875000 if key == "global_step" else 0]) for key in keys}
    save_file(marks, tmp_path / "model.safetensors")
    weights = open_safetensors(tmp_path / "model.safetensors")
    config = pipelines._derive_scheduler(weights, family, channels)
    assert config["prediction_type"] == predicts
    scheduler = load_scheduler(config)
    first = scheduler.rows(scheduler.grid(4)).level
    nothing_left = keys == ("v_pred", "ztsnr")
    assert (first.alpha[0] < 1e-3) == (first.t[0] == 999) == nothing_left


def test_what_is_predicted_can_be_said(tmp_path):
    g.pipeline("sd2").save(tmp_path)
    loaded = diffjax.load(tmp_path, prediction="epsilon")
    assert loaded.parts.scheduler["prediction_type"] == "epsilon"
