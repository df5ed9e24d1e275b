"""Images of a trained model by any sampler."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax import control, data, guidance
from diffjax.model import ImageInputs, ImageMaker, Model, make_sampler, make_steering
from diffjax.model.image_maker import pad_rows
from diffjax.runs.fixed_parts import make_log_prob
from diffjax.runs.hints import make_hints
from diffjax.runs.sources import load_test_source
from diffjax.runs.states import make_run_mesh
from diffjax.types import ConfigError, Rows, Sampler

InputsOf = Callable[[np.ndarray], ImageInputs]


class Strength(NamedTuple):
    """How much a control network adds, and between which shares of the evaluations."""

    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


class Drawer:
    """Draws images as a config says; see `draw`.

    Attributes:
        model: with its parameters.
    """

    def __init__(
        self,
        cfg: ConfigDict,
        model: Model,
        folder: Path | None = None,
        *,
        compiled: dict[Any, Any] | None = None,
    ) -> None:
        """
        Args:
            folder: workdir of the run.
            compiled: what was compiled for other parameters of the same config; added to.
        """
        steering = make_steering(cfg, make_log_prob(cfg))
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
    ) -> np.ndarray:
        """Images ``first`` to ``first + num``, (num, H, W, C) float32 in [-1, 1].

        Image k depends on (seed, k) only. Conditions are ``labels`` (N,) or ``text`` (N, M), used
        in turn; without them all classes in turn, and whatever else comes with the test images.

        Args:
            inputs: in place of these conditions and of the hints that come with the test images.
            strengths: of the control networks; 1 throughout if there are none.
            balance: in place of the config's, a name in `diffjax.control.BALANCES`.

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
        )


def _count_padding(rows: Rows) -> int:
    return len(pad_rows(rows).level.t) - len(rows.level.t)


def _read_inputs(
    cfg: ConfigDict, model: Model, folder: Path | None = None
) -> Callable[..., ImageInputs]:
    """``(index, labels, text) -> `` what images number ``index`` are made of, on the host."""
    hints = make_hints(cfg) if model.controls else None
    load = functools.cache(lambda: load_test_source(cfg, folder=folder))

    def read(
        index: np.ndarray, labels: np.ndarray | None = None, text: np.ndarray | None = None
    ) -> ImageInputs:
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
        cond = _take_each(model, batch, index)  # the holes of inpainting are random
        return ImageInputs(
            jax.tree.map(np.asarray, cond), [hints(batch)] if hints is not None else []
        )

    return read


def _take_each(model: Model, batch: dict[str, Any], index: np.ndarray) -> Any:
    def one(row: dict[str, Any], key: jax.Array) -> Any:
        raw = model.condition.take(jax.tree.map(lambda leaf: leaf[None], row), key)
        return jax.tree.map(lambda leaf: leaf[0], raw)

    return jax.vmap(one)(batch, jax.vmap(jax.random.key)(jnp.asarray(index)))


def _make_guidance(
    cfg: ConfigDict, model: Model, rows: Rows, scale: float | None
) -> np.ndarray | None:
    """Guidance by row, or None for models without a condition and for unguided sampling.

    Raises:
        ConfigError: guidance of a model without a condition.
    """
    section = cfg.sample
    scale = section.guidance if scale is None else scale
    low, high = section.guidance_low, section.guidance_high
    if section.classifier:
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
    """Labels are classes, or ``num_classes`` for none of them.

    Raises:
        ConfigError: a label outside that range, or labels of a model without classes.
    """
    if labels is None:
        return
    if not model.num_classes or labels.min() < 0 or labels.max() > model.num_classes:
        raise ConfigError(
            f"labels must lie in 0 .. {model.num_classes} (the last: no class), got "
            f"{labels.min()} .. {labels.max()}"
        )


def replace_sample(cfg: ConfigDict, **sample: Any) -> ConfigDict:
    """A copy of a config with other values in ``config.sample``."""
    copy = ConfigDict(cfg.to_dict())
    copy.sample.update(sample)
    return copy
