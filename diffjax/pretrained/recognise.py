"""Recognise files and folders that are not what the caller expected, for error messages.

Users often pass a model of another family, one network in place of a whole model, or an adapter in
place of a model. The tables here name it by the class in its config or by characteristic keys of
its weights, so that the error can say what to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from diffjax.untrusted import read_json

READ = "diffusers has it; here, Stable Diffusion 1, 2 and XL are read"
# Beginnings of the classes of diffusers' pipelines and networks, the longer ones first.
_CLASSES = {
    "StableDiffusion3": "Stable Diffusion 3",
    "SD3": "Stable Diffusion 3",
    "StableDiffusionGLIGEN": "GLIGEN",
    "StableDiffusionAttendAndExcite": "attend-and-excite",
    "StableDiffusionControlNetXS": "ControlNet-XS",
    "StableDiffusionXLControlNetXS": "ControlNet-XS",
    "SemanticStableDiffusion": "semantic guidance",
    "LEdits": "LEDITS++",
    "ControlNetXS": "ControlNet-XS",
    "UNetControlNetXS": "ControlNet-XS",
    "SparseControlNet": "AnimateDiff",
    "ConsistencyDecoderVAE": "consistency decoders",
    "AutoencoderKLTemporalDecoder": "Stable Video Diffusion",
    "StableUnCLIP": "Stable unCLIP",
    "StableVideo": "Stable Video Diffusion",
    "StableCascade": "Stable Cascade",
    "StableAudio": "Stable Audio",
    "UNetSpatioTemporal": "Stable Video Diffusion",
    "Wuerstchen": "Wuerstchen",
    "Flux2": "Flux 2",
    "Flux": "Flux",
    "Chroma": "Chroma",
    "PixArt": "PixArt",
    "Kandinsky": "Kandinsky",
    "AnimateDiff": "AnimateDiff",
    "Motion": "AnimateDiff",
    "HunyuanVideo": "HunyuanVideo",
    "HunyuanDiT": "HunyuanDiT",
    "CogVideo": "CogVideoX",
    "CogView": "CogView",
    "LTX": "LTX-Video",
    "Wan": "Wan",
    "Mochi": "Mochi",
    "Sana": "Sana",
    "Lumina": "Lumina",
    "ZImage": "Z-Image",
    "AuraFlow": "AuraFlow",
    "HiDream": "HiDream",
    "Cosmos": "Cosmos",
    "QwenImage": "Qwen-Image",
    "Allegro": "Allegro",
    "IF": "DeepFloyd IF",
    "UnCLIP": "unCLIP",
    "TextToVideo": "a text-to-video model",
}
# Parts of keys that only these models have; what comes first counts.
_KEYS = {
    r"individual_token_refiner": "HunyuanVideo",
    r"distilled_guidance_layer": "Chroma",
    r"single_stream_modulation": "Flux 2",
    r"double_stream_blocks": "HiDream",
    r"double_blocks[._]\d+[._](img|txt)|single_transformer_blocks[._]": "Flux",
    r"joint_blocks[._]\d": "Stable Diffusion 3",
    r"(^|\.)double_layers\.": "AuraFlow",
    r"clip_txt_mapper|\.channelwise\.": "Stable Cascade",
    r"patchify_proj": "LTX-Video",
    r"cap_embedder": "Lumina or Z-Image",
    r"motion_modules|temporal_transformer\.": "AnimateDiff",
    r"time_stack\.|time_mixer|temporal_transformer_blocks": "Stable Video Diffusion",
    r"(^|\.)head\.modulation$": "Wan",
    r"attn\.qkv_x\.": "Mochi",
    r"cross_attn\.kv_linear": "PixArt or Sana",
    r"adaln_single": "PixArt",
    r"x_embedder\.proj\.1\.|extra_pos_embedder": "Cosmos",
    r"mlp_t5\.": "HunyuanDiT",
    r"patch_embed\.text_proj": "CogVideoX",
    r"encoder_hid_proj\.image_embeds|add_embedding\.image_norm|prd_embedding": "Kandinsky",
    r"\.layer\.0\.SelfAttention\.": "T5, the text encoder of Stable Diffusion 3, Flux and others",
}
ADAPTER = "an adapter, which with_lora takes"
WORD = "a word of textual inversion, which with_concept takes"
# What is no model of its own, and what takes it.
_PARTS = {
    r"lora_(up|down|A|B)\b|lora\.(up|down)|\.hada_w1|\.lokr_w|\.oft_blocks": ADAPTER,
    r"^(emb_params|clip_[lg]|<[^>]+>)$": WORD,
    r"^(ip_adapter|image_proj)\.": "an IP-Adapter, which load_image_adapter takes",
    r"controlnet_cond_embedding\.|^(control_model\.)?input_hint_block": "a ControlNet",
    r"^(first_stage_model\.)?(encoder|decoder)\.(conv_in|down|up)": (
        "an autoencoder, which the argument vae takes"
    ),
    r"^down_blocks\.\d+\.resnets\.": (
        "a UNet alone; the whole model is a folder with model_index.json"
    ),
    r"^(model\.diffusion_model\.)?input_blocks\.": "a UNet without the other parts of a model",
    r"^text_model\.|^transformer\.resblocks\.": (
        "a text encoder alone; the whole model is a folder with model_index.json"
    ),
}


def name_family(class_name: str) -> str | None:
    """Return the family of a class of diffusers if it is known but not supported, otherwise
    None.
    """
    named = (family for start, family in _CLASSES.items() if class_name.startswith(start))
    return next(named, None)


def describe_keys(keys: Collection[str]) -> str | None:
    """Describe in words what has weights with these keys, or return None if they are not known."""
    for pattern, family in _KEYS.items():
        if any(re.search(pattern, key) for key in keys):
            return f"a model of {family}, which is not supported; {READ}"
    # A checkpoint holds an autoencoder, and a ControlNet maybe: its UNet says what it lacks.
    whole = any(key.startswith("model.diffusion_model.") for key in keys)
    if whole and any(key.startswith(("cond_stage_model.", "conditioner.")) for key in keys):
        return "a checkpoint of a whole model"
    for pattern, what in _PARTS.items():
        if (not whole or "diffusion_model" in pattern) and any(re.search(pattern, k) for k in keys):
            return what
    return None


def describe_folder(path: Path) -> str:
    """Describe a folder without model_index.json, and the path to pass instead, as a verb
    phrase.
    """
    names = sorted(p.name for p in path.iterdir())
    if "config.json" in names:
        whole = path.parent / "model_index.json"
        more = f"; give {path.parent}" if whole.is_file() else ", not a whole model"
        return f"is one network, {_read_class(path / 'config.json')}{more}"
    if {"adapter_config.json", "pytorch_lora_weights.safetensors"} & set(names):
        return "is an adapter, which with_lora takes"
    if "snapshots" in names and (commits := sorted((path / "snapshots").iterdir())):
        return f"is a folder of the Hugging Face cache; give {commits[-1]}"
    if files := [name for name in names if name.endswith(".safetensors")]:
        return f"is no diffusers folder; for a single-file model give the file, as {files[0]}"
    return f"is no diffusers folder; it holds {', '.join(names[:3]) or 'nothing'}"


def _read_class(config: Path) -> str:
    """Return the class that a config names, for a message. Errors of reading are ignored."""
    try:
        found = read_json(config)
        names = found.get("architectures") or [None]
        return str(found.get("_class_name") or names[0] or "of an unnamed class")
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return "of an unnamed class"
