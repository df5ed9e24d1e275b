"""MeanFlow (Geng et al. 2025), arXiv:2505.13447, and shortcut models (Frans et al. 2024).

    python -m experiments.train --config=configs/mean_flow.py:cifar10 --workdir=runs/mean-cifar10
    python -m experiments.sample --workdir=runs/mean-cifar10 --steps=1

| variant | parameters | cost | expected |
|---|---|---|---|
| cifar10 | 55.9M | 800,000 steps, batch 1024 | FID 2.92, one evaluation |
| digits (default), digits_shortcut | 0.73M | 5 minutes on two CPU cores | readable digits, one |
| digits_transformer | 0.75M | 5 minutes on two CPU cores | the same by a transformer (DiT) |
| fashion_mnist14, fashion_mnist14_shortcut | 0.80M | 20 minutes on two CPU cores | clothes, one |

The network predicts the mean velocity over a step, whose length it is told; any number of steps can
be taken. Shortcut models, arXiv:2410.12557, have the same network and another target.
"""

from ml_collections import ConfigDict

from configs import ddpm, dit, score_sde
from configs.base import base, select


def _recipe(config: ConfigDict) -> ConfigDict:
    config.schedule = ConfigDict({"name": "flow", "shift": 1.0, "t_min": 0.0, "t_max": 1.0})
    config.parameterization.name = "velocity"
    config.cond.span = True
    config.sample.update(sampler="euler", grid="uniform", steps=1, final="last", clip=False)
    return config


def _mean(config: ConfigDict, *, mean: float, std: float) -> ConfigDict:
    config.loss.update(name="mean_flow", ratio=0.75, power=0.75, floor=1e-3)
    config.times = ConfigDict({"name": "logit_normal", "mean": mean, "std": std})
    return _recipe(config)


def _shortcut(config: ConfigDict) -> ConfigDict:
    config.loss.update(name="shortcut", sections=128, share=0.25, target_decay=0.99)
    config.times.name = "uniform"
    return _recipe(config)


def cifar10() -> ConfigDict:
    config = base()
    config.data.update(name="cifar10", image_size=32, channels=3, num_classes=10)
    config.data.update(batch_size=1024, flip=True, augment=0.12, augment_turns=False)
    score_sde.ddpmpp(config)
    config.network.update(multipliers=(2, 2, 2), dropout=0.2, augment_dim=6, span_dim=256)
    config.optim.update(lr=6e-4, warmup=10_000, lr_start=0.0, clip=0.0)
    config.ema.update(decay=0.9999, every=16)
    config.train.steps = 800_000
    _mean(config, mean=-2.0, std=2.0)
    config.network.time_scale = 1.0
    return config


def _small(config: ConfigDict, *, steps: int) -> ConfigDict:
    config.network.time_scale = 999.0
    config.network.added_time_dim = 2 * config.network.channels
    config.train.steps = steps
    return config


def digits() -> ConfigDict:
    return _mean(_small(ddpm.digits(), steps=1600), mean=-0.4, std=1.0)


def digits_transformer() -> ConfigDict:
    return _mean(_small(dit.digits_sit(), steps=1600), mean=-0.4, std=1.0)


def digits_shortcut() -> ConfigDict:
    return _shortcut(_small(ddpm.digits(), steps=1600))


def fashion_mnist14() -> ConfigDict:
    return _mean(_small(ddpm.fashion_mnist14(), steps=3000), mean=-0.4, std=1.0)


def fashion_mnist14_shortcut() -> ConfigDict:
    return _shortcut(_small(ddpm.fashion_mnist14(), steps=3000))


VARIANTS = {
    f.__name__: f
    for f in (
        *(digits, digits_shortcut, digits_transformer),
        *(fashion_mnist14, fashion_mnist14_shortcut, cifar10),
    )
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
