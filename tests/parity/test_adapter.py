"""T2I-Adapters and a UNet that takes their features beside diffusers', and files both read."""

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax.pretrained import load_model, save_model, to_state_dict  # noqa: E402
from tests.parity import adapter_cases, adapter_record, cases, sd_cases, sd_record  # noqa: E402


@pytest.mark.parametrize("kind", adapter_cases.KINDS)
def test_features_agree(kind):
    ours, theirs = adapter_cases.ours(kind), adapter_record.theirs(kind)
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert cases.relative_error(a, b) < 1e-5


@pytest.mark.parametrize("name", adapter_cases.UNETS)
def test_a_unet_takes_them_where_diffusers_does(name):
    ours = adapter_cases.our_unet(name)
    assert cases.relative_error(ours, adapter_record.their_unet(name)) < 1e-5
    assert cases.relative_error(ours, adapter_cases.our_unet(name, adapted=False)) > 1e-2


@pytest.mark.parametrize("kind", adapter_cases.KINDS)
def test_each_loads_what_the_other_saves(kind, tmp_path):
    config = adapter_cases.config_of(kind)
    net, params = sd_cases.random_params(config)
    save_model(tmp_path / "ours", net, params)
    theirs = diffusers.T2IAdapter.from_pretrained(tmp_path / "ours").state_dict()
    state = to_state_dict(params)
    assert set(state) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(value.numpy(), state[key], err_msg=key)
    sd_record.network(config).save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    assert model.net == net
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
