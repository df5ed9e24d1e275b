"""The parts of a text-to-image model, what its UNet is given beside latents, and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from diffjax.pretrained.configs import read_class_name
from diffjax.pretrained.files import StrPath, write_json
from diffjax.pretrained.k_unet_configs import has_k_blocks
from diffjax.pretrained.models import Component, save_model
from diffjax.pretrained.prompts import TextEncoder
from diffjax.pretrained.tokenizers import save_tokenizer
from diffjax.types import Config, JsonObject, summarize

TEXTS = ("text_encoder", "text_encoder_2")
DIFFUSERS = "0.42.1"  # whose layout we write; loading an inpainting model asks for it
# What a UNet is given beside the latents.
MASK, INSTRUCTION, DEPTH, SMALL = "mask", "instruction", "depth", "small"
HALF = "half"  # latents of half the size
_PIPELINES = {
    "": "",
    MASK: "Inpaint",
    INSTRUCTION: "InstructPix2Pix",
    DEPTH: "Depth2Img",
    SMALL: "Upscale",
    HALF: "LatentUpscale",
}
# Parts of models that are not read, and so not written either.
_NOT_WRITTEN = (
    *("safety_checker", "feature_extractor", "image_encoder", "depth_estimator", "watermarker"),
)
LOW_RES = "low_res_scheduler"


class Components(NamedTuple):
    """The parts of a text-to-image model.

    Attributes:
        unet: the denoising network.
        vae: the autoencoder of the latents.
        texts: text encoders with their tokenizers, by the names of their folders.
        scheduler: scheduler_config.json.
        manifest: model_index.json.
        low_res: scheduler_config.json of the small images of an upscaler, or None.
    """

    unet: Component
    vae: Component
    texts: dict[str, TextEncoder]
    scheduler: JsonObject
    manifest: JsonObject
    low_res: JsonObject | None = None

    def __repr__(self) -> str:
        return summarize(self)


def name_beside(unet: Config, latents: int) -> str:
    """What a UNet is given beside latents of so many channels; empty if they are alone.

    Args:
        unet: its config, whose input channels say it, and the blocks of the latent upscaler.
        latents: channels of the latents.

    Raises:
        ValueError: no known model is given so many channels.
    """
    channels = unet.get("in_channels", 4)
    if has_k_blocks(unet):
        if channels != 2 * latents:
            raise ValueError(f"a latent upscaler takes {2 * latents} channels, not {channels}")
        return HALF
    kinds = {0: "", latents + 1: MASK, latents: INSTRUCTION}
    for extra, kind in ((1, DEPTH), (3, SMALL)):
        kinds.setdefault(extra, kind)
    if channels - latents not in kinds:
        raise ValueError(
            f"this UNet takes {channels} channels, which is not supported: there must be {latents} "
            f"of latents, and {2 * latents + 1} of models that fill in, {2 * latents} of those "
            f"that edit by instruction, {latents + 1} with depth, or {latents + 3} of upscalers"
        )
    return kinds[channels - latents]


def make_manifest(parts: Components) -> JsonObject:
    """Return the model_index.json of parts, with the class of diffusers' pipeline that runs
    them.
    """
    names = list(parts.texts)
    beside = name_beside(parts.unet.config, parts.vae.net.latent_channels)
    kind = _PIPELINES[beside] or ("Img2Img" if names == [TEXTS[1]] else "")
    family = "StableDiffusionXL" if TEXTS[1] in names else "StableDiffusion"
    manifest: JsonObject = {
        "_class_name": f"{family}{kind}Pipeline",
        "_diffusers_version": DIFFUSERS,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", read_class_name(parts.vae.config)],
        "scheduler": ["diffusers", parts.scheduler["_class_name"]],
    }
    if parts.low_res is not None:
        manifest[LOW_RES] = ["diffusers", parts.low_res["_class_name"]]
    for name in names:
        manifest[name] = ["transformers", read_class_name(parts.texts[name].model.config)]
        manifest[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if TEXTS[1] in names:
        scores = names == [TEXTS[1]]
        manifest |= {
            "force_zeros_for_empty_prompt": not scores,
            "requires_aesthetics_score": scores,
        }
    else:
        manifest["requires_safety_checker"] = False
    absent = ["safety_checker", "feature_extractor", "image_encoder"]
    absent += [name for text in TEXTS for name in (text, text.replace("text_encoder", "tokenizer"))]
    return {**{name: [None, None] for name in absent if name not in manifest}, **manifest}


def save_components(folder: StrPath, parts: Components) -> None:
    """Write a folder that diffusers and `load_components` load.

    Args:
        folder: the folder, which is made if it does not exist.
        parts: the parts.

    Raises:
        ValueError: diffusers has no such network.
        FileExistsError: a subfolder holds another model.
    """
    path = Path(folder)
    save_model(path / "unet", *parts.unet[:2], config=parts.unet.config)
    save_model(path / "vae", *parts.vae[:2], config=parts.vae.config)
    for name, text in parts.texts.items():
        save_model(path / name, *text.model[:2], config=text.model.config)
        save_tokenizer(path / name.replace("text_encoder", "tokenizer"), text.tokenizer)
    (path / "scheduler").mkdir(exist_ok=True)
    write_json(path / "scheduler" / "scheduler_config.json", parts.scheduler)
    if parts.low_res is not None:
        (path / LOW_RES).mkdir(exist_ok=True)
        write_json(path / LOW_RES / "scheduler_config.json", parts.low_res)
    manifest = parts.manifest or make_manifest(parts)
    vae = ["diffusers", read_class_name(parts.vae.config)]  # maybe another one than was there
    written = {"vae": vae} | {key: [None, None] for key in _NOT_WRITTEN if key in manifest}
    write_json(path / "model_index.json", {**manifest, **written})
