r"""Diffusion: schedule, parameterization, loss, network and condition joined into a `Task`.

It happens on pixels, or on latents if the config has a section ``autoencoder``. Config sections
read here: ``network``, ``schedule``, ``parameterization``, ``loss``, ``times``, ``cond``,
``autoencoder`` and ``sample``'s clipping and guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import grids, guidance, likelihood, losses, parameterization, samplers, schedules
from diffjax.nets.unet import UNet
from diffjax.samplers.ancestral import reverse_rows
from diffjax.tasks.augment import augment
from diffjax.tasks.conditions import Condition, make_condition
from diffjax.tasks.latents import Space, make_space
from diffjax.types import (
    Array,
    Cond,
    Denoiser,
    Grid,
    Level,
    Noise,
    Parameterization,
    Prediction,
    PyTree,
    Rows,
    Sampler,
    Schedule,
    Task,
    build,
    build_section,
    choose,
    expand,
    select_options,
)

NETWORKS = {"unet": UNet}
# (parameters, z, level, label (B,)) -> log p(label | z) (B,)
LogProb = Callable[[PyTree, Array, Level, Array], Array]
OBJECTIVES = ("simple", "vlb", "hybrid")


class Diffusion(NamedTuple):
    """The assembled model of a config.

    Attributes:
        schedule: how noise grows.
        grid: every timestep of a discrete schedule, else None.
        parameterization: what the network predicts.
        network: Linen module.
        denoiser: ``(params, cond, *, clip=None) -> Denoiser`` for sampling and likelihood; an
            encoded condition, see `Condition`.
        levels: grey values of the data, for the discretised decoder.
        image_shape: (H, W, C) of z.
        num_classes: classes the network is conditioned on, 0 for none; the label ``num_classes``
            means none of them.
        drop: probability with which training drops the condition.
        condition: how conditions are made and encoded.
        space: pixels, or the latents of an autoencoder.
    """

    schedule: Schedule
    grid: Grid | None
    parameterization: Parameterization
    network: Any
    denoiser: Callable[..., Denoiser]
    levels: int
    image_shape: tuple[int, int, int]
    num_classes: int
    drop: float
    condition: Condition
    space: Space


def section(part: Any) -> tuple[str, dict[str, Any]]:
    """(name, options) of a config section."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}
    return str(options.pop("name")), options


def make_network(config: Any, out_channels: int, num_classes: int = 0) -> Any:
    """The Linen module that a config describes.

    Args:
        num_classes: rows of the class embedding.

    Raises:
        ValueError: unknown names or options, listing the choices.
    """
    name, options = section(config.network)
    options.pop("conditional", None)
    dtype = jnp.dtype(options.pop("dtype", "float32"))
    options.update(out_channels=out_channels, num_classes=num_classes)
    options["dtype"] = None if dtype == jnp.float32 else dtype
    return build("network", name, NETWORKS, options)


def make_schedule(config: Any) -> Schedule:
    """The schedule of ``config.schedule``; ``zero_snr`` rescales a discrete one.

    Raises:
        ValueError: unknown names or options, listing the choices.
    """
    name, options = section(config.schedule)
    rescale = options.pop("zero_snr", False)
    schedule = build_section("schedule", name, schedules.SCHEDULES, options)
    return schedules.zero_terminal_snr(schedule) if rescale else schedule


def make_parameterization(config: Any, grid: Grid | None) -> Parameterization:
    """The parameterization of ``config.parameterization``.

    Args:
        grid: every timestep of a discrete schedule, for ``mean``.

    Raises:
        ValueError: unknown names or options, listing the choices.
    """
    name, options = section(config.parameterization)
    learned = options.pop("learned_variance", False)
    table = {**parameterization.PARAMETERIZATIONS, "mean": parameterization.mean}
    options = select_options("parameterization", name, table, options)
    return parameterization.make(name, options, learned_variance=learned, grid=grid)


def make_times(config: Any, schedule: Schedule) -> losses.TimeSampler:
    """The distribution of training times of ``config.times``.

    Raises:
        ValueError: unknown names or options, or a schedule that it does not fit.
    """
    name, options = section(config.times)
    options["schedule"] = schedule
    return build_section("time sampler", name, losses.TIME_SAMPLERS, options)


def make_diffusion(
    config: Any,
    image_shape: tuple[int, int, int],
    levels: int = 256,
    num_classes: int = 0,
    *,
    wrap: Callable[[UNet], Any] = lambda network: network,
) -> Diffusion:
    """Assemble the model that a config describes.

    Args:
        image_shape: (H, W, C) of the data.
        levels: grey values of the data.
        num_classes: classes of the data; the network uses them if ``config.network`` says
            ``conditional`` or ``config.cond.context`` says ``label``.
        wrap: makes another network around that of the config.

    Raises:
        ValueError: unknown names or options, listing the choices.
    """
    schedule = make_schedule(config)
    grid = grids.full(schedule) if schedule.steps is not None else None
    param = make_parameterization(config, grid)

    space = make_space(config, image_shape)
    condition = make_condition(config, space, num_classes)
    classes = num_classes if config.network.get("conditional", False) else 0
    dropped, row = _dropping(config, classes)
    network = wrap(make_network(config, space.shape[-1] * param.channels, classes + row))

    def denoiser(params: PyTree, cond: Cond = None, *, clip: bool = False) -> Denoiser:
        def apply(z: Array, level: Level) -> Prediction:
            return _predict(network, param, params, z, level, cond)[1]

        return samplers.clip(apply) if clip else apply

    labels = classes or (num_classes if "label" in condition.names else 0)
    return Diffusion(
        schedule=schedule,
        grid=grid,
        parameterization=param,
        network=network,
        denoiser=denoiser,
        levels=levels,
        image_shape=space.shape,
        num_classes=labels,
        drop=dropped,
        condition=condition,
        space=space,
    )


def _dropping(config: Any, classes: int) -> tuple[float, int]:
    """(probability of dropping the condition, rows of the embedding for the null condition).

    Raises:
        ValueError: probability outside [0, 1), or an unknown kind of null condition.
    """
    part = config.get("cond", None)
    if part is None:
        return 0.0, 0
    choose("null condition", part.null, {"learned": 0, "zero": 0})
    if not 0 <= part.drop < 1:
        raise ValueError(f"config.cond.drop must lie in [0, 1), got {part.drop}")
    return part.drop, int(classes > 0 and part.drop > 0 and part.null == "learned")


def _predict(
    network: Any,
    param: Parameterization,
    params: PyTree,
    z: Array,
    level: Level,
    cond: Cond,
    **apply: Any,
) -> tuple[Array, Prediction]:
    """Raw output, and its decoding; all scheduler arithmetic in float32."""
    scaled = z * expand(jnp.asarray(param.scale_in(level)), z)
    t = jnp.broadcast_to(jnp.asarray(level.t, jnp.float32), z.shape[:1])
    raw = network.apply({"params": params}, scaled, t, cond, **apply)
    return raw, param.decode(raw, z, level)


def make_task(
    config: Any,
    image_shape: tuple[int, int, int],
    levels: int = 256,
    num_classes: int = 0,
    *,
    wrap: Callable[[UNet], Any] = lambda network: network,
    classifier: LogProb | None = None,
) -> Task:
    """The diffusion task of a config; see `make_diffusion` for the arguments.

    The loss is ``E_{t, eps} [w(t) |raw - target|^2]`` (simple), the variational bound (vlb), or
    ``simple + vlb_weight * bound`` with no gradient of the bound through the mean (hybrid).

    Args:
        classifier: guides sampling in place of the null condition, towards ``cond["label"]``; its
            parameters are ``frozen["classifier"]``.
    """
    model = make_diffusion(config, image_shape, levels, num_classes, wrap=wrap)
    noisiest = np.float64(model.schedule.span[1])
    parameterization.check_levels(
        model.parameterization, Level(noisiest, *model.schedule.at(noisiest))
    )
    times = make_times(config, model.schedule)
    objective = _make_objective(config, model)
    augment_rate, flip = config.data.get("augment", 0.0), config.data.flip

    condition, space = model.condition, model.space
    if space.net is not None and config.sample.clip:
        raise ValueError("sample.clip bounds pixels, and these are latents: set sample.clip=False")

    def init(key: jax.Array, frozen: PyTree, batch: Mapping[str, Array]) -> tuple[PyTree, PyTree]:
        found = batch["image"].shape[1:] if "image" in batch else image_shape
        bucketed = config.data.get("bucket_step", 0)  # other shapes, and none in particular
        if tuple(found) != tuple(image_shape) and not bucketed:
            raise ValueError(f"images of shape {image_shape} expected, got {found}")
        z, cond = jnp.zeros((1, *space.shape)), condition.example
        params = model.network.init(key, z, jnp.zeros(1), cond)["params"]
        return {**params, **condition.init(key)}, {"times": times.init(), **space.extra}

    def loss(
        params: PyTree,
        frozen: PyTree,
        extra: PyTree,
        key: jax.Array,
        step: Array,
        batch: Mapping[str, Array],
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        x, extra = space.enter(frozen, extra, jax.random.fold_in(key, 5), batch)
        cond = condition.take(batch, key)
        if cond is not None and model.drop:
            drop_key = jax.random.fold_in(dropout_key, 1)
            cond = guidance.drop(drop_key, cond, condition.null(cond), model.drop)
        cond = condition.encode(params, frozen, extra, cond)
        if augment_rate:
            x, moved = augment(jax.random.fold_in(dropout_key, 2), x, augment_rate, flip=flip)
            cond = {**(cond or {}), "augment": moved}
        t, importance = times.draw(time_key, extra["times"], x.shape[0])
        level = Level(t, *model.schedule.at(t))
        eps = jax.random.normal(noise_key, x.shape)
        z = expand(level.alpha, x) * x + expand(level.sigma, x) * eps
        raw, prediction = _predict(
            model.network,
            model.parameterization,
            params,
            z,
            level,
            cond,
            train=True,
            rngs={"dropout": dropout_key},
        )
        values, metrics = objective(raw, prediction, x, eps, level)
        history = times.update(extra["times"], t, jax.lax.stop_gradient(values))
        total = (importance * values).mean()
        return total, ({**extra, "times": history}, {"loss": total, **metrics})

    def judged(denoise: Denoiser, frozen: PyTree, label: Array, scale: Any) -> Denoiser:
        def log_prob(z: Array, level: Level) -> Array:
            return cast(LogProb, classifier)(frozen["classifier"], z, level, label)

        return guidance.classifier(denoise, log_prob, guidance.per_evaluation(scale))

    def guided(params: PyTree, cond: Cond, null: Cond, scale: Any) -> Denoiser:
        phi = config.sample.get("guidance_rescale", 0.0)
        combine = guidance.rescaled(model.parameterization, phi) if phi else guidance.cfg
        return guidance.guide(
            lambda z, level, cond: model.denoiser(params, cond)(z, level),
            cond,
            null,
            guidance.per_evaluation(scale),
            combine=combine,
            sequential=config.sample.get("guidance_sequential", False),
        )

    def sample(
        params: PyTree,
        frozen: PyTree,
        extra: PyTree,
        noise: Noise,
        cond: Cond,
        sampler: Sampler,
        rows: Rows,
        n: Any = None,
        scale: Any = None,
    ) -> Array:
        if scale is not None and (cond is None or not condition.guided):
            raise ValueError("guidance needs a condition; this network is unconditional")
        encoded = None if cond is None else condition.encode(params, frozen, extra, cond)
        denoise = model.denoiser(params, encoded)
        if scale is not None and classifier is not None:
            denoise = judged(denoise, frozen, cond["label"], scale)
        elif scale is not None:
            null = condition.encode(params, frozen, extra, condition.null(cond))
            denoise = guided(params, encoded, null, scale)
        if config.sample.clip:
            denoise = samplers.clip(denoise)
        z = samplers.prior(noise, rows)
        x = samplers.sample(noise, denoise, sampler, z, rows, n=n)
        return jnp.clip(space.leave(frozen, extra, x), -1, 1)

    return Task(init, loss, sample)


def _make_objective(config: Any, model: Diffusion) -> Callable[..., tuple[Array, dict[str, Any]]]:
    """``(raw, prediction, x, eps, level) -> (losses (B,), metrics)``.

    Raises:
        ValueError: unknown objective, or a bound on a continuous schedule.
    """
    name, options = section(config.loss)
    choose("loss", name, dict.fromkeys(OBJECTIVES))
    variance = options.pop("variance", "fixedsmall")
    vlb_weight = options.pop("vlb_weight", 1e-3)
    error = choose("loss distance", options.pop("distance", "l2"), losses.ERRORS)
    # One key for one quantity: the network's sigma_data is the weight's.
    options["sigma_data"] = config.parameterization.get("sigma_data", None)
    weight = build_section("loss weight", options.pop("weight", "simple"), losses.WEIGHTS, options)
    if name != "simple" and model.grid is None:
        raise ValueError(f"the {name} loss needs a discrete schedule")
    rows: Any = None
    if model.grid is not None:  # row t is timestep t
        rows = jax.tree.map(lambda leaf: leaf[::-1], reverse_rows(model.grid))

    def simple(raw: Array, x: Array, eps: Array, level: Level) -> Array:
        target = model.parameterization.target(x, eps, level)
        value = error(raw[..., : x.shape[-1]], target)
        return weight(level, model.parameterization) * value

    def bound(prediction: Prediction, x: Array, eps: Array, level: Level) -> Array:
        index = level.t.astype(jnp.int32)
        row = jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], rows)
        term = likelihood.bound_term(
            prediction,
            x,
            eps,
            row,
            variance=variance,
            levels=model.levels,
            stop_mean=name == "hybrid",
        )
        return term * len(rows.coef["noisy"])  # a uniform t makes its mean the whole bound

    def objective(
        raw: Array, prediction: Prediction, x: Array, eps: Array, level: Level
    ) -> tuple[Array, dict[str, Any]]:
        if name == "simple":
            return simple(raw, x, eps, level), {}
        bits = bound(prediction, x, eps, level)
        if name == "vlb":
            return bits, {}
        mse = simple(raw, x, eps, level)
        return mse + vlb_weight * bits, {"mse": mse.mean(), "bound": bits.mean()}

    return objective
