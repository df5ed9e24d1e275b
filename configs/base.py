"""What every config starts from, how a command names a variant of it, and its smoke mode.

The sections and their defaults are in `diffjax.config`.
"""

import difflib
from collections.abc import Callable

from ml_collections import ConfigDict

from diffjax.config import make


def base() -> ConfigDict:
    """DDPM's defaults; every config starts from here."""
    return make()


def select(
    arg: str | None, variants: dict[str, Callable[[], ConfigDict]], default: str
) -> ConfigDict:
    """The config of ``"variant"`` or ``"variant,smoke"``.

    Raises:
        ValueError: unknown variant or mode, listing the choices.
    """
    name, *modes = (arg or default).split(",")
    if name not in variants or set(modes) - {"smoke"}:
        near = difflib.get_close_matches(name, variants, 1)
        raise ValueError(
            f"unknown config argument {arg!r}; choose one of {', '.join(variants)}, "
            "each optionally followed by ',smoke'"
            + (f". Did you mean {near[0]!r}?" if near and name not in variants else "")
        )
    config = variants[name]()
    return smoke(config) if modes else config


def smoke(config: ConfigDict) -> ConfigDict:
    """The same code path at the smallest size: random images, two steps, a checkpoint, a sample."""
    net = config.network
    factor = _shrink(net) * net.get("patch", 1)
    if config.task == "autoencoder":
        factor = max(factor, 8)
        config.loss.update(perceptual="none", disc_channels=4, disc_layers=1, disc_start=1)
    elif config.loss.get("metric") == "lpips":
        config.loss.metric = "l2"
    if config.task != "autoencoder" and net.get("context_dim", 0):
        net.context_dim = 8
    if "model" in config:
        config.model.path = "random"
        config.data.bucket_step = 0
    if "autoencoder" in config:
        factor *= _shrink(config.autoencoder) // 2
        config.autoencoder.weights = "random"
    _shrink_texts(config)
    if "distil" in config:
        config.distil.base = "random"
    if "control" in config:
        config.control.base, config.control.hint.name = "random", "sobel"
        config.control.net.hint_widths = config.control.net.hint_widths[:1] * len(
            config.control.net.hint_widths
        )
    if "ip_adapter" in config:
        small = {"size": 8, "patch": 4, "features": 8, "width": 16, "layers": 2, "heads": 2}
        config.ip_adapter.vision.update(small, projection=8)
        config.ip_adapter.update(encoder="random", features=8, heads=2, layers=1)
    if "align" in config:
        small = {"size": 8, "patch": 4, "features": 8, "layers": 1, "heads": 2}
        config.align.update(encoder="random", block=1, width=8)
        config.align.vision.update(small)
    config.data.update(name="noise", image_size=factor, batch_size=4)
    # What a config leaves to its data, which noise has not.
    config.data.update(
        channels=config.data.channels or 3,
        levels=config.data.levels or 256,
        num_classes=config.data.num_classes if config.data.num_classes >= 0 else 2,
    )
    config.train.update(
        steps=2, minutes=0.0, log_every=1, checkpoint_every=1, sample_every=2, accumulate=1
    )
    if config.optim.decay != "constant":
        config.optim.warmup = 0
    config.sample.update(num=4, batch_size=4, steps=min(config.sample.steps, 4))
    config.eval.update(num=8, bits_images=4, features="")
    return config


def _shrink_texts(config: ConfigDict) -> None:
    """Make the text encoders of a config as small as they can be."""
    net = config.network
    if config.get("cond", {}).get("text"):
        config.cond.text.update(vocabulary=22, positions=18, layers=1, heads=2)
        if config.cond.context == "clip":
            config.cond.text.width, config.cond.weights = 16, "random"
            config.cond.empty = config.cond.empty and (20, 21)
        elif config.cond.context == "clip_xl":
            small = {"vocabulary": 22, "positions": 18, "layers": 1, "heads": 2, "width": 16}
            config.cond.text.update(small, features=4)
            config.cond.text_2.update(small, features=4, projection=4)
            net.update(added_dim=4 + 6 * 8, added_time_dim=8)
        else:
            config.cond.text.head_channels = 4
    if "concept" in config:  # whose word a tokenizer must know
        config.model.tokenizer, config.concept.word = "shapes", "<new>"
        for entry in ("text", "text_2"):
            if entry in config.cond:
                config.cond[entry].update(vocabulary=116, positions=20)
        config.cond.empty = config.cond.empty and (114, 115, 115)


def _shrink(net: ConfigDict) -> int:
    """Make a network as small as it can be; gives the smallest side of its input."""
    net.update(channels=8, norm_groups=2, blocks=1)
    net.multipliers = tuple(2 * m if m < 1 else 1 for m in net.multipliers)
    if net.get("head_channels", 0):
        net.head_channels = 4
    if "codes" in net:
        net.codes = 8
    return 2 if net.name == "dit" else 2 ** len(net.multipliers)  # two patches on a side
