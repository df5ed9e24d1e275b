"""The cases of generate_cases.py as diffusers makes them; renews tests/golden/generate.npz.

python -m tests.parity.generate_record
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import torch

from experiments.benchmarks import torch_operators  # noqa: F401

# isort: split
import diffusers
import transformers
from diffusers.utils import torch_utils

from diffjax.generate import GRIDS, SAMPLERS
from tests.parity import generate_cases as g
from tests.pretrained import words

GOLDEN = Path(__file__).parents[1] / "golden" / "generate.npz"


def _network(name: str, config: dict[str, Any]) -> Any:
    if "architectures" in config:
        kind = getattr(transformers, config["architectures"][0])
        net = kind(transformers.CLIPTextConfig(**config)).eval()
    else:
        net = getattr(diffusers, config["_class_name"]).from_config(config).eval()
    # The keys of transformers have come with and without this prefix.
    text = "architectures" in config
    names = {
        f"text_model.{key}" if text and not key.startswith("text_") else key: key
        for key in net.state_dict()
    }
    shapes = {key: tuple(net.state_dict()[theirs].shape) for key, theirs in names.items()}
    state = g.state(name, shapes)
    net.load_state_dict({names[key]: torch.from_numpy(value) for key, value in state.items()})
    return net


def _tokenizer(pad: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        words.write(Path(folder), pad=pad, length=g.LENGTH)
        return transformers.CLIPTokenizer.from_pretrained(folder)


@functools.cache
def parts(family: str) -> dict[str, Any]:
    """The components of a family."""
    given = dict(g.FAMILIES[family])
    prediction = given.pop("prediction", "epsilon")
    out = {name: _network(name, config) for name, config in {"vae": g.VAE, **given}.items()}
    for name in list(out):
        if name.startswith("text_encoder"):
            pad = words.SPECIAL[1] if given[name] is g.CLIP else "!"
            out[name.replace("text_encoder", "tokenizer")] = _tokenizer(pad)
    config = {**g.SCHEDULER, "prediction_type": prediction}
    out["scheduler"] = diffusers.DDIMScheduler.from_config(config)
    return out


def pipeline(
    family: str,
    mode: str = "text",
    pag: str | list[str] = "",
    start: str = "",
    apart: bool = True,
) -> Any:
    """A pipeline of diffusers.

    Args:
        pag: names of its perturbed layers.
        start: what it starts from beside a control, ``image`` or ``mask``.
        apart: whether there are two control networks.
    """
    special = {"edit": "InstructPix2Pix", "depth": "Depth2Img", "upscale": "Upscale"}
    special["double"] = "LatentUpscale"
    starts = {"image": "Img2Img", "mask": "Inpaint", "": ""}
    suffixes = {**special, **starts, "adapter": "Adapter"}
    suffix = suffixes.get(mode, "")
    if mode in g.CONTROLLED:
        suffix = f"ControlNet{'Union' * (mode == 'union')}{starts[start]}"
    if pag:
        suffix = "PAGImg2Img" if mode == "image" else f"{suffix}PAG"
    if family in ("xl", "refiner"):
        kind = getattr(diffusers, f"StableDiffusionXL{suffix}Pipeline")
        refines = family == "refiner"
        absent = {"text_encoder": None, "tokenizer": None} if refines else {}
        options = {"force_zeros_for_empty_prompt": not refines, "add_watermarker": False}
        if mode in ("image", "mask"):
            options["requires_aesthetics_score"] = refines
    else:
        kind = getattr(diffusers, f"StableDiffusion{suffix}Pipeline")
        absent = {"safety_checker": None, "feature_extractor": None}
        options = {"requires_safety_checker": False}
    if mode in g.CONTROLLED:
        config = g.CONTROLS[g.control_name(mode, family)]
        nets = [_network("controlnet", config) for _ in range(2)]
        options["controlnet"] = nets if apart else nets[0]
    if mode == "adapter":
        options.pop("add_watermarker", None)
        both = [_network("adapter", g.ADAPTERS[family]) for _ in range(2)]
        options["adapter"] = diffusers.MultiAdapter(both)
    if pag:
        options["pag_applied_layers"] = pag
    if mode == "depth":
        absent, options = {"depth_estimator": None, "feature_extractor": None}, {}
    if mode == "upscale":
        options = {"low_res_scheduler": diffusers.DDPMScheduler.from_config(g.LOW_RES)}
    if mode == "double":
        absent, options = {}, {}
    made = kind(**parts(family), **absent, **options)
    encoder = getattr(made, "text_encoder", None)
    if encoder is not None and not hasattr(encoder, "text_model"):
        # Where diffusers skips layers it asks for a part that transformers 5 has no more.
        object.__setattr__(encoder, "text_model", encoder)
    made.set_progress_bar_config(disable=True)
    return made


def scheduler(case: g.Case, config: Any) -> Any:
    """The scheduler of a case, made from the config of another."""
    name, _, grid = case.sampler.partition(" ")
    kind, options = SAMPLERS[name]
    grid = grid or case.option("grid", "")
    return getattr(diffusers, f"{kind}Scheduler").from_config(
        config, **options, **(GRIDS[grid] if grid else {})
    )


def images(case: g.Case) -> np.ndarray:
    """Images (B, H, W, 3) in [0, 1] with our noise."""
    if case.mode in ("refined", "handed"):
        return _refined(case)
    pag = ""
    if case.option("pag", None):
        pag = [re.escape(layer) for layer in case.option("layers", ("mid_block",))]
    apart = case.mode != "union" or case.option("kinds", 1) == "apart"
    start = case.option("from", "")
    made = pipeline(case.family, case.mode, pag, start, apart)
    if case.option("freeu", False):
        made.enable_freeu(**g.FREEU._asdict())
    try:
        return _run(case, made, case.mode, _options(case))
    finally:  # the networks are shared
        if case.option("freeu", False):
            made.disable_freeu()


def _options(case: g.Case) -> dict[str, Any]:
    options: dict[str, Any] = dict(
        prompt=g.prompts(case),
        num_inference_steps=g.steps(case),
        guidance_scale=case.option("guidance", 3.0),
        num_images_per_prompt=case.option("num", 1),
        clip_skip=case.option("clip_skip", None),
        eta=case.option("eta", 0.0),
        output_type="np",
    )
    for name in ("timesteps", "sigmas"):
        if case.option(name, None):
            options[name] = list(case.option(name, None))
    if case.option("pag", None):
        options["pag_scale"] = case.option("pag", None)
        options["pag_adaptive_scale"] = case.option("adaptive", 0.0)
    if case.option("negative", None) is not None:
        options["negative_prompt"] = [case.option("negative", None)] * len(g.PROMPTS)
    if seconds := case.option("seconds", None):
        options["prompt_2"] = list(seconds)
        if "negative_prompt" in options:
            options["negative_prompt_2"] = [seconds[0]] * len(g.PROMPTS)
    if case.mode in ("text", "refined", "handed", *g.CONTROLLED, "adapter"):
        options |= dict(height=g.size(case), width=g.size(case))
    if case.mode in ("text", "refined", "handed"):
        options["guidance_rescale"] = case.option("rescale", 0.0)
    if case.option("crop", None):
        options |= dict(
            crops_coords_top_left=case.option("crop", None),
            original_size=case.option("original", None),
        )
    if start := g.starts_from(case):
        options |= dict(
            image=[PIL.Image.fromarray(g.picture())] * len(g.PROMPTS),
            strength=case.option("strength", 0.7 if start == "image" else 1.0),
        )
    if case.mode in g.CONTROLLED:
        options |= _control_options(case)
    pictures = [PIL.Image.fromarray(g.picture())] * len(g.PROMPTS)
    if case.mode == "edit":
        options |= dict(image=pictures, image_guidance_scale=case.option("image", 1.5))
    if case.mode == "depth":
        maps = torch.from_numpy(g.depth().astype(np.float32))[None].repeat(len(g.PROMPTS), 1, 1)
        options |= dict(image=pictures, depth_map=maps, strength=case.option("strength", 0.7))
    if case.mode == "upscale":
        small = [PIL.Image.fromarray(g.small_picture())] * len(g.PROMPTS)
        options |= dict(image=small, noise_level=case.option("level", 20))
    if case.mode == "double":
        small = [PIL.Image.fromarray(g.small_picture())] * len(g.PROMPTS)
        if case.option("latents", False):
            one = torch.from_numpy(g.small_latents()).permute(2, 0, 1)
            small = torch.stack([one] * len(g.PROMPTS))
        options["image"] = small
        del options["num_images_per_prompt"], options["clip_skip"], options["eta"]
    if case.mode == "edit":
        del options["clip_skip"], options["eta"]
    if case.mode == "adapter":
        pictures = [PIL.Image.fromarray(hint) for hint in g.hints()]
        options |= dict(
            image=[[picture] * len(g.PROMPTS) for picture in pictures],
            adapter_conditioning_scale=list(g.CONTROL_SCALES),
        )
        if case.family == "xl":
            options["adapter_conditioning_factor"] = case.option("end", 1.0)
    if g.starts_from(case) == "mask":
        options["mask_image"] = [PIL.Image.fromarray(g.mask())] * len(g.PROMPTS)
        if padding := case.option("padding", None):
            options |= dict(padding_mask_crop=padding, output_type="pil")
            options |= {name: options[name][0] for name in ("image", "mask_image")}
            options |= dict(height=g.SIZE, width=g.SIZE)
    return options


def _control_options(case: g.Case) -> dict[str, Any]:
    hints, scales = [PIL.Image.fromarray(hint) for hint in g.hints()], list(g.CONTROL_SCALES)
    options: dict[str, Any] = dict(
        control_guidance_start=case.option("start", 0.0),
        control_guidance_end=case.option("end", 1.0),
        # Where a network pools, all pipelines but that of XL's inpainting choose this themselves.
        guess_mode=case.option("balance", "") == "guess" or case.mode == "pooled",
    )
    if case.mode == "union":
        options["control_mode"] = list(g.UNITED)
        if (count := case.option("kinds", 1)) != "apart":
            options["control_mode"], hints, scales = (
                list(g.UNITED[:count]),
                hints[:count],
                scales[0],
            )
    named = "control_image" if case.mode == "union" or g.starts_from(case) else "image"
    return options | {named: hints, "controlnet_conditioning_scale": scales}


def _refined(case: g.Case) -> np.ndarray:
    options = _options(case)
    latents = _run(
        case,
        pipeline(case.family),
        "text",
        {**options, "denoising_end": 0.6, "output_type": "latent"},
    )
    for name in ("height", "width", "guidance_rescale"):
        del options[name]
    if case.option("own", False):
        options |= dict(prompt=list(g.OWN_PROMPTS), guidance_scale=g.OWN_GUIDANCE)
        options["negative_prompt"] = [g.OWN_NEGATIVE] * len(g.PROMPTS)
    options |= dict(image=torch.from_numpy(latents), denoising_start=0.6)
    return _run(case, pipeline("refiner", "image"), "refine", options)


@torch.no_grad()
def _run(case: g.Case, pipe: Any, mode: str, options: dict[str, Any]) -> np.ndarray:
    pipe.scheduler = scheduler(case, pipe.scheduler.config)
    with _our_noise(case, pipe, mode == "refine"):
        out = pipe(**options).images
    if options["output_type"] == "pil":
        return np.stack([np.asarray(one, np.float32) / 255 for one in out])
    return np.asarray(out)


@contextlib.contextmanager
def _our_noise(case: g.Case, pipe: Any, refined: bool) -> Iterator[None]:
    """Replace every draw by that of our keys: by who asks, and for steps by the evaluation."""
    noise, evaluations = g.draws(case), 0
    # A network that fills in sees the whole image only if it starts from it.
    hidden_only = "inpainting" in case.family and case.option("strength", 1.0) == 1
    encoded = iter(("posterior", "masked")[hidden_only:])

    def count(*_: Any) -> None:
        nonlocal evaluations
        evaluations += 1

    def draw(shape: Any, *_: Any, **__: Any) -> torch.Tensor:
        asker = sys._getframe(1).f_code.co_filename
        if "schedulers" in asker:
            value = noise["step"](evaluations - 1, refined)
        elif shape[1] == 3:
            value = noise["low"]
        else:
            value = noise["prior" if "pipelines" in asker else next(encoded)]
        value = torch.from_numpy(value).permute(0, 3, 1, 2)
        assert tuple(shape) == tuple(value.shape)
        return value

    hook = pipe.unet.register_forward_hook(count)
    original = torch_utils.randn_tensor
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("diffusers.") and vars(module).get("randn_tensor") is original:
                stack.enter_context(mock.patch.object(module, "randn_tensor", draw))
        yield
    hook.remove()


def _record() -> None:
    made = {case.name: images(case).astype(np.float16) for case in g.GOLDEN}
    np.savez_compressed(GOLDEN, **made)


if __name__ == "__main__":
    _record()
