"""An autoencoder trained in one workdir is what a diffusion model of another runs on."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import autoencoder, consistency, ldm
from configs.base import smoke
from diffjax import runs
from diffjax.nets.autoencoder import AutoencoderKL
from diffjax.nets.perceptual import LPIPS
from diffjax.pretrained import save_model
from diffjax.pretrained.state_dict import to_state_dict
from diffjax.runs.fixed_parts import describe_autoencoder
from diffjax.types import ConfigError
from tests.parity import ae_cases


@pytest.fixture(scope="module")
def cfg():
    return smoke(ldm.fashion_mnist())


@pytest.fixture(scope="module")
def params(cfg):
    like = runs.make_abstract_fixed_parts(cfg)["autoencoder"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), like)


def pointing(cfg, where, **section):
    cfg = cfg.copy_and_resolve_references()
    cfg.autoencoder.update(weights=str(where), **section)
    return cfg


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_from_a_file_and_from_a_folder_of_diffusers(cfg, params, tmp_path):
    judge = {"discriminator.main.0.bias": np.zeros(4, np.float32)}
    state = {**to_state_dict(params), **judge, "extra['statistics']": np.zeros(1, np.float32)}
    save_file(state, tmp_path / "ae.safetensors")
    given = runs.load_fixed_parts(pointing(cfg, tmp_path / "ae.safetensors"), tmp_path, fresh=True)
    same(given["autoencoder"], params)
    net = describe_autoencoder(cfg)
    assert isinstance(net, AutoencoderKL)
    save_model(tmp_path / "vae", net, params)
    given = runs.load_fixed_parts(pointing(cfg, tmp_path / "vae"), tmp_path, fresh=True)
    same(given["autoencoder"], params)


def test_another_autoencoder_is_refused_with_both_shapes(cfg, params, tmp_path):
    save_file(to_state_dict(params), tmp_path / "ae.safetensors")
    other = pointing(cfg, tmp_path / "ae.safetensors", latent_channels=5)
    message = (
        r"is not the one of config\.autoencoder: .* has shape \(\d.*but the network needs \(\d"
    )
    with pytest.raises(ConfigError, match=message):
        runs.load_fixed_parts(other, tmp_path, fresh=True)


def test_weights_are_asked_for(cfg, tmp_path):
    with pytest.raises(ConfigError, match=r"autoencoder\.weights is needed"):
        runs.load_fixed_parts(pointing(cfg, ""), tmp_path, fresh=True)
    (tmp_path / "config.json").write_text(json.dumps(cfg.to_dict()))
    with pytest.raises(ConfigError, match="holds a run of task 'diffusion'"):
        runs.load_fixed_parts(pointing(cfg, tmp_path), tmp_path, fresh=True)
    with pytest.raises(ConfigError, match=r"there is no .*nowhere"):
        runs.load_fixed_parts(pointing(cfg, tmp_path / "nowhere"), tmp_path, fresh=True)


def test_missing_perceptual_weights_say_what_to_do(tmp_path):
    paper = autoencoder.kl_f8()
    with pytest.raises(ConfigError, match=r"latent_diffusion\.md.*perceptual=classifier"):
        runs.load_fixed_parts(paper, tmp_path)
    small = autoencoder.fashion_mnist()
    assert set(runs.load_fixed_parts(small, tmp_path)) == {"classifier"}
    small.loss.perceptual = "none"
    assert runs.load_fixed_parts(small, tmp_path) is None


def test_lpips_of_a_consistency_model_is_read_for_its_training_alone(tmp_path):
    config = smoke(consistency.cifar10_ct())
    assert config.loss.metric == "l2" and runs.make_abstract_fixed_parts(config) is None
    config.loss.metric = "lpips"
    with pytest.raises(ConfigError, match=r"loss\.metric=lpips needs config\.loss\.perceptual_w"):
        runs.load_fixed_parts(config, tmp_path, fresh=True)
    widths = LPIPS().widths
    save_file(ae_cases.lpips_state(widths), tmp_path / "lpips.safetensors")
    config.loss.perceptual_weights = str(tmp_path / "lpips.safetensors")
    given = runs.load_fixed_parts(config, tmp_path, fresh=True)
    same(given["lpips"], ae_cases.lpips_params(widths))
    shapes = runs.make_abstract_fixed_parts(config)
    assert jax.tree.map(np.shape, given) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert runs.leave_out_base(config, given) is None
    config.loss.metric = "l2"
    with pytest.raises(ValueError, match=r"read by loss\.name=consistency with loss\.metric=lpips"):
        runs.build_task(config)
