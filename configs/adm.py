"""Diffusion Models Beat GANs (Dhariwal & Nichol 2021), https://arxiv.org/abs/2105.05233.

    python -m experiments.train --config=configs/adm.py:imagenet64 --workdir=runs/adm
    python -m experiments.train --config=configs/adm.py:imagenet64_classifier --workdir=runs/judge
    python -m experiments.export --workdir=runs/judge --out=judge.safetensors
    python -m experiments.sample --workdir=runs/adm --config.sample.classifier=judge.safetensors \\
        --guidance=1

| variant | parameters | cost | expected, 250 steps |
|---|---|---|---|
| imagenet64 (default) | 295.9M | 540k steps, batch 2048 | FID 2.07 |
| imagenet128 | 421.5M | 4.36M steps, batch 256 | FID 5.91; guided with scale 0.5: 2.97 |
| imagenet256 | 553.8M | 1.98M steps, batch 256 | FID 10.94; guided with scale 1: 4.59 |
| imagenet512 | 559.0M | 1.94M steps, batch 256 | FID 23.24; guided with scale 4: 7.72 |
| imagenet64_classifier | 65M | 300k steps, batch 1024 | - |
| imagenet128_classifier | 43M | 300k steps, batch 1024 | - |
| imagenet256_classifier | 54M | 500k steps, batch 256 | - |
| imagenet512_classifier | 54M | 500k steps, batch 256 | - |
| fashion_mnist14_classifier | 0.4M | 5 minutes on one CPU core | docs/results |
| digits_classifier | 0.3M | 1 minute on two CPU cores | - |

Pictures are ImageNet's in a folder, --config.data.dir, whose sub-folders are the classes.
The networks of both kinds learn from the same noise; the classifier is the way down of a UNet. The
last two guide the models of configs/cfg.py, whose schedule they share.
"""

from ml_collections import ConfigDict

from configs import cfg
from configs.base import base, select


def _adm(size: int, *, multipliers: tuple[float, ...], blocks: int, schedule: str) -> ConfigDict:
    """Attention at 32, 16 and 8 pixels."""
    config = base()
    config.data.update(name="image_folder", image_size=size, channels=3, num_classes=1000)
    config.data.update(flip=True, resize="halves")
    levels = tuple(i for i in range(len(multipliers)) if size >> i in (32, 16, 8))
    config.network.update(channels=256, multipliers=multipliers, blocks=blocks)
    config.network.update(attention_levels=levels, head_channels=64, norm_eps=1e-5)
    config.network.update(scale_shift=True, resblock_updown=True, conditional=True)
    config.network.update(flip_sin_to_cos=True, freq_shift=0.0, initialisation="adm")
    config.schedule.name = schedule
    config.parameterization.learned_variance = True
    config.loss.update(name="hybrid", variance="learned")
    config.sample.update(variance="learned", grid="linspace", steps=250)
    config.optim.update(lr=1e-4, warmup=0, clip=0.0)
    config.data.batch_size = 256
    return config


def imagenet64() -> ConfigDict:
    config = _adm(64, multipliers=(1, 2, 3, 4), blocks=3, schedule="cosine")
    config.network.update(channels=192, dropout=0.1)
    config.data.batch_size = 2048
    config.optim.lr = 3e-4
    config.train.steps = 540_000
    return config


def imagenet128() -> ConfigDict:
    config = _adm(128, multipliers=(1, 1, 2, 3, 4), blocks=2, schedule="linear")
    config.network.update(heads=4, head_channels=0)
    config.train.steps = 4_360_000
    return config


def imagenet256() -> ConfigDict:
    config = _adm(256, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, schedule="linear")
    config.train.steps = 1_980_000
    return config


def imagenet512() -> ConfigDict:
    config = _adm(512, multipliers=(0.5, 1, 1, 2, 2, 4, 4), blocks=2, schedule="linear")
    config.train.steps = 1_940_000
    return config


def _classifier(config: ConfigDict, *, decay: float) -> ConfigDict:
    config.task = "classifier"
    config.network.update(conditional=False, dropout=0.0, heads=1)
    config.optim.update(name="adamw", weight_decay=decay)
    return config


def _of_imagenet(config: ConfigDict, *, decay: float) -> ConfigDict:
    """Random crops of 0.8 to 1 of the pictures, a rate that falls to 0, and no average."""
    _classifier(config, decay=decay)
    config.network.head = "direct"
    config.data.update(crop="random_after", crop_share=(0.8, 1.0))
    config.optim.decay = "linear"
    config.ema.decay = 0.0
    return config


def imagenet64_classifier() -> ConfigDict:
    config = _of_imagenet(imagenet64(), decay=0.2)
    config.network.update(channels=128, blocks=4)
    config.data.batch_size = 1024
    config.optim.lr = 6e-4
    config.train.steps = 300_000
    return config


def imagenet128_classifier() -> ConfigDict:
    config = _of_imagenet(imagenet128(), decay=0.05)
    config.network.update(channels=128, head_channels=64)
    config.data.batch_size = 1024
    config.optim.lr = 6e-4
    config.train.steps = 300_000
    return config


def imagenet256_classifier() -> ConfigDict:
    config = _of_imagenet(imagenet256(), decay=0.05)
    config.network.channels = 128
    config.optim.lr = 3e-4
    config.train.steps = 500_000
    return config


def imagenet512_classifier() -> ConfigDict:
    config = _of_imagenet(imagenet512(), decay=0.05)
    config.network.channels = 128
    config.optim.lr = 3e-4
    config.train.steps = 500_000
    return config


def fashion_mnist14_classifier() -> ConfigDict:
    config = _classifier(cfg.fashion_mnist14(), decay=0.05)
    config.train.steps = 1500
    return config


def digits_classifier() -> ConfigDict:
    config = _classifier(cfg.digits(), decay=0.05)
    config.train.steps = 400
    return config


VARIANTS = {
    f.__name__: f
    for f in (
        imagenet64,
        imagenet128,
        imagenet256,
        imagenet512,
        imagenet64_classifier,
        imagenet128_classifier,
        imagenet256_classifier,
        imagenet512_classifier,
        fashion_mnist14_classifier,
        digits_classifier,
    )
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "imagenet64")
