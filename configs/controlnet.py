"""ControlNet (Zhang et al. 2023), https://arxiv.org/abs/2302.05543.

    python -m experiments.train --config=configs/controlnet.py:fashion_mnist_base \\
        --workdir=runs/fashion-base
    python -m experiments.train --config=configs/controlnet.py:fashion_mnist_edges \\
        --workdir=runs/fashion-edges --config.control.base=runs/fashion-base

| variant | base | trained | batch, steps |
|---|---|---|---|
| fashion_mnist_edges (default) | fashion_mnist_base | 0.31M | 32, 15 minutes on one core |
| fashion_mnist_base | none: labels, v prediction | 0.69M | 32, 15 minutes on one core |
| shapes_mask, shapes_edges | configs/ldm.py:shapes | 0.79M | 32, 15 minutes on one core |
| small_edges | configs/stable_diffusion.py:shapes | 0.79M | 32, 15 minutes on one core |
| shapes_adapter | as shapes_edges, a T2I-Adapter | 0.17M | 32, 15 minutes on one core |
| sd15_canny | Stable Diffusion 1.5 | 361,279,120 | 32 of 512 pixels, 8k |
| sd15_canny_lora | the same, its copy by LoRA of rank 64 | 18.4M | 32 of 512 pixels, 8k |
| sd15_canny_unlocked | the same, its decoder too, at 2e-6 | 872.1M | 32 of 512 pixels, 8k |
| sd15_seg | Stable Diffusion 1.5 | 361,279,120 | 32 of 512 pixels, 40k |
| sd21_canny | Stable Diffusion 2.1 base | 364,228,240 | 32 of 512 pixels, 8k |
| sdxl_canny | Stable Diffusion XL | 1,251,014,160 | 64 of 1024 pixels, 20k |
| sd15_canny_adapter | a T2I-Adapter of version 1.5 | 77,369,280 | 8 of 512 pixels, 8k |
| sdxl_canny_adapter | a T2I-Adapter of XL | 79,028,160 | 64 of 1024 pixels, 20k |

AdamW at 1e-5 with a locked base and float32, half of the prompts dropped and no average of the
weights is the paper's recipe; it sees the hint suddenly, after 3k to 7k steps. The small ones take
larger steps. Bases of Stable Diffusion are a folder of diffusers, --config.model.path; those of
others --config.control.base. docs/controlnet.md has the whole story.
"""

from ml_collections import ConfigDict

from configs import cfg, ldm, stable_diffusion
from configs.base import select
from diffjax.config import make_section


def control(config: ConfigDict, *, hint: str, channels: int, factor: int) -> ConfigDict:
    """The recipe of the paper on top of a base."""
    config.task = "controlnet"
    config.control = make_section("control")
    config.control.hint.name = hint
    config.control.net.update(hint_channels=channels, hint_factor=factor)
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
    config = control(fashion_mnist_base(), hint="canny", channels=1, factor=1)
    config.control.net.hint_widths = (8, 8)
    config.optim.update(lr=5e-4, warmup=50, clip=1.0, weight_decay=0.0)
    config.ema.update(decay=0.99, warmup=True)
    return config


def _of_stable_diffusion(config: ConfigDict, *, hint: str) -> ConfigDict:
    stable_diffusion.begun(config)
    config.data.update(name="captioned_folder", batch_size=32)
    config.train.steps = 8000
    control(config, hint=hint, channels=3, factor=8)
    # OpenCV's thresholds 100 and 200, on sums of Sobel's weights over grey levels of 8 bits.
    low, high = (threshold / (8 * 255) for threshold in (100, 200))
    config.control.hint.update(low=low, high=high, sigma=0.0, norm="l1")
    return config


def sd15_canny() -> ConfigDict:
    return _of_stable_diffusion(stable_diffusion.model15(), hint="canny")


def sd15_canny_unlocked() -> ConfigDict:
    config = sd15_canny()
    config.control.train_decoder = True
    config.optim.lr = 2e-6  # of all that is trained: the release has one rate
    return config


def sd15_canny_lora() -> ConfigDict:
    """Adapters of the copied encoder; the layers that read the hint are trained whole."""
    config = sd15_canny()
    config.lora = make_section("lora", rank=64, alpha=64.0)
    config.optim.lr = 1e-4
    return config


def sd15_seg() -> ConfigDict:
    config = _of_stable_diffusion(stable_diffusion.model15(), hint="given")
    config.data.name = "paired_folder"  # masks in colours, in the folder `hints`
    config.train.steps = 40_000
    return config


def sd21_canny() -> ConfigDict:
    return _of_stable_diffusion(stable_diffusion.model21(), hint="canny")


def sdxl_canny() -> ConfigDict:
    config = _of_stable_diffusion(stable_diffusion.model_xl(), hint="canny")
    config.data.batch_size = 64
    config.train.steps = 20_000
    return config


def sd15_canny_adapter() -> ConfigDict:
    """T2I-Adapter (Mou et al. 2023, section 3.5 and 4.1)."""
    config = sd15_canny()
    config.control.net.name = "t2i_adapter"
    config.times.name = "cubic"
    config.data.batch_size = 8
    return config


def sdxl_canny_adapter() -> ConfigDict:
    config = sdxl_canny()
    config.control.net.update(name="t2i_adapter", kind="full_xl", hint_factor=16)
    config.times.name = "cubic"
    return config


def _shapes(base: ConfigDict, *, hint: str, channels: int) -> ConfigDict:
    config = control(base, hint=hint, channels=channels, factor=4)
    config.control.hint.num_classes = 5  # the background and four shapes
    config.control.hint.update(low=0.02, high=0.05)  # red on grey differs little in brightness
    config.control.net.hint_widths = (8, 16, 16)
    config.data.batch_size = 32
    config.optim.update(lr=5e-4, warmup=50, clip=1.0, weight_decay=0.0)
    config.ema.update(decay=0.99, warmup=True)
    config.train.update(steps=2400, minutes=15.0)
    return config


def shapes_mask() -> ConfigDict:
    return _shapes(ldm.shapes(), hint="mask", channels=5)


def shapes_edges() -> ConfigDict:
    return _shapes(ldm.shapes(), hint="edges", channels=1)


def shapes_adapter() -> ConfigDict:
    """Edges by a T2I-Adapter."""
    config = shapes_edges()
    config.control.net.name = "t2i_adapter"
    config.times.name = "cubic"
    return config


def small_edges() -> ConfigDict:
    """As sd15_canny, of a small model of the same parts."""
    return _shapes(stable_diffusion.shapes(), hint="edges", channels=3)


VARIANTS = {
    f.__name__: f
    for f in (
        *(fashion_mnist_edges, fashion_mnist_base, shapes_mask, shapes_edges, small_edges),
        *(sd15_canny, sd15_canny_lora, sd15_canny_unlocked, sd15_seg, sd21_canny, sdxl_canny),
        *(shapes_adapter, sd15_canny_adapter, sdxl_canny_adapter),
    )
}


def get_config(arg: str | None = None) -> ConfigDict:
    """A variant of the table above, optionally followed by ``,smoke``."""
    return select(arg, VARIANTS, "fashion_mnist_edges")
