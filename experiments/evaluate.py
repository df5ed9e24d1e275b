"""Measure a checkpoint: distance to real images, scores, bits/dim; or sweep samplers over it.

    python -m experiments.evaluate --workdir=runs/digits
    python -m experiments.evaluate --workdir=runs/digits --images=some/samples.npz
    python -m experiments.evaluate --workdir=runs/digits --sweep=sampler=ddim --sweep=eta=0,0.5,1 \\
        --sweep=steps=5,10,20,50 --seeds=3 --name=ddim

Distances are Frechet distances on the features of a small frozen classifier of ours, never FID.
Writes evaluation.json (or --out), and for sweeps sweeps/NAME.jsonl, .md and .png in the workdir; a
sweep that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from tqdm import tqdm

from diffjax import data, grids, likelihood, metrics, samplers
from diffjax.train import State
from experiments import common, sampler_sweep

common.define_sampling_flags()
KNOWN = ("distance", "baselines", "bits", "ode_bits", "reconstruction")
METRICS = flags.DEFINE_list(
    "metrics", ["distance", "baselines", "bits"], f"What to measure: {', '.join(KNOWN)}."
)
IMAGES = flags.DEFINE_string("images", None, "Judge the `images` of this npz instead of sampling.")
OUT = flags.DEFINE_string("out", None, "Where to write; default: evaluation.json in the workdir.")
SWEEP = flags.DEFINE_multi_string("sweep", [], "key=value,value,... of config.sample; repeatable.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Sampling seeds per cell of a sweep.", 1)
NAME = flags.DEFINE_string("name", "sweep", "Name of the sweep's files.")


def reference(cfg: Any, num: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """``num`` real images in [-1, 1] and their labels, by a fixed permutation of the split."""
    source = common.source_of(cfg, split)
    index = np.random.default_rng(0).permutation(len(source))[:num]
    batch = source.take(index)
    return data.to_float(batch["image"], source.levels), batch["label"]


def reference_images(cfg: Any, num: int, split: str = "train") -> np.ndarray:
    """The images of `reference`."""
    return reference(cfg, num, split)[0]


def load_images(path: str) -> np.ndarray:
    """``images`` (N, H, W, C) uint8 0..255 of an npz, as floats in [-1, 1].

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    try:
        with np.load(path) as file:
            images = file["images"]
    except (OSError, KeyError, ValueError) as error:
        raise common.UsageError(f"cannot read images from {path}: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise common.UsageError(
            f"{path} must hold uint8 images (N, H, W, C), got {images.dtype} {images.shape}"
        )
    return data.to_float(images, 256)


def gaussian_images(real: np.ndarray, num: int) -> np.ndarray:
    """Samples of the Gaussian with the pixel mean and covariance of ``real``, clipped."""
    flat = real.reshape(len(real), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    noise = np.random.default_rng(1).standard_normal((num, flat.shape[1]))
    drawn = flat.mean(0) + noise * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return np.clip(drawn, -1, 1).reshape(num, *real.shape[1:]).astype(np.float32)


def bits(cfg: Any, model: Any, state: State, num: int, *, ode: bool = False) -> dict[str, float]:
    """Bits per dimension of test images: variational bound, or probability-flow estimate."""
    images, labels = reference(cfg, num, "test")
    size = min(len(images), cfg.sample.batch_size)
    variance = "learned" if model.parameterization.channels == 2 else cfg.sample.variance

    @jax.jit
    def measure(params: Any, x: jax.Array, keys: jax.Array, cond: Any) -> Any:
        noise = samplers.image_noise(keys, model.image_shape)
        denoise = model.denoiser(params, cond)
        if ode:
            flow = likelihood.ode_bits(denoise, x, noise, model.schedule, levels=model.levels)
            return {"total": flow}
        return likelihood.vlb_bits(
            denoise, x, noise, model.grid, variance=variance, levels=model.levels
        )

    parts = []
    for start in tqdm(range(0, len(images), size), desc="bits/dim", leave=False):
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(2)))(
            jnp.arange(start, min(start + size, len(images)))
        )
        some = slice(start, start + size)
        cond = {"label": jnp.asarray(labels[some])} if model.num_classes else None
        parts.append(jax.device_get(measure(state.ema, images[some], keys, cond)))
    total = np.concatenate([p["total"] for p in parts]).astype(np.float64)
    name = "ode_bits" if ode else "bits"
    out = {
        f"{name}_per_dim": float(total.mean()),
        f"{name}_per_dim_se": float(total.std(ddof=1) / np.sqrt(len(total))),
        f"{name}_images": len(total),
    }
    if ode:
        return out
    terms = np.concatenate([p["terms"] for p in parts], axis=1)
    joined = {
        "terms": terms,
        "prior": np.concatenate([p["prior"] for p in parts]),
        "x_mse": np.concatenate([p["x_mse"] for p in parts], axis=1),
    }
    curve = likelihood.rate_distortion(joined, levels=model.levels)
    keep = np.unique(np.linspace(0, len(terms) - 1, 50).astype(int))
    rate = float(total.mean() - terms[-1].mean())  # all but the decoder term
    tail = terms[-max(1, len(terms) // 10) : -1].sum(0).mean()
    return {
        **out,
        "bits_variance": variance,
        "rate": rate,
        "distortion_bits": float(terms[-1].mean()),
        "rate_in_last_tenth": float(tail / rate),
        "rate_distortion": {k: [float(v) for v in curve[k][keep]] for k in curve},
    }


def reconstruction(cfg: Any, model: Any, state: State, num: int) -> dict[str, Any]:
    """Mean squared error, images in [0, 1], of encoding and decoding with S deterministic steps."""
    images = reference_images(cfg, num, "test")
    up, down = samplers.make("ddim_inverse"), samplers.make("ddim", {"eta": 0.0})

    @jax.jit
    def there_and_back(params: Any, x: jax.Array, rows: Any, back: Any, n: Any) -> jax.Array:
        def still(i: Any, k: int = 0) -> jax.Array:
            return jnp.zeros_like(x)

        denoise = model.denoiser(params)
        z = samplers.sample(still, denoise, up, x, rows, n=n)
        return jnp.square(samplers.sample(still, denoise, down, z, back, n=n) - x).mean() / 4

    out = {}
    for steps in (10, 20, 50, 100, 200):
        grid = grids.make("leading", model.schedule, steps)
        rows = [samplers.pad(s.plan(grid), 256) for s in (up, down)]
        out[str(steps)] = float(there_and_back(state.ema, images, *rows, steps))
    logs = np.log([[int(s), e] for s, e in out.items()])
    return {"reconstruction_mse": out, "reconstruction_slope": float(np.polyfit(*logs.T, 1)[0])}


def judge(network: Any, images: np.ndarray, real: np.ndarray, classes: int = 0) -> dict[str, Any]:
    """Image metrics after rounding to 8 bits, as saved images are.

    With ``classes``, image k was made as class ``k % classes``, and ``class_accuracy`` is the share
    that the frozen classifier sees so.
    """
    rounded = data.to_float(common.to_uint8(images), 256)
    result = metrics.evaluate_images(network, rounded, real)
    if classes:
        seen = metrics.extract(network, rounded).probs.argmax(1)
        result["class_accuracy"] = float((seen == np.arange(len(seen)) % classes).mean())
    return result


def main() -> None:
    if unknown := set(METRICS.value) - set(KNOWN):
        raise common.UsageError(
            f"unknown metrics {sorted(unknown)}; choose from {', '.join(KNOWN)}"
        )
    cfg, folder = common.config(), common.workdir()
    num = flags.FLAGS.num or cfg.eval.num
    network = metrics.feature_network(cfg.eval.features) if cfg.eval.features else None
    wanted = set(METRICS.value)
    if network is None and wanted & {"distance", "baselines"}:
        logging.warning("no feature network for %s: no distances", cfg.data.name)
        wanted -= {"distance", "baselines"}
    real = reference_images(cfg, num) if network else None
    out = Path(OUT.value) if OUT.value else folder / "evaluation.json"
    if IMAGES.value:
        if network is None:
            raise common.UsageError("--images needs config.eval.features")
        images = load_images(IMAGES.value)[:num]
        result = {"images": IMAGES.value, **judge(network, images, real)}
        _finish(result, out)
        return
    task = common.task_of(cfg)
    state = common.restore(cfg, task, folder)
    maker = common.image_maker(cfg, task, state)
    if SWEEP.value:
        if network is None:
            raise common.UsageError("--sweep measures distances: it needs config.eval.features")
        sampler_sweep.run(
            cfg,
            maker,
            functools.partial(judge, network, classes=maker.model.num_classes),
            real,
            folder / "sweeps" / NAME.value,
            axes=SWEEP.value,
            seeds=SEEDS.value,
            num=num,
        )
        return
    result = {
        "step": int(state.step),
        "sampler": {k: v for k, v in cfg.sample.items() if k not in ("num", "batch_size")},
        "seed": flags.FLAGS.seed,
    }
    if "distance" in wanted:
        started = time.monotonic()
        images = maker.make(num=num, seed=flags.FLAGS.seed)
        result["sampling_seconds"] = time.monotonic() - started
        result.update(judge(network, images, real, maker.model.num_classes))
    if "baselines" in wanted:
        result["baselines"] = baselines(cfg, task, network, num, real)
    if "bits" in wanted and maker.model.grid is not None:
        result.update(bits(cfg, maker.model, state, cfg.eval.bits_images))
    if "ode_bits" in wanted:
        result.update(bits(cfg, maker.model, state, cfg.eval.bits_images, ode=True))
    if "reconstruction" in wanted:
        result.update(reconstruction(cfg, maker.model, state, 64))
    _finish(result, out)


def baselines(cfg: Any, task: Any, network: Any, num: int, real: np.ndarray) -> dict[str, float]:
    """Distances that give the scale: real images, matched Gaussian, an untrained network."""
    half = min(num, len(common.source_of(cfg)) // 2)
    both = reference_images(cfg, 2 * half)
    few = common.with_sample(cfg, sampler="ddim", eta=0.0, steps=min(20, cfg.sample.steps))
    raw = common.image_maker(few, task, common.untrained(cfg, task)).make(num=num)
    return {
        "real_floor": metrics.floor(network, both[:half], both[half:]),
        "real_floor_num": half,
        "matched_gaussian": judge(network, gaussian_images(real, num), real)["distance"],
        "untrained_network": judge(network, raw, real)["distance"],
    }


def _finish(result: dict[str, Any], out: Path) -> None:
    common.save_json(result, out)
    shown = {k: v for k, v in result.items() if isinstance(v, int | float | str)}
    for key, value in shown.items():
        print(f"{key:>24}: {value:.5g}" if isinstance(value, float) else f"{key:>24}: {value}")
    for key, value in result.get("baselines", {}).items():
        print(f"{key:>24}: {value:.5g}")
    logging.info("written to %s", out)


if __name__ == "__main__":
    common.run(main)
