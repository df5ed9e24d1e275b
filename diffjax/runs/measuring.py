"""Measures of a trained model: of its samples, of its likelihood, and over sampler options.

These are the functions behind `diffjax evaluate`, which adds the flags. Metrics are entries of
`evaluation.METRICS`; here they get what they need from a config, its data and its model.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax import metrics
from diffjax.config import resolve
from diffjax.data import shapes
from diffjax.evaluation import (
    METRICS,
    ImageSet,
    PixelModel,
    Reference,
    evaluate,
    from_array,
    from_maker,
    save_images,
    sweeps,
)
from diffjax.model import denoiser, make_sampler
from diffjax.runs import first_stage, real_images
from diffjax.runs.drawing import Drawer, replace_sample
from diffjax.runs.fixed_parts import Parts
from diffjax.runs.open import TrainedRun, make_drawer
from diffjax.runs.states import assemble_trained, init_untrained
from diffjax.train import State
from diffjax.train.frozen import hash_content
from diffjax.types import ConfigError, Tree

INVERTED = 64  # test images that the metric `reconstruction` wants
_NOT_OF_MODEL = ("sample", "train", "optim", "ema", "mesh", "eval")  # sections of a config

Scores = dict[str, object]


class TrainedModel(NamedTuple):
    """A trained diffusion model with the config and state that it was made of.

    Attributes:
        cfg: its config; ``sample`` and ``eval`` say how it is sampled and measured.
        state: of the training; the average is measured.
        frozen: parameters that its task reads but does not train.
        drawer: draws its images.
    """

    cfg: ConfigDict
    state: State
    frozen: Parts | None
    drawer: Drawer

    @property
    def classes(self) -> int:
        """Number of classes that images take in turn; 0 without classes, and for ControlNets.

        Images of a ControlNet take the classes of the test images that their hints come from.
        """
        return 0 if self.drawer.model.controls else self.drawer.model.num_classes


def prepare_model(run: TrainedRun) -> TrainedModel:
    """Prepare a run to draw and measure images of its model.

    Raises:
        ConfigError: its task trains no diffusion model.
    """
    return TrainedModel(run.config, run.state, run.frozen, make_drawer(run))


def describe_model(cfg: ConfigDict, state: State, weights: Tree) -> Scores:
    """Describe a model and its data by what they compute, not by where their files are.

    How the model is sampled is left out. Stored features and sweeps are reused only if this
    description is unchanged.

    Args:
        weights: parameters that are read but not trained.

    Returns:
        The config without `_NOT_OF_MODEL`, the step, and a hash of all parameters.
    """
    return {
        "config": {k: v for k, v in cfg.to_dict().items() if k not in _NOT_OF_MODEL},
        "step": int(state.step),
        "weights": hash_content((state.ema, state.extra, weights)),
    }


def list_sampler_options(cfg: ConfigDict) -> Scores:
    """List the options of sampling, with those that the config leaves open filled in.

    Infinity becomes None, because JSON has no infinity.
    """
    options = resolve(cfg)["sample"]
    left_out = ("num", "batch_size")
    return {k: None if v == math.inf else v for k, v in options.items() if k not in left_out}


def measure_samples(
    model: TrainedModel,
    names: Sequence[str],
    *,
    num: int,
    seed: int,
    seeds: int = 1,
    reference: Reference | None = None,
    **inputs: Any,
) -> Scores:
    """Measure samples of a model, and its likelihood.

    Args:
        names: of metrics in `evaluation.METRICS`.
        num: number of images to draw.
        seed: of the images.
        seeds: number of sampling seeds for the distance, counted from ``seed``.
        reference: images or statistics that Inception's metrics compare with.
        inputs: inputs of metrics that model and data do not give, see `evaluation.INPUTS`.

    Returns:
        Numbers and tables by name, with the step, the seed and the options of the sampler.
    """
    sampler = list_sampler_options(model.cfg)
    result: Scores = {"step": int(model.state.step), "sampler": sampler, "seed": seed}
    settings = {**describe_model(model.cfg, model.state, model.frozen), "sampler": sampler}
    images = from_maker(model.drawer.draw, num, seed=seed, settings=settings)
    by_input = {name: set(METRICS[name].needs) for name in names}
    likelihood = [n for n, needs in by_input.items() if "model" in needs]
    ours = [n for n, needs in by_input.items() if needs & {"network", "untrained", "scenes"}]
    others = [n for n in names if n not in (*likelihood, *ours)]
    result |= evaluate(images, reference, others, **inputs)
    result |= _measure_with_data(model, ours, num=num, seed=seed, seeds=seeds)
    return result | _measure_likelihood(model, likelihood, **inputs)


def _measure_with_data(
    model: TrainedModel, names: Sequence[str], *, num: int, seed: int, seeds: int
) -> Scores:
    """Measure the metrics that compare samples with the data of the config.

    Args:
        names: of such metrics; for others see `measure_samples`.
    """
    cfg, make = model.cfg, model.drawer.draw
    result: Scores = {}
    inputs: dict[str, Any] = {"classes": model.classes, "num": num}
    images: ImageSet | None = None
    if {"distance", "captions"} & set(names):
        started = time.monotonic()
        images = from_array(make(num=num, seed=seed), "samples")
        result["sampling_seconds"] = time.monotonic() - started
    if "captions" in names:
        inputs["scenes"] = list_scenes(cfg, num)
    pool = real = None
    if {"distance", "baselines"} & set(names):
        inputs["network"] = metrics.feature_network(cfg.eval.features)
        pool = real_images.open_split(cfg)
        inputs["pool"], real = pool, pool.first(num)
    if "baselines" in names:
        inputs["untrained"] = lambda count: _draw_untrained(model, count)
    result |= evaluate(images, real, names, **inputs)
    if "distance" in names:
        more = [from_array(make(num=num, seed=seed + k), "more") for k in range(1, seeds)]
        scores = [evaluate(some, real, ["distance"], **inputs)["distance"] for some in more]
        result["distance_by_seed"] = [result["distance"], *scores]
    return result


def list_scenes(cfg: ConfigDict, num: int) -> list[tuple[shapes.Thing, ...]]:
    """List what the captions of the first ``num`` test images ask for: the things of each scene.

    Raises:
        ConfigError: the data set is not ``shapes``, whose captions alone can be checked.
    """
    if cfg.data.name != "shapes":
        raise ConfigError(f"captions can be checked for data set shapes, not {cfg.data.name!r}")
    return [shapes.make_scene("test", k).things for k in range(num)]


def _draw_untrained(model: TrainedModel, num: int) -> np.ndarray:
    """Draw images of the model before its training, by at most 20 steps of deterministic DDIM."""
    cfg = model.cfg
    few = replace_sample(cfg, sampler="ddim", eta=0.0, steps=min(20, cfg.sample.steps))
    state = init_untrained(cfg, model.frozen)
    return Drawer(few, assemble_trained(few, state, model.frozen)).draw(num=num)


def _measure_likelihood(model: TrainedModel, names: Sequence[str], **inputs: Any) -> Scores:
    """Measure the metrics that evaluate the network itself on test images, such as bits/dim.

    Metrics that the model does not have (on latents, under control, the bound of a continuous
    schedule) are left out with a message in the log.
    """
    cfg, net = model.cfg, model.drawer.model
    if net.space.net is not None or net.controls:
        if names:
            logging.warning(
                "%s: only for diffusion on pixels, without a ControlNet", ", ".join(sorted(names))
            )
        return {}
    if "bits" in names and net.grid is None:
        logging.info("no bits: the bound needs a discrete schedule; ode_bits measures this model")
        names = [name for name in names if name != "bits"]
    if not names:
        return {}
    count = cfg.eval.bits_images
    images, labels = real_images.take_images(
        cfg, max(count, INVERTED if "reconstruction" in names else 0), "test"
    )
    pixels = PixelModel(
        denoiser=lambda params, cond: denoiser(net._replace(params=params), cond),
        params=model.state.ema,
        schedule=net.schedule,
        parameterization=net.parameterization,
        levels=net.levels,
        grid=net.grid,
        variance=cfg.sample.variance or "fixedsmall",
        clip=cfg.sample.clip,
        batch_size=cfg.sample.batch_size,
    )
    inputs |= {"model": pixels, "test_images": images, "bits_images": count}
    if net.num_classes:
        inputs["test_labels"] = labels
    return evaluate(metrics=names, **inputs)


def sweep_samplers(
    model: TrainedModel,
    axes: Sequence[str],
    out: Path,
    *,
    num: int,
    seeds: int,
    captions: bool = False,
) -> None:
    """Measure a model for every combination of some sampler options.

    The measure is our Frechet distance to the training images or, with ``captions``, the share of
    captions that images obey. Results are written after every cell, so that an interrupted sweep
    goes on where it stopped.

    Args:
        axes: ``KEY=VALUE,...`` with keys of ``config.sample``; the sweep is their product.
        out: path of the files without suffix; .jsonl, .md and .png are written.
        num: number of images of a cell.
        seeds: number of sampling seeds of a cell.

    Raises:
        ConfigError: an axis is wrong or has no effect, or the files hold another sweep.
    """
    cfg, drawer = model.cfg, model.drawer
    values = sweeps.parse_axes(axes, cfg.sample)
    inputs: dict[str, Any] = {"scenes": list_scenes(cfg, num)} if captions else {}
    metric, real = "captions", None
    if not captions:
        network = metrics.feature_network(cfg.eval.features)
        real = real_images.open_split(cfg).first(num)
        real = from_array(real.read_all(), real.name)  # in memory: every cell reads them
        metric, inputs = network.id, {"network": network, "classes": model.classes}
    settings = {**describe_model(cfg, model.state, model.frozen), "metric": metric}
    stamp = sweeps.stamp_settings(values, cfg.sample, settings)
    sweep = sweeps.Sweep(values, seeds, num, stamp)
    for chosen in sweep.combinations():
        sweeps.check_axes(replace_sample(cfg, **chosen), [*values])

    def measure(cell: sweeps.Row) -> sweeps.Row:
        chosen = replace_sample(cfg, **{key: cell[key] for key in values})
        sampler, rows = make_sampler(chosen, drawer.model)
        scale = chosen.sample.guidance
        twice = scale != 1 and not chosen.sample.classifier
        started = time.monotonic()
        images = drawer.draw(num=num, seed=cell["seed"], sampler=sampler, rows=rows, scale=scale)
        seconds = time.monotonic() - started
        name = "captions" if captions else "distance"
        scores: Any = evaluate(from_array(images, "cell"), real, [name], **inputs)
        return {
            "evaluations": len(rows.level.t) * (1 + twice),
            "seconds": seconds,
            **(scores["captions"] if captions else scores),
        }

    sweeps.run_sweep(sweep, measure, out, metric="all" if captions else "distance")


def measure_autoencoder(
    cfg: ConfigDict,
    state: State,
    names: Sequence[str],
    num: int,
    *,
    save: str | None = None,
    **inputs: Any,
) -> Scores:
    """Measure the reconstructions of the first ``num`` test images by an autoencoder.

    Args:
        names: of metrics of images and their originals, such as psnr, ssim, rfid and distance.
        save: path without suffix, to write the reconstructions to SAVE.npz and the originals to
            SAVE-originals.npz as well.
        inputs: inputs of metrics, such as ``inception``.

    Returns:
        Numbers by name, with the step and the number of images.
    """
    originals = real_images.open_split(cfg, "test").first(num)
    run = first_stage.make_reconstructor(cfg, state.ema)
    about = describe_model(cfg, state, None)
    again = originals._replace(
        name=json.dumps([originals.name, about], sort_keys=True),
        read=lambda start, stop: run(originals.read(start, stop))[0],
    )
    result: Scores = {"step": int(state.step), "images": originals.num}
    # Distance and PSNR are those of unrounded images, as in training.
    by_table = [name for name in names if name not in ("distance", "psnr")]
    result |= evaluate(again, originals, by_table, **inputs)
    if {"distance", "psnr"} & set(names):
        result |= first_stage.measure_first_stage(cfg, state, num)
    if save:
        save_images(again, Path(f"{save}.npz"))
        save_images(originals, Path(f"{save}-originals.npz"))
    return result
