"""Latent diffusion (Rombach et al. 2022), https://arxiv.org/abs/2112.10752.

    python -m experiments.train --config=configs/autoencoder.py:fashion_mnist --workdir=runs/ae
    python -m experiments.train --config=configs/ldm.py:fashion_mnist --workdir=runs/ldm \\
        --config.autoencoder.weights=runs/ae
    python -m experiments.sample --workdir=runs/ldm --guidance=1.5

| variant | autoencoder | network, parameters | batch, steps | expected |
|---|---|---|---|---|
| celebahq | vq_f4 | 274.06M | 48, 410k | FID 5.11 |
| ffhq | vq_f4 | 274.06M | 42, 635k | FID 4.98 |
| lsun_churches | kl_f8 | 294.97M, L1 | 96, 500k | FID 4.02 |
| lsun_beds | vq_f4 | 274.06M | 48, 1.9M | FID 2.95 |
| cin256 | vq_f4 | 400.92M, class tokens | 1200, 178k | FID 10.56, guided (1.5) 3.60 |
| cin_vq8 | vq_f8 | 394.98M, class tokens | 64, 2.9M | FID 15.82 unguided |
| cin_vq8_classifier | vq_f8 | the way down of cin_vq8's | 256, 500k | guided (10) 7.77 |
| text2img | kl_f8 | 872.3M + 542.9M of the text | 680, 390k | COCO 23.31, guided (1.5) 12.63 |
| inpainting | vq_f4_noattn | 387.2M, L1 | 128, 360k | |
| superres | vq_f4 | 113.6M, 64x64 to 256x256 | 64, - | |
| fashion_mnist (default), _f4, _f1 | our KL, f = 2, 4; pixels | 0.7M | 64, 18 minutes | docs |
| shapes | our KL, f = 4 | 1.8M, captions | 32, 20 minutes | docs |

Samplers are those of the release: timesteps are one more than range(0, 1000, 1000 // S), which are
500 for S = 400, and the last step ends at the first level instead of the data. The settings of the
classifier that guided cin_vq8 were not published. superres sees small pictures that are blurred,
resized, noisy and compressed at random (data.degradation).

Whatever `autoencoder.weights` points to is checked against the section `autoencoder`, copied into
the workdir and identified in every checkpoint. docs/latent_diffusion.md has the whole story.
"""

from ml_collections import ConfigDict

from configs import autoencoder, ddpm
from configs.base import base, select


def use_latents(config: ConfigDict, first_stage: ConfigDict, *, scale: float = 0.0) -> ConfigDict:
    """Diffusion in the latents of an autoencoder; scale 0: measured on the first batch."""
    config.autoencoder = ConfigDict(first_stage.network.to_dict())
    config.autoencoder.update(weights="", scale=scale)
    config.sample.clip = False  # latents have no bounds
    return config


def _paper(first_stage: ConfigDict, *, beta_start: float, beta_end: float) -> ConfigDict:
    """What all of the paper's models share."""
    config = base()
    codebook = first_stage.network.name == "vq"
    use_latents(config, first_stage, scale=1.0 if codebook else 0.0)
    config.data.update(image_size=256, channels=3)
    config.network.update(flip_sin_to_cos=True, freq_shift=0.0, downsample_padding=1)
    config.network.initialisation = "adm"
    config.network.update(norm_eps=1e-5, blocks=2)
    config.schedule.update(name="scaled_linear", beta_start=beta_start, beta_end=beta_end)
    config.optim.update(name="adamw", weight_decay=0.01, warmup=0, clip=0.0)
    config.ema.warmup = True
    config.sample.update(sampler="ddim", eta=1.0, steps=200)
    config.sample.update(grid="strided", offset=1, final="first")
    return config


def celebahq() -> ConfigDict:
    config = _paper(autoencoder.vq_f4(), beta_start=0.0015, beta_end=0.0195)
    config.data.update(name="celeb_a_hq", batch_size=48)
    config.sample.eta = 0.0
    config.network.update(channels=224, multipliers=(1, 2, 3, 4), attention_levels=(1, 2, 3))
    config.network.head_channels = 32
    config.optim.lr = 9.6e-5
    config.train.steps = 410_000
    return config


def ffhq() -> ConfigDict:
    config = celebahq()
    config.data.update(name="image_folder", batch_size=42)
    config.sample.eta = 1.0
    config.optim.lr = 8.4e-5
    config.train.steps = 635_000
    return config


def lsun_beds() -> ConfigDict:
    config = celebahq()
    config.data.update(name="lsun_bedroom", flip=True)
    config.sample.eta = 1.0
    config.train.steps = 1_900_000
    return config


def lsun_churches() -> ConfigDict:
    config = _paper(autoencoder.kl_f8(), beta_start=0.0015, beta_end=0.0155)
    config.data.update(name="lsun_church", batch_size=96, flip=True)
    config.sample.update(eta=0.0, steps=400)
    config.network.update(channels=192, multipliers=(1, 2, 2, 4, 4), attention_levels=(0, 1, 2, 3))
    config.network.update(heads=8, scale_shift=True, resblock_updown=True)
    config.loss.distance = "l1"
    config.optim.update(lr=5e-5, warmup=10_000, lr_start=1e-6)
    config.train.steps = 500_000
    return config


def _imagenet(first_stage: ConfigDict) -> ConfigDict:
    config = _paper(first_stage, beta_start=0.0015, beta_end=0.0195)
    config.data.update(name="image_folder", num_classes=1000, crop="random")
    config.network.context_dim = 512
    config.cond.context = "label"
    return config


def cin256() -> ConfigDict:
    config = _imagenet(autoencoder.vq_f4())
    config.data.batch_size = 1200
    config.cond.drop = 0.1
    config.sample.update(steps=250, guidance=1.5)
    config.network.update(channels=192, multipliers=(1, 2, 3, 5), attention_levels=(1, 2, 3))
    config.optim.lr = 1e-4
    config.train.steps = 178_000
    return config


def cin_vq8() -> ConfigDict:
    config = _imagenet(autoencoder.vq_f8())
    config.data.batch_size = 64
    config.cond.null = "zero"  # labels are never dropped: the table is of the classes alone
    config.network.update(channels=256, multipliers=(1, 2, 4), attention_levels=(0, 1, 2))
    config.network.head_channels = 32
    config.optim.lr = 6.4e-5
    config.train.steps = 2_900_000
    return config


def cin_vq8_classifier() -> ConfigDict:
    """The classifier of noisy latents that guides cin_vq8: the way down of its network.

    It attends to no class. Rate, batch and number of steps are those of ADM's at 256 pixels, since
    neither paper nor release gives any.
    """
    config = cin_vq8()
    config.task = "classifier"
    config.network.update(context_dim=0, head="direct")
    config.cond.context = ""
    config.data.batch_size = 256
    config.optim.lr = 3e-4
    config.ema.decay = 0.0
    config.train.steps = 500_000
    return config


def text2img() -> ConfigDict:
    config = _paper(autoencoder.kl_f8(), beta_start=0.00085, beta_end=0.012)
    config.autoencoder.scale = 0.18215
    config.data.update(name="latents", batch_size=680)
    config.network.update(channels=320, multipliers=(1, 2, 4, 4), attention_levels=(0, 1, 2))
    config.network.update(heads=8, context_dim=1280)
    config.cond.update(context="text", drop=0.1)
    config.cond.text = ConfigDict(
        {"vocabulary": 30522, "positions": 77, "layers": 32, "heads": 8, "head_channels": 64}
    )
    config.optim.lr = 1e-4
    config.train.steps = 390_000
    config.sample.update(steps=250, guidance=1.5)
    return config


def inpainting() -> ConfigDict:
    config = _paper(autoencoder.vq_f4_noattn(), beta_start=0.0015, beta_end=0.0205)
    config.data.update(name="image_folder", batch_size=128)
    config.network.update(channels=256, multipliers=(1, 2, 3, 4), attention_levels=(1, 2, 3))
    config.network.update(heads=8, resblock_updown=True)
    config.cond.concat = "inpaint"
    config.loss.distance = "l1"
    # A tenth of 1e-6 per image is the peak; multipliers of the release run from 0.001 over 0.1 to
    # 0.0001, here in units of that peak.
    config.optim.update(lr=0.1 * 1e-6 * 128, warmup=1000, lr_start=0.01)
    config.optim.update(decay="cosine", decay_steps=50_000, lr_end=0.001)
    config.train.steps = 360_000
    return config


def superres() -> ConfigDict:
    config = _paper(autoencoder.vq_f4(), beta_start=0.0015, beta_end=0.0155)
    config.data.update(name="image_folder", batch_size=64, crop="random", crop_share=(0.5, 1.0))
    config.data.update(resize="area", degradation="bsrgan_light")
    config.network.update(channels=160, multipliers=(1, 2, 2, 4), attention_levels=(3,))
    config.network.head_channels = 32
    config.cond.concat = "superres"
    config.optim.lr = 6.4e-5
    config.train.steps = 800_000  # the release gives no number
    return config


def _small(config: ConfigDict, *, lr: float) -> ConfigDict:
    config.schedule.update(name="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    config.network.update(norm_groups=4, flip_sin_to_cos=True, freq_shift=0.0)
    config.parameterization.name = "v"
    config.times.name = "low_discrepancy"
    config.cond.drop = 0.1
    config.optim.update(lr=lr, warmup=100, clip=1.0, decay="cosine", lr_end=0.05)
    config.ema.update(decay=0.999, warmup=True)
    config.train.update(log_every=50, checkpoint_every=500, sample_every=1000)
    config.sample.update(sampler="ddim", eta=0.0, steps=50, num=64)
    return config


def fashion_mnist_f1() -> ConfigDict:
    """The same network on pixels, for comparison at equal time."""
    config = _small(ddpm.fashion_mnist(), lr=1e-3)
    config.network.update(channels=32, multipliers=(1, 2), blocks=1, attention_levels=(1,))
    config.network.conditional = True
    # Stopped by the clock: f is compared at equal time. So the rate does not depend on the steps.
    config.optim.decay = "constant"
    config.train.update(steps=100_000, minutes=18.0)
    return config


def fashion_mnist() -> ConfigDict:
    return use_latents(fashion_mnist_f1(), autoencoder.fashion_mnist())


def fashion_mnist_f4() -> ConfigDict:
    config = use_latents(fashion_mnist_f1(), autoencoder.fashion_mnist_f4())
    config.network.multipliers = (2,)  # 7x7 does not halve
    return config


def shapes() -> ConfigDict:
    config = use_latents(_small(base(), lr=1e-3), autoencoder.shapes())
    config.data.update(name="shapes", image_size=32, channels=3, batch_size=32)
    config.network.update(channels=40, multipliers=(1, 2), blocks=1, attention_levels=(0, 1))
    config.network.update(heads=4, context_dim=64)
    config.cond.context = "text"
    config.cond.text = ConfigDict(
        {"vocabulary": 22, "positions": 18, "layers": 2, "heads": 4, "head_channels": 16}
    )
    config.train.update(steps=4000, minutes=20.0)
    config.sample.guidance = 3.0
    config.eval.num = 1000
    return config


VARIANTS = {
    f.__name__: f
    for f in (
        *(fashion_mnist, fashion_mnist_f1, fashion_mnist_f4, shapes),
        *(celebahq, ffhq, lsun_churches, lsun_beds, cin256, cin_vq8),
        cin_vq8_classifier,
        *(text2img, inpainting, superres),
    )
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "fashion_mnist")
