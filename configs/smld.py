"""Score matching with Langevin dynamics: NCSN (Song & Ermon 2019) and NCSNv2 (2020).

    python -m experiments.train --config=configs/smld.py:ncsn --workdir=runs/ncsn
    python -m experiments.sample --workdir=runs/ncsn

arXiv:1907.05600 and arXiv:2006.09011.

| variant | levels | cost | expected on CIFAR-10 |
|---|---|---|---|
| ncsn | 10, sigma 1 to 0.01; 100 Langevin steps each | 200k steps, batch 128 | FID 25.32, IS 8.87 |
| ncsn_celeba | the same, on faces of 32x32 | 200k steps, batch 128 | pictures |
| ncsn_mnist | the same, 64 channels | 200k steps, batch 128 | pictures |
| ncsn_printed | the same | the same weights | the step of the paper's algorithm 1 |
| ncsnv2 | 232, sigma 50 to 0.01; 5 steps each | 300k steps, batch 128 | FID 10.87, IS 8.40 |
| fashion_mnist | 32, sigma 15 to 0.02; 5 steps each | 30 minutes on two CPU cores | docs/results |
| digits (default) | the same | 3 minutes on two CPU cores | readable 8x8 digits |

The papers' images lie in [0, 1], here in [-1, 1]: sigmas are doubled and step sizes quadrupled.
NCSN prints its step as ``a/2 s + sqrt(a) z``, while its code, whose samples have the figures above,
computes ``a s + sqrt(2 a) z`` with the same a = 2e-5; NCSNv2 prints and computes the latter. Both
start with uniform noise. ``ncsn_printed`` differs from ``ncsn`` in the rule alone. NCSN adds
uniform noise to grey levels and does not average its weights, and both sum over pixels. Their
networks are RefineNets. NCSN tells all norms the noise level, and its output is the score of pixels
in [0, 1], with the weight sigma^2. NCSNv2's network is not told the level; its output divided by
sigma is the score, so that it predicts -eps, here eps.
"""

from ml_collections import ConfigDict

from configs import ddpm
from configs.base import base, select


def _levels(config: ConfigDict, *, low: float, high: float, steps: int) -> None:
    config.schedule = ConfigDict(
        {"name": "ve_discrete", "sigma_min": low, "sigma_max": high, "steps": steps}
    )
    config.sample.update(sampler="langevin", grid="full", steps=steps, final="last", clip=False)


def ncsn() -> ConfigDict:
    config = base()
    config.data.update(name="cifar10", image_size=32, channels=3, num_classes=10, flip=True)
    _levels(config, low=0.02, high=2.0, steps=10)
    config.network.update(name="refinenet", level_norms=True, initialisation="torch")
    config.parameterization.update(name="score", score_scale=2.0)  # of pixels in [0, 1]
    config.loss.update(weight="snr", reduction="half_sum")  # sigma^2 |score - target|^2 / 2
    config.data.dequantize = True
    config.optim.update(lr=1e-3, warmup=0, clip=0.0)
    config.ema.decay = 0.0
    config.train.steps = 200_001
    config.sample.update(steps_per_level=100, step_size=8e-5, rule="released", start="uniform")
    return config


def ncsn_celeba() -> ConfigDict:
    """The 140 central pixels of faces."""
    config = ncsn()
    config.data.update(name="celeb_a", num_classes=0, window=(39, 19, 140, 140))
    return config


def ncsn_mnist() -> ConfigDict:
    config = ncsn()
    config.data.update(name="mnist", image_size=28, channels=1, flip=False)
    config.network.channels = 64
    return config


def ncsn_printed() -> ConfigDict:
    """The step of algorithm 1: half as long as that of the code, which made the figures."""
    config = ncsn()
    config.sample.rule = "printed"
    return config


def ncsnv2() -> ConfigDict:
    config = ncsn()
    _levels(config, low=0.02, high=100.0, steps=232)
    config.network.level_norms = False
    config.parameterization.update(name="eps", score_scale=None)
    config.loss.weight = "simple"
    config.data.dequantize = False
    config.optim.lr = 1e-4
    config.ema.decay = 0.999
    config.train.steps = 300_001
    config.sample.update(steps_per_level=5, step_size=4 * 6.2e-6, denoise=True)
    return config


def _small(config: ConfigDict) -> ConfigDict:
    _levels(config, low=0.02, high=15.0, steps=32)
    config.parameterization.name = "edm"  # scales the input, which NCSN's networks do without
    config.loss.weight = "snr"
    config.network.time_scale = 1000 / 32
    config.sample.update(steps_per_level=5, step_size=1e-4, denoise=True)
    return config


def fashion_mnist() -> ConfigDict:
    config = _small(ddpm.fashion_mnist())
    config.train.update(steps=2400, minutes=30.0)
    return config


def digits() -> ConfigDict:
    return _small(ddpm.digits())


VARIANTS = {
    f.__name__: f
    for f in (digits, fashion_mnist, ncsn, ncsn_celeba, ncsn_mnist, ncsn_printed, ncsnv2)
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "digits")
