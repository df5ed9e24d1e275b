"""DINOv2 to and from the config.json of transformers, with and without registers."""

from __future__ import annotations

import jax.numpy as jnp

from diffjax.nets.dinov2 import DINOv2
from diffjax.pretrained.autoencoder_configs import NetworkKind
from diffjax.pretrained.text_configs import IGNORED
from diffjax.types import Config, JsonObject, Tree

PLAIN, REGISTERS = "Dinov2Model", "Dinov2WithRegistersModel"
_MODEL_TYPES = {PLAIN: "dinov2", REGISTERS: "dinov2_with_registers"}
# Keys of the configs, and our names.
_KEYS = {
    "image_size": "size",
    "patch_size": "patch",
    "hidden_size": "features",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "mlp_ratio": "ratio",
    "layer_norm_eps": "eps",
    "use_swiglu_ffn": "swiglu",
}
# What transformers assumes of a config that does not say it.
_DEFAULTS: Config = dict(
    image_size=224,
    patch_size=14,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    mlp_ratio=4,
    layer_norm_eps=1e-6,
    use_swiglu_ffn=False,
)
_REGISTERS_DEFAULTS: Config = {**_DEFAULTS, "patch_size": 16, "num_register_tokens": 4}
_FIXED: dict[str, tuple[object, ...]] = dict(
    hidden_act=("gelu",),
    num_channels=(3,),
    qkv_bias=(True,),
    use_mask_token=(True,),
)
# What published configs with registers say of their positions.
_SMOOTH: dict[str, tuple[object, ...]] = dict(
    interpolate_antialias=(True,), interpolate_offset=(0, 0.0)
)
# Training, and which layers a backbone of a detector gives.
_IGNORED = (
    *("attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate", "layerscale_value"),
    *("apply_layernorm", "reshape_hidden_states", "out_features", "out_indices", "stage_names"),
    *IGNORED,
)


def _build(config: Config) -> DINOv2:
    """Build the network of a complete config; only that with registers smooths its positions."""
    registers = config.get("num_register_tokens")
    options = {ours: config[key] for key, ours in _KEYS.items()}
    return DINOv2(registers=registers or 0, smooth=registers is not None, **options)


def _make_inputs(net: DINOv2, config: Config) -> tuple[Tree, ...]:
    """Return the one patch (1, patch, patch, 3) that the network is initialised with."""
    return (jnp.zeros((1, net.patch, net.patch, 3)),)


def _describe(net: DINOv2, in_channels: int) -> JsonObject:
    """Return the config.json of a network."""
    name = REGISTERS if net.registers else PLAIN
    registers = {"num_register_tokens": net.registers} if net.registers else {}
    options = {key: getattr(net, ours) for key, ours in _KEYS.items()}
    return dict(architectures=[name], model_type=_MODEL_TYPES[name], **options, **registers)


FEATURES: dict[str, NetworkKind] = {
    name: NetworkKind(
        *("transformers", _build, _describe, _make_inputs, defaults),
        {**_FIXED, **(_SMOOTH if name == REGISTERS else {}), "model_type": (_MODEL_TYPES[name],)},
        _IGNORED,
    )
    for name, defaults in ((PLAIN, _DEFAULTS), (REGISTERS, _REGISTERS_DEFAULTS))
}
