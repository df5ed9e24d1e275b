"""CLIP's encoders to and from the config.json files of transformers.

CLIPTextModel is the encoder of Stable Diffusion 1 and 2 and the first one of XL,
CLIPTextModelWithProjection the second one of XL, and CLIPVisionModelWithProjection reads the
pictures of IP-Adapters. `configs` joins them with the classes of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffjax.nets.text import CLIPText
from diffjax.nets.vision import CLIPVision
from diffjax.pretrained.autoencoder_configs import NetworkKind
from diffjax.types import Config, JsonObject, Tree

_TEXT_DEFAULTS: Config = dict(
    vocab_size=49408,
    max_position_embeddings=77,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    projection_dim=512,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    eos_token_id=49407,
)
# The transformers of texts and of pictures: keys of their configs, and our names.
_TRANSFORMER = {
    "hidden_size": "features",
    "intermediate_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "hidden_act": "activation",
    "layer_norm_eps": "eps",
}
_TEXT_FIXED: dict[str, tuple[object, ...]] = dict(
    model_type=("clip_text_model",),
    is_decoder=(False,),
    add_cross_attention=(False,),
    cross_attention_hidden_size=(None,),
    pruned_heads=({},),
    use_attention_mask=(False, None),
    tie_encoder_decoder=(False,),
)
# Training, generation and bookkeeping of transformers.
IGNORED = (
    *("architectures", "attention_dropout", "bos_token_id", "pad_token_id", "dropout", "dtype"),
    *("torch_dtype", "initializer_factor", "initializer_range", "transformers_version"),
    *("use_bfloat16", "id2label", "label2id", "output_attentions", "output_hidden_states"),
    *("return_dict", "torchscript", "use_cache", "chunk_size_feed_forward", "problem_type"),
    *("gradient_checkpointing", "tie_word_embeddings", "sep_token_id", "decoder_start_token_id"),
    *("is_encoder_decoder", "finetuning_task", "prefix", "tokenizer_class", "num_labels"),
    *("task_specific_params", "tf_legacy_loss", "typical_p", "temperature", "top_k", "top_p"),
    *("length_penalty", "max_length", "min_length", "num_beams", "num_beam_groups"),
    *("diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size"),
    *("exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id"),
    *("no_repeat_ngram_size", "num_return_sequences", "output_scores", "repetition_penalty"),
    *("remove_invalid_values", "return_dict_in_generate", "suppress_tokens", "bad_words_ids"),
    "begin_suppress_tokens",
)


def _read_transformer(config: Config) -> dict[str, Any]:
    """Read what texts and pictures have in common from a complete config."""
    return {ours: config[key] for key, ours in _TRANSFORMER.items()}


def _describe_transformer(net: CLIPText | CLIPVision) -> JsonObject:
    """Return the same part of a config.json."""
    return {key: getattr(net, ours) for key, ours in _TRANSFORMER.items()}


def _build_text(config: Config) -> CLIPText:
    """Build the text encoder of a complete config, without a projection."""
    return CLIPText(
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        end=config["eos_token_id"],
        **_read_transformer(config),
    )


def _build_projected(config: Config) -> CLIPText:
    """Build the text encoder of a complete config, with the projection of its pooled output."""
    return _build_text(config).clone(projection=config["projection_dim"])


def _make_text_inputs(net: CLIPText, config: Config) -> tuple[Tree, ...]:
    """Return one token (1, 1), the smallest input that a text encoder can be initialised with."""
    return (jnp.zeros((1, 1), jnp.int32),)


def _describe_text(net: CLIPText, in_channels: int) -> JsonObject:
    """Return the config.json of a text encoder."""
    return dict(
        architectures=["CLIPTextModelWithProjection" if net.projection else "CLIPTextModel"],
        model_type="clip_text_model",
        vocab_size=net.vocabulary,
        max_position_embeddings=net.positions,
        projection_dim=net.projection or net.features,
        eos_token_id=net.end,
        **_describe_transformer(net),
    )


def _make_text_kind(make: Callable[[Config], CLIPText]) -> NetworkKind:
    """Return the description of a class of text encoder that ``make`` builds."""
    tables = (_TEXT_DEFAULTS, _TEXT_FIXED, IGNORED)
    return NetworkKind("transformers", make, _describe_text, _make_text_inputs, *tables)


TEXT_ENCODERS: dict[str, NetworkKind] = {
    "CLIPTextModel": _make_text_kind(_build_text),
    "CLIPTextModelWithProjection": _make_text_kind(_build_projected),
}


# ---- pictures -----------------------------------------------------------------------------------

# What transformers assumes of an image encoder whose config does not say it.
VISION_DEFAULTS: Config = dict(
    image_size=224,
    patch_size=32,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    projection_dim=512,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
)
_VISION_FIXED: dict[str, tuple[object, ...]] = {
    **_TEXT_FIXED,
    "model_type": ("clip_vision_model",),
    "num_channels": (3,),
}


def build_image_encoder(config: Config) -> CLIPVision:
    """Build the image encoder of a complete config."""
    return CLIPVision(
        size=config["image_size"],
        patch=config["patch_size"],
        projection=config["projection_dim"],
        **_read_transformer(config),
    )


def _make_vision_inputs(net: CLIPVision, config: Config) -> tuple[Tree, ...]:
    """Return the one image (1, size, size, 3) that an image encoder is initialised with."""
    return (jnp.zeros((1, net.size, net.size, 3)),)


def _describe_vision(net: CLIPVision, in_channels: int) -> JsonObject:
    """Return the config.json of an image encoder."""
    return dict(
        architectures=["CLIPVisionModelWithProjection"],
        model_type="clip_vision_model",
        image_size=net.size,
        patch_size=net.patch,
        projection_dim=net.projection,
        **_describe_transformer(net),
    )


IMAGE_ENCODERS: dict[str, NetworkKind] = {
    "CLIPVisionModelWithProjection": NetworkKind(
        "transformers",
        build_image_encoder,
        _describe_vision,
        _make_vision_inputs,
        VISION_DEFAULTS,
        _VISION_FIXED,
        IGNORED,
    ),
}
