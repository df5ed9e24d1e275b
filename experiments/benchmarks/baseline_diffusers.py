"""Train diffusers' UNet2DModel on Fashion-MNIST for a given time: the PyTorch baseline.

    taskset -c 1 .venv-parity/bin/python -m experiments.benchmarks.baseline_diffusers \\
        --workdir=runs/baseline --minutes=60 --threads=1 --num=10000 --sample_steps=50

Needs torch and diffusers (`make parity` installs them into .venv-parity). Recipes, both with the
28x28 network of the Hugging Face diffusion course and with an exponential moving average that
the course does without:

    course   Adam 1e-3, batch 128, cosine betas, no clipping
    script   AdamW 1e-4, batch 16, linear betas, clipping at 1, 500 steps of warm-up, cosine decay,
             as in diffusers' examples/unconditional_image_generation

Writes to the workdir: unet/ (averaged weights) and scheduler/ every 5 minutes and at the end,
summary.json, and samples-STEPS.npz (uint8 ``images``) with a grid of pictures beside it
(samples-ddpm-STEPS with --sampler=ddpm). --minutes=0 only samples, from the unet/ that is there.
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags, logging

# isort: off
try:
    import torch
    from experiments.benchmarks import torch_operators  # noqa: F401
    import diffusers
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel
except ImportError as error:
    raise SystemExit(
        f"error: {error}. This baseline needs torch and diffusers, which make parity installs into "
        ".venv-parity: run it with .venv-parity/bin/python"
    ) from error
# isort: on

from diffjax import data
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.evaluation.image_grids import save_png, tile, to_uint8
from diffjax.types import JsonObject
from diffjax.writing import write_json

MINUTES = flags.DEFINE_float("minutes", 60.0, "Minutes of training; 0 only samples.", 0)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the weights, batches, noise and samples.")
BATCH = flags.DEFINE_integer(
    "batch_size", None, "Batch size of training; that of the recipe if not set.", 1
)
RECIPE = flags.DEFINE_enum("recipe", "course", ["course", "script"], "Recipe of training.")
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of the data; where it is installed if not set."
)
NUM = flags.DEFINE_integer("num", 100, "Number of images to sample at the end.", 0)
STEPS = flags.DEFINE_list("sample_steps", ["50"], "Numbers of sampling steps.")
SAMPLER = flags.DEFINE_enum("sampler", "ddim", ["ddim", "ddpm"], "Sampler; ddim has eta 0.")
SAMPLE_BATCH = flags.DEFINE_integer(
    "sample_batch_size", 250, "Number of images sampled at once.", 1
)
THREADS = flags.DEFINE_integer("threads", 1, "Number of CPU threads of torch.", 1)

# Time between two saves of the average.
SAVE_SECONDS = 300
# Steps over which a point of the loss curve is averaged.
CURVE_STEPS = 50
# Steps of warm-up of the recipe script.
WARM_UP = 500


class Recipe(NamedTuple):
    """Options of one way to train.

    Attributes:
        batch: images of a step.
        betas: name of diffusers' schedule.
        lr: learning rate.
        adamw: whether the optimiser is AdamW, or else Adam.
        clip: the largest norm of the gradients; None for no bound.
        decay: whether the learning rate warms up and then falls by a cosine.
    """

    batch: int
    betas: str
    lr: float
    adamw: bool
    clip: float | None
    decay: bool


# The recipes of the Hugging Face course, and of diffusers' training script.
RECIPES = {
    "course": Recipe(128, "squaredcos_cap_v2", 1e-3, False, None, False),
    "script": Recipe(16, "linear", 1e-4, True, 1.0, True),
}


def _make_network() -> UNet2DModel:
    """Make the network of the Hugging Face course for grey images of 28x28 pixels."""
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


def _make_optimizer(recipe: Recipe, net: UNet2DModel) -> torch.optim.Optimizer:
    """Make the optimiser of a recipe for a network."""
    if recipe.adamw:
        return torch.optim.AdamW(
            net.parameters(), lr=recipe.lr, betas=(0.95, 0.999), weight_decay=1e-6
        )
    return torch.optim.Adam(net.parameters(), lr=recipe.lr)


def _iterate_batches(images: np.ndarray, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield shuffled batches (B, 1, 28, 28) in [-1, 1], epoch after epoch.

    Args:
        images: (N, 28, 28, 1) uint8.
        size: of a batch; the images that are left at the end of an epoch are dropped.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(order) - size + 1, size):
            some = torch.from_numpy(images[order[start : start + size]])
            yield some.permute(0, 3, 1, 2).float() / 127.5 - 1


def _compute_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Compute the learning rate of a step.

    The decay ends with the time, so the number of steps that fit is estimated from the progress.

    Args:
        step: number of the step, from 0.
        progress: share of the time that has passed, in [0, 1].
    """
    if not recipe.decay:
        return recipe.lr
    total = step / max(progress, 1e-6)
    done = min(max(step - WARM_UP, 0) / max(total - WARM_UP, 1), 1)
    return recipe.lr * min((step + 1) / WARM_UP, 1) * 0.5 * (1 + math.cos(math.pi * done))


def _read_cpu_seconds() -> float:
    """Read the processor time that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _save_average(ema: EMAModel, net: UNet2DModel, folder: Path) -> None:
    """Save the averaged weights as a folder of diffusers, and put the weights in training back.

    Args:
        ema: the average of the weights.
        net: the network in training.
        folder: workdir; the weights go to its folder unet.
    """
    ema.store(net.parameters())
    ema.copy_to(net.parameters())
    net.save_pretrained(folder / "unet")
    ema.restore(net.parameters())


def _train(folder: Path, images: np.ndarray, seconds: float) -> None:
    """Train for some time, and save averaged weights and a summary at intervals.

    The loss is ``|eps_hat - eps|^2`` at uniform timesteps, as in the course and in diffusers'
    script.

    Args:
        folder: workdir.
        images: (N, 28, 28, 1) uint8.
        seconds: wall-clock time of the training.
    """
    recipe = RECIPES[RECIPE.value]
    size = BATCH.value or recipe.batch
    net, scheduler = _make_network(), DDPMScheduler(1000, beta_schedule=recipe.betas)
    optimizer = _make_optimizer(recipe, net)
    # Without use_ema_warmup, inv_gamma and power would have no effect.
    ema = EMAModel(
        net.parameters(), 0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True
    )
    scheduler.save_pretrained(folder / "scheduler")
    summary: JsonObject = {
        "recipe": RECIPE.value,
        **recipe._asdict(),
        "batch": size,
        "seed": SEED.value,
        "threads": THREADS.value,
        "parameters": sum(p.numel() for p in net.parameters()),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    curve, recent, step = [], [], 0
    batches = _iterate_batches(images, size, SEED.value)
    net.train()
    started, cpu, saved = time.monotonic(), _read_cpu_seconds(), 0.0

    def save(elapsed: float) -> None:
        """Save the averaged weights and the summary of the training so far."""
        _save_average(ema, net, folder)
        progress = {"steps": step, "images": step * size, "wall_seconds": elapsed}
        summary.update(progress, cpu_seconds=_read_cpu_seconds() - cpu, loss_every_50_steps=curve)
        write_json(folder / "summary.json", summary)

    while (elapsed := time.monotonic() - started) < seconds:
        if elapsed - saved > SAVE_SECONDS:
            saved = elapsed
            save(elapsed)
        # The decay follows the clock, since the number of steps is not known.
        for group in optimizer.param_groups:
            group["lr"] = _compute_rate(recipe, step, elapsed / seconds)
        x = next(batches)
        noise = torch.randn_like(x)
        t = torch.randint(0, 1000, (size,))
        loss = torch.nn.functional.mse_loss(net(scheduler.add_noise(x, noise, t), t).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        optimizer.step()
        ema.step(net.parameters())
        step += 1
        recent.append(loss.item())
        if len(recent) == CURVE_STEPS:
            curve.append(round(float(np.mean(recent)), 6))
            recent = []
            logging.info("step %d, loss %.4f, %.0f s", step, curve[-1], time.monotonic() - started)
    save(elapsed)
    logging.info("%d steps of %d images in %.0f s", step, size, elapsed)


@torch.no_grad()
def _sample(folder: Path, steps: int) -> np.ndarray:
    """Draw ``--num`` images (num, 28, 28, 1) in [-1, 1] from the saved averaged weights.

    Args:
        folder: workdir.
        steps: of the sampler.
    """
    net = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).eval()
    kind = DDIMScheduler if SAMPLER.value == "ddim" else DDPMScheduler
    scheduler = kind.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(SEED.value)
    done = []
    for start in range(0, NUM.value, SAMPLE_BATCH.value):
        count = min(SAMPLE_BATCH.value, NUM.value - start)
        z = torch.randn(count, 1, 28, 28, generator=generator)
        for t in scheduler.timesteps:
            z = scheduler.step(net(z, t).sample, t, z, generator=generator).prev_sample
        done.append(z.permute(0, 2, 3, 1).numpy())
        logging.info("sampled %d of %d images", start + count, NUM.value)
    return np.concatenate(done)


def _write_samples(folder: Path, steps: int) -> None:
    """Draw images with some number of steps, and write them with the time that it took."""
    started, cpu = time.monotonic(), _read_cpu_seconds()
    images = _sample(folder, steps)
    taken = {"wall_seconds": time.monotonic() - started, "cpu_seconds": _read_cpu_seconds() - cpu}
    name = f"samples-{steps}" if SAMPLER.value == "ddim" else f"samples-ddpm-{steps}"
    np.savez_compressed(folder / f"{name}.npz", images=to_uint8(images))
    save_png(tile(images[:100]), folder / f"{name}.png")
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    made = {"num": NUM.value, "seed": SEED.value, **taken}
    summary["samples"] = {**summary.get("samples", {}), name: made}
    write_json(path, summary)


def _read_sample_steps() -> list[int]:
    """Read --sample_steps.

    Raises:
        UsageError: a number is outside of 1 .. 1000.
    """
    try:
        steps = [int(value) for value in STEPS.value]
    except ValueError:
        steps = [0]
    if not all(1 <= n <= 1000 for n in steps):
        raise UsageError(f"--sample_steps are numbers in 1 .. 1000, got {STEPS.value}")
    return steps


# Flags of other modules that this command uses.
USES = ("workdir",)


def main() -> None:
    """Train the baseline, if there is time for it, and draw images from it.

    Raises:
        UsageError: nothing was trained, and --minutes is 0.
    """
    folder, steps = run_flags.read_workdir(), _read_sample_steps()
    # Threads and seed are set before anything is drawn.
    torch.set_num_threads(THREADS.value)
    torch.manual_seed(SEED.value)
    if MINUTES.value:
        images = data.load("fashion_mnist", data_dir=DATA_DIR.value).images
        folder.mkdir(parents=True, exist_ok=True)
        _train(folder, images, 60 * MINUTES.value)
    elif not (folder / "unet").is_dir():
        raise UsageError(f"there is no {folder / 'unet'} to sample from; give --minutes")
    for count in steps if NUM.value else []:
        _write_samples(folder, count)


if __name__ == "__main__":
    run_flags.run(main, USES)
