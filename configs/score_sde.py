"""Score-Based Generative Modeling through SDEs (Song et al. 2021), arXiv:2011.13456.

    python -m experiments.train --config=configs/score_sde.py:ncsnpp_ve --workdir=runs/ncsnpp
    python -m experiments.evaluate --workdir=runs/ddpmpp --metrics=ode_bits

| variant | cost | expected on CIFAR-10 |
|---|---|---|
| ncsnpp_ve | 1.3M steps | FID 2.38, IS 9.83 (predictor-corrector, 2000 evaluations) |
| ncsnpp_ve_deep | 950k steps | FID 2.20, IS 9.89 |
| ddpmpp_vp | 1.3M steps | FID 2.55, IS 9.58; rk45: FID 3.93, 3.16 bits/dim |
| ddpmpp_subvp | 1.3M steps | FID 2.61, IS 9.56; rk45: FID 3.16, 3.02 bits/dim |
| ddpmpp_subvp_deep | 950k steps | FID 2.41, IS 9.57; rk45: FID 2.92, 2.99 bits/dim |
| fashion_mnist (VE) | 30 minutes on two CPU cores | docs/results |
| digits (default, VE) | 3 minutes on two CPU cores | readable 8x8 digits |

The paper's VE models see images in [0, 1] with sigma 0.01 to 50; here images lie in [-1, 1], so the
sigmas are doubled. Its score is -eps / sigma with the weight sigma^2: the plain loss on eps, of VE
models half the sum over pixels, whose gradient the clip at 1 nearly always cuts. FIDs are those of
the best checkpoint, one every 50k steps, and bits/dim those of the last. The VP models sample by
Euler-Maruyama to t = 0.001; likelihood weights (Song et al. 2021b, arXiv:2101.09258) are
``--config.loss.weight=likelihood``, the option likelihood_weighting of the release.
"""

from ml_collections import ConfigDict

from configs import ddpm
from configs.base import base, select


def ddpmpp(config: ConfigDict) -> None:
    """The DDPM++ network: BigGAN blocks, rescaled skips, one attention per level on the way up."""
    config.network.update(blocks=4, dropout=0.1, resblock_updown=True, project=True, rescale=True)
    config.network.update(decoder_attention="last", time_scale=999.0, initialisation="score_sde")


def ncsnpp(config: ConfigDict) -> None:
    """NCSN++: DDPM++ with filtered resampling, progressive input and Fourier features."""
    ddpmpp(config)
    config.network.update(fir=True, progressive_input=True, fourier_scale=16.0)
    # The features are of log sigma up to a constant, which only turns their phases.
    config.network.time_scale = 8.517


def _continuous(schedule: str, **options: float) -> ConfigDict:
    config = base()
    config.data.update(name="cifar10", image_size=32, channels=3, num_classes=10, flip=True)
    config.schedule = ConfigDict({"name": schedule, **options})
    config.optim.lr_start = 0.0
    config.train.steps = 1_300_001
    config.sample.update(grid="uniform", steps=1000, final="clean", clip=False)
    return config


def ncsnpp_ve() -> ConfigDict:
    config = _continuous("ve", sigma_min=0.02, sigma_max=100.0)
    ncsnpp(config)
    config.loss.reduction = "half_sum"
    config.ema.decay = 0.999
    config.sample.update(sampler="pc", variance="fixedlarge", snr=0.16, norm="batch", t_end=1e-5)
    return config


def ddpmpp_vp() -> ConfigDict:
    config = _continuous("vp_sde")
    ddpmpp(config)
    config.sample.update(sampler="euler_maruyama", t_end=1e-3)
    return config


def ddpmpp_subvp() -> ConfigDict:
    config = ddpmpp_vp()
    config.schedule.name = "sub_vp"
    return config


def _deep(config: ConfigDict) -> ConfigDict:
    config.network.blocks = 8
    config.train.steps = 950_001
    return config


def _small(config: ConfigDict) -> ConfigDict:
    config.schedule = ConfigDict({"name": "ve", "sigma_min": 0.02, "sigma_max": 30.0})
    # Images in the noise of a VE model reach sigma_max; EDM's input scaling is the usual cure.
    config.parameterization.name = "edm"
    config.loss.weight = "snr"  # of the plain loss on eps
    config.network.update(rescale=True, fir=True, resblock_updown=True, project=True)
    config.network.update(decoder_attention="last", progressive_input=True, fourier_scale=1.0)
    config.network.time_scale = 7.3
    config.sample.update(sampler="pc", variance="fixedlarge", snr=0.16)
    config.sample.update(grid="uniform", steps=100, final="clean", clip=False)
    return config


def fashion_mnist() -> ConfigDict:
    config = _small(ddpm.fashion_mnist())
    config.train.update(steps=2400, minutes=30.0)
    return config


def digits() -> ConfigDict:
    return _small(ddpm.digits())


VARIANTS = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "ncsnpp_ve": ncsnpp_ve,
    "ncsnpp_ve_deep": lambda: _deep(ncsnpp_ve()),
    "ddpmpp_vp": ddpmpp_vp,
    "ddpmpp_subvp": ddpmpp_subvp,
    "ddpmpp_subvp_deep": lambda: _deep(ddpmpp_subvp()),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
