"""Fine-tuning of Stable Diffusion 1.5, 2.1 and XL on a folder of images with captions.

    python -m experiments.train --config=configs/stable_diffusion.py:sd15_lora \\
        --workdir=runs/cats --config.model.path=MODEL --config.data.dir=IMAGES
    python -m experiments.export --workdir=runs/cats --out=cats
    diffjax generate --model=MODEL --lora=cats/pytorch_lora_weights.safetensors --prompt="a cat"

| variant | begins from | trained | batch, steps | state of one device |
|---|---|---|---|---|
| sd15 | SD 1.5, 512 pixels | 859,520,964 | 32, 10k | 13.8 GB |
| sd15_lora | the same | 3,188,736 | 4, 2k | 3.5 GB |
| sd15_edit | SD 1.5, 256 pixels: edits by instruction | 859,532,484 | 32, 10k | 13.8 GB |
| sd21_base | SD 2.1 base, 512 pixels | 865,910,724 | 32, 10k | 13.9 GB |
| sd21_base_lora | the same | 3,319,808 | 4, 2k | 3.5 GB |
| sd21, sd21_lora | SD 2.1, 768 pixels, v prediction | the same | the same | the same |
| sd15_inpainting | SD 1.5, or its inpainting model | 859,535,364 | 32, 10k | 13.8 GB |
| sdxl | SD XL base, 1024 pixels | 2,567,463,684 | 32, 10k | 41.1 GB |
| sdxl_lora | the same | 23,224,320 | 4, 2k | 10.6 GB |
| sd15_dreambooth | SD 1.5, with pictures of the kind | 859,520,964 | 2, 800 | 13.8 GB |
| sd15_dreambooth_lora | the same | 3,188,736 | 2, 800 | 3.5 GB |
| sdxl_dreambooth_lora | XL, the same | 23,224,320 | 2, 800 | 10.6 GB |
| sd15_word, sdxl_word | SD 1.5, XL; a word of one embedding | 768, 2,048 | 4, 3k | 3.5, 10.3 GB |
| sd15_lcm_lora, sdxl_lcm_lora | the same, for 4 steps | 12.8M, 92.9M | 4, 5k | 3.6, 11.4 GB |
| sd15_text | SD 1.5, its text encoder too | 982,581,444 | 32, 10k | 15.7 GB |
| sd15_text_lora | the same, adapters of both | 4,368,384 | 4, 2k | 3.5 GB |
| sd15_ip_adapter | SD 1.5, beside an IP-Adapter | 22,319,616 | 64, 1M | 3.8 GB |
| sd15_ip_adapter_plus | the same with a resampler | 49,087,488 | 64, 1M | 4.2 GB |
| shapes (default) | nothing: a small model of one's own | 1,665,364 | 32, 20 minutes | |
| shapes_xl | nothing, with two text encoders | 1,704,084 | 32, 20 minutes | |
| shapes_refiner | the folder that shapes_xl exports | 1,704,084 | 32, 1k | |
| shapes_inpainting | the folder that shapes exports | 1,667,164 | 32, 1k | |
| shapes_edit | the folder that shapes exports | 1,666,804 | 32, 1k | |
| shapes_lora | the folder that shapes exports | 28,224 | 32, 5 minutes | |
| shapes_dreambooth | the same | 28,224 | 32, 5 minutes | |
| shapes_word | the same | 64 | 32, 5 minutes | |
| shapes_ip_adapter | the same, and an image encoder, or random | 73,088 | 32, 10 minutes | |

The state is parameters, their average and the moments of AdamW, or of LoRA the frozen UNet and
little besides; all in float32, without activations (network.remat), autoencoder and text encoders.
LoRA is of rank 16 on the projections of all attentions. Full fine-tuning at 1e-5 with 10% of the
captions dropped and min-SNR weights (Hang et al. 2023) is customary rather than a paper's; there is
no published number to expect. docs/stable_diffusion.md has the whole story.
"""

from ml_collections import ConfigDict

from configs import autoencoder, ldm
from configs.base import base, select
from diffjax.config import make_section

CLIP = {"vocabulary": 49408, "positions": 77, "width": 3072, "layers": 12, "heads": 12}
OPEN_CLIP = {"width": 4096, "layers": 23, "heads": 16, "activation": "gelu"}
START, END = 49406, 49407  # of CLIP's tokens


# ---- the models, which configs/controlnet.py controls -------------------------------------------


def model15(*, scale: float = 0.18215) -> ConfigDict:
    """Stable Diffusion 1.5."""
    config = base()
    config.autoencoder = ConfigDict(autoencoder.kl_f8().network.to_dict())
    config.autoencoder.update(weights="", scale=scale)  # the vae folder of a diffusers model
    config.data.update(image_size=512, channels=3)
    config.network.update(channels=320, multipliers=(1, 2, 4, 4), attention_levels=(0, 1, 2))
    config.network.update(heads=8, context_dim=768, linear_projection=False, depth=(1,) * 4)
    config.network.update(flip_sin_to_cos=True, freq_shift=0.0, downsample_padding=1)
    config.network.norm_eps = 1e-5
    config.cond.update(context="clip", text=ConfigDict(CLIP), empty=(START, END, END))
    config.schedule.update(name="scaled_linear", beta_start=0.00085, beta_end=0.012)
    config.sample.update(sampler="ddim", steps=50, guidance=7.5, clip=False)
    config.sample.update(grid="leading", offset=1, final="first")  # as LDM's DDIM
    return config


def model21() -> ConfigDict:
    """Stable Diffusion 2.1 base."""
    config = model15()
    config.network.update(head_channels=64, context_dim=1024, linear_projection=True)
    config.cond.text.update(OPEN_CLIP)
    config.cond.empty = (START, END, 0)
    return config


def model_xl() -> ConfigDict:
    """Stable Diffusion XL base, with both of its text encoders."""
    config = model15(scale=0.13025)
    config.data.image_size = 1024
    config.network.update(multipliers=(1, 2, 4), attention_levels=(1, 2), head_channels=64)
    config.network.update(context_dim=2048, linear_projection=True, depth=(1, 2, 10))
    config.network.update(added_dim=2816, added_time_dim=256)
    config.cond.update(context="clip_xl", empty=())  # of which XL is told nothing: zeros
    config.cond.text.features = 768
    second = {"features": 1280, "width": 5120, "layers": 32, "heads": 20, "activation": "gelu"}
    config.cond.text_2 = ConfigDict({**CLIP, **second, "projection": 1280})
    config.sample.guidance = 5.0
    return config


# ---- fine-tuning ---------------------------------------------------------------------------------


def begun(config: ConfigDict, *, tokenizer: str = "") -> ConfigDict:
    """The same with its parts read from a model."""
    config.model = make_section("model", tokenizer=tokenizer)
    return config


def _full(config: ConfigDict) -> ConfigDict:
    begun(config)
    config.data.update(name="captioned_folder", batch_size=32)
    config.data.update(bucket_step=64, bucket_ratio=2.0)  # 0: squares
    config.cond.drop = 0.1
    config.loss.weight = "min_snr"
    config.optim.update(name="adamw", lr=1e-5, weight_decay=0.01, warmup=500, clip=1.0)
    config.ema.update(decay=0.9999, warmup=True)
    config.train.update(steps=10_000, checkpoint_every=1000, sample_every=1000)
    config.sample.update(num=4, batch_size=4)
    return config


def _lora(config: ConfigDict, *, rank: int = 16) -> ConfigDict:
    """The same with the UNet frozen but for adapters."""
    config.task = "lora"
    config.lora = make_section("lora", rank=rank, alpha=float(rank))
    config.data.batch_size = 4
    config.optim.update(lr=1e-4, weight_decay=0.0, warmup=100)
    config.ema.update(decay=0.0, warmup=False)
    config.train.update(steps=2000, checkpoint_every=500, sample_every=500)
    return config


def sd15() -> ConfigDict:
    return _full(model15())


def sd15_lora() -> ConfigDict:
    return _lora(sd15())


def _personal(config: ConfigDict, *, lr: float) -> ConfigDict:
    """The same on a few pictures of one thing, beside others of its kind (DreamBooth)."""
    config.prior = make_section("prior")
    config.data.update(batch_size=2, bucket_step=0)
    config.cond.drop = 0.0
    config.loss.weight = "simple"
    config.optim.update(lr=lr, warmup=0, weight_decay=0.01)
    config.ema.update(decay=0.0, warmup=False)
    config.train.update(steps=800, checkpoint_every=200, sample_every=200)
    return config


def sd15_dreambooth() -> ConfigDict:
    return _personal(sd15(), lr=2e-6)


def sd15_dreambooth_lora() -> ConfigDict:
    return _personal(sd15_lora(), lr=1e-4)


def sdxl_dreambooth_lora() -> ConfigDict:
    return _personal(sdxl_lora(), lr=1e-4)


def _learns_word(config: ConfigDict) -> ConfigDict:
    """The same with everything frozen but the embedding of a new word (textual inversion)."""
    config.task = "concept"
    config.concept = make_section("concept")
    del config.lora
    config.data.update(batch_size=4, bucket_step=0)
    config.cond.drop = 0.0
    config.loss.weight = "simple"
    config.optim.update(lr=5e-3, warmup=0, weight_decay=0.0)
    config.train.update(steps=3000, checkpoint_every=500, sample_every=500)
    return config


def sd15_word() -> ConfigDict:
    return _learns_word(sd15_lora())


def sdxl_word() -> ConfigDict:
    return _learns_word(sdxl_lora())


def _reads_pictures(config: ConfigDict) -> ConfigDict:
    """The same with everything frozen but an IP-Adapter (Ye et al. 2023)."""
    config.task = "ip_adapter"
    config.ip_adapter = make_section("ip_adapter")
    config.data.update(batch_size=64, bucket_step=0)
    config.cond.drop = 0.1  # 5 % of the texts, 5 % of the pictures, and 5 % of both
    config.loss.weight = "simple"
    config.optim.update(lr=1e-4, warmup=0, weight_decay=0.01)
    config.ema.update(decay=0.9999, warmup=True)
    config.train.update(steps=1_000_000, checkpoint_every=10_000, sample_every=10_000)
    return config


def sd15_ip_adapter() -> ConfigDict:
    return _reads_pictures(sd15())


def sd15_ip_adapter_plus() -> ConfigDict:
    config = sd15_ip_adapter()
    config.ip_adapter.update(kind="plus", tokens=16)
    return config


TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")


def sd15_text() -> ConfigDict:
    """The UNet and its text encoder."""
    config = sd15()
    config.cond.train_text = True
    config.optim.lr = 2e-6
    return config


def sd15_text_lora() -> ConfigDict:
    """Adapters of the UNet and of its text encoder."""
    config = sd15_lora()
    config.lora.text_targets = TEXT_LAYERS
    return config


def _distilled(config: ConfigDict) -> ConfigDict:
    """Adapters with which a few steps are enough (LCM-LoRA, Luo et al. 2023)."""
    config.task = "consistency"
    config.consistency = make_section("consistency")
    config.lora.update(rank=64, alpha=64.0)
    config.loss.weight = "simple"
    config.optim.update(lr=1e-4, warmup=500)
    config.train.update(steps=5000, checkpoint_every=500)
    config.sample.update(sampler="lcm", grid="lcm", steps=4, guidance=1.0)
    return config


def sd15_lcm_lora() -> ConfigDict:
    return _distilled(sd15_lora())


def sdxl_lcm_lora() -> ConfigDict:
    return _distilled(sdxl_lora())


def _fills_in(config: ConfigDict) -> ConfigDict:
    """The same given a mask and what is left of the image; that of 4 channels gets 5 zero ones."""
    config.cond.concat = "fill"
    return config


def sd15_inpainting() -> ConfigDict:
    return _fills_in(sd15())


def _edits(config: ConfigDict) -> ConfigDict:
    """The same given a picture and an instruction (InstructPix2Pix, Brooks et al. 2022)."""
    config.cond.concat = "edit"
    config.data.update(name="paired_folder", bucket_step=0)
    return config


def sd15_edit() -> ConfigDict:
    config = _edits(sd15())
    config.data.image_size = 256
    config.loss.weight = "simple"
    config.optim.lr = 5e-5
    return config


def sd21_base() -> ConfigDict:
    return _full(model21())


def sd21_base_lora() -> ConfigDict:
    return _lora(sd21_base())


def sd21() -> ConfigDict:
    config = sd21_base()
    config.data.image_size = 768
    config.parameterization.name = "v"
    return config


def sd21_lora() -> ConfigDict:
    return _lora(sd21())


def sdxl() -> ConfigDict:
    config = _full(model_xl())
    config.network.remat = "auto"
    return config


def sdxl_lora() -> ConfigDict:
    return _lora(sdxl())


def shapes() -> ConfigDict:
    """A small model with all the parts of a large one, which other variants begin from."""
    config = begun(ldm.shapes(), tokenizer="shapes")
    config.autoencoder.scale = 0.0  # measured, or that of the model
    del config.cond.text  # which was trained with the network
    text = {"vocabulary": 116, "positions": 20, "width": 128, "layers": 2, "heads": 4}
    config.cond.update(context="clip", text=ConfigDict(text), empty=(114, 115, 115))
    return config


def shapes_lora() -> ConfigDict:
    """The same model on pictures of one shape."""
    config = _lora(shapes(), rank=4)
    config.data.update(name="shapes_single", batch_size=32)
    config.optim.update(lr=1e-3, decay="constant")
    config.train.update(steps=1000, minutes=5.0)
    return config


def shapes_dreambooth() -> ConfigDict:
    """The same model on a few pictures of one thing, beside others that it made."""
    config = _personal(shapes_lora(), lr=1e-3)
    config.data.update(name="captioned_folder", batch_size=32)
    config.train.update(steps=400, minutes=5.0)
    return config


def shapes_word() -> ConfigDict:
    """The same model, which learns a word of a few pictures."""
    config = _learns_word(shapes_lora())
    config.data.update(name="captioned_folder", batch_size=32)
    config.optim.lr = 0.02
    config.train.update(steps=400, minutes=5.0)
    return config


def shapes_ip_adapter() -> ConfigDict:
    """The same model, which learns to read a picture beside the text."""
    config = _reads_pictures(shapes())
    config.data.update(name="shapes", batch_size=32)
    config.ip_adapter.vision.update(size=32, patch=8, features=64, width=128, layers=2, heads=4)
    config.ip_adapter.vision.projection = 64
    config.optim.update(lr=1e-3, warmup=100, decay="constant")
    config.train.update(steps=2000, minutes=10.0)
    return config


def shapes_xl() -> ConfigDict:
    """The same with two text encoders, and told the sizes of images."""
    config = shapes()
    config.network.update(added_dim=32 + 6 * 8, added_time_dim=8)
    config.cond.update(context="clip_xl", empty=())
    config.cond.text.features = 32
    config.cond.text_2 = ConfigDict(
        {**config.cond.text.to_dict(), "activation": "gelu", "projection": 32}
    )
    return config


def shapes_refiner() -> ConfigDict:
    """One that does only the last fifth of the denoising, as XL's refiner."""
    config = shapes_xl()
    config.times.share = 0.2
    config.train.update(steps=1000, minutes=10.0)
    return config


def shapes_edit() -> ConfigDict:
    """The same model, which learns to follow instructions."""
    config = _edits(shapes())
    config.train.update(steps=1000, minutes=10.0)
    return config


def shapes_inpainting() -> ConfigDict:
    config = _fills_in(shapes())
    config.train.update(steps=1000, minutes=10.0)
    return config


VARIANTS = {
    f.__name__: f
    for f in (
        *(shapes, shapes_xl, shapes_refiner, shapes_inpainting, shapes_lora),
        *(sd15, sd15_edit, shapes_edit, sd15_inpainting, sd15_lora, sd21, sd21_lora),
        *(sd21_base, sd21_base_lora, sdxl, sdxl_lora),
        *(sd15_lcm_lora, sdxl_lcm_lora, sd15_word, sdxl_word, sd15_text, sd15_text_lora),
        *(sd15_dreambooth, sd15_dreambooth_lora, sdxl_dreambooth_lora),
        *(shapes_word, shapes_dreambooth, shapes_ip_adapter),
        *(sd15_ip_adapter, sd15_ip_adapter_plus),
    )
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "shapes")
