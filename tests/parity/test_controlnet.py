"""Our ControlNet and diffusers' with the same random weights, and files that both read."""

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax.pretrained import load_model, save_model, to_state_dict  # noqa: E402
from tests.parity import cases, control_cases, control_record, sd_cases, sd_record  # noqa: E402


@pytest.mark.parametrize("name", control_cases.NETS)
def test_residuals_agree(name):
    config = control_cases.NETS[name]
    ours, theirs = control_cases.ours(config), control_record.theirs(config)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert cases.relative_error(a, b) < 1e-5


@pytest.mark.parametrize("name", control_cases.NETS)
def test_diffusers_loads_what_we_save(name, tmp_path):
    config = control_cases.NETS[name]
    net, params = sd_cases.random_params(config)
    save_model(tmp_path, net, params)
    kind = getattr(diffusers, config["_class_name"])
    theirs = kind.from_pretrained(tmp_path).state_dict()
    state = to_state_dict(params)
    assert set(state) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(value.numpy(), state[key], err_msg=key)


@pytest.mark.parametrize("name", control_cases.NETS)
def test_we_load_what_diffusers_saves(name, tmp_path):
    config = control_cases.NETS[name]
    sd_record.network(config).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    net, params = sd_cases.random_params(config)
    assert model.net == net
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
