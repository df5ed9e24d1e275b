"""Improved DDPM (Nichol & Dhariwal 2021), https://arxiv.org/abs/2102.09672.

    python -m experiments.train --config=configs/improved_ddpm.py:cifar10 --workdir=runs/iddpm

| variant | parameters | cost | expected |
|---|---|---|---|
| digits (default), digits_vlb | 0.7M | 4 minutes on two CPU cores | bits/dim below ddpm.py:digits |
| fashion_mnist14, _vlb, _simple | 0.45M | 3 minutes on one CPU core | docs/results |
| cifar10, cifar10_vlb | 52.5M | 500k steps | FID 3.19, 3.17 bits/dim; vlb: 11.47, 2.94 |
| imagenet64 | 121.1M | 1.5M steps | FID 19.2, 3.57 bits/dim; vlb: 40.1, 3.53 |
| imagenet64_cond | 273.0M | 250k steps, batch 2048 | - |

Cosine schedule with 4000 steps, learned variance and L_hybrid; the `_vlb` variants train the bound
itself with the loss-second-moment sampler. `_simple` is the same without a learned variance.
"""

from ml_collections import ConfigDict

from configs import ddpm
from configs.base import base, select


def _improve(config: ConfigDict, steps: int = 4000) -> ConfigDict:
    config.network.update(scale_shift=True, heads=4, flip_sin_to_cos=True, freq_shift=0.0)
    config.network.update(downsample_padding=1, norm_eps=1e-5, time_scale=1000 / steps)
    config.schedule.update(name="cosine", steps=steps)
    config.parameterization.learned_variance = True
    config.loss.update(name="hybrid", variance="learned")
    config.sample.update(variance="learned", grid="linspace", steps=steps)
    return config


def _vlb(config: ConfigDict) -> ConfigDict:
    config.loss.name = "vlb"
    config.times.name = "loss_second_moment"
    return config


def cifar10() -> ConfigDict:
    config = _improve(base())
    config.data.update(name="cifar10", image_size=32, channels=3, num_classes=10)
    config.network.update(blocks=3, attention_levels=(1, 2), dropout=0.3, initialisation="adm")
    config.optim.update(lr=1e-4, warmup=0, clip=0.0)
    config.train.steps = 500_000
    return config


def imagenet64() -> ConfigDict:
    config = cifar10()
    config.data.update(name="image_folder", image_size=64, num_classes=1000, resize="halves")
    config.network.update(multipliers=(1, 2, 3, 4), attention_levels=(2, 3), dropout=0.0)
    config.train.steps = 1_500_000
    return config


def imagenet64_cond() -> ConfigDict:
    config = imagenet64()
    config.network.update(channels=192, conditional=True, time_scale=1.0)
    config.loss.vlb_weight = 1 / 4000  # its flags rescale neither timesteps nor the bound
    config.data.batch_size = 2048
    config.optim.lr = 3e-4
    config.train.steps = 250_000
    return config


def digits() -> ConfigDict:
    config = _improve(ddpm.digits(), steps=1000)
    config.network.heads = 2
    return config


def fashion_mnist14() -> ConfigDict:
    config = _improve(ddpm.fashion_mnist14_small(), steps=1000)
    config.network.heads = 2
    config.train.steps = 1500
    config.sample.update(sampler="ddim", steps=20)
    config.eval.bits_images = 64
    return config


def fashion_mnist14_simple() -> ConfigDict:
    config = fashion_mnist14()
    config.parameterization.learned_variance = False
    config.loss.update(name="simple", variance="fixedsmall")
    config.sample.variance = "fixedsmall"
    return config


VARIANTS = {
    "digits": digits,
    "digits_vlb": lambda: _vlb(digits()),
    "fashion_mnist14": fashion_mnist14,
    "fashion_mnist14_vlb": lambda: _vlb(fashion_mnist14()),
    "fashion_mnist14_simple": fashion_mnist14_simple,
    "cifar10": cifar10,
    "cifar10_vlb": lambda: _vlb(cifar10()),
    "imagenet64": imagenet64,
    "imagenet64_vlb": lambda: _vlb(imagenet64()),
    "imagenet64_cond": imagenet64_cond,
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
