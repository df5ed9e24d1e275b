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

The paper takes timesteps quadratically for CIFAR-10 and uniformly (leading) elsewhere. Its code
clips x for sigma-hat alone (--sampler=ddpm --variance=fixedlarge --config.sample.clip=True).
"""

from ml_collections import ConfigDict

from configs import ddpm
from configs.base import base, select


def _ddim(config: ConfigDict, grid: str = "leading", steps: int = 50) -> ConfigDict:
    config.sample.update(sampler="ddim", eta=0.0, grid=grid, steps=steps, clip=False)
    return config


def celeba64() -> ConfigDict:
    config = base()
    config.data.update(name="celeb_a", image_size=64, channels=3, flip=True)
    config.network.update(multipliers=(1, 2, 2, 2, 4), attention_levels=(2,), dropout=0.1)
    return _ddim(config)


VARIANTS = {
    "digits": lambda: _ddim(ddpm.digits(), steps=20),
    "fashion_mnist": lambda: _ddim(ddpm.fashion_mnist()),
    "cifar10": lambda: _ddim(ddpm.cifar10(), "quadratic"),
    "celeba64": celeba64,
    "lsun_bedroom": lambda: _ddim(ddpm.lsun_bedroom()),
    "lsun_church": lambda: _ddim(ddpm.lsun_church()),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
