"""The cases of dinov2_cases.py as transformers computes them; renews tests/golden/dinov2.npz.

python -m tests.parity.dinov2_record
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from diffjax.pretrained import save_model
from experiments.benchmarks import torch_operators  # noqa: F401
from tests.parity import dinov2_cases, sd_cases
from tests.parity.layout import nchw

GOLDEN = Path(__file__).parents[1] / "golden" / "dinov2.npz"


def network(name: str) -> torch.nn.Module:
    """transformers' network, read from a folder that we wrote."""
    config = dinov2_cases.CONFIGS[name]
    net, params = sd_cases.random_params(config)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, net, params, config=config)
        assert json.loads((Path(folder) / "config.json").read_text()) == config
        made = getattr(transformers, config["architectures"][0])
        found, report = made.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return found.eval()


@torch.no_grad()
def theirs(name: str, size: tuple[int, int]) -> np.ndarray:
    """Features (2, N, 16) of the patches by transformers' network."""
    before = 1 + dinov2_cases.CONFIGS[name].get("num_register_tokens", 0)
    found = network(name)(nchw(dinov2_cases.images(size))).last_hidden_state
    return found[:, before:].numpy()


if __name__ == "__main__":
    np.savez_compressed(
        GOLDEN,
        **{
            f"{name}-{size[0]}x{size[1]}": theirs(name, size)
            for name in dinov2_cases.CONFIGS
            for size in dinov2_cases.SIZES
        },
    )
