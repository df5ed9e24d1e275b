"""Whole generations that are compared with diffusers: models in small, and what is asked of them.

Nothing here needs torch; generate_record.py has the other side. Weights are `cases.random_state`;
all noise is that of our keys.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers as hf

from diffjax import generate
from diffjax.pretrained import configs, tokenizers
from diffjax.pretrained.components import Components, make_manifest
from diffjax.pretrained.models import Component
from diffjax.pretrained.prompts import TextEncoder
from diffjax.pretrained.state_dict import from_state_dict, list_state_shapes
from tests.parity import cases, sd_cases
from tests.pretrained import words

LENGTH = 12  # tokens of a prompt
VOCABULARY = words.vocabulary()
SIZE = 16  # of the images
KEY = 5
PROMPTS = ("a red cat", "the dog and a cat !")
SECONDS = ("the cat", "a red dog !")
NEGATIVE = "red"
CONTROL_SCALES = (0.7, 0.4)
# What a refiner is told, in cases where it has texts of its own.
OWN_PROMPTS = ("the cat !", "a dog")
OWN_NEGATIVE, OWN_GUIDANCE = "dog", 2.0
PERTURBED = ("down_blocks.0", "up_blocks.1.attentions.1")
FREEU = generate.FreeU(b1=1.5, b2=1.6, s1=0.9, s2=0.2)


def _text(name: str, **options: Any) -> dict[str, Any]:
    return dict(
        architectures=[name],
        model_type="clip_text_model",
        vocab_size=len(VOCABULARY),
        max_position_embeddings=LENGTH,
        hidden_size=6,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=6,
        bos_token_id=len(VOCABULARY) - 2,
        eos_token_id=len(VOCABULARY) - 1,
        pad_token_id=len(VOCABULARY) - 1,
        **options,
    )


CLIP = _text("CLIPTextModel", hidden_act="quick_gelu")
OPEN_CLIP = _text("CLIPTextModel", hidden_act="gelu")
PROJECTED = _text("CLIPTextModelWithProjection", hidden_act="gelu")
VAE = dict(
    _class_name="AutoencoderKL",
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    block_out_channels=[4, 8],
    layers_per_block=1,
    norm_num_groups=2,
    down_block_types=["DownEncoderBlock2D"] * 2,
    up_block_types=["UpDecoderBlock2D"] * 2,
    act_fn="silu",
    sample_size=SIZE,
    scaling_factor=0.3,
)
SCHEDULER = dict(
    _class_name="DDIMScheduler",
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.004,  # not .012: an untrained network sees no noise, and 1 / alpha would grow
    timestep_spacing="leading",
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=False,
    prediction_type="epsilon",
)


LOW_RES = {
    **SCHEDULER,
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
}


def _unet(name: str, context: int, **options: Any) -> dict[str, Any]:
    return {**sd_cases.UNETS[name], "cross_attention_dim": context, **options}


_TWO_LEVELS: dict[str, Any] = dict(
    block_out_channels=[8, 16],
    attention_head_dim=[1, 2],
    transformer_layers_per_block=[1, 2],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
)


# Networks, and what differs in the scheduler.
FAMILIES: dict[str, dict[str, Any]] = {
    "sd1": dict(unet=_unet("sd1", 6), text_encoder=CLIP),
    "sd1-inpainting": dict(unet=_unet("sd1-inpainting", 6), text_encoder=CLIP),
    "sd2": dict(unet=_unet("sd2", 6), text_encoder=OPEN_CLIP, prediction="v_prediction"),
    "xl": dict(unet=_unet("xl", 12, **_TWO_LEVELS), text_encoder=CLIP, text_encoder_2=PROJECTED),
    "lcm": dict(unet=_unet("guided", 6), text_encoder=CLIP),
    "edit": dict(unet={**_unet("sd1", 6), "in_channels": 8}, text_encoder=CLIP),
    "depth": dict(unet={**_unet("sd1", 6), "in_channels": 5}, text_encoder=OPEN_CLIP),
    "upscale": dict(
        unet=_unet("upscaler", 6, num_class_embeds=300, encoder_hid_dim=None),
        text_encoder=CLIP,
        vae={**VAE, "scaling_factor": 0.08333},  # diffusers changes any other
    ),
    "double": dict(
        unet={**sd_cases.K_UNET, "cross_attention_dim": 6},
        text_encoder=CLIP,
        prediction="original_sample",
    ),
    "distilled": dict(unet=_unet("distilled", 6), text_encoder=CLIP),
    "refiner": dict(unet=_unet("refiner", 6, **_TWO_LEVELS), text_encoder_2=PROJECTED),
}


# Ways up that a ControlNet does not have.
_WAY_UP = ("out_channels", "up_block_types", "sample_size")
CONTROLS = {
    family: {key: v for key, v in FAMILIES[family]["unet"].items() if key not in _WAY_UP}
    | dict(_class_name="ControlNetModel", conditioning_embedding_out_channels=[4, 6])
    for family in ("sd1", "xl")
}
CONTROLS |= {
    f"{family}-pooled": {**CONTROLS[family], "global_pool_conditions": True}
    for family in ("sd1", "xl")
}
CONTROLS["xl-union"] = CONTROLS["xl"] | dict(
    _class_name="ControlNetUnionModel",
    num_control_type=5,
    num_trans_channel=8,
    num_proj_channel=8,
    num_trans_head=2,
)
CONTROLLED = ("control", "pooled", "union")
# Kinds of hints of a ControlNet that reads several.
UNITED = (3, 1)


def _adapter(kind: str, factor: int) -> dict[str, Any]:
    return dict(
        _class_name="T2IAdapter",
        channels=[8, 16],
        num_res_blocks=1,
        downscale_factor=factor,
        adapter_type=kind,
    )


ADAPTERS = {"sd1": _adapter("full_adapter", 2), "xl": _adapter("full_adapter_xl", 4)}


class Case(NamedTuple):
    """One generation.

    Attributes:
        sampler: of `generate.SAMPLERS`, with ``karras`` after a blank.
        family: of `FAMILIES`.
        mode: ``text``, ``image``, ``mask``, ``refined``, ``handed`` (the same in two calls),
            ``control``, ``pooled``, ``union``, ``adapter``, ``edit``, ``depth``, ``upscale``, or
            ``double``.
        options: what else is asked for, see `request`.
    """

    sampler: str
    family: str = "sd1"
    mode: str = "text"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Unique among the cases."""
        rest = [f"{key}={value}" for key, value in self.options]
        return "-".join([self.family, self.mode, self.sampler.replace(" ", "-"), *rest])

    def option(self, name: str, default: Any) -> Any:
        """A value of ``options``."""
        return dict(self.options).get(name, default)


SIX = ("ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m karras", "unipc")
OTHERS = ("pndm", "lms", "dpmpp_2s", "deis", "lcm")
CASES = [
    *(Case(sampler) for sampler in SIX + OTHERS),
    *(Case(sampler, "sd2") for sampler in SIX),
    *(Case(sampler, "xl") for sampler in SIX),
    *(Case(sampler, mode="image") for sampler in SIX),
    *(Case(sampler, "sd2", "image") for sampler in SIX),
    *(Case(sampler, "xl", "image") for sampler in SIX),
    *(Case(sampler, "refiner", "image") for sampler in SIX),
    *(Case(sampler, mode="mask") for sampler in SIX),
    *(Case(sampler, "sd1-inpainting", "mask") for sampler in SIX),
    *(Case(sampler, "xl", "refined") for sampler in SIX),
    Case("ddim", options=(("eta", 0.7),)),
    Case("euler", options=(("grid", "trailing"),)),
    Case("euler karras"),
    Case("dpmpp_2m_sde"),
    Case("ddim", options=(("rescale", 0.7),)),
    Case("ddim", "sd2", options=(("rescale", 0.7),)),
    Case("ddim", options=(("guidance", 1.0),)),
    Case("ddim", options=(("negative", NEGATIVE),)),
    Case("ddim", "xl", options=(("negative", NEGATIVE),)),
    Case("ddim", "xl", options=(("negative", ""),)),
    Case("ddim", options=(("clip_skip", 1),)),
    Case("ddim", "xl", options=(("clip_skip", 1), ("negative", NEGATIVE))),
    Case("ddim", "xl", options=(("seconds", SECONDS), ("negative", NEGATIVE))),
    Case("euler", "xl", "refined", options=(("seconds", SECONDS),)),
    Case("ddim", options=(("num", 2),)),
    Case("ddim", "xl", options=(("crop", (2, 4)), ("original", (20, 24)))),
    Case("ddim", mode="mask", options=(("strength", 0.6),)),
    Case("euler", "sd1-inpainting", "mask", options=(("strength", 0.6),)),
    Case("ddim", mode="image", options=(("strength", 1.0),)),
    Case("euler", mode="control"),
    # Latents of 9, halved to 5; control images are resized.
    Case("euler", mode="control", options=(("size", 18),)),
    Case("euler", "xl", "control", options=(("size", 18),)),
    Case("heun", mode="control", options=(("end", 0.6),)),
    Case("ddim", mode="control", options=(("balance", "guess"),)),
    Case("euler", "xl", "control", options=(("start", 0.3),)),
    Case("ddim", mode="pooled"),
    # Where they pool, unite, or stand beside an image or a mask.
    Case("ddim", "xl", "pooled"),
    *(
        Case("euler", family, mode, (("from", start), *more))
        for family, mode, start, more in (
            *(("sd1", "control", start, ()) for start in ("image", "mask")),
            *(("xl", "control", start, ()) for start in ("image", "mask")),
            ("xl", "control", "mask", (("strength", 0.6), ("balance", "guess"))),
            ("xl", "pooled", "mask", ()),
            ("sd1-inpainting", "control", "mask", ()),
            *(("xl", "union", start, ()) for start in ("image", "mask")),
        )
    ),
    *(Case("euler", "xl", "union", (("kinds", count),)) for count in (1, 2)),
    # Their guess mode fails here; outside of its window a union of theirs still adds residuals.
    Case("ddim", "xl", "union", (("kinds", 1), ("end", 0.6))),
    Case("heun", "xl", "union", (("kinds", "apart"), ("start", 0.3))),
    # Exact lists of steps.
    Case("euler", options=(("timesteps", (990, 700, 411, 200, 30)),)),
    Case("heun", options=(("timesteps", (990, 700, 411, 200, 30)),)),
    Case("euler", mode="image", options=(("timesteps", (990, 700, 411, 200, 30)),)),
    Case("dpmpp_2m", "xl", options=(("timesteps", (990, 700, 411, 200, 30)),)),
    Case("lcm", options=(("timesteps", (999, 759, 499)),)),
    Case("euler", options=(("sigmas", (3.4, 2.0, 1.1, 0.4, 0.0)),)),
    Case("euler", "xl", options=(("sigmas", (3.4, 2.0, 1.1, 0.4, 0.1)),)),
    # Guidance as an embedding; distilled networks.
    Case("lcm", "lcm"),
    Case("ddim", "lcm", options=(("guidance", 1.0), ("negative", NEGATIVE))),
    Case("lcm", "lcm", "image"),
    Case("euler", "distilled"),
    # Edits by instruction, depth, and upscaling.
    Case("euler", "edit", "edit"),
    Case("ddim", "edit", "edit", (("image", 2.0), ("negative", NEGATIVE))),
    Case("euler", "edit", "edit", (("guidance", 1.0),)),
    Case("ddim", "depth", "depth"),
    Case("euler", "depth", "depth", (("strength", 1.0),)),
    Case("ddim", "upscale", "upscale"),
    Case("euler", "upscale", "upscale", (("level", 250), ("negative", NEGATIVE))),
    Case("euler", "double", "double"),
    Case("euler karras", "double", "double", (("guidance", 1.0), ("negative", NEGATIVE))),
    Case("euler", "double", "double", (("guidance", 0.0),)),
    Case("euler", "double", "double", (("latents", True), ("negative", NEGATIVE))),
    # A base alone, and a refiner with its own texts.
    *(Case(sampler, "xl", "refined", (("own", True),)) for sampler in ("euler", "ddim")),
    *(Case(sampler, "xl", "handed", (("own", True),)) for sampler in ("euler", "heun", "ddim")),
    *(Case("ddim", family, "mask", (("padding", 1),)) for family in ("sd1", "sd1-inpainting")),
    Case("euler", "xl", "mask", (("padding", 2), ("strength", 0.9))),
    # Perturbed attention and FreeU.
    Case("ddim", options=(("pag", 2.0),)),
    Case("ddim", options=(("pag", 2.0), ("guidance", 1.0))),
    Case("euler", options=(("pag", 2.0), ("layers", PERTURBED))),
    Case("ddim", options=(("pag", 2.0), ("rescale", 0.7), ("adaptive", 0.003))),
    Case("euler", "xl", options=(("pag", 2.0), ("negative", NEGATIVE))),
    Case("euler", mode="image", options=(("pag", 2.0),)),
    Case("euler", mode="control", options=(("pag", 2.0),)),
    Case("euler", options=(("freeu", True),)),
    Case("euler", "xl", options=(("freeu", True), ("size", 24))),
    Case("ddim", mode="control", options=(("freeu", True), ("pag", 1.5))),
    Case("euler", mode="adapter"),
    Case("heun", mode="adapter", options=(("guidance", 1.0),)),
    Case("euler", "xl", "adapter", options=(("end", 0.6),)),
]
GOLDEN = [
    Case("euler_ancestral"),
    Case("dpmpp_2m karras", "sd2"),
    Case("euler", "sd1-inpainting", "mask"),
    Case("ddim", mode="mask"),
    Case("euler", "xl", "refined"),
    Case("lcm", "lcm"),
    Case("ddim", "edit", "edit", (("image", 2.0), ("negative", NEGATIVE))),
    Case("ddim", "depth", "depth"),
    Case("ddim", "upscale", "upscale"),
    Case("euler", "double", "double"),
    Case("euler", options=(("sigmas", (3.4, 2.0, 1.1, 0.4, 0.0)),)),
    Case("euler", "xl", "handed", (("own", True),)),
    Case("ddim", mode="control", options=(("freeu", True), ("pag", 1.5))),
]


# ---- what is given ----------------------------------------------------------------------------


def picture() -> np.ndarray:
    """Image (SIZE, SIZE, 3), uint8: smooth, and different everywhere."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    return (255 * np.stack([x, y, (x + y) / 2], -1)).astype(np.uint8)


def small_picture() -> np.ndarray:
    """Image (SIZE / 2, SIZE / 2, 3), uint8: to be enlarged."""
    return picture()[::2, ::2].copy()


def small_latents() -> np.ndarray:
    """Latents (SIZE / 4, SIZE / 4, 4) of an image to be enlarged."""
    return np.random.RandomState(3).standard_normal((SIZE // 4, SIZE // 4, 4)).astype("f4")


def mask() -> np.ndarray:
    """Mask (SIZE, SIZE), uint8: odd borders, so that it matters how it is shrunk."""
    out = np.zeros((SIZE, SIZE), np.uint8)
    out[3:11, 5:12] = 255
    return out


def depth() -> np.ndarray:
    """Depths (SIZE - 3, SIZE + 5), of another size than the latents."""
    y, x = np.mgrid[: SIZE - 3, : SIZE + 5]
    return np.sin(0.5 * x) + 0.1 * y.astype(np.float32) ** 2


def hints() -> list[np.ndarray]:
    """Control images of two networks."""
    return [picture(), picture()[::-1].copy()]


def state(name: str, shapes: Any) -> dict[str, np.ndarray]:
    """Weights of a network."""
    return cases.random_state(shapes, seed=len(name))


def size(case: Case) -> int:
    """Side of the images."""
    return case.option("size", SIZE)


def prompts(case: Case) -> list[str]:
    """The texts; diffusers crops one image only."""
    return list(PROMPTS[:1] if case.option("padding", None) else PROMPTS)


def steps(case: Case) -> int:
    """Number of steps."""
    return case.option("steps", 6 if case.mode in ("text", "image") else 8)


# ---- our side ---------------------------------------------------------------------------------


def _model(name: str, config: dict[str, Any]) -> Component:
    net = configs.build(config)
    like = configs.shapes(net, config)
    return Component(net, from_state_dict(state(name, list_state_shapes(like)), like), config)


def tokenizer(pad: str) -> tokenizers.Tokenizer:
    """The tokenizer of tests/pretrained/words.py."""
    backend: hf.Tokenizer = tokenizers.build(VOCABULARY, words.MERGES)
    backend.add_special_tokens(list(dict.fromkeys([*words.SPECIAL, pad])))
    start, end = (VOCABULARY[token] for token in words.SPECIAL)
    return tokenizers.Tokenizer(backend, LENGTH, start, end, VOCABULARY[pad])


def components(family: str) -> Components:
    """A model in small."""
    given = dict(FAMILIES[family])
    scheduler = {**SCHEDULER, "prediction_type": given.pop("prediction", "epsilon")}
    models = {name: _model(name, config) for name, config in {"vae": VAE, **given}.items()}
    texts = {}
    for name in ("text_encoder", "text_encoder_2"):
        if name in models:
            pad = words.SPECIAL[1] if given[name] is CLIP else "!"
            texts[name] = TextEncoder(tokenizer(pad), models[name])
    low_res = LOW_RES if family == "upscale" else None
    parts = Components(models["unet"], models["vae"], texts, scheduler, {}, low_res)
    return parts._replace(manifest=make_manifest(parts))


def control_name(mode: str, family: str) -> str:
    """Of ControlNets for a family, in `CONTROLS`."""
    family = family.removesuffix("-inpainting")
    return family if mode in ("control", "adapter") else f"{family}-{mode}"


def starts_from(case: Case) -> str:
    """``image`` or ``mask`` if a generation starts from an image, else empty."""
    return case.mode if case.mode in ("image", "mask") else case.option("from", "")


@functools.cache
def controls(name: str) -> list[Component]:
    """Two ControlNets in small, with the same weights."""
    return [_model("controlnet", CONTROLS[name])] * 2


@functools.cache
def adapters(family: str) -> list[Component]:
    """Two T2I-Adapters in small, with the same weights."""
    return [_model("adapter", ADAPTERS[family])] * 2


@functools.cache
def pipeline(family: str) -> generate.Pipeline:
    """A pipeline in small."""
    return generate.Pipeline(components(family))


def request(case: Case) -> generate.Request:
    """What is asked for."""
    name, _, grid = case.sampler.partition(" ")
    grid = grid or case.option("grid", None)
    image = None
    if start := starts_from(case):
        strength = case.option("strength", 0.7 if start == "image" else 1.0)
        filled = mask() if start == "mask" else None
        image = generate.Image(picture(), strength, filled, case.option("padding", None))
    if case.mode == "edit":
        image = generate.Image(picture())
    if case.mode == "depth":
        image = generate.Image(picture(), case.option("strength", 0.7), depth=depth())
    if case.mode == "upscale":
        image = generate.Image(small_picture(), noise_level=case.option("level", None))
    if case.mode == "double":
        latents = case.option("latents", False)
        image = generate.Image(
            generate.Latents(small_latents()) if latents else small_picture(),
        )
    refiner = None
    if case.mode == "refined":
        own = case.option("own", False)
        told = (list(OWN_PROMPTS), generate.Guidance(OWN_GUIDANCE, OWN_NEGATIVE)) if own else ()
        refiner = generate.Refiner(pipeline("refiner"), 0.6, *told)
    control = []
    if case.mode in (*CONTROLLED, "adapter"):
        nets = (adapters if case.mode == "adapter" else controls)(
            control_name(case.mode, case.family)
        )
        window = case.option("start", 0.0), case.option("end", 1.0)
        control = [
            generate.Control(net, hint, scale, *window, case.option("balance", "balanced"))
            for net, hint, scale in zip(nets, hints(), CONTROL_SCALES, strict=True)
        ]
    if case.mode == "union":
        control = [one._replace(kind=kind) for one, kind in zip(control, UNITED, strict=True)]
        if (count := case.option("kinds", 1)) != "apart":
            together = dict(image=hints()[:count], kind=UNITED[:count])
            control = [control[0]._replace(**together)]
    texts: list[Any] = prompts(case)
    negative = case.option("negative", None)
    if seconds := case.option("seconds", None):  # what the second encoder is told
        texts = [generate.Prompt(*both) for both in zip(texts, seconds, strict=True)]
        negative = negative and generate.Prompt(negative, seconds[0])
    return generate.Request(
        texts,
        key=KEY,
        sampler=generate.Sampling(
            name,
            steps(case),
            grid,
            eta=case.option("eta", None),
            timesteps=case.option("timesteps", None),
            sigmas=case.option("sigmas", None),
        ),
        guidance=generate.Guidance(
            case.option("guidance", 3.0),
            negative,
            case.option("rescale", 0.0),
            perturbed=_perturbed(case),
            image=case.option("image", None),
        ),
        image=image,
        refiner=refiner,
        control=control,
        size=generate.Size(
            *((0, 0) if case.mode in ("edit", "upscale", "double") else (size(case), size(case))),
            original=case.option("original", None),
            crop=case.option("crop", (0, 0)),
        ),
        num=case.option("num", 1),
        clip_skip=case.option("clip_skip", 0),
        freeu=FREEU if case.option("freeu", False) else None,
    )


def _perturbed(case: Case) -> generate.PerturbedAttention | None:
    scale = case.option("pag", None)
    layers, adaptive = case.option("layers", ("mid_block",)), case.option("adaptive", 0.0)
    return None if scale is None else generate.PerturbedAttention(scale, layers, adaptive)


def ours(case: Case) -> np.ndarray:
    """Images (B, SIZE, SIZE, 3) in [0, 1]."""
    asked = request(case)
    if case.mode == "handed":
        return _handed(asked)
    fields = {name: getattr(asked, name) for name in asked.__dataclass_fields__}
    return pipeline(case.family)(fields.pop("prompt"), **fields, output="np")


def _handed(asked: generate.Request) -> np.ndarray:
    """The images of a base and its refiner, called one after the other."""
    options = dict(key=asked.key, size=asked.size)
    latents = pipeline("xl")(
        asked.prompt,
        sampler=asked.sampler._replace(end=0.6),
        guidance=asked.guidance,
        output="latent",
        **options,
    )
    return pipeline("refiner")(
        list(OWN_PROMPTS),
        sampler=asked.sampler._replace(start=0.6),
        guidance=generate.Guidance(OWN_GUIDANCE, OWN_NEGATIVE),
        latents=latents,
        output="np",
        **options,
    )


def draws(case: Case) -> dict[str, Any]:
    """The noise of our keys as (B, h, w, 4) arrays, by what it is for; ``step`` is a function."""
    from diffjax.generate import program
    from diffjax.generate.keys import make_keys
    from diffjax.generate.scene import LOW, MASKED, POSTERIOR, PRIOR
    from diffjax.generate.stages import CONTINUED

    count = len(prompts(case)) * case.option("num", 1)
    keys, shape = make_keys(KEY, count), (size(case) // 2, size(case) // 2, 4)
    encoded = (*(side // 2 for side in shape[:2]), 4) if case.mode == "double" else shape
    second = program.fold_keys(keys, CONTINUED)

    @functools.partial(jax.jit, static_argnums=1)
    def step(i: Any, refined: bool = False) -> Any:
        from diffjax.samplers import image_noise

        return image_noise(second if refined else keys, shape)(i)

    return {
        "prior": np.asarray(program.draw_noise(keys, shape, PRIOR)),
        "posterior": np.asarray(program.draw_noise(keys, encoded, POSTERIOR)),
        "masked": np.asarray(program.draw_noise(keys, shape, MASKED)),
        "low": np.asarray(program.draw_noise(keys, (*shape[:2], 3), LOW)),
        "step": lambda i, refined=False: np.asarray(step(i, refined)),
    }
