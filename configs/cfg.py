"""Classifier-Free Diffusion Guidance (Ho & Salimans 2022), https://arxiv.org/abs/2207.12598.

    python -m experiments.train --config=configs/cfg.py:imagenet64 --workdir=runs/cfg-imagenet64
    python -m experiments.sample --workdir=runs/cfg-imagenet64 --guidance=1.1

| variant | p_uncond | sampler v, T | steps | expected, FID at w (guidance 1 + w) |
|---|---|---|---|---|
| imagenet64 | 0.1 (also 0.2, 0.5) | 0.3, 256 | 400k | 1.80 at 0, 1.55 at 0.1, 12.6 at 1 |
| imagenet128 | 0.1 | 0.2, 256 (also 128, 1024) | 2.7M | 7.27 at 0, 2.43 at 0.3, 7.86 at 1 |
| fashion_mnist | 0.1 | 0.3, 64 | 30 minutes on one CPU core | docs/results |
| fashion_mnist14 | 0.1 | 0.3, 64 | 10 minutes on one CPU core | docs/results |
| digits (default) | 0.1 | 0.3, 64 | 3 minutes on two CPU cores | readable 8x8 digits |

The paper's w list: 0, 0.1, 0.2, 0.3, 0.4 (128 only), 0.5, ..., 4. Networks and hyper-parameters are
ADM's (Dhariwal & Nichol 2021) without the learned variance; the network is told 1000 u. The paper
trains eps; the small variants train v, which is as good a target at any noise and does not amplify
errors by 1/alpha at log-SNR -20.
"""

from ml_collections import ConfigDict

from configs import ddpm
from configs.base import base, select


def _recipe(config: ConfigDict, *, variance: str, steps: int) -> ConfigDict:
    config.schedule.update(name="log_snr", logsnr_min=-20.0, logsnr_max=20.0)
    config.network.update(conditional=True, time_scale=1000.0)
    config.network.update(flip_sin_to_cos=True, freq_shift=0.0)
    config.cond.drop = 0.1
    config.sample.update(sampler="ddpm", variance=variance, grid="uniform", steps=steps)
    config.sample.final = "clean"  # the last level's prediction is the result
    return config


def imagenet64() -> ConfigDict:
    config = _recipe(base(), variance="0.3", steps=256)
    config.data.update(name="image_folder", image_size=64, channels=3, num_classes=1000)
    config.data.update(batch_size=2048, flip=True, resize="halves")
    config.network.update(channels=192, multipliers=(1, 2, 3, 4), blocks=3, dropout=0.1)
    config.network.update(attention_levels=(1, 2, 3), head_channels=64, norm_eps=1e-5)
    config.network.update(scale_shift=True, resblock_updown=True, initialisation="adm")
    config.optim.update(lr=3e-4, warmup=0, clip=0.0)
    config.train.steps = 400_000
    return config


def imagenet128() -> ConfigDict:
    config = imagenet64()
    config.data.update(image_size=128, batch_size=256)
    config.network.update(channels=256, multipliers=(1, 1, 2, 3, 4), blocks=2, dropout=0.0)
    config.network.update(attention_levels=(2, 3, 4), heads=4, head_channels=0)
    config.optim.lr = 1e-4
    config.train.steps = 2_700_000
    config.sample.variance = "0.2"
    return config


def _small(config: ConfigDict) -> ConfigDict:
    config = _recipe(config, variance="0.3", steps=64)
    config.parameterization.name = "v"
    return config


def fashion_mnist() -> ConfigDict:
    config = _small(ddpm.fashion_mnist())
    config.train.update(steps=2400, minutes=30.0)
    return config


def fashion_mnist14() -> ConfigDict:
    return _small(ddpm.fashion_mnist14())


def digits() -> ConfigDict:
    return _small(ddpm.digits())


VARIANTS = {
    f.__name__: f for f in (digits, fashion_mnist, fashion_mnist14, imagenet64, imagenet128)
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
