"""The case of dit_cases.py as diffusers computes it; renews tests/golden/dit.npz.

python -m tests.parity.dit_record
"""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import numpy as np
import torch

from diffjax.pretrained.state_dict import to_state_dict
from tests.parity import dit_cases, sd_cases
from tests.parity.layout import nchw, nhwc

GOLDEN = Path(__file__).parents[1] / "golden" / "dit.npz"


def network() -> diffusers.DiTTransformer2DModel:
    """diffusers' transformer with our random weights; every block has a copy of the embedding."""
    net = diffusers.DiTTransformer2DModel.from_config(dit_cases.CONFIG).eval()
    ours = to_state_dict(sd_cases.random_params(dit_cases.CONFIG)[1])
    embedding = re.compile(r"transformer_blocks\.\d+\.norm1\.emb\.")
    state = {key: torch.from_numpy(ours[embedding.sub("", key)]) for key in net.state_dict()}
    net.load_state_dict(state)
    return net


@torch.no_grad()
def theirs() -> np.ndarray:
    """Output (3, 8, 8, 6) of diffusers' network."""
    given = dit_cases.inputs()
    t, label = torch.from_numpy(given["t"]), torch.from_numpy(given["label"])
    return nhwc(network()(nchw(given["z"]), t, label).sample)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, output=theirs())
