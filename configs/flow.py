"""Flow Straight and Fast: rectified flow (Liu et al. 2022), arXiv:2209.03003.

    python -m experiments.train --config=configs/flow.py:cifar10 --workdir=runs/flow-cifar10
    python -m experiments.sample --workdir=runs/flow-cifar10

| variant | parameters | cost | expected |
|---|---|---|---|
| cifar10 | 61.8M | 1,300,001 steps, batch 128 | FID 2.58 (RK45 at 1e-5: 127 evaluations) |
| fashion_mnist | 0.69M | 30 minutes on two CPU cores | docs/results |
| digits (default) | 0.70M | 3 minutes on two CPU cores | readable 8x8 digits |
| digits_reflow | 0.70M | 8 minutes, from digits | the same in two steps |

The network predicts the velocity eps - x along straight lines, at shares of noise from 0 to 0.999;
sampling starts with noise alone. The network of cifar10 is told 999 times the share of data, as in
the release, whose time runs from noise to data. The small variants draw times from
the logit-normal of Esser et al. 2024, which trains faster than the paper's uniform.
"""

from ml_collections import ConfigDict

from configs import ddpm, score_sde
from configs.base import base, select
from diffjax.config import make_section


def _recipe(config: ConfigDict, *, steps: int) -> ConfigDict:
    config.schedule = ConfigDict({"name": "flow", "shift": 1.0})
    config.parameterization.name = "velocity"
    config.network.time_scale = 999.0
    config.sample.update(sampler="euler", grid="uniform", steps=steps, final="clean", clip=False)
    return config


def cifar10() -> ConfigDict:
    config = base()
    config.data.update(name="cifar10", image_size=32, channels=3, num_classes=10, flip=True)
    score_sde.ddpmpp(config)
    config.network.dropout = 0.15
    config.optim.lr_start = 0.0
    config.ema.decay = 0.999999
    config.train.steps = 1_300_001
    _recipe(config, steps=2)
    config.network.update(time_scale=-999.0, time_shift=999.0)
    config.schedule = ConfigDict({"name": "flow", "shift": 1.0, "t_min": 0.0, "t_max": 0.999})
    config.sample.update(sampler="rk45", rtol=1e-5, atol=1e-5, final="last")
    return config


def fashion_mnist() -> ConfigDict:
    config = _recipe(ddpm.fashion_mnist(), steps=20)
    config.times.name = "logit_normal"
    config.train.update(steps=2400, minutes=30.0)
    return config


def digits() -> ConfigDict:
    config = _recipe(ddpm.digits(), steps=20)
    config.times.name = "logit_normal"
    return config


def digits_reflow() -> ConfigDict:
    """Pairs of noise and what a run of digits makes of it, --config.distil.base."""
    config = digits()
    config.task = "distillation"
    config.distil = make_section("distil")
    config.loss.update(name="reflow", teacher_steps=20)
    config.times.name = "uniform"
    config.optim.update(lr=1e-3, warmup=0)
    config.train.steps = 400
    config.sample.steps = 2
    return config


VARIANTS = {f.__name__: f for f in (digits, digits_reflow, fashion_mnist, cifar10)}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
