"""Autoencoders and diffusers' with the same random weights, live; folders both ways."""

import jax
import numpy as np
import pytest

from diffjax.pretrained import load_model, save_model
from diffjax.pretrained.state_dict import to_state_dict
from tests.parity import ae_cases, cases, sd_cases

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers")
ae_record = pytest.importorskip("tests.parity.ae_record")
layout = pytest.importorskip("tests.parity.layout")


@pytest.mark.parametrize("name", ae_cases.AUTOENCODERS)
def test_outputs(name):
    config = ae_cases.AUTOENCODERS[name]
    ours, theirs = ae_cases.ours(config), ae_record.theirs(config)
    for key, value in theirs.items():
        assert cases.relative_error(ours[key], value) < 2e-5, key


def test_tiles():
    config, size = ae_cases.AUTOENCODERS["kl"], (28, 40)
    ours, theirs = ae_cases.ours_tiled(config, size), ae_record.theirs_tiled(config, size)
    for key, value in theirs.items():
        assert cases.relative_error(ours[key], value) < 2e-5, key


@pytest.mark.parametrize("name", ae_cases.AUTOENCODERS)
def test_folders_are_read_by_either_library(tmp_path, name):
    config = ae_cases.AUTOENCODERS[name]
    theirs = ae_record.sd_record.network(config)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    net, params = sd_cases.random_params(config)
    assert model.net == net
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    save_model(tmp_path / "ours", net, params)
    again = getattr(diffusers, config["_class_name"]).from_pretrained(tmp_path / "ours")
    for key, value in to_state_dict(params).items():
        np.testing.assert_array_equal(again.state_dict()[key].numpy(), value)


def test_patches_and_perceptual_distances():
    for ours, theirs in [
        (ae_cases.our_patches(), ae_record.patches()),
        (ae_cases.our_lpips(), ae_record.lpips()),
    ]:
        for key, value in theirs.items():
            assert cases.relative_error(ours[key], value) < 1e-4, key


def test_the_lpips_package(tmp_path):
    """Its VGG16 with random weights, read by us from a file made as the manual says."""
    torch, lpips = pytest.importorskip("torch"), pytest.importorskip("lpips")
    from safetensors.torch import save_file

    from diffjax.nets.perceptual import LPIPS
    from diffjax.pretrained.lpips import load_lpips

    torch.manual_seed(0)
    net = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.startswith("lin"):
                value.abs_()
    state = {k: v.contiguous() for k, v in net.state_dict().items() if not k.startswith("lins.")}
    save_file(state, tmp_path / "lpips.safetensors")
    x, y = ae_cases.pair()
    with torch.no_grad():
        expected = net(layout.nchw(x), layout.nchw(y)).ravel().numpy()
    params = load_lpips(tmp_path / "lpips.safetensors")
    assert cases.relative_error(LPIPS().apply({"params": params}, x, y), expected) < 1e-4
