"""The cases of adapter_cases.py as diffusers computes them; renews tests/golden/adapter.npz.

python -m tests.parity.adapter_record
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.parity import adapter_cases, control_cases, sd_cases, sd_record
from tests.parity.layout import nchw, nhwc

GOLDEN = Path(__file__).parents[1] / "golden" / "adapter.npz"


@torch.no_grad()
def theirs(kind: str) -> list[np.ndarray]:
    """Features of an adapter, NHWC."""
    config = adapter_cases.config_of(kind)
    return [nhwc(value) for value in sd_record.network(config)(nchw(adapter_cases.hint_of(config)))]


@torch.no_grad()
def their_unet(name: str) -> np.ndarray:
    """The output of a UNet that takes features."""
    config = sd_cases.UNETS[name]
    given, added = sd_cases.unet_inputs(config), None
    if "time_ids" in given:
        added = {key: torch.from_numpy(given[key]) for key in ("text_embeds", "time_ids")}
    out = sd_record.network(config)(
        nchw(given["z"]),
        torch.from_numpy(given["t"]),
        torch.from_numpy(given["context"]),
        added_cond_kwargs=added,
        down_intrablock_additional_residuals=[nchw(f) for f in adapter_cases.features_for(name)],
    )
    return nhwc(out.sample)


if __name__ == "__main__":
    features = {kind: control_cases.digest(theirs(kind)) for kind in adapter_cases.KINDS}
    outputs = {f"unet-{name}": their_unet(name) for name in adapter_cases.UNETS}
    np.savez_compressed(GOLDEN, **features, **outputs)
