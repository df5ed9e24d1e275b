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
