"""First stage of latent diffusion (Rombach et al. 2022), https://arxiv.org/abs/2112.10752.

    python -m experiments.train --config=configs/autoencoder.py:kl_f8 --workdir=runs/kl-f8 \\
        --config.data.name=image_folder --config.data.dir=IMAGES \\
        --config.loss.perceptual_weights=lpips_vgg.safetensors

| variant | latent of a 256x256 image | discriminator from step | batch | expected rFID; PSNR |
|---|---|---|---|---|
| kl_f4 | 64x64x3 | 50,001 | 10 | 0.27; 27.53 |
| kl_f8 | 32x32x4 | 50,001 | 4 | 0.90; 24.19 |
| kl_f16 | 16x16x16 | 50,001 | 6 | 0.87; 24.08 |
| kl_f32 | 8x8x64 | 50,001 | 6 | 2.04; 22.27 |
| vq_f4 | 64x64x3, 8192 codes | 0 | 8 | 0.58; 27.43 |
| vq_f4_noattn | 64x64x3, 8192 codes | 11 | 8 | 1.06; 25.21 |
| vq_f8 | 32x32x4, 16384 codes | 1 | 10 | 1.14; 23.07 |
| vq_f16 | 16x16x8, 16384 codes | 250,001 | 14 | 5.15; 20.83 |
| fashion_mnist (default) | 14x14x4 of 28x28 | 500 | 32 | docs/latent_diffusion.md |
| fashion_mnist_f4, fashion_mnist_vq | 7x7x4 | 500 | 32 | docs/latent_diffusion.md |
| shapes, shapes_vq | 8x8x4 of 32x32 | 500 | 32 | docs/latent_diffusion.md |

Batches are those of one GPU; the learning rate is 4.5e-6 times the whole batch. docs/
latent_diffusion.md says how to get the weights of LPIPS; the small variants use a classifier of
ours instead and need no download. The paper trains on OpenImages, on random crops of 256 pixels of
pictures whose shorter side is 384, and does not flip. The pull of a codebook is that of its code,
where codes follow latents with weight 0.25 and latents codes with 1, and dead codes stay.
"""

from ml_collections import ConfigDict

from configs.base import select
from diffjax.config import make

RATE = 4.5e-6  # per image of a batch


def _first_stage(name: str, multipliers: tuple[int, ...], channels: int) -> ConfigDict:
    """An autoencoder in place of a diffusion model."""
    config = make(task="autoencoder")
    config.network.update(name=name, multipliers=multipliers, latent_channels=channels)
    return config


def _paper(
    name: str, multipliers: tuple[int, ...], channels: int, batch: int, start: int, *, steps: int
) -> ConfigDict:
    config = _first_stage(name, multipliers, channels)
    config.network.initialisation = "torch"
    config.data.update(name="image_folder", image_size=256, channels=3, batch_size=batch)
    config.data.update(crop="random", crop_share=(256 / 384, 256 / 384))
    config.loss.disc_start = start
    config.train.steps = steps
    if name == "vq":
        config.loss.update(codebook_weight=0.25, commitment_weight=1.0, dead=0.0)
    lr = RATE * batch
    config.optim.update(name="adam", lr=lr, warmup=0, b1=0.5, b2=0.9, clip=0.0)
    config.optim.groups = ConfigDict({"discriminator": {"match": r"discriminator\.", "lr": lr}})
    config.ema.decay = 0.0  # the paper does not average
    return config


def kl_f8() -> ConfigDict:
    return _paper("kl", (1, 2, 4, 4), 4, 4, 50_001, steps=246_803)


def kl_f4() -> ConfigDict:
    return _paper("kl", (1, 2, 4), 3, 10, 50_001, steps=176_991)


def kl_f16() -> ConfigDict:
    config = _paper("kl", (1, 1, 2, 2, 4), 16, 6, 50_001, steps=442_998)
    config.network.attention_levels = (4,)
    return config


def kl_f32() -> ConfigDict:
    config = _paper("kl", (1, 1, 2, 2, 4, 4), 64, 6, 50_001, steps=406_763)
    config.network.attention_levels = (4, 5)
    return config


def vq_f4() -> ConfigDict:
    config = _paper("vq", (1, 2, 4), 3, 8, 0, steps=533_066)
    config.loss.disc_weight = 0.75
    return config


def vq_f4_noattn() -> ConfigDict:
    config = vq_f4()
    config.network.middle_attention = False
    config.loss.disc_start = 11
    config.train.steps = 658_131
    return config


def vq_f8() -> ConfigDict:
    config = _paper("vq", (1, 2, 2, 4), 4, 10, 1, steps=971_043)
    config.network.update(attention_levels=(3,), codes=16_384)
    config.loss.update(disc_weight=0.6, disc_layers=2)
    return config


def vq_f16() -> ConfigDict:
    config = _paper("vq", (1, 1, 2, 2, 4), 8, 14, 250_001, steps=1_101_166)
    config.network.update(attention_levels=(4,), codes=16_384)
    config.loss.update(disc_weight=0.75, disc_layers=2)
    return config


def _small(multipliers: tuple[int, ...], channels: int, name: str = "kl") -> ConfigDict:
    config = _first_stage(name, multipliers, channels)
    config.network.update(channels=16, blocks=1, norm_groups=4, middle_attention=False, codes=256)
    # The classifier's distances are ten times those of pixels; LPIPS is as large as they are.
    config.loss.update(perceptual="classifier", perceptual_weight=0.1, kl_weight=1e-4)
    config.loss.update(disc_start=500, disc_channels=16, disc_layers=2, disc_weight=0.25)
    config.optim.update(lr=1e-3, warmup=100, decay="cosine", lr_end=0.05, b1=0.5, b2=0.9, clip=0.0)
    config.optim.groups = ConfigDict({"discriminator": {"match": r"discriminator\.", "lr": 2e-4}})
    config.ema.update(decay=0.999, warmup=True)
    config.train.update(steps=1200, minutes=20.0, log_every=50)
    config.train.update(checkpoint_every=500, sample_every=500)
    return config


def fashion_mnist() -> ConfigDict:
    config = _small((1, 2), 4)
    config.data.update(name="fashion_mnist", image_size=28, channels=1, batch_size=32)
    config.eval.update(num=5000, features="fashion_mnist")
    return config


def fashion_mnist_f4() -> ConfigDict:
    config = fashion_mnist()
    config.network.multipliers = (1, 2, 2)
    return config


def fashion_mnist_vq() -> ConfigDict:
    config = fashion_mnist_f4()
    config.network.name = "vq"
    return config


def shapes() -> ConfigDict:
    config = _small((1, 2, 2), 4)
    config.data.update(name="shapes", image_size=32, channels=3, batch_size=32)
    config.eval.num = 5000
    config.loss.perceptual = "none"  # or a classifier: see docs/latent_diffusion.md
    return config


def shapes_vq() -> ConfigDict:
    config = shapes()
    config.network.name = "vq"
    return config


VARIANTS = {
    f.__name__: f
    for f in (
        *(fashion_mnist, fashion_mnist_f4, fashion_mnist_vq, shapes, shapes_vq),
        *(kl_f4, kl_f8, kl_f16, kl_f32, vq_f4, vq_f4_noattn, vq_f8, vq_f16),
    )
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "fashion_mnist")
