"""T2I-Adapters and a UNet that takes their features beside diffusers', and files both read."""

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax.pretrained import load_model, save_model, to_state_dict  # noqa: E402
from tests.parity import cases, sd_cases, sd_record  # noqa: E402
from tests.parity.layout import nchw, nhwc  # noqa: E402

KINDS = {
    "full": dict(channels=[8, 16, 24, 24], adapter_type="full_adapter"),
    "full_xl": dict(channels=[8, 16, 24, 24], adapter_type="full_adapter_xl"),
    "light": dict(channels=[8, 16, 24], adapter_type="light_adapter", in_channels=1),
}


def config_of(kind):
    return {"_class_name": "T2IAdapter", "num_res_blocks": 2, "downscale_factor": 4, **KINDS[kind]}


def hint_of(config, height=44, width=64):  # 11 and 16 after unshuffling: an odd side to halve
    shape = (2, height, width, config.get("in_channels", 3))
    return np.random.RandomState(2).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_features_agree(kind):
    config = config_of(kind)
    net, params = sd_cases.random_params(config)
    hint = hint_of(config)
    ours = jax.jit(net.apply)({"params": params}, hint)
    with torch.no_grad():
        theirs = sd_record.network(config)(nchw(hint))
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert cases.relative_error(np.asarray(a), nhwc(b)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_each_loads_what_the_other_saves(kind, tmp_path):
    config = config_of(kind)
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


@pytest.mark.parametrize("name", ["sd1", "xl"])
def test_a_unet_takes_them_where_diffusers_does(name):
    config = sd_cases.UNETS[name]
    given = sd_cases.unet_inputs(config)
    height, width = given["z"].shape[1:3]
    widths = config["block_out_channels"]
    if name == "xl":  # after the first level, the second, the third, and the middle
        sides, channels = (2, 2, 4, 4), [*widths, widths[-1]]
    else:
        sides, channels = (1, 2), widths
    rng = np.random.RandomState(5)
    features = [
        rng.standard_normal((2, height // s, width // s, c)).astype(np.float32)
        for s, c in zip(sides, channels, strict=True)
    ]
    net, params = sd_cases.random_params(config)
    cond, added = {"context": given["context"]}, None
    if "time_ids" in given:
        cond["added"] = {key: given[key] for key in ("text_embeds", "time_ids")}
        added = {key: torch.from_numpy(value) for key, value in cond["added"].items()}
    apply = jax.jit(net.apply)
    ours = apply({"params": params}, given["z"], given["t"], {**cond, "adapter": features})
    with torch.no_grad():
        theirs = sd_record.network(config)(
            nchw(given["z"]),
            torch.from_numpy(given["t"]),
            torch.from_numpy(given["context"]),
            added_cond_kwargs=added,
            down_intrablock_additional_residuals=[nchw(f) for f in features],
        ).sample
    assert cases.relative_error(np.asarray(ours), nhwc(theirs)) < 1e-5
    plain = apply({"params": params}, given["z"], given["t"], cond)
    assert cases.relative_error(np.asarray(ours), np.asarray(plain)) > 1e-2
