"""An autoencoder of its own in place of the model's, from what people have."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import diffjax
from diffjax.pretrained import Component, save_model
from diffjax.pretrained.state_dict import to_state_dict
from diffjax.pretrained.vaes import load_vae, open_vae
from tests.parity import ae_cases, sd_cases
from tests.parity import generate_cases as g
from tests.pretrained import ldm

CONFIG = {
    **ae_cases.AUTOENCODERS["kl"],
    **dict(block_out_channels=[32, 32], norm_num_groups=32, layers_per_block=1),
}
CONFIG.pop("scaling_factor", None)
LIKE, UNET = {"scaling_factor": 0.13025}, {"out_channels": 4}


@pytest.fixture(scope="module")
def vae():
    return Component(*sd_cases.random_params(CONFIG), CONFIG)


@pytest.fixture(scope="module")
def published(vae):
    """The weights in the layout of the published code."""
    return ldm.autoencoder(to_state_dict(vae.params), 2)


def _folder(path, model, **options):
    save_model(path, model.net, model.params, config={**model.config, **options})
    return path


def _near(model, vae, scale=0.13025):
    jax.tree.map(np.testing.assert_array_equal, model.params, vae.params)
    assert model.net.scaling_factor == model.config["scaling_factor"] == scale


@pytest.mark.parametrize("kind", ["folder", "whole", "file", "bare", "prefixed", "checkpoint"])
def test_every_form_of_an_autoencoder(tmp_path, vae, published, kind):
    path = tmp_path / "vae.safetensors"
    if kind == "folder":
        path = _folder(tmp_path, vae)
    elif kind == "whole":
        path = tmp_path
        _folder(tmp_path / "vae", vae)
    elif kind == "file":
        path = _folder(tmp_path, vae) / "diffusion_pytorch_model.safetensors"
    elif kind == "bare":
        noise = {"loss.logvar": np.ones(1, np.float32), "model_ema.decay": np.ones(1, np.float32)}
        save_file({**published, **noise}, path)
    else:
        more = {"model.diffusion_model.out.2.bias": np.ones(4, np.float32)}
        prefixed = ldm.under("first_stage_model.", published)
        save_file(prefixed | (more if kind == "checkpoint" else {}), path)
    _near(load_vae(path, LIKE, UNET), vae)


def test_the_scale_is_the_models(tmp_path, vae):
    path = _folder(tmp_path, vae, scaling_factor=0.18215)
    with pytest.raises(
        ValueError, match=r"scaling_factor is 0\.18215, but that of the model is 0\.13"
    ):
        load_vae(path, LIKE, UNET)
    _near(load_vae(path, {"scaling_factor": 0.18215}, UNET), vae, 0.18215)
    _near(load_vae(path, {}, UNET), vae, 0.18215)  # diffusers' default, as of early configs
    assert open_vae(path).config["scaling_factor"] == 0.18215


def test_float16_is_for_autoencoders_that_can(tmp_path, vae):
    for upcast, dtype in ((True, jnp.float32), (False, jnp.float16)):
        path = _folder(tmp_path, vae, force_upcast=upcast)
        found = load_vae(path, LIKE, UNET, dtype=jnp.float16)
        assert jax.tree.leaves(found.params)[0].dtype == dtype


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"unet.a.to_q.lora_A.weight": (1, 1)}, "this is an adapter, which with_lora takes"),
        ({"double_blocks.0.img_attn.qkv.weight": (1, 1)}, "this is a model of Flux"),
        ({"foo": (1,)}, "this is no autoencoder"),
        ({"encoder.down_blocks.0.a.weight": (1,)}, r"needs its config\.json beside it"),
        ({"encoder.conv_in.weight": (8, 3, 3, 3)}, "no autoencoder"),
    ],
)
def test_what_is_no_autoencoder_is_named(tmp_path, tensors, message):
    path = tmp_path / "a.safetensors"
    save_file({k: np.ones(shape, np.float32) for k, shape in tensors.items()}, path)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"a\.safetensors: .*{message}"):
        load_vae(path, LIKE, UNET)


def test_other_channels_are_refused(tmp_path, vae):
    with pytest.raises(ValueError, match="latents have 4 channels, but the UNet was trained on 16"):
        load_vae(_folder(tmp_path, vae), LIKE, {"out_channels": 16})


def test_another_class_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC"}))
    with pytest.raises(ValueError, match=r"of AutoencoderDC; an AutoencoderKL or Auto"):
        load_vae(tmp_path, LIKE, UNET)


def test_models_are_loaded_with_another_autoencoder(tmp_path, vae):
    pipe = g.pipeline("sd1")
    pipe.save(tmp_path / "model")
    own = pipe.parts.vae.config["scaling_factor"]
    path = _folder(tmp_path / "vae", vae)
    found = diffjax.load(tmp_path / "model", vae=path)
    _near(found.parts.vae, vae, own)
    jax.tree.map(np.testing.assert_array_equal, found.parts.unet.params, pipe.parts.unet.params)
    found.save(tmp_path / "again")
    _near(diffjax.load(tmp_path / "again").parts.vae, vae, own)
    shutil.rmtree(tmp_path / "model" / "vae")
    index = tmp_path / "model" / "model_index.json"
    manifest = json.loads(index.read_text())
    index.write_text(json.dumps({k: v for k, v in manifest.items() if k != "vae"}))
    with pytest.raises(ValueError, match="it lacks vae"):
        diffjax.load(tmp_path / "model")
    _near(diffjax.load(tmp_path / "model", vae=path).parts.vae, vae, 0.18215)
