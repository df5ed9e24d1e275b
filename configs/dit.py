"""DiT (Peebles & Xie 2023), arXiv:2212.09748, SiT (Ma et al. 2024), arXiv:2401.08740, and REPA.

    python -m experiments.train --config=configs/dit.py:xl_2 --workdir=runs/dit \\
        --config.data.dir=imagenet/train --config.autoencoder.weights=sd-vae-ft-ema
    python -m experiments.train --config=configs/dit.py:digits --workdir=runs/dit-digits
    python -m experiments.train --config=configs/dit.py:digits_repa --workdir=runs/repa-digits \\
        --config.align.encoder=facebook/dinov2-small

| variant | parameters | cost | expected, 250 steps |
|---|---|---|---|
| s_2, s_4, s_8 | 33M | 400k steps, batch 256 | FID 68.4, 100.4, 153.6 |
| b_2, b_4, b_8 | 131M | 400k steps, batch 256 | FID 43.5, 68.4, 122.7 |
| l_2, l_4, l_8 | 459M | 400k steps, batch 256 | FID 23.3, 45.6, 118.9 |
| xl_2, xl_4, xl_8 | 675M | xl_2 7M steps, others 400k | FID 9.62; guided (1.5) 2.27; 43.0, 106.4 |
| xl_2_512 | 675M | 3M steps, batch 256 | FID 12.03; guided (1.5) 3.04 |
| sit_s_2, sit_b_2, sit_l_2 | 33M, 130M, 458M | 400k steps, batch 256 | FID 57.6, 33.5, 18.8 |
| sit_xl_2 | 675M | 7M steps, batch 256 | FID 8.3; guided (1.5) 2.15 (ODE), 2.06 (SDE) |
| repa_xl_2 | 675M, projection 8M | 4M steps, batch 256 | FID 1.42, guided (1.8) |
| digits_repa | 0.72M, projection 0.5M | digits_sit, and an encoder of 22M | not measured |
| fashion_mnist, fashion_mnist_sit | 0.72M | 30 minutes on one CPU core | clothes by class |
| digits (default), digits_sit | 0.72M | 3 minutes on two CPU cores | readable 8x8 digits |
| shapes_sit | 0.9M, captions | 20 minutes on two CPU cores | shapes by caption |

The large ones see ImageNet in latents of Stable Diffusion's autoencoder (sd-vae-ft-ema). Numbers of
the papers are for 256 pixels but for xl_2_512. What differs from the releases:

- SiT has the output that its loss reads. The released one has a second half that nothing reads,
  18,448 parameters of XL/2. Its time runs from noise to data, here from data to noise; the network
  is told the share of data in both.
- Steps of the adaptive solver are chosen for each image, and not for a batch.

Guidance acts on the first three of four channels of the latents (`sample.guidance_channels`), as
in both releases. The SDE of SiT is drawn with ``--sampler=euler_maruyama --steps=250`` and
``--config.sample.strength=2 --config.sample.final=clean --config.sample.t_end=0.04``, with
``--config.sample.diffusion=sigma``.

REPA (Yu et al. 2024, arXiv:2410.06940) is SiT whose tokens after block 8 are brought close to the
features of DINOv2 (``align.encoder``, a folder). Its network is told the share of noise, and
guidance acts on all channels, where the noise is at most 0.7.

The small ones see pixels, and draw more training times near the middle (SiT) or a learned variance
that starts from the same network (DiT).
"""

from collections.abc import Callable
from functools import partial

from ml_collections import ConfigDict

from configs import autoencoder, ddpm, ldm
from configs.base import base, select
from diffjax.config import make_section

SIZES = {"s": (384, 12, 64), "b": (768, 12, 64), "l": (1024, 24, 64), "xl": (1152, 28, 72)}


def _transformer(config: ConfigDict, width: int, blocks: int, head: int, patch: int) -> ConfigDict:
    config.network.update(name="dit", channels=width, blocks=blocks, head_channels=head)
    config.network.update(patch=patch, freq_shift=0.0, conditional=True)
    config.cond.drop = 0.1
    return config


def _dit(config: ConfigDict, *, steps: int) -> ConfigDict:
    """ADM's objective: noise and a learned variance."""
    config.parameterization.update(name="eps", learned_variance=True)
    config.loss.update(name="hybrid", variance="learned")
    config.sample.update(sampler="ddpm", variance="learned", grid="linspace", steps=steps)
    return config


def _sit(config: ConfigDict, *, steps: int) -> ConfigDict:
    """Velocity along straight lines; each step of Heun's method is two evaluations."""
    config.schedule = ConfigDict({"name": "flow", "shift": 1.0})
    config.parameterization.name = "velocity"
    config.sample.update(sampler="flow_heun", grid="uniform", steps=steps, final="clean")
    config.sample.clip = False
    return config


def _imagenet(size: str, patch: int, *, pixels: int = 256, steps: int = 400_000) -> ConfigDict:
    config = _transformer(base(), *SIZES[size], patch)
    ldm.use_latents(config, autoencoder.kl_f8(), scale=0.18215)
    config.data.update(name="image_folder", image_size=pixels, channels=3, num_classes=1000)
    config.data.update(batch_size=256, flip=True, resize="halves")
    config.optim.update(name="adamw", lr=1e-4, weight_decay=0.0, warmup=0, clip=0.0)
    config.train.steps = steps
    config.sample.update(guidance=1.5, guidance_channels=3)
    return config


def imagenet_dit(size: str, patch: int, *, pixels: int = 256, steps: int = 400_000) -> ConfigDict:
    return _dit(_imagenet(size, patch, pixels=pixels, steps=steps), steps=250)


def imagenet_sit(size: str, patch: int, *, steps: int = 400_000) -> ConfigDict:
    """The whole span from noise to data, and the release's solver of the flow."""
    config = _sit(_imagenet(size, patch, steps=steps), steps=2)
    config.schedule.update(t_min=0.0, t_max=1.0)
    config.network.update(time_scale=-1.0, time_shift=1.0)
    config.sample.update(sampler="rk45", rtol=1e-3, atol=1e-6, final="last")
    return config


def imagenet_repa() -> ConfigDict:
    """SiT-XL/2 with DINOv2's ViT-B, and the release's solver of the SDE."""
    config = _sit(_imagenet("xl", 2, steps=4_000_000), steps=250)
    config.schedule.update(t_min=0.0, t_max=1.0)
    config.align = make_section("align")
    config.data.flip = False
    config.optim.clip = 1.0
    config.sample.update(sampler="euler_maruyama", diffusion="sigma", strength=2.0, t_end=0.04)
    config.sample.update(guidance=1.8, guidance_high=7 / 3, guidance_channels=None)
    return config


def _small(config: ConfigDict) -> ConfigDict:
    _transformer(config, 96, 4, 24, 2)
    config.optim.update(name="adamw", weight_decay=0.0, lr=1e-3)
    return config


def digits() -> ConfigDict:
    return _dit(_small(ddpm.digits()), steps=100)


def digits_sit() -> ConfigDict:
    config = _sit(_small(ddpm.digits()), steps=20)
    config.times.name = "logit_normal"
    return config


def fashion_mnist() -> ConfigDict:
    config = _dit(_small(ddpm.fashion_mnist()), steps=250)
    config.network.patch = 4
    config.train.update(steps=2400, minutes=30.0)
    return config


def fashion_mnist_sit() -> ConfigDict:
    config = _sit(_small(ddpm.fashion_mnist()), steps=20)
    config.network.patch = 4
    config.times.name = "logit_normal"
    config.train.update(steps=2400, minutes=30.0)
    return config


def digits_repa() -> ConfigDict:
    """REPA with DINOv2's smallest network: the 16 patches of a digit, each of 14 pixels."""
    config = digits_sit()
    config.align = make_section("align", block=2, width=512)
    config.align.vision.update(features=384, heads=6)
    return config


def shapes_sit() -> ConfigDict:
    """Captions: every block attends to the embedding of a text that is trained too."""
    config = _sit(_small(ldm.shapes()), steps=20)
    del config.autoencoder
    config.network.update(patch=4, conditional=False)
    config.times.name = "logit_normal"
    return config


_LARGE: dict[str, Callable[[], ConfigDict]] = {
    **{
        f"{size}_{patch}": partial(imagenet_dit, size, patch)
        for size in SIZES
        for patch in (2, 4, 8)
    },
    **{f"sit_{size}_2": partial(imagenet_sit, size, 2) for size in SIZES},
    "xl_2": partial(imagenet_dit, "xl", 2, steps=7_000_000),
    "xl_2_512": partial(imagenet_dit, "xl", 2, pixels=512, steps=3_000_000),
    "sit_xl_2": partial(imagenet_sit, "xl", 2, steps=7_000_000),
    "repa_xl_2": imagenet_repa,
}
VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    **{
        f.__name__: f
        for f in (digits, digits_sit, digits_repa, fashion_mnist, fashion_mnist_sit, shapes_sit)
    },
    **_LARGE,
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
