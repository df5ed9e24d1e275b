"""A diffusion transformer in small, described to both libraries; needs no torch.

dit_record.py has the other side. Weights are `cases.random_state`.
"""

from __future__ import annotations

import jax
import numpy as np

from tests.parity import sd_cases

CONFIG: sd_cases.Config = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 3,
    "in_channels": 3,
    "out_channels": 6,
    "patch_size": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 10,
    "norm_eps": 0.05,  # so large that a norm which ignored it would show
}


def inputs() -> dict[str, np.ndarray]:
    """z (3, 8, 8, 3), timesteps and labels (3,), the last of which is the null class."""
    z = np.random.RandomState(1).standard_normal((3, 8, 8, 3)).astype(np.float32)
    return {"z": z, "t": np.array([3, 702, 998]), "label": np.array([0, 7, 10])}


def ours() -> np.ndarray:
    """Output (3, 8, 8, 6) of our network."""
    net, params = sd_cases.random_params(CONFIG)
    given = inputs()
    cond = {"label": given["label"]}
    return np.asarray(jax.jit(net.apply)({"params": params}, given["z"], given["t"], cond))
