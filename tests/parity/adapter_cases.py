"""T2I-Adapters in small, and UNets that take their features; needs no torch.

adapter_record.py has the other side. Weights are `cases.random_state`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from tests.parity import sd_cases

KINDS = {
    "full": dict(channels=[8, 16, 24, 24], adapter_type="full_adapter"),
    "full_xl": dict(channels=[8, 16, 24, 24], adapter_type="full_adapter_xl"),
    "light": dict(channels=[8, 16, 24], adapter_type="light_adapter", in_channels=1),
}
UNETS = ("sd1", "xl")


def config_of(kind: str) -> sd_cases.Config:
    """The config.json of an adapter."""
    return {"_class_name": "T2IAdapter", "num_res_blocks": 2, "downscale_factor": 4, **KINDS[kind]}


def hint_of(config: sd_cases.Config) -> np.ndarray:
    """(2, 44, 64, C) in [0, 1]: unshuffled to 11, an odd side to halve."""
    shape = (2, 44, 64, config.get("in_channels", 3))
    return np.random.RandomState(2).uniform(size=shape).astype(np.float32)


def features_for(name: str) -> list[np.ndarray]:
    """Features where a UNet takes them."""
    config = sd_cases.UNETS[name]
    height, width = sd_cases.unet_inputs(config)["z"].shape[1:3]
    widths = config["block_out_channels"]
    if name == "xl":  # after the first level, the second, the third, and the middle
        sides, channels = (2, 2, 4, 4), [*widths, widths[-1]]
    else:
        sides, channels = (1, 2), widths
    rng = np.random.RandomState(5)
    return [
        rng.standard_normal((2, height // s, width // s, c)).astype(np.float32)
        for s, c in zip(sides, channels, strict=True)
    ]


def ours(kind: str) -> list[np.ndarray]:
    """Features of an adapter, NHWC."""
    config = config_of(kind)
    net, params = sd_cases.random_params(config)
    out = jax.jit(net.apply)({"params": params}, hint_of(config))
    return [np.asarray(value) for value in out]


def our_unet(name: str, *, adapted: bool = True) -> np.ndarray:
    """The output of a UNet, with features or without."""
    given = sd_cases.unet_inputs(sd_cases.UNETS[name])
    cond: dict[str, Any] = {"context": given["context"]}
    if "time_ids" in given:
        cond["added"] = {key: given[key] for key in ("text_embeds", "time_ids")}
    if adapted:
        cond["adapter"] = features_for(name)
    net, params = sd_cases.random_params(sd_cases.UNETS[name])
    return np.asarray(jax.jit(net.apply)({"params": params}, given["z"], given["t"], cond))
