"""Images drawn from a trained model, by any sampler and with any guidance that the model takes.

`Drawer` joins what the config says of sampling, the conditions of the test data and the compiled
loop (`model.ImageMaker`). Previews, evaluation, sampling and the measuring of ControlNets use it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax import control, data, guidance
from diffjax.model import ImageInputs, ImageMaker, Model, make_sampler, make_steering
from diffjax.model.image_maker import Compiled, OnFilm, pad_rows
from diffjax.runs.batches import make_degradation
from diffjax.runs.guides import make_log_prob, make_weak_model
from diffjax.runs.hints import make_hints
from diffjax.runs.sources import load_test_source
from diffjax.runs.states import make_run_mesh
from diffjax.types import Batch, Cond, ConfigError, Rows, Sampler

InputsOf = Callable[[np.ndarray], ImageInputs]


class Strength(NamedTuple):
    """How strongly a control network acts, and when.

    Attributes:
        scale: factor on what the network adds; 1 as in training, 0 for no effect.
        start, end: shares of the network evaluations, in [0, 1], between which it acts.
    """

    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


class Drawer:
    """Draws images of a model as its config says, in batches; see `draw`.

    Attributes:
        model: the model, with its parameters.
    """

    def __init__(
        self,
        cfg: ConfigDict,
        model: Model,
        folder: Path | None = None,
        *,
        compiled: Compiled | None = None,
    ) -> None:
        """Prepare to draw; nothing is compiled or loaded before the first image.

        Args:
            cfg: the config; its sections ``sample``, ``control``, ``data`` and ``mesh`` are read.
            model: a model with parameters, see `runs.open_run`.
            folder: workdir of the run, which knows its classes and words; None outside of a run.
            compiled: programs that were compiled for other parameters of the same config. New ones
                are added to it, so that a caller who passes the same dict compiles only once.
        """
        steering = make_steering(cfg, make_log_prob(cfg), make_weak_model(cfg))
        compiled = {} if compiled is None else compiled
        self.model, self._cfg = model, cfg
        self._maker = ImageMaker(model, make_run_mesh(cfg), steering, compiled)
        self._inputs = _read_inputs(cfg, model, folder)

    def draw(
        self,
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
        inputs: InputsOf | None = None,
        strengths: Sequence[Strength] = (),
        balance: str | None = None,
        progress: str = "sampling",
        on_film: OnFilm | None = None,
    ) -> np.ndarray:
        """Draw images number ``first`` to ``first + num - 1``.

        Image k depends on ``(seed, k)`` and its condition alone, not on the batch that it is in.
        The condition is taken from ``labels`` or ``text``, which are used in turn. Without them a
        model of classes draws its classes in turn, and all else comes from the test images in turn.

        Args:
            num: number of images N.
            seed: of the noise.
            sampler, rows: a solver and its plan (`model.make_sampler`), in place of the config's.
            scale: of guidance, in place of ``config.sample.guidance``.
            batch_size: images at a time, in place of ``config.sample.batch_size``.
            labels: classes (M,), where ``num_classes`` stands for no class.
            text: token ids (M, positions), see `runs.tokenize`.
            inputs: conditions and hints by image number, in place of all of the above.
            strengths: of the control networks, in their order; all act fully if it is empty.
            balance: of control against the prompt, in place of the config's: a name in
                `diffjax.control.BALANCES`.
            progress: title of the progress bar.
            on_film: called with frames from noise to picture, see `model.ImageMaker`.

        Returns:
            (N, H, W, C) float32 in [-1, 1].

        Raises:
            ConfigError: labels, guidance or a sampler that the model does not take.
        """
        if sampler is None or rows is None:
            sampler, rows = make_sampler(self._cfg, self.model)
        _check_labels(labels, self.model)
        count, maker = len(rows.level.t), self._maker
        if balance is not None:
            steering = maker.steering._replace(balance=balance)
            maker = ImageMaker(maker.model, maker.mesh, steering, maker.compiled)
        windows = [
            np.pad(one.scale * control.window(count, one.start, one.end), (0, _count_padding(rows)))
            for one in strengths
        ]
        return maker(
            inputs or functools.partial(self._inputs, labels=labels, text=text),
            sampler,
            rows,
            num=num,
            first=first,
            seed=seed,
            scale=_make_guidance(self._cfg, self.model, pad_rows(rows), scale),
            strengths=windows,
            batch_size=batch_size or self._cfg.sample.batch_size,
            progress=progress,
            on_film=on_film,
        )


def _count_padding(rows: Rows) -> int:
    """Count the rows that `pad_rows` appends to a plan."""
    return len(pad_rows(rows).level.t) - len(rows.level.t)


def _read_inputs(
    cfg: ConfigDict, model: Model, folder: Path | None = None
) -> Callable[..., ImageInputs]:
    """Make the function that reads conditions and hints of images, by their numbers.

    Args:
        folder: workdir of the run, or None.

    Returns:
        ``(index, labels=None, text=None) -> ImageInputs`` on the host. Test images are loaded at
        the first call that needs them.
    """
    hints = make_hints(cfg) if model.controls else None
    degradation = make_degradation(cfg)
    load = functools.cache(lambda: load_test_source(cfg, folder=folder))

    def read(
        index: np.ndarray, labels: np.ndarray | None = None, text: np.ndarray | None = None
    ) -> ImageInputs:
        batch: dict[str, np.ndarray] = {}
        needs = set(model.condition.needs) - ({"text"} if text is not None else set())
        if needs or hints:
            source = load()
            batch = data.batch_of(source, index % len(source), degradation)
        if model.num_classes and (hints is None or labels is not None):  # a hint has its own
            chosen = index % model.num_classes if labels is None else labels[index % len(labels)]
            batch["label"] = np.asarray(chosen, np.int32)
        if text is not None:
            batch["text"] = text[index % len(text)]
        cond = _take_each(model, batch, index)  # the holes of inpainting are random
        return ImageInputs(
            jax.tree.map(np.asarray, cond), [hints(batch)] if hints is not None else []
        )

    return read


def _take_each(model: Model, batch: Batch, index: np.ndarray) -> Cond:
    """Take the raw condition of each image with a key of its own number.

    So a random part of a condition, such as the hole of inpainting, does not depend on the batch.
    """

    def take_one(row: Batch, key: jax.Array) -> Cond:
        raw = model.condition.take(jax.tree.map(lambda leaf: leaf[None], row), key)
        return jax.tree.map(lambda leaf: leaf[0], raw)

    return jax.vmap(take_one)(batch, jax.vmap(jax.random.key)(jnp.asarray(index)))


def _make_guidance(
    cfg: ConfigDict, model: Model, rows: Rows, scale: float | None
) -> np.ndarray | None:
    """Make the guidance scale of every row of a plan.

    The scale is ``s = 1 + w`` in the terms of Ho & Salimans (2022), and 1 outside of the interval
    ``guidance_low <= sigma / alpha <= guidance_high`` (Kynkaanniemi et al. 2024).

    Args:
        rows: the padded plan of N rows.
        scale: in place of ``config.sample.guidance``.

    Returns:
        (N,), or None for models without a condition and for sampling without guidance.

    Raises:
        ConfigError: guidance of a model without a condition.
    """
    section = cfg.sample
    scale = section.guidance if scale is None else scale
    low, high = section.guidance_low, section.guidance_high
    if section.classifier or section.guide:
        return guidance.interval(rows, scale, low=low, high=high)
    if not model.condition.guided:
        if scale != 1:
            raise ConfigError(f"guidance {scale:g} needs a model with a condition")
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


def _check_labels(labels: np.ndarray | None, model: Model) -> None:
    """Check that labels are classes, ``0 .. num_classes - 1``, or ``num_classes`` for no class.

    Raises:
        ConfigError: a label is outside of that range, or the model has no classes.
    """
    if labels is None:
        return
    if not model.num_classes or labels.min() < 0 or labels.max() > model.num_classes:
        raise ConfigError(
            f"labels must lie in 0 .. {model.num_classes} (the last: no class), got "
            f"{labels.min()} .. {labels.max()}"
        )


def replace_sample(cfg: ConfigDict, **sample: object) -> ConfigDict:
    """Copy a config with other values in its section ``sample``, given by their keys."""
    copy = ConfigDict(cfg.to_dict())
    copy.sample.update(sample)
    return copy
