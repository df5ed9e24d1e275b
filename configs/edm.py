"""Elucidating the Design Space of Diffusion Models (Karras et al. 2022), arXiv:2206.00364.

    python -m experiments.train --config=configs/edm.py:cifar10 --workdir=runs/edm-cifar10
    python -m experiments.sample --workdir=runs/edm-cifar10 --sampler=heun --grid=karras --steps=18

| variant | parameters | cost | expected |
|---|---|---|---|
| cifar10 | 55,733,891 | 200M images; the paper: 2 days on 8 V100 | FID 1.97, 35 evaluations |
| cifar10_cond | 55,735,299 | the same | FID 1.79, 35 evaluations |
| cifar10_ncsnpp | 56.4M | 400,001 steps, batch 512 | the base of consistency:cifar10_cd |
| imagenet64 | 295.9M | 2500M images; the paper: 13 days on 32 A100 | FID 1.36, 511 evaluations |
| fashion_mnist | 0.69M | 30 minutes on one CPU core | docs/results |
| fashion_mnist14 | 0.70M | 10 minutes on one CPU core | docs/results |
| digits (default) | 0.70M | 3 minutes on two CPU cores | readable 8x8 digits |

CIFAR-10 uses the DDPM++ network (the paper's VP configuration), which is told the class before the
layers of the time embedding, ImageNet ADM's, which is told after them. docs/published.md lists
what differs from the release.
"""

from ml_collections import ConfigDict

from configs import ddpm, score_sde
from configs.base import base, select


def _recipe(config: ConfigDict, *, steps: int) -> ConfigDict:
    config.schedule = ConfigDict({"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0})
    config.parameterization.update(name="edm", sigma_data=0.5)
    config.loss.weight = "edm"
    config.times = ConfigDict({"name": "log_normal", "mean": -1.2, "std": 1.2})
    config.sample.update(sampler="heun", grid="karras", steps=steps, clip=False)
    return config


def _paper(*, steps: int) -> ConfigDict:
    """Pixels are summed, and the warm-up begins at 0."""
    config = _recipe(base(), steps=steps)
    config.loss.reduction = "sum"
    config.optim.lr_start = 0.0
    return config


def cifar10() -> ConfigDict:
    config = _paper(steps=18)
    config.data.update(name="cifar10", image_size=32, channels=3, num_classes=10)
    config.data.update(batch_size=512, flip=True, augment=0.12)
    score_sde.ddpmpp(config)
    config.network.update(multipliers=(2, 2, 2), dropout=0.13, augment_dim=9)
    config.network.time_scale = 1.0
    config.optim.update(lr=1e-3, warmup=10_000_000 // 512, clip=0.0)
    config.ema.half_life = 500_000
    config.train.steps = 200_000_000 // 512
    return config


def cifar10_cond() -> ConfigDict:
    config = cifar10()
    config.network.update(conditional=True, class_embedding="before")
    return config


def cifar10_ncsnpp() -> ConfigDict:
    """The base of consistency distillation (Song et al. 2023): NCSN++, without augmentation."""
    config = cifar10()
    score_sde.ncsnpp(config)
    config.network.update(multipliers=(2, 2, 2), dropout=0.13, augment_dim=0, time_scale=1.0)
    config.data.augment = 0.0
    config.ema.update(decay=0.5 ** (512 / 500_000), half_life=0)
    config.train.steps = 400_001
    return config


def imagenet64() -> ConfigDict:
    config = _paper(steps=256)
    config.data.update(name="image_folder", image_size=64, channels=3, num_classes=1000)
    config.data.resize = "lanczos"
    config.data.batch_size = 4096
    config.network.update(channels=192, multipliers=(1, 2, 3, 4), blocks=3, dropout=0.1)
    config.network.update(attention_levels=(1, 2, 3), head_channels=64, norm_eps=1e-5)
    config.network.update(scale_shift=True, resblock_updown=True, conditional=True)
    config.network.update(flip_sin_to_cos=True, freq_shift=0.0, initialisation="adm")
    config.optim.update(lr=1e-4, warmup=10_000_000 // 4096, clip=0.0)
    config.ema.half_life = 50_000_000
    config.train.steps = 2_500_000_000 // 4096
    config.sample.update(s_churn=40.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)
    return config


def fashion_mnist() -> ConfigDict:
    config = _recipe(ddpm.fashion_mnist(), steps=18)
    config.train.update(steps=2400, minutes=30.0)
    return config


def fashion_mnist14() -> ConfigDict:
    return _recipe(ddpm.fashion_mnist14(), steps=18)


def digits() -> ConfigDict:
    return _recipe(ddpm.digits(), steps=18)


VARIANTS = {
    f.__name__: f
    for f in (
        *(digits, fashion_mnist, fashion_mnist14, cifar10, cifar10_cond, cifar10_ncsnpp),
        imagenet64,
    )
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
