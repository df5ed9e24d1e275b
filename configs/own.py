"""Your own pictures: a small model of a folder, on a laptop (docs/own_pictures.md).

    python -m experiments.train --config=configs/own.py:plain --config.data.dir=FOLDER \\
        --workdir=runs/own
    python -m experiments.sample --workdir=runs/own --num=16

| variant | FOLDER has | the model is told | parameters |
|---|---|---|---|
| plain (default) | pictures, in sub-folders or not | nothing | 1.1M |
| classes | a sub-folder of pictures per class | the class | 1.1M |
| captions | pictures with captions | the caption | 1.3M |
| hints | pictures with hints | the hint, by a ControlNet of a plain model | 0.5M |

Size, channels, grey levels, classes and words are those of the folder: that is what 0 and, for the
number of classes, -1 stand for. Pictures whose longer side has more than data.longest_side pixels
are made smaller. There is no paper to compare with; a few dozen pictures are learnt by heart.
"""

from ml_collections import ConfigDict

from configs import controlnet
from configs.base import base, select


def plain() -> ConfigDict:
    config = base()
    config.data.update(name="image_folder", image_size=0, channels=0, levels=0, batch_size=16)
    config.data.longest_side = 64
    config.network.update(patch=4, channels=48, multipliers=(1, 2), blocks=1)
    config.network.update(attention_levels=(1,), norm_groups=8)
    config.parameterization.name = "x0"  # few steps of training leave no noise in the pictures
    config.times.name = "low_discrepancy"
    config.optim.update(lr=2e-3, warmup=100, decay="cosine")
    config.ema.update(decay=0.99, warmup=True)
    config.train.update(steps=800, log_every=50, checkpoint_every=200, sample_every=200)
    config.sample.update(sampler="ddim", grid="leading", steps=50, num=16, batch_size=16)
    config.eval.update(num=1000, bits_images=16, best="")
    return config


def classes() -> ConfigDict:
    config = plain()
    config.data.num_classes = -1
    config.network.conditional = True
    config.cond.drop = 0.1
    config.sample.guidance = 1.5
    return config


def captions() -> ConfigDict:
    config = plain()
    config.data.name = "captioned_folder"
    config.network.update(context_dim=64, heads=4)
    config.cond.update(context="text", words="captions", drop=0.1)
    config.cond.text = ConfigDict(
        {"vocabulary": 0, "positions": 0, "layers": 2, "heads": 4, "head_channels": 16}
    )
    config.sample.guidance = 2.0
    return config


def hints() -> ConfigDict:
    """Begins from a run of the plain variant, --config.control.base."""
    config = controlnet.control(plain(), hint="given", channels=3, factor=4)
    config.data.name = "paired_folder"
    config.control.net.hint_widths = (8, 16, 16)
    config.optim.update(lr=1e-3, warmup=50, clip=1.0, weight_decay=0.0)
    config.ema.update(decay=0.99, warmup=True)
    config.train.steps = 500
    return config


VARIANTS = {f.__name__: f for f in (plain, classes, captions, hints)}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "plain")
