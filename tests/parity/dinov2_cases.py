"""DINOv2 in small, described to both libraries; needs no torch. Weights are `cases.random_state`.

dinov2_record.py has the other side.
"""

from __future__ import annotations

import jax
import numpy as np

from tests.parity import sd_cases

_SMALL: sd_cases.Config = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 4,
    "layer_norm_eps": 0.01,  # so large that a norm which ignored it would show
    "layerscale_value": 0.5,
}
CONFIGS: dict[str, sd_cases.Config] = {
    "plain": {**_SMALL, "architectures": ["Dinov2Model"], "model_type": "dinov2"},
    "registers": {
        **_SMALL,
        "architectures": ["Dinov2WithRegistersModel"],
        "model_type": "dinov2_with_registers",
        "num_register_tokens": 3,
        "use_swiglu_ffn": True,
        "interpolate_antialias": True,  # as published configs say
        "interpolate_offset": 0.0,
    },
}
# (height, width): that of the training, and sizes whose positions are interpolated.
SIZES = ((28, 28), (16, 16), (40, 20))


def images(size: tuple[int, int]) -> np.ndarray:
    """Images (2, H, W, 3)."""
    return np.random.RandomState(2).standard_normal((2, *size, 3)).astype(np.float32)


def ours(name: str, size: tuple[int, int]) -> np.ndarray:
    """Features (2, N, 16) of our network."""
    net, params = sd_cases.random_params(CONFIGS[name])
    return np.asarray(jax.jit(net.apply)({"params": params}, images(size)))
