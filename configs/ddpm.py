"""Denoising Diffusion Probabilistic Models (Ho et al. 2020), https://arxiv.org/abs/2006.11239.

    python -m experiments.train --config=configs/ddpm.py:cifar10 --workdir=runs/ddpm-cifar10

| variant | parameters | cost | expected |
|---|---|---|---|
| digits (default) | 0.70M | 3 minutes on two CPU cores | readable 8x8 digits |
| fashion_mnist | 0.69M | 45 minutes on one CPU core | docs/results/ddpm.md |
| fashion_mnist14 | 0.70M | 10 minutes on one CPU core | the same pictures, 2x2 pixels averaged |
| fashion_mnist14_small | 0.39M | 2 minutes on one CPU core | docs/results/ablation.md |
| cifar10 | 35,746,307 | 800k steps, 10.6 h on TPU v3-8 | FID 3.17 (test set: 5.24), IS 9.46 |
| celeba_hq | 113,673,219 | 500k steps, batch 64 | no figure in the paper |
| lsun_bedroom | 113,673,219 | 2.4M steps | FID 6.36 |
| lsun_church | 113,673,219 | 1.2M steps | FID 7.89 |
| lsun_cat | 113,673,219 | 1.8M steps | FID 19.75 |
| lsun_bedroom_large | 255,677,955 | 1.15M steps | FID 4.90 |

Steps of the 256-pixel models are those of the paper's appendix B. CIFAR-10 samples with the large
variance (fixedlarge), the 256-pixel models with the small one.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.base import base, select
from configs.sweeps import grid


def cifar10() -> ConfigDict:
    config = base()
    config.data.update(name="cifar10", image_size=32, channels=3, num_classes=10, flip=True)
    config.network.dropout = 0.1
    config.optim.lr_start = 0.0
    config.sample.variance = "fixedlarge"
    config.train.steps = 800_000
    return config


def _pixels256(name: str, *, steps: int, flip: bool = True) -> ConfigDict:
    config = base()
    config.data.update(name=name, image_size=256, channels=3, batch_size=64, flip=flip)
    config.network.update(multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,))
    config.optim.update(lr=2e-5, lr_start=0.0)
    config.train.steps = steps
    return config


def celeba_hq() -> ConfigDict:
    return _pixels256("celeb_a_hq", steps=500_000)


def lsun_bedroom() -> ConfigDict:
    return _pixels256("lsun_bedroom", steps=2_400_000)


def lsun_bedroom_large() -> ConfigDict:
    config = _pixels256("lsun_bedroom", steps=1_150_000)
    config.network.channels = 192  # the paper gives 256M parameters; the width is inferred
    return config


def lsun_church() -> ConfigDict:
    return _pixels256("lsun_church", steps=1_200_000)


def lsun_cat() -> ConfigDict:
    return _pixels256("lsun_cat", steps=1_800_000, flip=False)


def digits() -> ConfigDict:
    config = base()
    config.data.update(
        name="digits", image_size=8, channels=1, levels=17, num_classes=10, batch_size=128
    )
    config.network.update(
        channels=32, multipliers=(1, 2), blocks=1, attention_levels=(1,), norm_groups=8
    )
    config.optim.update(lr=2e-3, warmup=100, decay="cosine")
    config.ema.update(decay=0.995, warmup=True)
    config.train.update(steps=800, log_every=50, checkpoint_every=400, sample_every=400)
    config.sample.update(steps=100, num=100, batch_size=500)
    # Half of the training images: the distance and its floor are then between equal sets.
    config.eval.update(num=750, features="digits", bits_images=100)
    return config


def fashion_mnist() -> ConfigDict:
    config = base()
    config.data.update(
        name="fashion_mnist", image_size=28, channels=1, num_classes=10, batch_size=64
    )
    config.times.name = "low_discrepancy"
    config.parameterization.name = "v"  # an eps error at high noise grows by 1/alpha in x
    config.network.update(
        channels=16, multipliers=(1, 2, 4), blocks=1, attention_levels=(2,), norm_groups=4
    )
    config.optim.update(lr=1e-3, warmup=200, decay="cosine")
    config.ema.update(decay=0.999, warmup=True)
    config.train.update(
        steps=3600, minutes=45.0, log_every=50, checkpoint_every=500, sample_every=1000
    )
    config.sample.update(grid="leading", steps=1000, num=100, batch_size=50)
    config.eval.update(num=5000, features="fashion_mnist", bits_images=250)
    return config


def fashion_mnist14() -> ConfigDict:
    config = fashion_mnist()
    config.data.update(name="fashion_mnist14", image_size=14)
    # Patches at one level take half the time of two levels without.
    config.network.update(patch=2, channels=64, multipliers=(1,), attention_levels=(0,))
    config.network.norm_groups = 8
    config.train.update(steps=3000, minutes=0.0)
    config.eval.features = "fashion_mnist14"
    return config


def fashion_mnist14_small() -> ConfigDict:
    """Noise prediction by a fast network on patches, for many trainings side by side."""
    config = fashion_mnist14()
    config.parameterization.name = "eps"
    config.network.update(patch=2, channels=48, multipliers=(1,), attention_levels=(0,))
    config.data.batch_size = 32
    config.train.update(steps=1000, sample_every=0)
    config.sample.update(sampler="ddim", steps=20, batch_size=100)
    config.eval.update(num=500, bits_images=40)
    return config


VARIANTS = {
    f.__name__: f
    for f in (
        digits,
        fashion_mnist,
        fashion_mnist14,
        fashion_mnist14_small,
        cifar10,
        celeba_hq,
        lsun_bedroom,
        lsun_bedroom_large,
        lsun_church,
        lsun_cat,
    )
}


def sweep() -> Iterator[dict[str, Any]]:
    """Learning rate and averaging of the small models."""
    yield from grid({"optim.lr": (5e-4, 1e-3, 2e-3), "ema.decay": (0.99, 0.995)})


def space() -> dict[str, Any]:
    """The same, to draw from: ``experiments.sweep --trials=N``."""
    return {"optim.lr": (1e-4, 1e-2, "log"), "ema.decay": [0.99, 0.995, 0.999]}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above; ``"cifar10,smoke"`` runs it at the smallest size."""
    return select(arg, VARIANTS, "digits")
