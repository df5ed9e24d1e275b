"""What every experiment has: the sections of a config, their defaults, variants and smoke mode.

A section names a choice and holds options for it. A section may hold options of several choices,
so `--config.schedule.name=cosine` works by itself. None is the default of what is chosen; options
that no choice knows are errors.
"""

import abc
import difflib
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, FieldReference, config_flags
from ml_collections.config_dict import placeholder

Size = int | tuple[int, int]


class ImageSize(abc.ABC):  # noqa: B024 (its members are registered)
    """The type of ``data.image_size``: pixels on a side of a square, or (height, width)."""


for _kind in (int, tuple, list):
    ImageSize.register(_kind)


class _ImageSizeParser:
    """Reads ``64``, ``(40, 56)``, ``40,56`` and ``40x56`` from the command line."""

    syntactic_help = "a number of pixels, or (height,width)"

    def parse(self, argument: str | Size) -> Size:
        """
        Raises:
            ValueError: it is neither one number nor two.
        """
        if not isinstance(argument, str):
            return argument
        found = re.fullmatch(r"[\s(\[]*(\d+)(?:\s*[,x]\s*(\d+))?[\s,)\]]*", argument)
        if found is None:
            raise ValueError(
                f"{argument!r} is no size; give a number of pixels, such as 64, or height and "
                "width, such as (40,56)"
            )
        height, width = found.groups()
        return int(height) if width is None else (int(height), int(width))

    def flag_type(self) -> str:
        """What --help calls it."""
        return "number or (height,width)"


config_flags.register_flag_parser_for_type(ImageSize, _ImageSizeParser())


def make_size_field(size: Size) -> FieldReference:
    """A config field that takes one number or (height, width), in files and on the command line."""
    return FieldReference(size, field_type=ImageSize)


def unset(kind: type, *names: str) -> dict[str, Any]:
    """Options that have the default of what is chosen until a config or a flag sets them."""
    return {name: placeholder(kind) for name in names}


def base() -> ConfigDict:
    """DDPM's defaults; every config starts from here."""
    return ConfigDict(
        {
            "task": "diffusion",
            "seed": 0,
            "data": {
                "name": "digits",
                "split": "train",
                "dir": "",  # where the data set is; empty: the usual places
                "image_size": make_size_field(8),  # pixels on a side, or (height, width)
                "channels": 1,
                "background": "white",  # behind transparent pixels of folders; or #rrggbb
                "levels": 256,  # grey values, for the discretised decoder
                "num_classes": 0,
                "batch_size": 128,
                "flip": False,
                "augment": 0.0,  # probability of each of EDM's augmentations
                "threads": 2,  # that read ahead, in each process
                "prefetch": 2,  # batches read ahead; those on the devices come on top
                "caption_column": "",  # of metadata files; empty: text, caption or prompt
                "damaged": "stop",  # or skip: another picture takes the place of a damaged one
            },
            "network": {
                "name": "unet",
                "channels": 128,
                "multipliers": (1, 2, 2, 2),
                "blocks": 2,
                "attention_levels": (1,),
                "heads": 1,
                "head_channels": 0,
                "dropout": 0.0,
                "scale_shift": False,
                "resblock_updown": False,
                "conditional": False,
                "flip_sin_to_cos": False,
                "freq_shift": 1.0,
                "time_scale": 1.0,
                "downsample_padding": 0,
                "norm_groups": 32,
                "norm_eps": 1e-6,
                "patch": 1,
                "attention": "xla",  # or plain, chunked, cudnn
                "decoder_attention": "all",  # or last, of each level on the way up
                "fir": False,
                "rescale": False,
                "project": False,
                "fourier_scale": 0.0,
                "progressive_input": False,
                "augment_dim": 0,
                "remat": "none",  # or blocks, products: what is computed again to save memory
                "dtype": "float32",  # computation; parameters stay float32
            },
            "schedule": {
                "name": "linear",
                "steps": 1000,
                "zero_snr": False,
                **unset(float, "beta_start", "beta_end"),  # linear, scaled_linear
                **unset(float, "s", "max_beta"),  # cosine; sigmoid has max_beta too
                **unset(float, "start", "end", "tau"),  # sigmoid
                **unset(float, "beta_min", "beta_max"),  # vp_sde, sub_vp
                **unset(float, "sigma_min", "sigma_max"),  # ve, ve_discrete, edm
                **unset(float, "logsnr_min", "logsnr_max"),  # log_snr
                **unset(float, "shift", "t_min", "t_max"),  # flow; vp_sde and sub_vp have t_min
            },
            "parameterization": {
                "name": "eps",
                "learned_variance": False,
                **unset(float, "sigma_data"),  # edm, of the network and of the loss weight
            },
            "loss": {
                "name": "simple",  # simple, vlb, hybrid
                "weight": "simple",  # simple, snr, p2, min_snr, edm
                "variance": "fixedsmall",  # of the bound
                "vlb_weight": 1e-3,
                "distance": "l2",  # or l1, of the simple loss
                **unset(float, "gamma", "k"),  # min_snr has gamma, p2 both
            },
            "times": {
                "name": "uniform",
                **unset(float, "share"),  # uniform, low_discrepancy: those with the least noise
                **unset(float, "mean", "std"),  # log_normal, logit_normal
                **unset(int, "history"),  # loss_second_moment
                **unset(float, "uniform_prob"),
            },
            "cond": {
                "drop": 0.0,  # probability of training without the condition (p_uncond)
                "null": "learned",  # embedding of no condition: learned, zero
                "context": "",  # tokens to attend to: label, text, clip, clip_xl, given
                "given": {"tokens": 77, "pooled": 1280},  # sizes of embeddings made beforehand
                "concat": "",  # channels joined to z: superres, inpaint, fill, map
                "map_classes": 0,  # of the semantic map
                "weights": "",  # of a frozen text encoder, as a folder of transformers
                "empty": (),  # ids of the empty text, the last one fills up; none: zeros
            },
            "optim": {
                "name": "adam",
                "lr": 2e-4,
                "warmup": 5000,
                "decay": "constant",
                "clip": 1.0,
                **unset(float, "lr_end"),  # cosine, linear: a fraction of lr
                **unset(float, "b1", "b2", "eps"),  # adam, adamw
                **unset(float, "weight_decay"),  # adamw
                **unset(float, "momentum"),  # sgd
            },
            "ema": {
                "decay": 0.9999,
                "warmup": False,
                "half_life": 0,  # in images, instead of decay
                "ramp": 0.05,  # the half-life is at most this share of the images seen
            },
            "train": {
                "steps": 800_000,
                "minutes": 0.0,  # stop and save after this wall-clock; 0: no limit
                "accumulate": 1,
                "log_every": 100,
                "checkpoint_every": 5000,
                "sample_every": 10_000,
                "evaluate_every": 0,  # a multiple of log_every; 0: never
                "keep": 2,
                "nonfinite": "stop",  # a loss that is: stop, skip the step, or rollback
                "override": False,  # resume although config, shapes or frozen weights differ
            },
            "sample": {
                "sampler": "ddpm",
                **unset(str, "variance"),  # ddpm, pc: fixedsmall, fixedlarge, learned, or a number
                **unset(float, "eta"),  # ddim
                **unset(float, "gamma"),  # tcd
                **unset(float, "timestep_scaling"),  # lcm
                **unset(float, "s_churn", "s_tmin", "s_tmax", "s_noise"),  # heun
                **unset(float, "snr"),  # pc
                **unset(int, "corrections"),
                **unset(int, "steps_per_level"),  # langevin
                **unset(float, "step_size"),
                **unset(bool, "denoise"),
                **unset(int, "order"),  # lms, ipndm, deis
                **unset(bool, "lower_order_final"),  # dpmpp_2m and its like, unipc, deis
                **unset(bool, "euler_at_final"),  # dpmpp_2m and its like
                **unset(str, "solver_type"),
                "grid": "leading",
                "steps": 1000,
                **unset(float, "rho", "sigma_min", "sigma_max"),  # karras
                **unset(float, "a", "b"),  # beta
                **unset(float, "fraction"),  # quadratic
                **unset(int, "original_steps"),  # lcm
                **unset(int, "offset"),  # leading
                **unset(str, "final"),  # where grids end: clean, first, last
                "clip": True,
                "guidance": 1.0,  # s = 1 + w; 1: none
                "classifier": "",  # file of experiments.export that guides instead, with that scale
                "guidance_low": 0.0,  # only at sigma / alpha from here
                "guidance_high": 1e9,  # to here
                "guidance_rescale": 0.0,
                "guidance_sequential": False,  # two passes: slower, half the memory
                "num": 64,
                "batch_size": 64,
            },
            "eval": {
                "num": 50_000,
                "features": "",  # frozen classifier for distances; empty: none for this data
                "bits_images": 1000,
                "loop_num": 1000,  # images of an evaluation in training
                "best": "distance",  # which of its measures best/ goes by; empty: keep none
                "best_mode": "min",
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        }
    )


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
    elif net.get("context_dim", 0):
        net.context_dim = 8
    if "model" in config:
        config.model.path = "random"
        config.data.bucket_step = 0
    if "autoencoder" in config:
        factor *= _shrink(config.autoencoder) // 2
        config.autoencoder.weights = "random"
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
    if "control" in config:
        config.control.base, config.control.hint.name = "random", "sobel"
        config.control.net.hint_widths = config.control.net.hint_widths[:1] * len(
            config.control.net.hint_widths
        )
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


def _shrink(net: ConfigDict) -> int:
    """Make a network as small as it can be; gives 2^levels."""
    net.update(channels=8, norm_groups=2, blocks=1)
    net.multipliers = tuple(2 * m if m < 1 else 1 for m in net.multipliers)
    if net.get("head_channels", 0):
        net.head_channels = 4
    if "codes" in net:
        net.codes = 8
    return 2 ** len(net.multipliers)
