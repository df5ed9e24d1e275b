"""Names of arguments and methods in diffusers, and what to write here in their place.

`Pipeline` refuses arguments and attributes that it does not have. Many users know diffusers, so the
message of such an error translates the name that they wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from diffjax.generate.options import RECORDS
from diffjax.types import choose, suggest

# {0} is replaced by the value that the user passed.
ARGUMENTS = {
    "num_inference_steps": "sampler={0}, or sampler=Sampling(name, steps={0})",
    "timesteps": "sampler=Sampling(name, timesteps={0})",
    "sigmas": "sampler=Sampling(name, sigmas={0})",
    "eta": "sampler=Sampling('ddim', steps, eta={0})",
    "scheduler": "sampler=Sampling(name, steps), such as 'euler'",
    "guidance_scale": "guidance={0}",
    "guidance_rescale": "guidance=Guidance(scale, rescale={0})",
    "negative_prompt": "guidance=Guidance(scale, negative={0})",
    "negative_prompt_2": "guidance=Guidance(scale, negative=Prompt(first, {0}))",
    "prompt_2": "prompt=Prompt(first, {0})",
    "prompt_embeds": "prompt=Embedding(context), such as pipe.embed([...])",
    "pooled_prompt_embeds": "prompt=Embedding(context, pooled), such as pipe.embed([...])",
    "negative_prompt_embeds": "guidance=Guidance(scale, negative=Embedding(context))",
    "negative_pooled_prompt_embeds": "guidance=Guidance(scale, negative=Embedding(...))",
    "generator": "key=SEED, a whole number, or a JAX key",
    "seed": "key={0}",
    "num_images_per_prompt": "num={0}",
    "height": "size=(height, width)",
    "width": "size=(height, width)",
    "original_size": "size=Size(height, width, original={0})",
    "target_size": "size=Size(height, width, target={0})",
    "crops_coords_top_left": "size=Size(height, width, crop={0})",
    "negative_original_size": "size=Size(height, width, negative_original={0})",
    "negative_target_size": "size=Size(height, width, negative_target={0})",
    "negative_crops_coords_top_left": "size=Size(height, width, negative_crop={0})",
    "aesthetic_score": "size=Size(height, width, aesthetic={0})",
    "negative_aesthetic_score": "size=Size(height, width, negative_aesthetic={0})",
    "init_image": "image={0}, or image=Image(pixels, strength)",
    "strength": "image=Image(pixels, strength={0})",
    "mask_image": "image=Image(pixels, mask={0})",
    "mask": "image=Image(pixels, mask={0})",
    "masked_image_latents": "image=Image(pixels, mask=mask), from which they are made",
    "padding_mask_crop": "image=Image(pixels, mask=mask, mask_padding={0})",
    "control_image": "control=[Control(net, image)]",
    "controlnet": "control=[Control(net, image)] with net = pretrained.load_model(folder)",
    "controlnet_conditioning_scale": "control=[Control(net, image, scale={0})]",
    "adapter_conditioning_scale": "control=[Control(net, image, scale={0})]",
    "adapter_conditioning_factor": "control=[Control(net, image, end={0})]",
    "control_guidance_start": "control=[Control(net, image, start={0})]",
    "control_guidance_end": "control=[Control(net, image, end={0})]",
    "guess_mode": "control=[Control(net, image, balance='guess')]",
    "control_mode": "control=[Control(net, image, kind={0})], or images with kinds",
    "denoising_end": "refiner=Refiner(refiner_pipe, start={0}), or sampler=Sampling(end={0}) with "
    "output='latent' for the base alone",
    "denoising_start": "refiner=Refiner(refiner_pipe, start={0}), or latents=those_of_the_base "
    "with sampler=Sampling(start={0})",
    "image_guidance_scale": "guidance=Guidance(scale, image={0})",
    "depth_map": "image=Image(pixels, strength, depth={0})",
    "noise_level": "image=Image(pixels, noise_level={0})",
    "pag_scale": "guidance=Guidance(scale, perturbed={0})",
    "pag_adaptive_scale": "guidance=Guidance(perturbed=PerturbedAttention(scale, adaptive={0}))",
    "pag_applied_layers": "guidance=Guidance(perturbed=PerturbedAttention(scale, layers))",
    "cross_attention_kwargs": "lora=[Lora(pipe.load_lora(path), scale)]",
    "output_type": "output={0}: 'pil', 'np' or 'latent'",
    "return_dict": "nothing: a call returns the images",
    "callback_on_step_end": "callback=function of one Progress",
    "callback_on_step_end_tensor_inputs": "callback=function of one Progress",
    "callback_steps": "callback=function of one Progress",
    "ip_adapter_image": "image_prompt=ImagePrompt(pipe.load_image_adapter(path), image, scale)",
    "ip_adapter_image_embeds": "image_prompt=ImagePrompt(adapter, image): of the picture itself",
}
# The flag of `diffjax generate` for an argument of a call; those that are not here have none, since
# they say where arrays, functions or results are.
FLAGS = {
    "num_inference_steps": "--steps",
    "timesteps": "--timesteps",
    "sigmas": "--sigmas",
    "eta": "--eta",
    "scheduler": "--sampler",
    "guidance_scale": "--guidance",
    "guidance_rescale": "--rescale",
    "negative_prompt": "--negative",
    "negative_prompt_2": "--negative_2",
    "prompt_2": "--prompt_2",
    "generator": "--seed",
    "seed": "--seed",
    "num_images_per_prompt": "--num",
    "height": "--height",
    "width": "--width",
    "original_size": "--original_size",
    "target_size": "--target_size",
    "crops_coords_top_left": "--crop",
    "negative_original_size": "--negative_original_size",
    "negative_target_size": "--negative_target_size",
    "negative_crops_coords_top_left": "--negative_crop",
    "aesthetic_score": "--aesthetic",
    "negative_aesthetic_score": "--negative_aesthetic",
    "init_image": "--init_image",
    "strength": "--strength",
    "mask_image": "--mask",
    "mask": "--mask",
    "padding_mask_crop": "--mask_padding",
    "control_image": "--control=NET:IMAGE",
    "controlnet": "--control=NET:IMAGE",
    "controlnet_conditioning_scale": "--control=NET:IMAGE:SCALE",
    "adapter_conditioning_scale": "--control=NET:IMAGE:SCALE",
    "adapter_conditioning_factor": "--control=NET:IMAGE:SCALE:0:END",
    "control_guidance_start": "--control=NET:IMAGE:SCALE:START:END",
    "control_guidance_end": "--control=NET:IMAGE:SCALE:START:END",
    "guess_mode": "--balance=guess",
    "control_mode": "--control=NET#KIND:IMAGE",
    "denoising_end": "--refiner_start",
    "denoising_start": "--refiner_start",
    "image_guidance_scale": "--image_guidance",
    "depth_map": "--depth",
    "noise_level": "--noise_level",
    "pag_scale": "--pag",
    "pag_adaptive_scale": "--pag_adaptive",
    "pag_applied_layers": "--pag_layers",
    "cross_attention_kwargs": "--lora=PATH:SCALE",
    "ip_adapter_image": "--image_prompt=ADAPTER:IMAGE:SCALE",
    "output_type": "--out",
}
METHODS = {
    "from_pretrained": "diffjax.load(folder or 'owner/name', revision=, variant=, token=)",
    "from_single_file": "diffjax.load(file, tokenizer=folder)",
    "save_pretrained": "pipe.save(folder)",
    "to": "nothing: JAX uses the accelerator that it finds, and load(..., dtype=) sets the type",
    "scheduler": "sampler=Sampling(name, steps) of a call",
    "unet": "pipe.parts.unet",
    "vae": "pipe.parts.vae",
    "tokenizer": "pipe.parts.texts",
    "text_encoder": "pipe.parts.texts",
    "encode_prompt": "pipe.embed([...])",
    "load_lora_weights": "pipe = pipe.with_lora(path), or weights = pipe.load_lora(path)",
    "fuse_lora": "pipe = pipe.with_lora(path)",
    "load_textual_inversion": "pipe = pipe.with_concept(path)",
    "enable_freeu": "freeu=FreeU(b1, b2, s1, s2) of a call",
    "disable_freeu": "freeu=None of a call",
    "set_pag_applied_layers": "guidance=Guidance(perturbed=PerturbedAttention(scale, layers))",
    "set_progress_bar_config": "callback=function of one Progress",
    "enable_attention_slicing": "nothing: there is no such option",
    "enable_xformers_memory_efficient_attention": "nothing: there is no such option",
    "enable_model_cpu_offload": "load(..., sharding=) for several devices",
    "enable_vae_slicing": "nothing: images are decoded one at a time",
    "enable_vae_tiling": "nothing: there is no such option",
    # Loading and saving.
    "from_pipe": "nothing: one pipeline does all that its model can; give image or control",
    "download": "diffjax.download('owner/name')",
    "push_to_hub": "pipe.save(folder), then hf upload owner/name folder; or diffjax export --push",
    "components": "pipe.parts",
    "register_modules": "pipe.parts._replace(...), of which diffjax.Pipeline makes a pipeline",
    "controlnet": "control=[Control(net, image)] of a call",
    "adapter": "control=[Control(adapter, image)] of a call",
    "tokenizer_2": "pipe.parts.texts",
    "text_encoder_2": "pipe.parts.texts",
    "image_encoder": "pipe.load_image_adapter(path, encoder=folder or 'owner/name/folder')",
    "safety_checker": "finish=pretrained.load_safety_checker(folder) of a call",
    "feature_extractor": "nothing: what takes images brings them to its size",
    "run_safety_checker": "finish=pretrained.load_safety_checker(folder) of a call",
    "device": "jax.devices(): JAX uses the accelerator that it finds",
    "dtype": "pipe.parts.unet.params, whose leaves have it; load(..., dtype=) sets it",
    # Adapters.
    "unload_lora_weights": "the pipeline that with_lora was called on",
    "unfuse_lora": "the pipeline that with_lora was called on",
    "set_adapters": "lora=[Lora(weights, scale), ...] of a call",
    "get_active_adapters": "lora=[Lora(weights, scale), ...] of a call",
    "get_list_adapters": "lora=[Lora(weights, scale), ...] of a call",
    "enable_lora": "lora=[Lora(weights, scale), ...] of a call",
    "disable_lora": "lora=() of a call",
    "delete_adapters": "nothing: weights of load_lora that nobody holds are freed",
    "set_lora_device": "jax.device_put(weights, device) of what pipe.load_lora returns",
    "lora_state_dict": "pretrained.open_safetensors(path)",
    "load_lora_into_unet": "weights = pipe.load_lora(path)",
    "load_lora_into_text_encoder": "pipe = pipe.with_lora(path)",
    "save_lora_weights": "pretrained.save_lora(path, adapters, scale=scale)",
    "enable_lora_hotswap": "nothing: adapters of one shape share a compiled program",
    "fused_loras": "lora=[Lora(weights, scale), ...] of a call",
    "num_fused_loras": "lora=[Lora(weights, scale), ...] of a call",
    "unload_textual_inversion": "the pipeline that with_concept was called on",
    "maybe_convert_prompt": "nothing: words of several tokens are read in prompts",
    "load_ip_adapter": "adapter = pipe.load_image_adapter('owner/name/folder/file.safetensors')",
    "set_ip_adapter_scale": "image_prompt=ImagePrompt(adapter, image, scale) of a call, one scale "
    "for all layers",
    "unload_ip_adapter": "image_prompt=() of a call",
    # Memory and speed.
    "disable_attention_slicing": "nothing: there is no such option",
    "disable_xformers_memory_efficient_attention": "nothing: there is no such option",
    "enable_sequential_cpu_offload": "load(..., sharding=) for several devices",
    "enable_group_offload": "load(..., sharding=) for several devices",
    "disable_vae_slicing": "nothing: images are decoded one at a time",
    "disable_vae_tiling": "nothing: there is no such option",
    "fuse_qkv_projections": "nothing: the compiler fuses what is worth it",
    "unfuse_qkv_projections": "nothing: the compiler fuses what is worth it",
    "upcast_vae": "nothing: where the config asks for it, the autoencoder stays in float32",
    "progress_bar": "callback=function of one Progress",
    # What a call asks for.
    "guidance_scale": "guidance=scale of a call",
    "guidance_rescale": "guidance=Guidance(scale, rescale=...) of a call",
    "clip_skip": "clip_skip=layers of a call",
    "cross_attention_kwargs": "lora=[Lora(weights, scale)] of a call",
    "denoising_end": "refiner=Refiner(refiner_pipe, start) of a call",
    "denoising_start": "refiner=Refiner(refiner_pipe, start) of a call",
    "num_timesteps": "Progress.count, in a callback",
    "interrupt": "callback=function of one Progress; returning True ends the run",
    "decode_latents": "pipe.decode(latents)",
    "prepare_latents": "latents=array of a call, or key=seed",
    "numpy_to_pil": "output='pil' of a call",
}
# Classes that people import, and what takes their place.
CLASSES = {
    "DiffusionPipeline": "diffjax.load('owner/name')",
    "AutoPipelineForText2Image": "diffjax.load('owner/name')",
    "AutoPipelineForImage2Image": "diffjax.load('owner/name'), then pipe(prompt, image=image)",
    "AutoPipelineForInpainting": "diffjax.load('owner/name'), then "
    "pipe(prompt, image=Image(pixels, mask=mask))",
    **{
        f"StableDiffusion{kind}Pipeline": f"diffjax.load('owner/name'){call}"
        for family in ("", "XL")
        for kind, call in {
            family: "",
            f"{family}Img2Img": ", then pipe(prompt, image=image)",
            f"{family}Inpaint": ", then pipe(prompt, image=Image(pixels, mask=mask))",
            f"{family}ControlNet": ", then pipe(prompt, control=Control(net, image))",
            f"{family}ControlNetImg2Img": ", then pipe(prompt, image=image, "
            "control=Control(net, hint))",
            f"{family}ControlNetInpaint": ", then pipe(prompt, image=Image(pixels, mask=mask), "
            "control=Control(net, hint))",
            f"{family}Adapter": ", then pipe(prompt, control=Control(adapter, image))",
        }.items()
    },
    "StableDiffusionUpscalePipeline": "diffjax.load('owner/name'), then pipe(prompt, image=small)",
    "StableDiffusionLatentUpscalePipeline": "diffjax.load('owner/name'), then "
    "pipe(prompt, image=small), where small may be Latents",
    "ControlNetModel": "diffjax.pretrained.load_model('owner/name')",
    "ControlNetUnionModel": "diffjax.pretrained.load_model('owner/name')",
    "StableDiffusionXLControlNetUnionPipeline": "diffjax.load('owner/name'), then "
    "pipe(prompt, control=Control(net, image, kind=number))",
    "MultiControlNetUnionModel": "control=[Control(net, image, kind=number), ...] of a call",
    "T2IAdapter": "diffjax.pretrained.load_model('owner/name')",
    "UNet2DConditionModel": "diffjax.pretrained.load_model('owner/name/unet')",
    "AutoencoderKL": "diffjax.load(..., vae='owner/name')",
    "AsymmetricAutoencoderKL": "diffjax.load(..., vae='owner/name')",
    "AutoencoderTiny": "diffjax.load(..., vae='owner/name')",
    "MultiControlNetModel": "control=[Control(net, image), ...] of a call",
    "MultiAdapter": "control=[Control(adapter, image), ...] of a call",
    **dict.fromkeys(
        (
            "ControlNetXSAdapter",
            *("StableDiffusionControlNetXSPipeline", "StableDiffusionXLControlNetXSPipeline"),
            *("StableDiffusionGLIGENPipeline", "StableDiffusionAttendAndExcitePipeline"),
            *("SemanticStableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline"),
        ),
        "not supported: diffusers has it",
    ),
}


def refuse_arguments(unknown: Mapping[str, object], known: Mapping[str, object]) -> None:
    """Raise an error if a call has arguments that do not exist.

    Args:
        unknown: the arguments that the call does not have, with their values.
        known: the names that the call has, as keys.

    Raises:
        TypeError: ``unknown`` is not empty. The message translates the names of diffusers, says
            which argument has a field of that name, and suggests the closest known name for others.
    """
    if not unknown:
        return
    messages = []
    for name, value in unknown.items():
        text = repr(value) if _is_short(value) else "..."
        if name in ARGUMENTS:
            messages.append(f"{name} of diffusers is here: {ARGUMENTS[name].format(text)}")
            continue
        if homes := [key for key, record in RECORDS.items() if name in record.__annotations__]:
            calls = [f"{key}={RECORDS[key].__name__}(..., {name}={text})" for key in homes]
            messages.append(f"{name} is not an argument of the call, but {' or '.join(calls)}")
            continue
        try:
            choose("argument", name, known)
        except ValueError as error:
            messages.append(str(error))
    raise TypeError("; ".join(messages))


def explain_attribute(name: str, known: Iterable[str] = ()) -> str:
    """Return the message of an AttributeError for a name that `Pipeline` does not have.

    Args:
        known: the names that it has, of which the closest is named.
    """
    if name in METHODS:
        return f"{name} of diffusers is here: {METHODS[name]}"
    near = suggest(name, [one for one in (*known, *METHODS) if not one.startswith("_")])
    return f"'Pipeline' object has no attribute {name!r}{near}"


class Explains(type):
    """The type of a class whose missing attributes are explained, as those of its objects are."""

    def __getattr__(cls, name: str) -> Any:
        raise AttributeError(explain_attribute(name, dir(cls)), name=name, obj=cls)


def format_tables() -> str:
    """The tables of docs/from_diffusers.md, in Markdown."""
    calls = {
        f"`{name}=`": f"{said.format('x')} | {f'`{FLAGS[name]}`' if name in FLAGS else ''}"
        for name, said in ARGUMENTS.items()
    }
    parts = {
        "Classes": ("", {f"`{name}`": said for name, said in CLASSES.items()}),
        "Arguments of a call": (" diffjax generate |", calls),
        "Methods and attributes of a pipeline": ("", {f"`{n}`": s for n, s in METHODS.items()}),
    }
    lines = []
    for title, (more, rows) in parts.items():
        rule = "|---|---|---|" if more else "|---|---|"
        lines += [f"## {title}", "", f"| diffusers | diffjax |{more}", rule]
        lines += [f"| {name} | {rows[name]} |" for name in sorted(rows)]
        lines += [""]
    return "\n".join(lines)


def _is_short(value: object) -> bool:
    plain = isinstance(value, str | int | float | tuple) or value is None
    return plain and len(repr(value)) <= 40
