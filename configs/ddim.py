"""Denoising Diffusion Implicit Models (Song et al. 2020), https://arxiv.org/abs/2010.02502.

The models are DDPM's, trained as in `configs/ddpm.py`; only the sampler differs, so a DDPM
checkpoint is sampled by

    python -m experiments.sample --config=configs/ddim.py:cifar10 --workdir=runs/ddpm-cifar10

| variant | parameters | expected at S = 10/20/50/100 steps, eta = 0 |
|---|---|---|
| digits (default), fashion_mnist | as in ddpm.py | at 14x14: docs/results/ddim.md |
| cifar10 | 35,746,307 | FID 13.36/6.84/4.67/4.16 |
| celeba64 | 78,700,803 | FID 17.33/13.73/9.17/6.53 |
| lsun_bedroom, lsun_church | 113,673,219 | - |

The figures of CIFAR-10 and LSUN are those of DDPM's own weights; celeba64, and here lsun_*, are
trained as in DDIM's configs: by the sum over pixels, at pairs of times t and T - 1 - t, without
warm-up, from PyTorch's initialisation. The paper takes timesteps quadratically for CIFAR-10 and
uniformly elsewhere: range(0, T, T // S), which are more than S if S does not divide T. Its code
clips x for sigma-hat alone (--sampler=ddpm --variance=fixedlarge --config.sample.clip=True).
"""

from ml_collections import ConfigDict

from configs import ddpm
from configs.base import base, select


def _ddim(config: ConfigDict, grid: str = "leading", steps: int = 50) -> ConfigDict:
    config.sample.update(sampler="ddim", eta=0.0, grid=grid, steps=steps, clip=False)
    return config


def _train(config: ConfigDict, *, average: float, clip: float) -> ConfigDict:
    """As the code of DDIM trains, whose number of steps is as good as unlimited."""
    config.network.initialisation = "torch"
    config.loss.reduction = "sum"
    config.times.name = "antithetic"
    config.optim.update(warmup=0, clip=clip)
    config.ema.decay = average
    config.train.steps = 5_000_000
    return _ddim(config, "strided")


def celeba64() -> ConfigDict:
    config = base()
    config.data.update(name="celeb_a", image_size=64, channels=3, flip=True)
    config.data.window = (57, 25, 128, 128)
    config.network.update(multipliers=(1, 2, 2, 2, 4), attention_levels=(2,), dropout=0.1)
    return _train(config, average=0.9999, clip=1.0)


def _lsun(config: ConfigDict) -> ConfigDict:
    return _train(config, average=0.999, clip=0.0)


VARIANTS = {
    "digits": lambda: _ddim(ddpm.digits(), steps=20),
    "fashion_mnist": lambda: _ddim(ddpm.fashion_mnist()),
    "cifar10": lambda: _ddim(ddpm.cifar10(), "quadratic"),
    "celeba64": celeba64,
    "lsun_bedroom": lambda: _lsun(ddpm.lsun_bedroom()),
    "lsun_church": lambda: _lsun(ddpm.lsun_church()),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
