"""Measure a checkpoint: distance to real images, scores, bits/dim; or sweep samplers over it.

    python -m experiments.evaluate --workdir=runs/digits
    python -m experiments.evaluate --workdir=runs/digits --images=some/samples.npz
    python -m experiments.evaluate --workdir=runs/digits --metrics=fid,is,kid,prdc --num=50000 \\
        --inception=pt_inception-2015-12-05-6726825d.pth --allow_legacy_pickle
    python -m experiments.evaluate --images=FOLDER --reference=stats.npz --metrics=fid \\
        --workdir=runs/judged --inception=...
    python -m experiments.evaluate --workdir=runs/digits --sweep=sampler=ddim --sweep=eta=0,0.5,1 \\
        --sweep=steps=5,10,20,50 --seeds=3 --name=ddim

Distances are Frechet distances on the features of a small frozen classifier of ours, never FID.
fid, sfid, is, kid, prdc (precision, recall, density, coverage) and rfid need Inception's weights;
psnr, ssim and rfid compare --images with their originals, --reference. An evaluation with Inception
that was interrupted goes on where it stopped. An autoencoder is measured by its reconstructions of
test images, which --save_reconstructions writes.
Writes evaluation.json (or --out), beside it a picture of an autoencoder's reconstructions, and for
sweeps sweeps/NAME.jsonl, .md and .png in the workdir (of captions with --metrics=captions); a sweep
that was interrupted goes on where it stopped, and one of other settings needs another --name.
"""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from tqdm import tqdm

from diffjax import data, grids, likelihood, metrics, samplers
from diffjax.data import shapes
from diffjax.evaluation import image_sets as judging
from diffjax.evaluation import reconstructions as first_stage
from diffjax.evaluation import sweeps as sampler_sweep
from diffjax.train import State
from diffjax.train.frozen import content_hash
from experiments import common, frozen, generation

common.define_sampling_flags()
OURS = ("distance", "baselines", "bits", "ode_bits", "reconstruction", "captions")
RECONSTRUCTED = ("distance", *judging.PAIRED)  # metrics of an autoencoder
KNOWN = (*OURS, *judging.INCEPTION, "psnr", "ssim", "clip", "diversity")
METRICS = flags.DEFINE_list(
    "metrics", ["distance", "baselines", "bits"], f"What to measure: {', '.join(KNOWN)}."
)
IMAGES = flags.DEFINE_string(
    "images", None, "Judge these instead of sampling: an npz with `images` or `arr_0`, or a folder."
)
REFERENCE = flags.DEFINE_string(
    "reference", None, "npz of statistics or images, or a folder. Default: the training images."
)
REFERENCE_NUM = flags.DEFINE_integer(
    "reference_num", None, "How many reference images Inception sees. Default: all.", 1
)
SAVE_REFERENCE = flags.DEFINE_string(
    "save_reference", None, "Write the reference's statistics to this npz and stop."
)
INCEPTION = flags.DEFINE_string("inception", None, "Weights of Inception, .pth or .safetensors.")
LEGACY = flags.DEFINE_bool(
    "allow_legacy_pickle", False, "Read --inception from a pickle, without running its code."
)
CLIP = flags.DEFINE_string("clip", None, "Folder of a CLIPModel, for clip.")
PROMPTS = flags.DEFINE_string("prompts", None, "File of texts, a line per image, for clip.")
LPIPS = flags.DEFINE_string("lpips", None, "Weights of LPIPS (VGG16), for diversity.")
SAVE_RECONSTRUCTIONS = flags.DEFINE_string(
    "save_reconstructions",
    None,
    "Write an autoencoder's reconstructions to NAME.npz, the originals to NAME-originals.npz.",
)
PAIRS = flags.DEFINE_integer("pairs", 1000, "Pairs of images that diversity compares.", 2)
RESIZE = flags.DEFINE_enum(
    "resize", "tensorflow", ["tensorflow", "pytorch_fid"], "How Inception's input is resized."
)
OUT = flags.DEFINE_string("out", None, "Where to write; default: evaluation.json in the workdir.")
SWEEP = flags.DEFINE_multi_string("sweep", [], "key=value,value,... of config.sample; repeatable.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Sampling seeds of the distance, or per cell.", 1)
BITS_STEPS = flags.DEFINE_list("bits_steps", [], "Also the bound with so many steps each.")
NAME = flags.DEFINE_string("name", "sweep", "Name of the sweep's files.")


def gaussian_images(real: np.ndarray, num: int) -> np.ndarray:
    """Samples of the Gaussian with the pixel mean and covariance of ``real``, clipped."""
    flat = real.reshape(len(real), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    noise = np.random.default_rng(1).standard_normal((num, flat.shape[1]))
    drawn = flat.mean(0) + noise * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return np.clip(drawn, -1, 1).reshape(num, *real.shape[1:]).astype(np.float32)


def bits(cfg: Any, model: Any, state: State, num: int, *, ode: bool = False) -> dict[str, float]:
    """Bits per dimension of test images: variational bound, or probability-flow estimate.

    The bound is of the model that is sampled: if ``sample.clip``, with its x clipped, as in the
    code of both DDPM papers. Else an error of eps near pure noise is one of eps / alpha in x.
    """
    images, labels = judging.reference(cfg, num, "test")
    size = min(len(images), cfg.sample.batch_size)
    learned = model.parameterization.channels == 2
    variance = "learned" if learned else cfg.sample.variance or "fixedsmall"

    @jax.jit
    def measure(params: Any, x: jax.Array, keys: jax.Array, cond: Any) -> Any:
        noise = samplers.image_noise(keys, model.image_shape)
        denoise = model.denoiser(params, cond)
        if ode:
            flow = likelihood.ode_bits(denoise, x, noise, model.schedule, levels=model.levels)
            return {"total": flow}
        denoise = samplers.clip(denoise) if cfg.sample.clip else denoise
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
        "bits_clip": bool(cfg.sample.clip),
        "rate": rate,
        "distortion_bits": float(terms[-1].mean()),
        "rate_in_last_tenth": float(tail / rate),
        "rate_distortion": {k: [float(v) for v in curve[k][keep]] for k in curve},
    }


def bits_by_steps(cfg: Any, model: Any, state: State, num: int) -> dict[str, Any]:
    """The bound on grids of --bits_steps evenly spaced steps."""
    found = {}
    for steps in BITS_STEPS.value:
        grid = grids.make("linspace", model.schedule, int(steps))
        whole = bits(cfg, model._replace(grid=grid), state, num)
        found[steps] = {k: v for k, v in whole.items() if isinstance(v, float)}
    return {"bits_by_steps": found} if found else {}


def reconstruction(cfg: Any, model: Any, state: State, num: int) -> dict[str, Any]:
    """Mean squared error, images in [0, 1], of encoding and decoding with S deterministic steps."""
    images = judging.reference_images(cfg, num, "test")
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


# Flags that are of use to each of the ways to evaluate, and to some metrics alone.
_MODEL = ("best", "weights", "sampler", "steps", "grid", "eta", "variance", "guidance")
_FEATURES = ("reference", "reference_num", "inception", "allow_legacy_pickle", "resize")
_FILES = ("clip", "prompts", "lpips", "pairs", "num", "out", "metrics")
MODES = {
    "save_reference": ("save_reference", *_FEATURES),
    "images": ("images", *_FEATURES, *_FILES),
    # The reference has a message of its own.
    "sweep": ("sweep", "name", "seeds", "metrics", "num", "reference", "reference_num", *_MODEL),
    "": (
        *(*_MODEL, *_FEATURES, "lpips", "pairs", "num", "out", "metrics"),
        *("seed", "seeds", "bits_steps", "save_reconstructions"),
    ),
}
NEEDED_BY = {
    "inception": judging.INCEPTION,
    "allow_legacy_pickle": judging.INCEPTION,
    "resize": judging.INCEPTION,
    "clip": ("clip",),
    "prompts": ("clip",),
    "lpips": ("diversity",),
    "pairs": ("diversity",),
    "bits_steps": ("bits",),
}


def _refuse_unused(wanted: set[str]) -> None:
    """
    Raises:
        UsageError: a flag that has no effect, beside others or on the metrics asked for.
    """
    given = [name for name in flags.FLAGS if flags.FLAGS[name].present]
    mode = next(name for name in MODES if name == "" or flags.FLAGS[name].value)
    beside = f"beside --{mode}" if mode else "without --images or --sweep"
    every = {name for names in MODES.values() for name in names} | {"seed"}
    for name in given:
        if name in every and name not in MODES[mode]:
            raise common.UsageError(f"--{name} has no effect {beside}")
        metrics_of = NEEDED_BY.get(name)
        if metrics_of and mode != "save_reference" and not wanted & set(metrics_of):
            raise common.UsageError(
                f"--{name} has no effect on --metrics={','.join(METRICS.value)}; it is for "
                f"{', '.join(metrics_of)}"
            )


USES = ("config", "workdir", "weights", "best", "sampling")  # flags of other modules


def main() -> None:
    if unknown := set(METRICS.value) - set(KNOWN):
        raise common.UsageError(
            f"unknown metrics {sorted(unknown)}; choose from {', '.join(KNOWN)}"
        )
    _refuse_unused(set(METRICS.value))
    folder, wanted = common.workdir(), set(METRICS.value)
    out = _out(folder)
    if SAVE_REFERENCE.value:
        save_reference(folder, Path(SAVE_REFERENCE.value))
    elif IMAGES.value:
        _finish(given(folder, wanted), out)
    elif SWEEP.value:
        sweep(folder)
    else:
        _finish(sampled(folder, wanted), out)


def _out(folder: Path) -> Path:
    return Path(OUT.value) if OUT.value else folder / "evaluation.json"


def _network(cfg: Any, asker: str) -> Any:
    """The small classifier of the config's data."""
    if not cfg.eval.features:
        raise common.UsageError(f"{asker} needs config.eval.features, or metrics of Inception")
    return metrics.feature_network(cfg.eval.features)


def _config_if_needed(wanted: set[str]) -> Any:
    """None where the images and what to compare them with are files, or no reference is needed."""
    alone = REFERENCE.value or wanted <= set(judging.ALONE)
    needless = alone and not wanted & set(OURS) and common.CONFIG.value is None
    return None if needless else common.config()


def _others(images: judging.ImageSet, wanted: set[str]) -> dict[str, Any]:
    """What needs CLIP or LPIPS."""
    out: dict[str, Any] = {}
    if "clip" in wanted:
        out.update(judging.clip_metrics(images, CLIP.value, PROMPTS.value))
    if "diversity" in wanted:
        out.update(judging.lpips_diversity(images, LPIPS.value, PAIRS.value))
    return out


def _collector(folder: Path, wanted: set[str]) -> judging.Collector:
    network = judging.inception(
        INCEPTION.value, allow_legacy_pickle=LEGACY.value, resize=RESIZE.value
    )
    return judging.Collector(network, folder / "features", spatial="sfid" in wanted)


def with_inception(folder: Path, images: Any, real: Any, wanted: set[str]) -> dict[str, Any]:
    """Metrics of Inception's features, under one key that keeps them apart from ours."""
    collector = _collector(folder, wanted)
    found = judging.inception_metrics(collector, images, real, wanted)
    collector.clear()
    return {"inception": {**found, "resize": RESIZE.value}}


def save_reference(folder: Path, out: Path) -> None:
    """Write the statistics of the reference images, with those of spatial features."""
    real = judging.read_reference(REFERENCE.value, _config_if_needed({"fid"}), REFERENCE_NUM.value)
    if real.images is None or real.statistics is not None:
        raise common.UsageError(f"{REFERENCE.value} holds statistics already")
    collector = _collector(folder, {"sfid"})
    metrics.save_statistics(out, metrics.statistics_of(collector(real.images)))
    collector.clear()
    logging.info("statistics of %d images written to %s", real.images.num, out)


def given(folder: Path, wanted: set[str]) -> dict[str, Any]:
    """Measure the images of --images.

    Raises:
        UsageError: metrics of a model, or a reference that would not be used.
    """
    ours, chosen = wanted & set(OURS), flags.FLAGS["metrics"].present
    if chosen and (models := ours - {"distance"}):
        raise common.UsageError(f"{', '.join(sorted(models))} are of a model, not of --images")
    if ours == wanted and REFERENCE.value:
        raise common.UsageError(
            "the distance is to the config's training images; --reference is for "
            + ", ".join((*judging.INCEPTION, *judging.PAIRED))
        )
    if not REFERENCE.value and (paired := wanted & set(judging.PAIRED)):
        raise common.UsageError(f"{', '.join(sorted(paired))} need --reference, the originals")
    images = judging.from_file(IMAGES.value).first(flags.FLAGS.num)
    result: dict[str, Any] = {"images": IMAGES.value}
    cfg, real = _config_if_needed(wanted), judging.Reference()
    if not wanted <= {*judging.ALONE, *OURS}:
        real = judging.read_reference(REFERENCE.value, cfg, REFERENCE_NUM.value)
    if ours:
        network, num = _network(cfg, "--images"), images.num
        if flags.FLAGS.num is None:
            num = min(num, cfg.eval.num)
        near = judging.reference_images(cfg, num)
        pixels = judging.with_channels(images.read(0, num), near.shape[-1])
        result.update(judging.judge(network, data.to_float(pixels, 256), near))
    result.update(_others(images, wanted))
    if wanted & set(judging.PAIRED):
        result.update(judging.paired_metrics(images, real, wanted))
    if some := wanted & set(judging.INCEPTION):
        result.update(with_inception(folder, images, real, some))
    return result


def sweep(folder: Path) -> None:
    """Measure our distance, or obedience to captions, over combinations of sampler options.

    Raises:
        UsageError: other metrics are asked for.
    """
    if flags.FLAGS["metrics"].present and METRICS.value not in (["distance"], ["captions"]):
        raise common.UsageError("--sweep measures --metrics=distance or --metrics=captions")
    if REFERENCE.value or REFERENCE_NUM.value:
        raise common.UsageError(
            "--sweep compares with the config's training images, no --reference"
        )
    cfg = common.config()
    num, told = flags.FLAGS.num or cfg.eval.num, METRICS.value == ["captions"]
    network = None if told else _network(cfg, "--sweep")
    task = common.task_of(cfg)
    state = common.restore(cfg, task, folder)
    weights = frozen.load(cfg, folder)
    maker = generation.image_maker(cfg, task, state, weights)
    judge = functools.partial(obeyed, cfg)
    if not told:
        real, classes = judging.reference_images(cfg, num), judging.classes_of(cfg, maker.model)
        judge = functools.partial(judging.judge, network, real=real, classes=classes)
    sampler_sweep.run(
        cfg,
        maker,
        judge,
        folder / "sweeps" / NAME.value,
        axes=SWEEP.value,
        seeds=SEEDS.value,
        num=num,
        settings={**_model(cfg, state, weights), "metric": "captions" if told else network.id},
        metric="all" if told else "distance",
    )


def _model(cfg: Any, state: State, weights: Any) -> dict[str, Any]:
    """What tells a model and its data from others, wherever its files are; not how it samples."""
    training = ("sample", "train", "optim", "ema", "mesh", "eval")
    return {
        "config": {k: v for k, v in cfg.to_dict().items() if k not in training},
        "step": int(state.step),
        "weights": content_hash((state.ema, state.extra, weights)),
    }


def sampled(folder: Path, wanted: set[str]) -> dict[str, Any]:
    """Measure what the model makes, and its likelihood."""
    cfg = common.config()
    if cfg.task == "autoencoder":
        return reconstructed(cfg, folder, wanted)
    if SAVE_RECONSTRUCTIONS.value:
        raise common.UsageError(f"--save_reconstructions: a {cfg.task} model reconstructs nothing")
    if needless := wanted & {*judging.PAIRED, "clip"}:
        other = "--reference" if needless - {"clip"} else "--prompts"
        raise common.UsageError(f"{', '.join(sorted(needless))} need --images and {other}")
    num, seed = flags.FLAGS.num or cfg.eval.num, flags.FLAGS.seed
    if not cfg.eval.features and wanted & {"distance", "baselines"}:
        logging.warning("no feature network for %s: no distances", cfg.data.name)
        wanted = wanted - {"distance", "baselines"}
    task = common.task_of(cfg)
    some = wanted & set(judging.INCEPTION)
    if some:  # what is missing is said before images are made
        theirs = judging.read_reference(REFERENCE.value, cfg, REFERENCE_NUM.value)
    if wanted & {"distance", "baselines"}:
        network, real = _network(cfg, "distance"), judging.reference_images(cfg, num)
    state = common.restore(cfg, task, folder)
    weights = frozen.load(cfg, folder)
    maker = generation.image_maker(cfg, task, state, weights)
    result: dict[str, Any] = {
        "step": int(state.step),
        "sampler": judging.sampler_options(cfg),
        "seed": seed,
    }
    settings = {**_model(cfg, state, weights), "sampler": result["sampler"]}
    images = judging.generated(maker, num, seed=seed, settings=settings)
    result.update(_others(images, wanted))
    if some:
        result.update(with_inception(folder, images, theirs, some))
    if "distance" in wanted:
        started = time.monotonic()
        made = maker.make(num=num, seed=seed)
        result["sampling_seconds"] = time.monotonic() - started
        classes = judging.classes_of(cfg, maker.model)
        result.update(judging.judge(network, made, real, classes))
        others = [maker.make(num=num, seed=seed + k) for k in range(1, SEEDS.value)]
        more = [judging.judge(network, images, real, classes)["distance"] for images in others]
        result["distance_by_seed"] = [result["distance"], *more]
    if "baselines" in wanted:
        result["baselines"] = baselines(cfg, task, network, num, real, weights)
    if "captions" in wanted:
        result["captions"] = obeyed(cfg, maker.make(num=num, seed=seed))
    result.update(_likelihoods(cfg, maker.model, state, wanted))
    return result


def reconstructed(cfg: Any, folder: Path, wanted: set[str]) -> dict[str, Any]:
    """Measure an autoencoder's reconstructions of test images, and show some beside the figures.

    Raises:
        UsageError: metrics of a diffusion model, or a reference.
    """
    if flags.FLAGS["metrics"].present and (others := wanted - set(RECONSTRUCTED)):
        raise common.UsageError(
            f"{', '.join(sorted(others))}: an autoencoder is measured by "
            f"{', '.join(RECONSTRUCTED)} of test images and their reconstructions (rfid is FID)"
        )
    if REFERENCE.value:
        raise common.UsageError("reconstructions are compared with the test images, no --reference")
    state = common.restore(cfg, common.task_of(cfg), folder)
    num = flags.FLAGS.num or cfg.eval.num
    generation.save_png(first_stage.pictures(cfg, state.ema), _out(folder).with_suffix(".png"))
    originals = judging.from_data(cfg, "test").first(num)
    images = originals._replace(
        name=json.dumps([originals.name, _model(cfg, state, None)], sort_keys=True),
        read=lambda start, stop: first_stage.reconstruct(
            cfg, state.ema, originals.read(start, stop)
        )[0],
    )
    result: dict[str, Any] = {"step": int(state.step), "images": originals.num}
    if "rfid" in wanted:
        result.update(with_inception(folder, images, judging.Reference(originals), {"rfid"}))
    if wanted & {"distance", "psnr"}:
        result.update(first_stage.measure(cfg, state, num))
    if "ssim" in wanted:
        result.update(judging.paired_metrics(images, judging.Reference(originals), {"ssim"}))
    if SAVE_RECONSTRUCTIONS.value:
        out = SAVE_RECONSTRUCTIONS.value.removesuffix(".npz")
        judging.save(images, Path(f"{out}.npz"))
        judging.save(originals, Path(f"{out}-originals.npz"))
    return result


def _likelihoods(cfg: Any, model: Any, state: State, wanted: set[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if model.space.net is not None or cfg.task == "controlnet":
        if left := wanted & {"bits", "ode_bits", "reconstruction"}:
            logging.warning(
                "%s: only for diffusion on pixels, without a ControlNet", ", ".join(sorted(left))
            )
        return result
    if "bits" in wanted and model.grid is not None:
        result.update(bits(cfg, model, state, cfg.eval.bits_images))
        result.update(bits_by_steps(cfg, model, state, cfg.eval.bits_images))
    if "ode_bits" in wanted:
        result.update(bits(cfg, model, state, cfg.eval.bits_images, ode=True))
    if "reconstruction" in wanted:
        result.update(reconstruction(cfg, model, state, 64))
    return result


def obeyed(cfg: Any, images: np.ndarray) -> dict[str, float]:
    """Share of pictures that obey the captions of test images, as a program judges them.

    Raises:
        UsageError: the data are not `shapes`.
    """
    if cfg.data.name != "shapes":
        raise common.UsageError(f"captions are judged for data set shapes, not {cfg.data.name!r}")
    things = [shapes.scene("test", i).things for i in range(len(images))]
    pictures = generation.to_uint8(images)
    verdicts = [shapes.judge(p, t) for p, t in zip(pictures, things, strict=True)]
    means = map(float, np.mean(verdicts, axis=0))
    return dict(zip(shapes.Verdict._fields, means, strict=True), num=len(images))


def baselines(
    cfg: Any, task: Any, network: Any, num: int, real: np.ndarray, weights: Any
) -> dict[str, float]:
    """Distances that give the scale: real images, matched Gaussian, an untrained network."""
    half = min(num, len(common.source_of(cfg)) // 2)
    both = judging.reference_images(cfg, 2 * half)
    few = generation.with_sample(cfg, sampler="ddim", eta=0.0, steps=min(20, cfg.sample.steps))
    state = common.untrained(cfg, task, weights)
    raw = generation.image_maker(few, task, state, weights).make(num=num)
    return {
        "real_floor": metrics.floor(network, both[:half], both[half:]),
        "real_floor_num": half,
        "matched_gaussian": judging.judge(network, gaussian_images(real, num), real)["distance"],
        "untrained_network": judging.judge(network, raw, real)["distance"],
    }


def _finish(result: dict[str, Any], out: Path) -> None:
    common.save_json(result, out)
    shown = {k: v for k, v in result.items() if isinstance(v, int | float | str)}
    for key, value in shown.items():
        print(f"{key:>24}: {value:.5g}" if isinstance(value, float) else f"{key:>24}: {value}")
    for section in ("baselines", "inception"):
        for key, value in result.get(section, {}).items():
            print(f"{key:>24}: {value:.5g}" if isinstance(value, float) else f"{key:>24}: {value}")
    logging.info("written to %s", out)


if __name__ == "__main__":
    common.run(main, USES)
