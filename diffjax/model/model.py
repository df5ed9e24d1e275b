"""The model: what the five choices of a config, or a published model, are together.

`denoiser` and `sample` are the only places where a network becomes a denoiser and where images are
drawn. Training, evaluation and the pipelines of prompts all use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from diffjax import control, guidance, lora, samplers
from diffjax.control import BALANCES, AppliedControl
from diffjax.model.condition import Condition
from diffjax.model.control_networks import ControlNetwork, apply_control, scale_inputs
from diffjax.model.skipping import limit_scale, skip_blocks
from diffjax.model.space import Space
from diffjax.model.steering_options import PLAIN, LogProb, Steering
from diffjax.types import (
    Array,
    ArrayLike,
    Cond,
    Denoiser,
    Grid,
    Level,
    Module,
    Noise,
    Parameterization,
    Params,
    Prediction,
    Rows,
    Sampler,
    Schedule,
    summarize,
)


class Model(NamedTuple):
    """A diffusion model. Without parameters it is the description that training starts from.

    Attributes:
        schedule: how noise grows.
        parameterization: what the network predicts.
        network: Linen module, ``apply(variables, z, t, cond) -> raw output``.
        space: pixels, or the latents of an autoencoder.
        condition: how conditions are made of a batch, dropped and encoded.
        params: of the network, and of what is trained with it (such as label embeddings).
        frozen: parameters that it reads but that are not trained: ``autoencoder``,
            ``text_encoder``, ``classifier``.
        statistics: what it measured of its data, such as ``latent_scale``.
        adapters: low-rank adapters and their scales, merged before the network is called.
        controls: networks beside it, each of which takes a hint.
        grid: every timestep of a discrete schedule, else None.
        levels: grey values of the data, for the discretised decoder.
        num_classes: classes the network is conditioned on, 0 for none; the label ``num_classes``
            means none of them.
        drop: probability with which training drops the condition.
        span_scale: factor on the second time of a network that is told how far a step goes
            (`tell_span`); 0 for a network of one time.
        source: where it was opened from, by which ``diffjax.save`` writes it; None for a model that
            was put together by hand.
    """

    schedule: Schedule
    parameterization: Parameterization
    network: Module
    space: Space
    condition: Condition
    params: Params | None = None
    frozen: Mapping[str, Params] | None = None
    statistics: Mapping[str, Array] | None = None
    adapters: tuple[tuple[Params, ArrayLike], ...] = ()
    controls: tuple[ControlNetwork, ...] = ()
    grid: Grid | None = None
    levels: int = 256
    num_classes: int = 0
    drop: float = 0.0
    span_scale: float = 0.0
    source: object = None

    def __repr__(self) -> str:
        return summarize(self)

    @property
    def arrays(self) -> Arrays:
        """All parameters of the model: what a compiled function takes as an argument."""
        nets = tuple(network.params for network in self.controls)
        return Arrays(self.params, self.frozen, self.statistics, self.adapters, nets)

    def with_arrays(self, arrays: Arrays) -> Model:
        """Return the same model with other parameters, for instance traced ones."""
        each = zip(self.controls, arrays.controls, strict=True)
        controls = tuple(network._replace(params=params) for network, params in each)
        return self._replace(**{**arrays._asdict(), "controls": controls})


class Arrays(NamedTuple):
    """The parameters of a `Model` as one pytree; the fields are those of the model.

    Attributes:
        params: of the network.
        frozen: parameters that are read but not trained, by part.
        statistics: what the model measured of its data.
        adapters: low-rank adapters and their scales.
        controls: parameters of the control networks, in their order.
    """

    params: Params | None
    frozen: Mapping[str, Params] | None
    statistics: Mapping[str, Array] | None
    adapters: tuple[tuple[Params, ArrayLike], ...]
    controls: tuple[Params | None, ...]


def tell_span(cond: Cond, span: ArrayLike, batch: int) -> Cond:
    """Add the length of a step to a condition, as a number that is added to the time embedding.

    Networks that predict the mean velocity over a step read it (MeanFlow, shortcut models). A UNet
    embeds it as Stable Diffusion XL's UNet embeds its sizes.

    Args:
        cond: encoded condition, or None.
        span: ``t - r`` of a step from time t to r, () or (B,), times the model's ``span_scale``.
        batch: B.
    """
    ids = jnp.broadcast_to(jnp.asarray(span, jnp.float32), (batch,))[:, None]
    return {**(cond or {}), "added": {"text_embeds": jnp.zeros((batch, 0)), "time_ids": ids}}


def predict(
    model: Model,
    z: Array,
    level: Level,
    cond: Cond = None,
    *,
    span: ArrayLike = 0.0,
    **options: Any,
) -> tuple[Array, Prediction]:
    """Evaluate the network, and decode its output to estimates of data and noise.

    ``raw = net(c_in z, t, cond)``. Scaling and decoding are computed in float32.

    Args:
        z: noisy samples (B, h, w, C).
        level: their noise level, with leaves () or (B,).
        cond: encoded condition, see `Condition.encode`.
        span: time of the step that is predicted, () or (B,), for a network that is told it; 0 asks
            for the velocity of this instant.
        options: of the network's ``apply``, such as ``train`` and ``rngs``.

    Returns:
        The raw output, and the `Prediction` that the parameterization decodes it to.
    """
    raw = evaluate_network(model, z, level, cond, span=span, **options)
    return raw, model.parameterization.decode(raw, z, level)


def evaluate_network(
    model: Model,
    z: Array,
    level: Level,
    cond: Cond = None,
    *,
    span: ArrayLike = 0.0,
    **options: Any,
) -> Any:
    """Evaluate the network, ``net(c_in z, t, cond)``; see `predict` for the arguments.

    Returns:
        What the network gives: the raw output, and what ``options`` ask for beside it.
    """
    scaled, t = scale_inputs(model.parameterization, z, level)
    if model.span_scale:
        cond = tell_span(cond, span * model.span_scale, len(z))
    return model.network.apply({"params": model.params}, scaled, t, cond, **options)


def merge_adapters(model: Model) -> Model:
    """Merge the low-rank adapters of a model into its parameters: ``W + scale B A``."""
    params = model.params or {}
    for adapters, scale in model.adapters:
        params = lora.merge(params, adapters, scale)
    return model._replace(params=params, adapters=())


def denoiser(
    model: Model,
    cond: Cond = None,
    *,
    null: Cond = None,
    scale: ArrayLike | None = None,
    controls: Sequence[AppliedControl] = (),
    combine: guidance.Combine = guidance.cfg,
    sequential: bool = False,
    always: bool = False,
    spans: ArrayLike = 0.0,
) -> Denoiser:
    """Make the denoiser of a model, as samplers and likelihoods call it.

    Adapters are merged, and controls and guidance applied. Without guidance the null half is left
    out of the program.

    Args:
        cond: encoded condition.
        null: encoded condition that says nothing, for guidance.
        scale: of classifier-free guidance: a number, an array (rows,) by evaluation, or None for
            no guidance.
        controls: networks with their hints, see `apply_control`.
        combine, sequential, always: see `diffjax.guidance.guide`.
        spans: time of the step by evaluation (rows,), for a network that is told it.

    Returns:
        ``(z, level) -> Prediction``.

    Raises:
        ValueError: (when it is called) controls or conditions that do not belong together.
    """
    merged = merge_adapters(model)
    span_at = guidance.per_evaluation(spans)

    def predict_conditional(z: Array, level: Level, cond: Cond) -> Prediction:
        span = span_at(level) if callable(span_at) else span_at
        return predict(merged, z, level, cond, span=span)[1]

    if scale is None:
        steered = control.control(predict_conditional, controls)
        return lambda z, level: steered(z, level, cond)
    return control.guide(
        predict_conditional,
        controls,
        cond,
        null,
        guidance.per_evaluation(scale),
        combine=combine,
        sequential=sequential,
        always=always,
    )


def encode(model: Model, raw: Cond) -> Cond:
    """Encode a raw condition as the network reads it; None stays None.

    Adapters of text encoders are merged.
    """
    if raw is None:
        return None
    model = merge_adapters(model)
    return model.condition.encode(
        model.params or {}, model.frozen or {}, model.statistics or {}, raw
    )


def sample(
    model: Model,
    cond: Cond,
    sampler: Sampler,
    rows: Rows,
    keys: jax.Array,
    *,
    n: Array | int | None = None,
    scale: ArrayLike | None = None,
    hints: Sequence[Array] = (),
    strengths: Sequence[ArrayLike] = (),
    steering: Steering = PLAIN,
) -> Array:
    """Draw images from noise, one for each key. It can be traced.

    Args:
        cond: raw condition of arrays (B, ...), or None.
        sampler, rows: a solver and its plan, see `diffjax.samplers`.
        keys: typed keys (B,). An image depends on its own key alone.
        n: number of rows to run, which may be traced; None for all.
        scale: guidance scale by row (rows,), or None for no guidance.
        hints: (B, H, W, C) in [0, 1] for each of ``model.controls``.
        strengths: of the control networks, numbers or (rows,); all are 1 if it is empty.
        steering: what else steers the denoiser.

    Returns:
        (B, H, W, C) in [-1, 1].

    Raises:
        ValueError: guidance of a model without a condition, or another number of hints than of
            networks.
    """
    model, noise, denoise = _prepare(model, cond, keys, scale, hints, strengths, steering, rows)
    x = samplers.sample(noise, denoise, sampler, samplers.prior(noise, rows, sampler), rows, n=n)
    return decode_samples(model, x)


def film(
    model: Model,
    cond: Cond,
    sampler: Sampler,
    rows: Rows,
    keys: jax.Array,
    at: Array,
    *,
    shown: int = 4,
    scale: ArrayLike | None = None,
    hints: Sequence[Array] = (),
    strengths: Sequence[ArrayLike] = (),
    steering: Steering = PLAIN,
) -> tuple[Array, Array]:
    """Draw images as `sample` does, and show the way from noise to picture. It can be traced.

    A state is shown divided by ``sqrt(alpha^2 + sigma^2)`` where that is larger than 1, so that
    the noise of a variance-exploding schedule can be seen. Other arguments are those of `sample`.

    Args:
        at: (F,) numbers of rows, in increasing order, after which the states are shown. The last
            one ends the run.
        shown: number of images whose way is shown.

    Returns:
        The images (B, H, W, C) in [-1, 1], and the frames (2, F, shown, h, w, c) in the space of
        the model, which `decode_samples` makes images of. First come the states, then the
        predictions of x that led to them, which are 0 before the first row.
    """
    model, noise, denoise = _prepare(model, cond, keys, scale, hints, strengths, steering, rows)
    z = samplers.prior(noise, rows, sampler)
    run, states, predictions = samplers.follow(noise, denoise, sampler, z, rows, at=at, shown=shown)
    before = jnp.maximum(at - 1, 0)
    level = jax.tree.map(
        lambda first, after: jnp.where(at == 0, first[0], jnp.asarray(after)[before]),
        *(rows.level, rows.next),
    )
    size = jnp.maximum(jnp.hypot(level.alpha, level.sigma), 1).reshape(-1, *(1,) * z.ndim)
    return decode_samples(model, run.z), jnp.stack([states / size, predictions])


def _prepare(
    model: Model,
    cond: Cond,
    keys: jax.Array,
    scale: ArrayLike | None,
    hints: Sequence[Array],
    strengths: Sequence[ArrayLike],
    steering: Steering,
    rows: Rows,
) -> tuple[Model, Noise, Denoiser]:
    """Merge the adapters of a model, and make the noise and the steered denoiser of a run.

    Raises:
        ValueError: as `sample`.
    """
    guided = steering.guide is not None or (cond is not None and model.condition.guided)
    if scale is not None and not guided:
        raise ValueError("guidance needs a condition; this network is unconditional")
    if len(hints) != len(model.controls):
        raise ValueError(f"{len(model.controls)} control networks need as many hints: {len(hints)}")
    model = merge_adapters(model)
    encoded = encode(model, cond)
    controls = _apply_controls(model, hints, strengths or (1.0,) * len(hints), steering.balance)
    spans = rows.level.t - rows.next.t
    if steering.classifier is not None and scale is not None:
        plain = denoiser(model, encoded, controls=controls, spans=spans)
        denoise = _guide_by_classifier(steering.classifier, plain, model, cond, scale)
    elif steering.guide is not None and scale is not None:
        plain = denoiser(model, encoded, controls=controls, spans=spans)
        weak = steering.guide(cast(Any, model.frozen), cond, spans)
        each, combine = guidance.per_evaluation(scale), _choose_combination(model, steering)
        denoise = guidance.contrast(plain, weak, each, combine=combine)
    else:
        combine = _choose_combination(model, steering)
        weak, skip_scale = None, limit_scale(steering.skip_scale, steering.skip_range)
        if steering.skip and steering.skip_scale:
            without = model._replace(params=skip_blocks(model.params or {}, steering.skip))
            weak = denoiser(without, encoded, controls=controls, spans=spans)
            combine = guidance.add_contrast(weak, skip_scale, combine)
        denoise = denoiser(
            model,
            encoded,
            null=None if scale is None else encode(model, model.condition.null(cond)),
            scale=scale,
            controls=controls,
            combine=combine,
            sequential=steering.sequential,
            always=weak is not None,
            spans=spans,
        )
        if weak is not None and scale is None:
            denoise = guidance.contrast(denoise, weak, lambda level: 1 + skip_scale(level))
    denoise = guidance.zero_first(denoise, model.parameterization, steering.zero_steps)
    if steering.clip:
        denoise = samplers.clip(denoise)
    return model, samplers.image_noise(keys, model.space.shape), denoise


def decode_samples(model: Model, x: Array) -> Array:
    """Decode samples (B, h, w, c) of the model's space to images (B, H, W, C) in [-1, 1]."""
    return jnp.clip(model.space.leave(model.frozen or {}, model.statistics or {}, x), -1, 1)


def _choose_combination(model: Model, steering: Steering) -> guidance.Combine:
    """Choose how conditional and null prediction are combined: as published, or rescaled."""
    rule = guidance.make_rule(steering.rule, model.parameterization, dict(steering.rule_options))
    if not steering.rescale:
        return rule
    return guidance.rescale(model.parameterization, steering.rescale, rule)


def _apply_controls(
    model: Model, hints: Sequence[Array], strengths: Sequence[ArrayLike], balance: str
) -> list[AppliedControl]:
    """Join the control networks of a model with their hints and strengths."""
    chosen = BALANCES[balance]
    return [
        apply_control(
            network,
            model.parameterization,
            network.prepare_hint(hint),
            guidance.per_evaluation(strength),
            chosen,
        )
        for network, hint, strength in zip(model.controls, hints, strengths, strict=True)
    ]


def _guide_by_classifier(
    log_prob: LogProb, denoise: Denoiser, model: Model, cond: Cond, scale: ArrayLike
) -> Denoiser:
    """Guide a denoiser by the gradient of a classifier's log-likelihood of ``cond["label"]``."""
    params, label = cast(Any, model.frozen)["classifier"], cast(Any, cond)["label"]

    def compute_log_likelihood(z: Array, level: Level) -> Array:
        return log_prob(params, z, level, label)

    return guidance.classifier(denoise, compute_log_likelihood, guidance.per_evaluation(scale))
