"""ControlNet (Zhang et al. 2023), https://arxiv.org/abs/2302.05543.

    python -m experiments.train --config=configs/controlnet.py:fashion_mnist_base \\
        --workdir=runs/fashion-base
    python -m experiments.train --config=configs/controlnet.py:fashion_mnist_edges \\
        --workdir=runs/fashion-edges --config.control.base=runs/fashion-base

| variant | base | parameters trained | cost |
|---|---|---|---|
| fashion_mnist_edges (default) | fashion_mnist_base | 0.31M | 15 minutes on one core |
| fashion_mnist_base | none: labels, v prediction | 0.69M | 15 minutes on one core |

AdamW at 1e-5 with a locked base and float32, half of the prompts dropped and no average of the
weights is the paper's recipe. It sees the hint suddenly, after 3k to 7k steps. The small ones take
larger steps.
"""

from ml_collections import ConfigDict

from configs import cfg
from configs.base import select


def _control(config: ConfigDict, *, hint: str, channels: int, factor: int) -> ConfigDict:
    """The recipe of the paper on top of a base."""
    config.task = "controlnet"
    config.control = ConfigDict({
        "base": "",  # workdir, exported .safetensors, or unet folder of diffusers
        "hint": {"name": hint, "low": 0.05, "high": 0.1, "sigma": 1.0},  # options of canny
        "net": {
            "hint_channels": channels,
            "hint_widths": (16, 32, 96, 256),
            "hint_factor": factor,  # pixels of the hint per pixel of z
            "hint_encoder": "released",  # or paper
            "connections": "zero",  # or gaussian
            "lite": False,
        },
        "only_middle": False,  # no residuals on the skips
        "train_decoder": False,  # train the base's decoder too
        "balance": "balanced",  # or prompt, control, guess, resolution
    })  # fmt: skip
    config.cond.drop = 0.5
    config.optim.update(name="adamw", lr=1e-5, weight_decay=0.01, warmup=0, clip=0.0)
    config.ema.update(decay=0.0, warmup=False)
    return config


def fashion_mnist_base() -> ConfigDict:
    """Labels, v prediction: the base that the edges control."""
    config = cfg.fashion_mnist()
    config.data.batch_size = 32
    config.optim.update(lr=1e-3, warmup=100)
    config.ema.decay = 0.995
    config.train.update(steps=1200, minutes=15.0, checkpoint_every=300, sample_every=600)
    return config


def fashion_mnist_edges() -> ConfigDict:
    config = _control(fashion_mnist_base(), hint="canny", channels=1, factor=1)
    config.control.net.hint_widths = (8, 8)
    config.optim.update(lr=5e-4, warmup=50, clip=1.0, weight_decay=0.0)
    config.ema.update(decay=0.99, warmup=True)
    return config


VARIANTS = {f.__name__: f for f in (fashion_mnist_edges, fashion_mnist_base)}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "fashion_mnist_edges")
