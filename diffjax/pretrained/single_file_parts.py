"""Autoencoders and text encoders of single-file checkpoints, described as in a diffusers folder.

`single_file` finds the prefix of each part. The functions here derive its config from its shapes
and rename its weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffjax.pretrained.files import Tensor, Weights
from diffjax.pretrained.models import modernise_key
from diffjax.types import JsonObject

HEAD = 64  # channels of a head, but in the UNet of version 1, which has 8 heads
GROUPS = 32
_USED = 23  # layers of SD 2's text encoder: all but the last, which some files have left out


class Part(NamedTuple):
    """A network of a file, as a diffusers folder would have it.

    Attributes:
        config: its config.json.
        weights: its weights in diffusers' names, not read yet.
    """

    config: JsonObject
    weights: Weights


def select_below(weights: Weights, prefix: str) -> Weights:
    """Return the tensors whose keys have a prefix, under the keys without it."""
    size = len(prefix)
    return Weights({k[size:]: v for k, v in weights.tensors.items() if k.startswith(prefix)})


def count_numbers(weights: Weights, pattern: str) -> int:
    """Return one more than the largest number that the group of a pattern matches at the beginning
    of keys.

    It counts levels, blocks or layers; it is 0 if nothing matches.
    """
    found = {int(m[1]) for key in weights if (m := re.match(pattern, key))}
    return max(found) + 1 if found else 0


# ---- autoencoder --------------------------------------------------------------------------------

# Parts of the training of an autoencoder, which some files have kept.
_TRAINING = ("loss.", "model_ema.", "discriminator.")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def rename_autoencoder_key(key: str, levels: int) -> str:
    """Return diffusers' name of a weight of the autoencoder; other keys stay as they are.

    Args:
        key: the name in the original code, without a prefix.
        levels: number of levels, because the original code counts those of the decoder from the
            finest.
    """
    key = re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", key)
    key = re.sub(r"\.nin_shortcut\.", ".conv_shortcut.", key)
    key = re.sub(r"\.mid\.block_([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", key)
    key = re.sub(
        r"\.mid\.attn_1\.(norm|q|k|v|proj_out)\.",
        lambda m: f".mid_block.attentions.0.{_ATTENTION[m[1]]}.",
        key,
    )

    key = re.sub(
        r"\.attn\.(\d+)\.(norm|q|k|v|proj_out)\.",
        lambda m: f".attentions.{m[1]}.{_ATTENTION[m[2]]}.",
        key,
    )

    def level(m: re.Match[str]) -> str:
        # Levels of the decoder are counted from the finest there, from the coarsest here.
        i = int(m[2]) if m[1] == "down" else levels - 1 - int(m[2])
        return f".{m[1]}_blocks.{i}."

    key = re.sub(r"\.(down|up)\.(\d+)\.", level, key)
    key = re.sub(r"(_blocks\.\d+)\.block\.", r"\1.resnets.", key)
    return re.sub(r"(_blocks\.\d+)\.(down|up)sample\.conv\.", r"\1.\2samplers.0.conv.", key)


def build_autoencoder_part(weights: Weights, *, scale: float | None) -> Part:
    """Return the config and the weights of an autoencoder, from weights in the original names.

    Attention is a 1x1 convolution in the original code, and a dense layer here and in diffusers.

    Args:
        weights: weights without a prefix.
        scale: ``scaling_factor`` of the latents, which weights do not show. None leaves it out of
            the config.

    Raises:
        ValueError: there is no autoencoder.
    """
    weights = Weights({k: v for k, v in weights.tensors.items() if not k.startswith(_TRAINING)})
    config = derive_autoencoder_config(weights, scale=scale)
    levels = len(config["block_out_channels"])
    named = weights.rename_keys(lambda key: rename_autoencoder_key(key, levels))
    square = {
        k: t.map(_flatten_convolution) if ".attentions." in k else t
        for k, t in named.tensors.items()
    }
    return Part(config, Weights(square))


def _flatten_convolution(value: np.ndarray) -> np.ndarray:
    """Reshape a 1x1 convolution (O, I, 1, 1) to a matrix (O, I)."""
    return value.reshape(value.shape[:2]) if value.ndim == 4 else value


def derive_autoencoder_config(weights: Weights, *, scale: float | None) -> JsonObject:
    """Derive the config of an autoencoder from its weights. A codebook makes it a VQModel.

    Args:
        weights: weights in the original names, without a prefix.
        scale: see `build_autoencoder_part`.

    Raises:
        ValueError: there is no autoencoder, or a weight is missing.
    """
    levels = count_numbers(weights, r"encoder\.down\.(\d+)\.")
    if not levels:
        raise ValueError("this file has no autoencoder (first_stage_model.)")
    first = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    attends = [f"encoder.down.{i}.attn.0.q.weight" in weights for i in range(levels)]
    blocks = ["Attn" if attention else "" for attention in attends]
    codebook: JsonObject = dict(_class_name="AutoencoderKL")
    if "quantize.embedding.weight" in weights:
        codes, width = weights.shape("quantize.embedding.weight")
        codebook = dict(_class_name="VQModel", num_vq_embeddings=codes, vq_embed_dim=width)
    return dict(
        **codebook,
        in_channels=weights.shape("encoder.conv_in.weight")[1],
        out_channels=weights.shape("decoder.conv_out.weight")[0],
        latent_channels=weights.shape("decoder.conv_in.weight")[1],
        block_out_channels=[weights.shape(key)[0] for key in first],
        down_block_types=[f"{attn}DownEncoderBlock2D" for attn in blocks],
        up_block_types=[f"{attn}UpDecoderBlock2D" for attn in reversed(blocks)],
        layers_per_block=count_numbers(weights, r"encoder\.down\.0\.block\.(\d+)\."),
        norm_num_groups=GROUPS,
        act_fn="silu",
        **({} if scale is None else {"scaling_factor": scale}),
    )


# ---- text ---------------------------------------------------------------------------------------

_OPEN_CLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OPEN_CLIP_OUTER = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_FC1 = "text_model.encoder.layers.0.mlp.fc1.weight"


def _derive_text_config(weights: Weights, layers: int, **options: object) -> JsonObject:
    """Derive the config of a text encoder from its weights in diffusers' names.

    The end token is the last one of the vocabulary, as in CLIP.
    """
    rows, width = weights.shape("text_model.embeddings.token_embedding.weight")
    return dict(
        model_type="clip_text_model",
        vocab_size=rows,
        max_position_embeddings=weights.shape("text_model.embeddings.position_embedding.weight")[0],
        hidden_size=width,
        intermediate_size=weights.shape(_FC1)[0],
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        eos_token_id=rows - 1,
        **options,
    )


def build_clip_part(weights: Weights) -> Part:
    """Return the config and the weights of a CLIP text encoder, as SD 1 and XL have it."""
    weights = weights.rename_keys(modernise_key)
    layers = count_numbers(weights, r"text_model\.encoder\.layers\.(\d+)\.")
    options = dict(architectures=["CLIPTextModel"], hidden_act="quick_gelu")
    return Part(_derive_text_config(weights, layers, **options), weights)


def build_open_clip_part(weights: Weights, projected: bool) -> Part:
    """Return the config and the weights of OpenCLIP's text half, as SD 2 and XL have it.

    Args:
        weights: weights in OpenCLIP's names, without a prefix.
        projected: whether the projection is used. Without it, the last layer is dropped, since SD 2
            attends to the output of the last layer but one.
    """
    # Without projection, the output of the last layer but one is what the UNet sees.
    layers = count_numbers(weights, r"transformer\.resblocks\.(\d+)\.")
    layers -= not projected and layers != _USED
    out: dict[str, Tensor] = {}
    for key, tensor in weights.tensors.items():
        out.update(_convert_open_clip(key, tensor, layers, projected))
    named = Weights(out)
    options: JsonObject = dict(architectures=["CLIPTextModel"], hidden_act="gelu")
    if projected:
        options["architectures"] = ["CLIPTextModelWithProjection"]
        options["projection_dim"] = weights.shape("text_projection")[1]
    return Part(_derive_text_config(named, layers, **options), named)


def _convert_open_clip(key: str, tensor: Tensor, layers: int, projected: bool) -> dict[str, Tensor]:
    """Convert one weight of OpenCLIP to none, one, or three weights (from fused q, k and v).

    Args:
        key: the name in OpenCLIP.
        tensor: the unread weight.
        layers: number of layers that are kept.
        projected: whether the projection is used.
    """
    # Constants, and the half that sees images, which merged files have kept.
    if key.startswith(("logit_", "attn_mask", "visual.")):
        return {}
    if key.startswith("text_projection") and not projected:
        return {}
    if key == "text_projection":
        return {"text_projection.weight": tensor.map(np.transpose)}
    m = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", key)
    if not m:
        return {_OPEN_CLIP_OUTER.get(key, key): tensor}
    if int(m[1]) >= layers:
        return {}
    head, leaf = f"text_model.encoder.layers.{m[1]}", m[3]
    if m[2] != "attn.in_proj":
        return {f"{head}.{_OPEN_CLIP.get(m[2], m[2])}.{leaf}": tensor}
    return {
        f"{head}.self_attn.{name}_proj.{leaf}": tensor.map(_make_third(i))
        for i, name in enumerate("qkv")
    }


def _make_third(i: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: np.split(value, 3)[i]
