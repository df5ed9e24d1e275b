"""ControlNets of the Stable Diffusion family in small; needs no torch.

control_record.py has the other side. Weights are `cases.random_state`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from tests.parity import sd_cases

_WAY_UP = ("out_channels", "up_block_types")
_OWN = dict(_class_name="ControlNetModel", conditioning_embedding_out_channels=[4, 6, 8, 10])
NETS = {
    name: {k: v for k, v in sd_cases.UNETS[name].items() if k not in (*_WAY_UP, "sample_size")}
    | _OWN
    for name in ("sd1", "sd2", "xl")
}
NETS["pooled"] = {**NETS["sd1"], "global_pool_conditions": True, "conditioning_channels": 1}
NETS["union"] = NETS["xl"] | dict(
    _class_name="ControlNetUnionModel",
    num_control_type=5,
    num_trans_channel=8,
    num_proj_channel=8,
    num_trans_head=2,
    num_trans_layer=2,
)
KINDS, SCALES = (3, 1), (0.7, 1.3)  # of a union of two hints


def hint(config: sd_cases.Config) -> np.ndarray:
    """(2, 128, 64, C) in [0, 1]."""
    shape = (2, 128, 64, config.get("conditioning_channels", 3))
    return np.random.RandomState(3).uniform(size=shape).astype(np.float32)


def conditions(config: sd_cases.Config) -> dict[str, Any]:
    """What the network is given beside z and t."""
    given = sd_cases.unet_inputs(config)
    cond: dict[str, Any] = {"context": given["context"], "hint": hint(config)}
    if "num_control_type" in config:
        # The attention of diffusers is over the images of a batch, so that these are the same.
        images = np.stack(np.broadcast_arrays(cond["hint"][:1], cond["hint"][1:]), 1)
        images = np.tile(images, (2, 1, 1, 1, 1))
        both = {"kinds": np.tile(KINDS, (2, 1)), "scales": np.tile(np.float32(SCALES), (2, 1))}
        cond["hint"] = {"images": images, **both}
    if "time_ids" in given:
        cond["added"] = {key: given[key] for key in ("text_embeds", "time_ids")}
    return cond


def ours(config: sd_cases.Config) -> list[np.ndarray]:
    """Residuals of the skips and of the middle, NHWC."""
    net, params = sd_cases.random_params(config)
    given = sd_cases.unet_inputs(config)
    out = jax.jit(net.apply)({"params": params}, given["z"], given["t"], conditions(config))
    return [np.asarray(value) for value in (*out[0], out[1])]


def digest(residuals: list[np.ndarray]) -> np.ndarray:
    """Four numbers of each residual, enough to tell it from any other: for a small golden file."""
    rng = np.random.RandomState(4)
    return np.stack([
        np.tensordot(value, rng.standard_normal((4, *value.shape)), (range(4), range(1, 5)))
        / value.size**0.5
        for value in residuals
    ])  # fmt: skip
