"""Diffusion transformers to and from the config.json of diffusers, and their weights.

diffusers stores the embedding of time and class in every block, as
``transformer_blocks.K.norm1.emb``. Published weights have copies of one embedding there, because
the networks that they come from share it, and so does ours (`diffjax.nets.dit`).
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.nets.dit import DiT
from diffjax.pretrained.autoencoder_configs import NetworkKind
from diffjax.pretrained.files import Tensor, Weights
from diffjax.types import CondEntries, Config, JsonObject

_EMBEDDING = re.compile(r"transformer_blocks\.\d+\.norm1\.emb\.(.*)")


def share_embedding(weights: Weights) -> Weights:
    """Return weights of diffusers' DiT with one embedding in place of a copy in each block.

    Weights of other networks have no such keys, and are returned as they are.

    Raises:
        ValueError: the blocks have different embeddings, as after training with diffusers.
    """
    shared: dict[str, Tensor] = {}
    for key, tensor in weights.tensors.items():
        match = _EMBEDDING.fullmatch(key)
        name = match[1] if match else key
        if name in shared and not np.array_equal(shared[name].read(), tensor.read()):
            raise ValueError(
                f"{key} differs from that of another block, which is not supported: all blocks "
                "must have the same embedding of time and class, as the published DiT have"
            )
        shared.setdefault(name, tensor)
    return Weights(shared, weights.metadata)


_DEFAULTS: Config = dict(
    in_channels=4,
    out_channels=None,
    num_layers=28,
    num_attention_heads=16,
    attention_head_dim=72,
    patch_size=2,
    num_embeds_ada_norm=1000,
    norm_eps=1e-5,
)
_FIXED: dict[str, tuple[object, ...]] = dict(
    activation_fn=("gelu-approximate",),
    attention_bias=(True,),
    dropout=(0, 0.0),
    norm_elementwise_affine=(False,),
    norm_type=("ada_norm_zero",),
    # Published configs were written for a class that serves many networks.
    cross_attention_dim=(None,),
    double_self_attention=(False,),
    num_vector_embeds=(None,),
    only_cross_attention=(False,),
    use_linear_projection=(False,),
)
_IGNORED = ("sample_size", "upcast_attention", "norm_num_groups")


def _build(config: Config) -> DiT:
    """Build the transformer of a complete config; its last class is the null condition."""
    heads, size = config["num_attention_heads"], config["attention_head_dim"]
    return DiT(
        channels=heads * size,
        blocks=config["num_layers"],
        heads=heads,
        patch=config["patch_size"],
        out_channels=config["out_channels"] or config["in_channels"],
        num_classes=config["num_embeds_ada_norm"] + 1,
        freq_shift=1.0,  # diffusers' spacing; the released code has 0
        norm_eps=config["norm_eps"],
    )


def _make_inputs(net: DiT, config: Config) -> tuple[jax.Array, jax.Array, CondEntries]:
    """Return the smallest z, t and condition that a transformer can be initialised with."""
    z = jnp.zeros((1, net.patch, net.patch, config.get("in_channels", 4)))
    return z, jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32)}


def _describe(net: DiT, in_channels: int) -> JsonObject:
    """Refuse to describe a transformer: writing for diffusers is not implemented.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "transformers (DiT) are read from diffusers' format, but cannot be written yet"
    )


TRANSFORMERS: dict[str, NetworkKind] = {
    "DiTTransformer2DModel": NetworkKind(
        "diffusers", _build, _describe, _make_inputs, _DEFAULTS, _FIXED, _IGNORED
    ),
}
# The name of the class when DiT was published; its configs have it still.
TRANSFORMERS["Transformer2DModel"] = TRANSFORMERS["DiTTransformer2DModel"]
