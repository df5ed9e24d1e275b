"""EDM2: Analyzing and Improving the Training Dynamics (Karras et al. 2024), arXiv:2312.02696.

    python -m experiments.train --config=configs/edm2.py:img512_xs --workdir=runs/edm2-xs \\
        --config.data.dir=imagenet/train --config.autoencoder.weights=sd-vae-ft-mse
    python -m experiments.evaluate --workdir=runs/edm2-xs --ema_length=0.135

| variant | parameters | images of training | expected, 63 evaluations |
|---|---|---|---|
| img512_xxs | 31.3M | 2147M | none published |
| img512_xs | 124.7M | 2147M | FID 3.53 at length 0.135 |
| img512_s | 280.2M | 2147M | FID 2.56 at length 0.130 |
| img512_m | 497.8M | 2147M | FID 2.25 at length 0.100 |
| img512_l | 777.5M | 1879M | FID 2.06 at length 0.085 |
| img512_xl | 1119.3M | 1342M | FID 1.96 at length 0.085 |
| img512_xxl | 1523.2M | 940M | FID 1.91 at length 0.070 |
| img64_xs | 124.7M | 1074M | none published |
| img64_s | 280.2M | 1074M | FID 1.58 at length 0.075 |
| img64_m | 497.8M | 2147M | FID 1.43 at length 0.060 |
| img64_l | 777.5M | 1074M | FID 1.33 at length 0.040 |
| img64_xl | 1119.3M | 671M | FID 1.33 at length 0.040 |
| digits (default) | 0.41M | minutes on two CPU cores | 8x8 digits by class |
| fashion_mnist14 | 0.41M | minutes on two CPU cores | clothes by class |

The latents of img512 are those of Stable Diffusion's autoencoder (sd-vae-ft-mse) for pixels in
[0, 1], 64x64x4, with the mean and the standard deviation of each channel that the release states.
Averages of other lengths than 0.05 and 0.1 are made afterwards: docs/edm2.md.
"""

from collections.abc import Callable
from functools import partial

from ml_collections import ConfigDict

from configs import autoencoder, ddpm, ldm
from configs.base import base, select

BATCH = 2048
MEAN, STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
# Width, and the learning rate before its decay.
SIZES = {
    "xxs": (64, 0.0170),
    "xs": (128, 0.0120),
    "s": (192, 0.0100),
    "m": (256, 0.0090),
    "l": (320, 0.0080),
    "xl": (384, 0.0070),
    "xxl": (448, 0.0065),
}
# Mebi-images of training.
IMG512 = {"xxs": 2048, "xs": 2048, "s": 2048, "m": 2048, "l": 1792, "xl": 1280, "xxl": 896}
IMG64 = {"xs": 1024, "s": 1024, "m": 2048, "l": 1024, "xl": 640}


def _recipe(config: ConfigDict, *, steps: int) -> ConfigDict:
    """The network, its loss, its optimiser and its averages, whatever the size is."""
    config.schedule = ConfigDict({"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0})
    config.parameterization.update(name="edm", sigma_data=0.5)
    config.loss.update(weight="edm", uncertainty=True, reduction="sum")
    config.network.update(name="edm2", conditional=True)
    config.optim.update(name="adam", b1=0.9, b2=0.99, eps=1e-8, clip=0.0, unit_kernels=True)
    config.optim.update(decay="inverse_sqrt", lr_start=0.0)
    config.ema.update(kind="power", lengths=(0.05, 0.1))
    config.sample.update(sampler="heun", grid="karras", steps=steps, clip=False)
    return config


def _paper(size: str, mebi: int, *, flat: int, mean: float, std: float) -> ConfigDict:
    config = _recipe(base(), steps=32)
    width, rate = SIZES[size]
    config.times = ConfigDict({"name": "log_normal", "mean": mean, "std": std})
    config.network.update(channels=width, multipliers=(1, 2, 3, 4), blocks=3, head_channels=64)
    config.network.attention_levels = (2, 3)  # 16 and 8 of 64 pixels
    config.network.dropout = 0.0 if width < 256 else 0.1
    config.data.update(name="image_folder", num_classes=1000, channels=3, batch_size=BATCH)
    config.data.resize = "halves"
    config.optim.update(lr=rate, warmup=10_000_000 // BATCH, decay_steps=flat)
    config.ema.snapshot_every = (8 << 20) // BATCH
    config.train.steps = (mebi << 20) // BATCH
    return config


def img512(size: str) -> ConfigDict:
    config = _paper(size, IMG512[size], flat=70_000, mean=-0.4, std=1.0)
    ldm.use_latents(config, autoencoder.kl_f8(), scale=0.5)
    config.autoencoder.update(latents_mean=MEAN, latents_std=STD, unit_range=True)
    config.data.image_size = 512
    return config


def img64(size: str) -> ConfigDict:
    config = _paper(size, IMG64[size], flat=35_000, mean=-0.8, std=1.6)
    config.data.image_size = 64
    return config


def _small(config: ConfigDict) -> ConfigDict:
    _recipe(config, steps=18)
    config.times = ConfigDict({"name": "log_normal", "mean": -0.8, "std": 1.6})
    config.network.update(channels=24, multipliers=(1, 2), blocks=1, head_channels=24)
    config.network.attention_levels = (1,)
    config.optim.update(lr=1e-2, warmup=50, decay_steps=300)
    config.ema.snapshot_every = 50
    return config


def digits() -> ConfigDict:
    return _small(ddpm.digits())


def fashion_mnist14() -> ConfigDict:
    config = _small(ddpm.fashion_mnist14())
    config.network.patch = 1
    config.train.steps = 1500
    return config


VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "digits": digits,
    "fashion_mnist14": fashion_mnist14,
    **{f"img512_{size}": partial(img512, size) for size in IMG512},
    **{f"img64_{size}": partial(img64, size) for size in IMG64},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
