"""Diffusion as a `Task`: the loss of a model at random times.

The trainer calls `loss` with a batch. It takes the batch into the space of the model, takes, drops
and encodes the condition, draws a time and noise, evaluates the network and weighs the error.
Sections that are read here: ``loss``, ``times``, ``data`` and those of the model, see
`diffjax.model.make_model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffjax import losses, parameterization
from diffjax.model import Model, encode, make_model
from diffjax.model.build import split_section
from diffjax.nets.initialisation import init_network, initialise
from diffjax.nets.magnitude import Uncertainty
from diffjax.tasks.alignment import PROJECTOR, Alignment, make_alignment
from diffjax.tasks.augment import augment
from diffjax.tasks.objective_table import make_noise, make_objective
from diffjax.tasks.objectives import Drawn, Objective, measure_one_level, measure_simple
from diffjax.types import (
    Array,
    Cond,
    Frozen,
    Level,
    LossAndState,
    Module,
    Parameterization,
    Params,
    Schedule,
    Statistics,
    Task,
    build_section,
    choose,
)

PAIRINGS = {"independent": False, "optimal": True}  # of images and noise: config.loss.pairing
UNCERTAINTY = "uncertainty"  # the entry of the parameters with the log-variance of the loss


def make_times(config: ConfigDict, schedule: Schedule) -> losses.TimeSampler:
    """Make the distribution of training times of ``config.times``.

    Raises:
        ValueError: unknown names or options, or a schedule that it does not fit.
    """
    name, options = split_section(config.times)
    options["schedule"] = schedule
    return build_section("time sampler", name, losses.TIME_SAMPLERS, options)


def make_task(
    config: ConfigDict,
    image_shape: tuple[int, int, int],
    levels: int = 256,
    num_classes: int = 0,
    *,
    wrap: Callable[[Module], Module] = lambda network: network,
    teacher: Parameterization | None = None,
) -> Task:
    """Make the diffusion task of a config.

    With ``z = alpha x + sigma eps`` at a random time t, the loss is usually
    ``E_{t, eps} [w(t) |raw - target|^2]`` (Ho et al. 2020, eq. 14, for eps and w = 1). The others
    are in `diffjax.tasks.objective_table.OBJECTIVES`.

    Args:
        config, image_shape, levels, num_classes: see `diffjax.model.make_model`.
        wrap: makes another network around that of the config, such as a controlled one.
        teacher: what a frozen base predicts, for losses that ask it; None if as the model.

    Raises:
        ValueError: unknown names or options, or parts that do not fit together.
    """
    model = make_model(config, image_shape, levels, num_classes)
    model = model._replace(network=wrap(model.network))
    noisiest = np.asarray(model.schedule.span[1], np.float64)
    parameterization.check_levels(
        model.parameterization, Level(noisiest, *model.schedule.at(noisiest))
    )
    if model.space.net is not None and config.sample.clip:
        raise ValueError("sample.clip bounds pixels, and these are latents: set sample.clip=False")
    alignment = make_alignment(config, model)
    objective = _Objective(
        model,
        image_shape,
        make_times(config, model.schedule),
        make_objective(config, model, alignment),
        make_noise(config),
        augment=config.data.augment,
        flip=config.data.flip,
        turns=config.data.augment_turns,
        bucketed=bool(config.data.bucket_step),
        dequantize=config.data.dequantize,
        pair=choose("pairing", config.loss.get("pairing", "independent"), PAIRINGS),
        teacher=teacher,
        uncertainty=_make_uncertainty(config, model.space.shape),
        alignment=alignment,
    )
    return Task(objective.init, objective.loss)


def make_diffusion_task(
    model: Model,
    *,
    weight: losses.Weight | None = None,
    times: losses.TimeSampler | None = None,
    noise: Callable[..., tuple[Array, Array]] = losses.draw_noise,
) -> Task:
    """Make the task of a model that was put together by hand: ``E [w(t) |raw - target|^2]``.

    The network may be any Linen module of ``(z, t, cond, train=)``, or anything else with ``init``
    and ``apply``.

    Args:
        model: without parameters.
        weight: see `diffjax.losses.WEIGHTS`; 1 on the raw output if None.
        times: see `diffjax.losses.TIME_SAMPLERS`; uniform over the schedule if None.
        noise: ``(key, shape) -> (eps, what is added to x)``, see `losses.draw_noise`.
    """
    shape = model.space.shape
    factor = model.space.net.factor if model.space.net is not None else 1
    objective = _Objective(
        model,
        (shape[0] * factor, shape[1] * factor, shape[2]),
        times or losses.uniform(model.schedule),
        measure_one_level(measure_simple(model, weight or losses.simple(), losses.ERRORS["l2"])),
        noise,
        augment=0.0,
        flip=False,
        bucketed=model.space.net is not None,
    )
    return Task(objective.init, objective.loss)


class _Objective(NamedTuple):
    """What the functions of the task share; see `make_task`.

    Attributes:
        model: without parameters.
        image_shape: (H, W, C) of the data.
        times: the distribution of training times.
        objective: the loss of each image.
        draw_noise: ``(key, shape) -> (eps, what is added to x)``, see `losses.draw_noise`.
        augment: probability of each geometric augmentation.
        flip: whether augmentations may exchange left and right.
        turns: whether they may turn images.
        bucketed: whether images may have other shapes than ``image_shape``.
        dequantize: whether to add uniform noise of the size of a grey level.
        pair: whether noise is assigned to images by optimal transport.
        teacher: what a frozen base predicts, if not the same as the model.
        uncertainty: ``(losses (B,), log-variances (B,)) -> losses (B,)`` with a learned
            log-variance of the loss at each level; None for the loss as it is.
        alignment: the term of REPA, which the objective has then; None for none.
    """

    model: Model
    image_shape: tuple[int, int, int]
    times: losses.TimeSampler
    objective: Objective
    draw_noise: Callable[..., tuple[Array, Array]]
    augment: float
    flip: bool
    bucketed: bool
    turns: bool = True
    dequantize: bool = False
    pair: bool = False
    teacher: Parameterization | None = None
    uncertainty: Callable[[Array, Array], Array] | None = None
    alignment: Alignment | None = None

    def init(
        self, key: jax.Array, frozen: Frozen, batch: Mapping[str, Array]
    ) -> tuple[Params, Statistics]:
        """See `Task.init`."""
        found = batch["image"].shape[1:] if "image" in batch else self.image_shape
        if tuple(found) != tuple(self.image_shape) and not self.bucketed:
            raise ValueError(f"images of shape {self.image_shape} expected, got {found}")
        params = init_params(self.model, key)
        extra: dict[str, Any] = {"times": self.times.init()}
        if self.uncertainty is not None:
            own = Uncertainty().init(jax.random.fold_in(key, 7), jnp.zeros(1))["params"]
            params = {**params, UNCERTAINTY: own}
        if self.alignment is not None:
            params = {**params, PROJECTOR: self.alignment.init(jax.random.fold_in(key, 8))}
        if self.objective.decay is not None:
            extra |= {"target": jax.tree.map(jnp.copy, params), "averaged": jnp.asarray(-1)}
        return params, {**extra, **self.model.space.extra}

    def loss(
        self,
        params: Params,
        frozen: Frozen,
        extra: Statistics,
        key: jax.Array,
        step: Array,
        batch: Mapping[str, Array],
    ) -> LossAndState:
        """See `Task.loss`."""
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        if self.dequantize:
            share = jax.random.uniform(jax.random.fold_in(key, 6), batch["image"].shape)
            batch = {**batch, "image": dequantize(batch["image"], share, self.model.levels)}
        x, extra = self.model.space.enter(frozen, extra, jax.random.fold_in(key, 5), batch)
        model = self.model._replace(params=params, frozen=frozen, statistics=extra)
        features = self.alignment and self.alignment.encode(frozen, batch, x.shape)
        x, cond = self._take_condition(model, x, key, dropout_key, batch)
        t, importance = self.times.draw(time_key, extra["times"], x.shape[0])
        second, _ = self.times.draw(jax.random.fold_in(time_key, 1), extra["times"], x.shape[0])
        level, other = (Level(time, *model.schedule.at(time)) for time in (t, second))
        eps, added = self.draw_noise(noise_key, x.shape)
        if self.pair:
            order = losses.pair_optimally(x, eps)
            eps, added = eps[order], added[order]
        extra, still = self._average(extra, params, step)
        drawn = Drawn(
            *(x, eps, added, level, other, cond, dropout_key, step, model._replace(params=still)),
            teacher=self._find_teacher(model, frozen),
            features=features,
        )
        values, metrics = self.objective.measure(model, drawn)
        if self.uncertainty is not None:
            c = jnp.log(level.sigma / level.alpha) / 4
            logvar = cast(Array, Uncertainty().apply({"params": params[UNCERTAINTY]}, c))
            metrics = {**metrics, "mse": values.mean(), "logvar": logvar.mean()}
            values = self.uncertainty(values, logvar)
        history = self.times.update(extra["times"], t, jax.lax.stop_gradient(values))
        total = (importance * batch.get("weight", 1.0) * values).mean()
        return total, ({**extra, "times": history}, {"loss": total, **metrics})

    def _average(self, extra: Statistics, params: Params, step: Array) -> tuple[Statistics, Params]:
        """Return the statistics and the parameters that targets are computed with.

        They are an average that is updated once a step, however many parts a batch has: those of
        step 0 are the parameters themselves.
        """
        still = jax.lax.stop_gradient(params)
        if self.objective.decay is None:
            return extra, still
        decay = jnp.where(step > 0, self.objective.decay(step), 0.0)
        decay = jnp.where(step > extra["averaged"], decay, 1.0)
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), extra["target"], still)
        return {**extra, "target": average, "averaged": step}, average

    def _find_teacher(self, model: Model, frozen: Frozen) -> Model | None:
        """Return the frozen base with its own parameterization; None if there is none."""
        if "base" not in (frozen or {}):
            return None
        own = self.teacher or model.parameterization
        return model._replace(params=frozen["base"], parameterization=own)

    def _take_condition(
        self,
        model: Model,
        x: Array,
        key: jax.Array,
        dropout_key: jax.Array,
        batch: Mapping[str, Array],
    ) -> tuple[Array, Cond]:
        """Take, drop and encode the condition of a batch, and augment the images if asked for.

        Returns:
            The images and the encoded condition.
        """
        cond = model.condition.take(batch, key)
        if cond is not None and model.drop:
            drop_key = jax.random.fold_in(dropout_key, 1)
            cond = model.condition.drop(drop_key, cond, model.drop)
        cond = encode(model, cond)
        if self.augment:
            augment_key = jax.random.fold_in(dropout_key, 2)
            x, moved = augment(augment_key, x, self.augment, flip=self.flip, turns=self.turns)
            cond = {**(cond or {}), "augment": moved}
        return x, cond


def dequantize(images: Array, drawn: Array, levels: int) -> Array:
    """Grey level u of images in [-1, 1] as ``2 (u + drawn) / levels - 1``, drawn in [0, 1)."""
    grey = (images + 1) / 2 * (levels - 1)
    return 2 * (grey + drawn) / levels - 1


def init_params(model: Model, key: jax.Array) -> Params:
    """Initialise the parameters of a model's network, and of what is trained with it."""
    z, cond = jnp.zeros((1, *model.space.shape)), model.condition.example
    params = init_network(model.network, key, z, jnp.zeros(1), cond)["params"]
    name = getattr(model.network, "initialisation", "ddpm")
    return initialise({**params, **model.condition.init(key)}, name, key)


def _make_uncertainty(
    config: ConfigDict, shape: tuple[int, int, int]
) -> Callable[[Array, Array], Array] | None:
    """Make the loss of a learned log-variance u, ``L / exp(u) + n u``; None if there is none.

    It is the negative log-likelihood of n normal errors of variance ``exp(u)``, but for a factor of
    2: at its minimum every noise level has the gradient of a loss of 1 (Karras et al. 2024,
    equations 14 to 16 and 21). n is 1 for means over an image, else what the sums are over.

    Raises:
        ValueError: the loss is another one, or the task does not train the whole network.
    """
    if not config.loss.get("uncertainty", False):
        return None
    if config.loss.name != "simple" or config.task != "diffusion":
        raise ValueError(
            "loss.uncertainty=True weighs the simple loss of a whole network; set "
            "loss.uncertainty=False, or loss.name=simple and task=diffusion"
        )
    n = losses.REDUCTIONS[config.loss.reduction](math.prod(shape))
    return lambda values, logvar: values * jnp.exp(-logvar) + n * logvar
