"""Progressive distillation (Salimans & Ho 2022), arXiv:2202.00512.

    python -m experiments.train --config=configs/progressive.py:digits --workdir=runs/base
    python -m experiments.train --config=configs/progressive.py:digits_8 --workdir=runs/steps-8 \\
        --config.distil.base=runs/base
    python -m experiments.train --config=configs/progressive.py:digits_4 --workdir=runs/steps-4 \\
        --config.distil.base=runs/steps-8

| variant | parameters | cost | expected |
|---|---|---|---|
| digits (default) | 0.70M | 3 minutes on two CPU cores | the first teacher, for 16 steps of DDIM |
| digits_8, digits_4, digits_2, digits_1 | 0.70M | 2 minutes each | as many steps |

A run is one halving of the number of steps: its teacher takes two steps where it takes one, and it
is the teacher of the next.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import ddpm
from configs.base import select
from diffjax.config import make_section


def digits() -> ConfigDict:
    """The cosine schedule in continuous time, and v as the prediction."""
    config = ddpm.digits()
    config.schedule = ConfigDict({"name": "log_snr", "logsnr_min": -20.0, "logsnr_max": 20.0})
    config.parameterization.name = "v"
    config.network.time_scale = 999.0
    config.loss.weight = "snr_plus_one"
    config.sample.update(sampler="ddim", eta=0.0, grid="uniform", steps=16, final="last")
    return config


def _halve(steps: int) -> ConfigDict:
    config = digits()
    config.task = "distillation"
    config.distil = make_section("distil")
    config.loss.update(name="progressive", student_steps=steps, weight="truncated_snr")
    config.optim.update(lr=1e-3, warmup=0, decay="linear")
    config.train.steps = 400
    config.sample.steps = steps
    return config


VARIANTS = {"digits": digits, **{f"digits_{n}": partial(_halve, n) for n in (8, 4, 2, 1)}}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
