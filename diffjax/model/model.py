"""The model: what the five choices of a config, or a published model, are together.

`denoiser` and `sample` are the only places where a network becomes a denoiser and where images are
drawn. Training, evaluation and the pipelines of prompts all use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from diffjax import control, guidance, lora, samplers
from diffjax.control import BALANCES, AppliedControl
from diffjax.model.condition import Condition
from diffjax.model.control_networks import ControlNetwork, apply_control, scale_inputs
from diffjax.model.space import Space
from diffjax.types import (
    Array,
    ArrayLike,
    Cond,
    Denoiser,
    Grid,
    Level,
    Module,
    Parameterization,
    Params,
    Prediction,
    Rows,
    Sampler,
    Schedule,
    summarize,
)

# (parameters, z, level, label (B,)) -> log p(label | z) (B,)
LogProb = Callable[[Params, Array, Level, Array], Array]


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

    def __repr__(self) -> str:
        return summarize(self)

    @property
    def arrays(self) -> Arrays:
        """All of its parameters: what a compiled function takes as an argument."""
        nets = tuple(network.params for network in self.controls)
        return Arrays(self.params, self.frozen, self.statistics, self.adapters, nets)

    def with_arrays(self, arrays: Arrays) -> Model:
        """The same model with other parameters, traced ones for instance."""
        each = zip(self.controls, arrays.controls, strict=True)
        controls = tuple(network._replace(params=params) for network, params in each)
        return self._replace(**{**arrays._asdict(), "controls": controls})


class Arrays(NamedTuple):
    """The parameters of a `Model` as one pytree; the fields are the model's."""

    params: Params | None
    frozen: Mapping[str, Params] | None
    statistics: Mapping[str, Array] | None
    adapters: tuple[tuple[Params, ArrayLike], ...]
    controls: tuple[Params | None, ...]


class Steering(NamedTuple):
    """How sampling is steered beside the guidance scale; fixed when the loop is compiled.

    Attributes:
        rescale: of guidance (Lin et al. 2023), in [0, 1].
        sequential: run both halves of guidance in turn, in half of the memory.
        clip: bound the predicted x to [-1, 1].
        balance: of control and guidance, a name in `diffjax.control.BALANCES`.
        classifier: guides in place of the null condition, towards ``cond["label"]``; its
            parameters are ``frozen["classifier"]``.
    """

    rescale: float = 0.0
    sequential: bool = False
    clip: bool = False
    balance: str = "balanced"
    classifier: LogProb | None = None


PLAIN = Steering()


def predict(
    model: Model, z: Array, level: Level, cond: Cond = None, **options: Any
) -> tuple[Array, Prediction]:
    """Raw output of the network and its decoding; scheduler arithmetic is in float32.

    Args:
        z: (B, h, w, C).
        cond: encoded, see `Condition.encode`.
        options: of the network's ``apply``, such as ``train`` and ``rngs``.
    """
    scaled, t = scale_inputs(model.parameterization, z, level)
    raw = model.network.apply({"params": model.params}, scaled, t, cond, **options)
    return raw, model.parameterization.decode(raw, z, level)


def merge_adapters(model: Model) -> Model:
    """The model with its low-rank adapters added to its parameters."""
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
) -> Denoiser:
    """What a model believes about ``z``, as samplers and likelihoods ask it.

    Args:
        cond: encoded condition.
        null: encoded condition that says nothing, for guidance.
        scale: of classifier-free guidance, a number or (rows,) by evaluation; None for none, which
            leaves the null half out of the program.
        controls: networks at work, see `apply_control`.
        combine, sequential, always: see `diffjax.guidance.guide`.

    Raises:
        ValueError: (when called) controls or conditions that do not belong together.
    """
    merged = merge_adapters(model)

    def conditional(z: Array, level: Level, cond: Cond) -> Prediction:
        return predict(merged, z, level, cond)[1]

    if scale is None:
        steered = control.control(conditional, controls)
        return lambda z, level: steered(z, level, cond)
    return control.guide(
        conditional,
        controls,
        cond,
        null,
        guidance.per_evaluation(scale),
        combine=combine,
        sequential=sequential,
        always=always,
    )


def encode(model: Model, raw: Cond) -> Cond:
    """What the network reads of a raw condition, see `Condition`; None stays None."""
    if raw is None:
        return None
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
    n: Any = None,
    scale: ArrayLike | None = None,
    hints: Sequence[Array] = (),
    strengths: Sequence[ArrayLike] = (),
    steering: Steering = PLAIN,
) -> Array:
    """Draw images (B, H, W, C) in [-1, 1]; traceable, one image per key.

    Args:
        cond: raw condition of (B, ...) arrays, or None.
        sampler, rows: a solver and its plan, see `diffjax.samplers`.
        keys: typed keys (B,). An image depends on its own key only.
        n: rows to run (traced); None for all.
        scale: guidance by row (rows,), or None for none.
        hints: (B, H, W, C) in [0, 1] for each of ``model.controls``.
        strengths: of these, numbers or (rows,); 1 for all if there are none.
        steering: what else steers it.

    Raises:
        ValueError: guidance of a model without a condition, or another number of hints than of
            networks.
    """
    if scale is not None and (cond is None or not model.condition.guided):
        raise ValueError("guidance needs a condition; this network is unconditional")
    if len(hints) != len(model.controls):
        raise ValueError(f"{len(model.controls)} control networks need as many hints: {len(hints)}")
    model = merge_adapters(model)
    encoded = encode(model, cond)
    controls = _apply_controls(model, hints, strengths or (1.0,) * len(hints), steering.balance)
    if steering.classifier is not None and scale is not None:
        plain = denoiser(model, encoded, controls=controls)
        denoise = _guide_by_classifier(steering.classifier, plain, model, cond, scale)
    else:
        denoise = denoiser(
            model,
            encoded,
            null=None if scale is None else encode(model, model.condition.null(cond)),
            scale=scale,
            controls=controls,
            combine=_combine(model, steering),
            sequential=steering.sequential,
        )
    if steering.clip:
        denoise = samplers.clip(denoise)
    noise = samplers.image_noise(keys, model.space.shape)
    x = samplers.sample(noise, denoise, sampler, samplers.prior(noise, rows), rows, n=n)
    return jnp.clip(model.space.leave(model.frozen or {}, model.statistics or {}, x), -1, 1)


def _combine(model: Model, steering: Steering) -> guidance.Combine:
    if not steering.rescale:
        return guidance.cfg
    return guidance.rescale(model.parameterization, steering.rescale)


def _apply_controls(
    model: Model, hints: Sequence[Array], strengths: Sequence[ArrayLike], balance: str
) -> list[AppliedControl]:
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
    params, label = cast(Any, model.frozen)["classifier"], cast(Any, cond)["label"]

    def log_likelihood(z: Array, level: Level) -> Array:
        return log_prob(params, z, level, label)

    return guidance.classifier(denoise, log_likelihood, guidance.per_evaluation(scale))
