"""The cases of control_cases.py as diffusers computes them; renews tests/golden/controlnet.npz.

python -m tests.parity.control_record
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.parity import control_cases, sd_cases, sd_record
from tests.parity.layout import nchw, nhwc

GOLDEN = Path(__file__).parents[1] / "golden" / "controlnet.npz"


@torch.no_grad()
def theirs(config: sd_cases.Config) -> list[np.ndarray]:
    """Residuals of the skips and of the middle, NHWC."""
    given, cond = sd_cases.unet_inputs(config), control_cases.conditions(config)
    added = {key: torch.from_numpy(value) for key, value in cond.get("added", {}).items()}
    hint, more = cond["hint"], {}
    if isinstance(hint, dict):
        there = torch.zeros(2, config["num_control_type"])
        there[:, control_cases.KINDS] = 1
        kinds, scales = list(control_cases.KINDS), list(control_cases.SCALES)
        more = dict(control_type=there, control_type_idx=kinds, conditioning_scale=scales)
    out = sd_record.network(config)(
        nchw(given["z"]),
        torch.from_numpy(given["t"]),
        torch.from_numpy(cond["context"]),
        [nchw(one) for one in hint["images"].swapaxes(0, 1)] if more else nchw(hint),
        added_cond_kwargs=added or None,
        **more,
    )
    values = (*out.down_block_res_samples, out.mid_block_res_sample)
    return [nhwc(value) for value in values]


if __name__ == "__main__":
    found = {name: control_cases.digest(theirs(c)) for name, c in control_cases.NETS.items()}
    np.savez_compressed(GOLDEN, **found)
