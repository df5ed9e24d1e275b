"""The types and ranges of values in configs of diffusers and transformers, by key.

There is one table for networks, one for schedulers, and a small one for tokenizers. They bound what
a file of other people can make the program allocate. Which of the keys a class has, and which names
are implemented, the modules say that read the class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from diffjax.types import Config
from diffjax.untrusted import (
    FLAG,
    NOTHING,
    TEXT,
    Spec,
    check,
    either,
    integer,
    is_finite,
    listed,
    number,
    show,
)

LEVELS = 8  # of a network that halves its resolution; published ones have 3 or 4
_WIDTH = integer(1, 2**17)
_COUNT = integer(1, 64)
_DEPTH = integer(0, 128)
_SIDE = integer(1, 2**16)
_IDS = integer(0, 2**24)
_EPS = number(0, 1, above=True)
_POSITIVE = number(0, 1e6, above=True)
_ANY = number(-1e6, 1e6)
_MAYBE = either(FLAG, NOTHING)


def _allow_per_level(spec: Spec) -> Spec:
    """Return a spec that allows one value, or a list with one for every level.

    `check_levels` compares the length of such lists.
    """
    return either(spec, listed(spec, LEVELS))


# A number for all levels, one for each level, or one for each attention of a level.
_DEPTHS = either(_DEPTH, listed(either(_DEPTH, listed(_DEPTH, 64)), LEVELS))

NETWORK: dict[str, Spec] = {
    "_class_name": TEXT,
    "_diffusers_version": TEXT,
    "architectures": either(NOTHING, listed(TEXT, 16)),
    # UNets, ControlNets and autoencoders
    "sample_size": either(NOTHING, _SIDE, listed(_SIDE, 2)),
    "in_channels": _WIDTH,
    "out_channels": either(NOTHING, _WIDTH),  # null: those of the input
    "latent_channels": _WIDTH,
    "flip_sin_to_cos": FLAG,
    "freq_shift": number(-16, 16),
    "down_block_types": listed(TEXT, LEVELS),
    "up_block_types": listed(TEXT, LEVELS),
    "block_out_channels": listed(_WIDTH, LEVELS),
    "layers_per_block": _allow_per_level(_COUNT),
    "downsample_padding": integer(0, 1),
    "dropout": number(0, 1),
    "norm_num_groups": _WIDTH,
    "norm_eps": _EPS,
    "cross_attention_dim": _allow_per_level(_WIDTH),
    "transformer_layers_per_block": _DEPTHS,
    "reverse_transformer_layers_per_block": either(NOTHING, _DEPTHS),
    "mid_block_type": either(NOTHING, TEXT),
    "only_cross_attention": _allow_per_level(FLAG),
    "encoder_hid_dim": either(NOTHING, _WIDTH),
    "encoder_hid_dim_type": either(NOTHING, TEXT),
    "time_cond_proj_dim": either(NOTHING, _WIDTH),
    "attention_head_dim": _allow_per_level(_WIDTH),
    "use_linear_projection": FLAG,
    "addition_embed_type": either(NOTHING, TEXT),
    "addition_time_embed_dim": either(NOTHING, _WIDTH),
    "projection_class_embeddings_input_dim": either(NOTHING, _WIDTH),
    "num_class_embeds": either(NOTHING, _IDS),
    "resnet_time_scale_shift": TEXT,
    "time_embedding_dim": either(NOTHING, _WIDTH),
    "scaling_factor": _POSITIVE,
    "shift_factor": either(NOTHING, _ANY),
    "force_upcast": _MAYBE,
    "latents_mean": either(NOTHING, listed(_ANY, 64)),
    "latents_std": either(NOTHING, listed(_POSITIVE, 64)),
    "down_block_out_channels": listed(_WIDTH, LEVELS),
    "up_block_out_channels": listed(_WIDTH, LEVELS),
    "layers_per_down_block": _COUNT,
    "layers_per_up_block": _COUNT,
    "encoder_block_out_channels": listed(_WIDTH, LEVELS),
    "decoder_block_out_channels": listed(_WIDTH, LEVELS),
    "num_encoder_blocks": listed(integer(0, 64), LEVELS),
    "num_decoder_blocks": listed(integer(0, 64), LEVELS),
    "use_quant_conv": FLAG,
    "use_post_quant_conv": FLAG,
    "mid_block_add_attention": FLAG,
    "num_vq_embeddings": integer(1, 2**24),
    "vq_embed_dim": either(NOTHING, _WIDTH),
    "conditioning_channels": _WIDTH,
    "conditioning_embedding_out_channels": listed(_WIDTH, LEVELS),
    "global_pool_conditions": FLAG,
    "num_control_type": integer(1, 1024),
    "num_trans_channel": _WIDTH,
    "num_trans_head": _WIDTH,
    "num_trans_layer": integer(1, 1024),
    "num_proj_channel": _WIDTH,
    # T2I-Adapters
    "channels": listed(_WIDTH, LEVELS),
    "num_res_blocks": _COUNT,
    "downscale_factor": integer(1, 64),
    "adapter_type": TEXT,
    # Transformers
    "num_layers": _DEPTH,
    "num_embeds_ada_norm": _IDS,
    # CLIP
    "vocab_size": integer(1, 2**24),
    "max_position_embeddings": _SIDE,
    "hidden_size": _WIDTH,
    "intermediate_size": integer(1, 2**20),
    "num_hidden_layers": integer(1, 1024),
    "num_attention_heads": integer(1, 1024),
    "projection_dim": _WIDTH,
    "hidden_act": TEXT,
    "layer_norm_eps": _EPS,
    "eos_token_id": _IDS,
    "image_size": integer(1, 2**13),
    "patch_size": integer(1, 2**13),
    # DINOv2
    "mlp_ratio": integer(1, 64),
    "num_register_tokens": integer(0, 1024),
    "use_swiglu_ffn": FLAG,
}
# Keys whose lists have an entry for every level; block types are compared where they are read.
PER_LEVEL = (
    *("layers_per_block", "cross_attention_dim", "transformer_layers_per_block"),
    *("attention_head_dim", "only_cross_attention", "reverse_transformer_layers_per_block"),
)

_TIMES = integer(1, 100_000)
SCHEDULER: dict[str, Spec] = {
    "num_train_timesteps": integer(2, 100_000),
    "beta_start": number(0, 1, above=True),
    "beta_end": number(0, 1, above=True),
    "beta_schedule": TEXT,
    "trained_betas": listed(number(0, 1), 100_000, least=2),
    "prediction_type": TEXT,
    "timestep_spacing": TEXT,
    "steps_offset": integer(0, 1000),
    "rescale_betas_zero_snr": FLAG,
    "clip_sample": FLAG,
    "clip_sample_range": _POSITIVE,
    "thresholding": FLAG,
    "dynamic_thresholding_ratio": number(0, 1, above=True),
    "sample_max_value": number(1, 1e6),
    "use_karras_sigmas": _MAYBE,
    "use_exponential_sigmas": _MAYBE,
    "use_beta_sigmas": _MAYBE,
    "use_lu_lambdas": _MAYBE,
    "use_flow_sigmas": _MAYBE,
    "flow_shift": _POSITIVE,
    "use_dynamic_shifting": _MAYBE,
    "time_shift_type": TEXT,
    "solver_order": integer(1, 16),
    "predictor_order": integer(1, 4),
    "corrector_order": integer(1, 4),
    "algorithm_type": TEXT,
    "solver_type": TEXT,
    "final_sigmas_type": TEXT,
    "lambda_min_clipped": Spec(
        "a finite number, or -Infinity", lambda v: is_finite(v) or v == -math.inf
    ),
    "variance_type": either(NOTHING, TEXT),
    "original_inference_steps": _TIMES,
    "timestep_scaling": _POSITIVE,
    "set_alpha_to_one": FLAG,
    "sigma_min": _POSITIVE,
    "sigma_max": _POSITIVE,
    "sigma_data": _POSITIVE,
    "sigma_schedule": TEXT,
    "rho": number(0, 1000, above=True),
    "skip_prk_steps": FLAG,
    "interpolation_type": TEXT,
    "timestep_type": TEXT,
    "lower_order_final": FLAG,
    "euler_at_final": FLAG,
    "predict_x0": FLAG,
    "disable_corrector": listed(integer(0, 100_000), 100_000, least=0),
    "shift_terminal": number(0, 0.999),
    "shift": _POSITIVE,
    "base_shift": number(-100, 100),
    "max_shift": number(-100, 100),
    "base_image_seq_len": integer(1, 2**24),
    "max_image_seq_len": integer(1, 2**24),
    "stochastic_sampling": FLAG,
}

_ADDED = Spec(
    "an entry with its content", lambda v: isinstance(v, dict) and TEXT.holds(v.get("content"))
)
_TOKEN = either(NOTHING, TEXT, _ADDED)
TOKENIZER: dict[str, Spec] = {
    "bos_token": _TOKEN,
    "eos_token": _TOKEN,
    "pad_token": _TOKEN,
    # transformers writes about 1e30 where no length was set.
    "model_max_length": either(NOTHING, integer(3, 10**40)),
}
_PART = Spec(
    "a pair of a library and a class, or of null",
    lambda v: len(v) == 2 and all(either(NOTHING, TEXT).holds(p) for p in v),
)

# Modules that are counted in names of weights, by the key of a config that says how many.
_MODULES = {
    "layers_per_block": "resnets",
    "layers_per_down_block": "resnets",
    "layers_per_up_block": "resnets",
    "num_res_blocks": "resnets",
    "num_hidden_layers": "layers",
    "transformer_layers_per_block": "transformer_blocks",
    "num_layers": "transformer_blocks",
    "block_out_channels": "blocks",
    "channels": "body",
}
_NUMBERED = re.compile(r"(resnets|layers|transformer_blocks|(?<=_)blocks|body)\.(\d{1,6})\.")


def check_scheduler(values: Config, defaults: Config, where: str) -> None:
    """Compare the options of a scheduler with the table. None is allowed where it is the default.

    Args:
        values: options of the config.
        defaults: all options of the class, with their defaults.
        where: what is being read, for messages.

    Raises:
        ValueError: an option has a wrong type or range, or a lower bound is not below its upper
            one.
    """
    specs = {
        key: either(NOTHING, SCHEDULER[key]) if default is None else SCHEDULER[key]
        for key, default in defaults.items()
        if key in SCHEDULER
    }
    check(values, specs, where)
    o = {**defaults, **values}
    for low, high in (("sigma_min", "sigma_max"), ("base_image_seq_len", "max_image_seq_len")):
        if o.get(low) is not None and o.get(high) is not None and o[low] >= o[high]:
            raise ValueError(f"{where}: {low} is {o[low]}, which is not below {high}, {o[high]}")


def check_levels(config: Config, where: str) -> None:
    """Check that lists with an entry per level have as many as ``block_out_channels``.

    Raises:
        ValueError: a list is shorter or longer.
    """
    levels = len(config.get("block_out_channels", ()))
    for key in PER_LEVEL:
        value = config.get(key)
        if isinstance(value, list | tuple) and len(value) != levels:
            raise ValueError(
                f"{where}: {key} is {show(value)}, with {len(value)} entries, but must have one "
                f"for each of the {levels} levels of block_out_channels, "
                f"{show(config.get('block_out_channels'))}"
            )


def check_manifest(manifest: Config, where: object) -> None:
    """Check that model_index.json names a library and a class, or two nulls, for every part.

    Raises:
        ValueError: an entry is something else.
    """
    parts = {key: _PART for key, value in manifest.items() if isinstance(value, list)}
    check(manifest, {**parts, "_class_name": TEXT}, where)


def check_counts(config: Config, keys: Iterable[str]) -> None:
    """Compare the numbers of layers in a config with the names of weights.

    This is done before a network is built, because a config could ask for a network that takes
    hours to trace while its weights have a few layers.

    Args:
        config: the config of the network.
        keys: names of its weights in diffusers' form.

    Raises:
        ValueError: the config has more layers, or levels, than there are weights for.
    """
    found: dict[str, int] = {}
    for key in keys:
        for module, place in _NUMBERED.findall(key):
            found[module] = max(found.get(module, 0), int(place) + 1)
    for key, module in _MODULES.items():
        if module in found and key in config:
            wanted = _find_largest(config[key]) if key in _COUNTED else len(config[key])
            if wanted > found[module]:
                raise ValueError(
                    f"{key} is {show(config[key])}, but the weights have only "
                    f"{found[module]} {module}"
                )


_COUNTED = (
    "layers_per_block",
    "layers_per_down_block",
    "layers_per_up_block",
    "num_res_blocks",
    "num_hidden_layers",
    "transformer_layers_per_block",
    "num_layers",
)


def _find_largest(value: int | Sequence[Any]) -> int:
    return max(map(_find_largest, value)) if isinstance(value, Sequence) else value
