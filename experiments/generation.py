"""Images of a trained model by any sampler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from diffjax import data, grids, guidance, parameterization, samplers
from diffjax.evaluation.image_grids import save_png as save_png
from diffjax.evaluation.image_grids import tile as tile
from diffjax.evaluation.image_grids import to_uint8 as to_uint8
from diffjax.tasks import Diffusion
from diffjax.train import State
from diffjax.train.sharding import batch_sharding, place, replicated
from diffjax.types import Noise, Rows, Sampler, Task, select_options
from experiments import common, controlled
from experiments.command_line import refuse_config


class ImageMaker(NamedTuple):
    """Compiled generation for one model; see `image_maker`."""

    make: Callable[..., np.ndarray]
    model: Diffusion


def _bucket(count: int) -> int:
    """Padded number of rows, so that few lengths are compiled."""
    return max(64, 1 << (count - 1).bit_length())


def image_maker(
    cfg: ConfigDict,
    task: Task,
    state: State,
    frozen: Any = None,
    *,
    compiled: dict[Any, Any] | None = None,
) -> ImageMaker:
    """A function that makes images with any sampler; solvers of equal memory compile once.

    Args:
        frozen: what the task reads but does not train, see `experiments.frozen`.
        compiled: what was compiled for other states of the same config; added to.
    """
    model = common.diffusion_of(cfg)
    given = _conditions(cfg, model)
    mesh = common.mesh_of(cfg)
    split = batch_sharding(mesh)
    params, extra = state.ema, state.extra

    compiled = {} if compiled is None else compiled

    def executable(sampler: Sampler) -> Any:
        key = (sampler.init, sampler.step)
        if key not in compiled:

            def generate(
                params: Any, frozen: Any, extra: Any, keys: Any, cond: Any,
                rows: Rows, n: Any, scale: Any,
            ) -> Any:  # fmt: skip
                noise = noise_of(keys, model)
                return task.sample(
                    params, frozen, extra, noise, cond, sampler, rows, n=n, scale=scale
                )

            # Whole images come out, so that every process has them.
            compiled[key] = jax.jit(
                generate,
                in_shardings=(None, None, None, split, split, None, None, None),
                out_shardings=replicated(mesh),
            )
        return compiled[key]

    def make(
        *,
        num: int,
        first: int = 0,
        seed: int = 0,
        sampler: Sampler | None = None,
        rows: Rows | None = None,
        scale: float | None = None,
        batch_size: int | None = None,
        labels: np.ndarray | None = None,
        text: np.ndarray | None = None,
        progress: str = "sampling",
    ) -> np.ndarray:
        """Images ``first`` to ``first + num``, (num, H, W, C) float32 in [-1, 1].

        Image k depends on (seed, k) only. Conditions are ``labels`` (N,) or ``text`` (N, M), used
        in turn; without them all classes in turn, and whatever else comes with the test images.
        """
        if sampler is None or rows is None:
            sampler, rows = sampler_of(cfg, model)
        size = min(batch_size or cfg.sample.batch_size, num)
        size += -size % mesh.size  # the devices share a batch equally
        count = len(rows.level.t)
        padded = samplers.pad(rows, _bucket(count))
        run = executable(sampler)
        scales = _guidance(cfg, model, padded, scale)
        _check_labels(labels, model)
        keys = keys_of(seed, first + np.arange(-(-num // size) * size))
        done = []
        for start in tqdm(range(0, num, size), desc=progress, unit="batch", leave=False):
            index = first + np.arange(start, start + size)
            cond = given(index, labels, text)
            own = place((keys[start : start + size], cond), split)
            done.append(np.asarray(run(params, frozen, extra, *own, padded, count, scales)))
        return np.concatenate(done)[:num]

    return ImageMaker(make, model)


def keys_of(seed: int, index: np.ndarray) -> np.ndarray:
    """What the noise of images number ``index`` is made from, by `noise_of`."""
    base = jax.random.key(seed)
    keys = jax.vmap(lambda k: jax.random.fold_in(base, k))(jnp.asarray(index))
    return np.asarray(jax.random.key_data(keys))


def noise_of(keys: Any, model: Diffusion) -> Noise:
    """Noise of each image by itself."""
    return samplers.image_noise(jax.random.wrap_key_data(keys), model.image_shape)


def _conditions(cfg: ConfigDict, model: Diffusion) -> Callable[..., Any]:
    """``(index, labels, text) -> `` raw condition of images number ``index``, on the host."""
    hints = controlled.hints_of(cfg) if cfg.task == "controlnet" else None
    load = functools.cache(lambda: common.test_source(cfg))

    def make(index: np.ndarray, labels: np.ndarray | None, text: np.ndarray | None) -> Any:
        batch: dict[str, Any] = {}
        needs = set(model.condition.needs) - ({"text"} if text is not None else set())
        if needs or hints:
            source = load()
            batch = data.batch_of(source, index % len(source))
        if model.num_classes and (hints is None or labels is not None):  # a hint has its own
            chosen = index % model.num_classes if labels is None else labels[index % len(labels)]
            batch["label"] = np.asarray(chosen, np.int32)
        if text is not None:
            batch["text"] = text[index % len(text)]
        raw = _taken(model, batch, index)  # each by itself: the holes of inpainting are random
        if hints is not None:
            raw = {**(raw or {}), "hint": hints(batch)}
        return jax.tree.map(np.asarray, raw)

    return make


def _taken(model: Diffusion, batch: dict[str, Any], index: np.ndarray) -> Any:
    def one(row: dict[str, Any], key: jax.Array) -> Any:
        raw = model.condition.take(jax.tree.map(lambda leaf: leaf[None], row), key)
        return jax.tree.map(lambda leaf: leaf[0], raw)

    return jax.vmap(one)(batch, jax.vmap(jax.random.key)(jnp.asarray(index)))


def _guidance(
    cfg: ConfigDict, model: Diffusion, rows: Rows, scale: float | None
) -> np.ndarray | None:
    """Guidance by row, or None for models without a condition and for unguided sampling.

    Raises:
        UsageError: guidance of a model without a condition.
    """
    section = cfg.sample
    scale = section.get("guidance", 1.0) if scale is None else scale
    low, high = section.get("guidance_low", 0.0), section.get("guidance_high", np.inf)
    if section.get("classifier", ""):
        return guidance.interval(rows, scale, low=low, high=high)
    if not model.condition.guided:
        if scale != 1:
            raise common.UsageError(f"guidance {scale:g} needs a model with a condition")
        return None
    if scale == 1 and not model.drop:
        return None
    if scale != 1 and not model.drop:
        logging.warning(
            "guidance %g on a model trained with config.cond.drop=0: it has never seen the null "
            "condition, so what it predicts without one means nothing",
            scale,
        )
    return guidance.interval(rows, scale, low=low, high=high)


def _check_labels(labels: np.ndarray | None, model: Diffusion) -> None:
    """Labels are classes, or ``num_classes`` for none of them.

    Raises:
        UsageError: a label outside that range, or labels of a model without classes.
    """
    if labels is None:
        return
    if not model.num_classes or labels.min() < 0 or labels.max() > model.num_classes:
        raise common.UsageError(
            f"labels must lie in 0 .. {model.num_classes} (the last: no class), got "
            f"{labels.min()} .. {labels.max()}"
        )


def sampler_of(cfg: ConfigDict, model: Diffusion) -> tuple[Sampler, Rows]:
    """Sampler and plan of ``config.sample``.

    Raises:
        UsageError: names or options that are wrong, or do not fit the model.
    """
    section = cfg.sample
    with refuse_config():
        options = select_options("sampler", section.sampler, samplers.SAMPLERS, section)
        sampler = samplers.make(section.sampler, options)
        options = select_options("grid", section.grid, grids.GRIDS, section)
        steps = options.pop("steps")
        rows = sampler.plan(grids.make(section.grid, model.schedule, steps, options))
        parameterization.check_levels(model.parameterization, rows.level)
    return sampler, rows


def with_sample(cfg: ConfigDict, **sample: Any) -> ConfigDict:
    """A copy of a config with other values in ``config.sample``."""
    copy = ConfigDict(cfg.to_dict())
    copy.sample.update(sample)
    return copy
