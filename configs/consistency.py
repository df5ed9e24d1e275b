"""Consistency models, arXiv:2303.01469 (Song et al. 2023), iCT 2310.14189, ECT 2406.14548.

    python -m experiments.train --config=configs/consistency.py:cifar10_ict --workdir=runs/ict
    python -m experiments.train --config=configs/consistency.py:digits_tuned \\
        --workdir=runs/tuned --config.distil.base=runs/edm-digits
    python -m experiments.sample --workdir=runs/ict --sampler=consistency --steps=1

| variant | parameters | cost | expected, one evaluation (two) |
|---|---|---|---|
| cifar10_ct | 56.4M | 800,000 steps, batch 512 | FID 8.70 (5.83) |
| cifar10_ict | 56.4M | 400,000 steps, batch 1024 | FID 2.83 (2.46) |
| cifar10_ect | 55.7M | 200,000 steps, batch 128, from edm:cifar10 | FID 3.60 (2.11) |
| cifar10_cd | 56.4M | 800,000 steps, batch 512, from edm:cifar10_ncsnpp | FID 3.55 (2.93) |
| digits (default) | 0.70M | 5 minutes on two CPU cores | readable 8x8 digits, two evaluations |
| digits_tuned, digits_distilled | 0.70M | the same, from edm:digits | the same |
| fashion_mnist14, fashion_mnist14_tuned | 0.70M | 20 minutes on two CPU cores | clothes |

ct is training with growing numbers of levels, ict is improved training, ect tunes a trained EDM,
and cd distils one. --config.distil.base is that EDM. The distance of cifar10_ct and cifar10_cd is
LPIPS, whose weights are --config.loss.perceptual_weights. docs/few_steps.md says what differs.
"""

from ml_collections import ConfigDict

from configs import ddpm, edm, score_sde
from configs.base import select
from diffjax.config import make_section


def _recipe(config: ConfigDict, *, steps: int) -> ConfigDict:
    """One network evaluation of the noisiest level, and one more after new noise."""
    edm._recipe(config, steps=steps)
    config.parameterization.update(name="consistency", sigma_least=0.002)
    config.loss.update(name="consistency", weight="simple")
    config.sample.update(sampler="consistency", steps=steps, sigma_min=0.821)
    config.optim.update(name="radam", decay="constant", clip=0.0)
    return config


def _improved(config: ConfigDict) -> ConfigDict:
    config.loss.update(spacing="doubling", first=10, last=1280, metric="huber", by_step=True)
    config.times.update(mean=-1.1, std=2.0, truncate=True)
    return config


def _begin_with_base(config: ConfigDict) -> ConfigDict:
    config.task = "distillation"
    config.distil = make_section("distil", parameterization="edm")
    return config


def _tuned(config: ConfigDict) -> ConfigDict:
    """The smaller level of a pair may be 0, where EDM's parameterization is the identity."""
    config.parameterization.update(name="edm", sigma_least=None)
    config.loss.update(spacing="ratio", base=2.0, gain=8.0, slope=1.0, stages=8)
    config.loss.update(metric="huber", huber=0.0, by_step=True)
    config.times.update(mean=-1.1, std=2.0)
    return _begin_with_base(config)


def _distilled(config: ConfigDict, *, levels: int) -> ConfigDict:
    config.loss.update(spacing="doubling", first=levels - 1, last=levels - 1, metric="l2")
    config.loss.update(by_step=False, solver="heun")
    config.times = ConfigDict({"name": "karras", "rho": 7.0})
    return _begin_with_base(config)


def _ncsnpp(*, batch: int, steps: int) -> ConfigDict:
    """NCSN++ with four blocks and widths of 256, as Song et al. 2023 have it."""
    config = score_sde.ncsnpp_ve()
    config.data.batch_size = batch
    config.network.update(multipliers=(2, 2, 2), dropout=0.0, time_scale=1.0)
    config.loss.reduction = "mean"
    config.train.steps = steps
    return _recipe(config, steps=1)


def cifar10_ct() -> ConfigDict:
    config = _ncsnpp(batch=512, steps=800_000)
    config.loss.update(spacing="growing", first=2, last=150, metric="lpips", by_step=False)
    config.loss.initial_decay = 0.9
    config.times = ConfigDict({"name": "karras", "rho": 7.0})
    config.optim.update(lr=4e-4, warmup=10_000_000 // 512, lr_start=0.0)
    config.ema.decay = 0.9999
    return config


def cifar10_cd() -> ConfigDict:
    config = _distilled(_ncsnpp(batch=512, steps=800_001), levels=18)
    config.loss.metric = "lpips"
    config.optim.update(lr=4e-4, warmup=10_000_000 // 512, lr_start=0.0)
    config.ema.decay = 0.9999
    return config


def cifar10_ict() -> ConfigDict:
    config = _improved(_ncsnpp(batch=1024, steps=400_000))
    config.loss.huber = 0.00054
    config.network.update(dropout=0.3, fourier_scale=0.02)
    config.optim.update(lr=1e-4, warmup=0)
    config.ema.decay = 0.99993
    return config


def cifar10_ect() -> ConfigDict:
    config = edm.cifar10()
    config.data.update(batch_size=128, flip=False, augment=0.0)
    config.network.dropout = 0.2
    config.loss.reduction = "mean"
    _tuned(_recipe(config, steps=1))
    config.optim.update(lr=1e-4, warmup=0)
    config.ema.update(decay=0.9999, half_life=0)
    config.train.steps = 200_000
    return config


def _small(config: ConfigDict, *, steps: int) -> ConfigDict:
    config = _recipe(config, steps=2)
    config.optim.update(lr=1e-3, warmup=100, clip=1.0)
    config.train.steps = steps
    return config


def digits() -> ConfigDict:
    config = _improved(_small(ddpm.digits(), steps=1600))
    config.loss.update(first=5, last=80)
    return config


def digits_tuned() -> ConfigDict:
    return _tuned(_small(ddpm.digits(), steps=800))


def digits_distilled() -> ConfigDict:
    return _distilled(_small(ddpm.digits(), steps=800), levels=18)


def fashion_mnist14() -> ConfigDict:
    config = _improved(_small(ddpm.fashion_mnist14(), steps=3000))
    config.loss.update(first=5, last=80)
    return config


def fashion_mnist14_tuned() -> ConfigDict:
    return _tuned(_small(ddpm.fashion_mnist14(), steps=1500))


VARIANTS = {
    f.__name__: f
    for f in (
        *(digits, digits_tuned, digits_distilled, fashion_mnist14, fashion_mnist14_tuned),
        *(cifar10_ct, cifar10_cd, cifar10_ict, cifar10_ect),
    )
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
