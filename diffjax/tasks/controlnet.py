r"""Training a ControlNet on a frozen base (Zhang et al. 2023, section 3.3).

The loss is that of the base, ``E |raw(z, t, cond, hint) - target|^2``; half of the conditions are
dropped (``cond.drop``), so that the network learns to read the hint in place of a prompt.

``frozen["base"]`` holds the parameters of the base, with those that were trained beside it, and
``frozen["statistics"]`` what it measured of its data. The parameters are no argument of the
gradient, so that nothing is kept of the base's encoder for the backward pass, and of its decoder
only what the gradient of the features needs: neither gradients, nor optimiser state, nor inputs of
its layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from diffjax import control, guidance, samplers
from diffjax.control import Features, Residuals
from diffjax.nets.adapter import T2IAdapter
from diffjax.nets.controlnet import ControlNet, copy_base
from diffjax.nets.unet import UNet
from diffjax.tasks.diffusion import Diffusion, make_diffusion, make_task
from diffjax.types import (
    Array,
    Cond,
    Denoiser,
    Level,
    Noise,
    Prediction,
    PyTree,
    Rows,
    Sampler,
    Task,
    build_section,
    choose,
    expand,
)

DECODER = ("up_blocks.", "conv_norm_out", "conv_out")  # what an unlocked base trains
NET, HINT, STRENGTH = "control", "hint", "strength"


class Controlled(NamedTuple):
    """A base and its ControlNet, or T2I-Adapter, as one network.

    Its parameters are those of the base and two entries: "control", the parameters of the
    ControlNet, and "hint", the pictures that it reads.
    """

    base: UNet
    net: ControlNet | T2IAdapter
    only_middle: bool = False

    @property
    def entry(self) -> str:
        """Of the condition of the base, where the residuals go."""
        return "adapter" if isinstance(self.net, T2IAdapter) else "control"

    def init(self, key: jax.Array, z: Array, t: Array, cond: Cond = None) -> dict[str, PyTree]:
        """Parameters of the ControlNet."""
        if isinstance(self.net, T2IAdapter):
            side = self.net.hint_factor
            params = self.net.init(key, jnp.zeros((1, side, side, self.net.hint_channels)))
            return {"params": {NET: params["params"]}}
        f, (height, width) = self.net.hint_factor // self.base.patch, z.shape[1:3]
        hint = jnp.zeros((z.shape[0], height * f, width * f, self.net.hint_channels))
        params = self.net.init(key, z, t, {**(cond or {}), HINT: hint})["params"]
        return {"params": {NET: params}}

    def residuals(
        self, params: PyTree, z: Array, t: Array, cond: Cond, **options: Any
    ) -> Residuals | Features:
        """What the ControlNet adds to the features of the base; the condition has the hint."""
        if isinstance(self.net, T2IAdapter):
            return self.features(params, cast(Any, cond)[HINT])
        out: Any = self.net.apply({"params": params}, z, t, cond, **options)
        return (None, out[1]) if self.only_middle else out

    def features(self, params: PyTree, hint: Array) -> Features:
        """Of an adapter, which sees nothing but the hint."""
        return cast(Features, self.net.apply({"params": params}, hint))

    def apply(
        self, variables: Mapping[str, PyTree], z: Array, t: Array, cond: Cond = None, **options: Any
    ) -> Array:
        """The controlled base; its own dropout is off."""
        params = dict(variables["params"])
        net, hint = params.pop(NET), params.pop(HINT)
        cond = cond or {}
        added = self.residuals(net, z, t, {**cond, HINT: hint}, **options)
        return cast(Array, self.base.apply({"params": params}, z, t, {**cond, self.entry: added}))


def make_controlnet(section: Any, base: UNet) -> ControlNet | T2IAdapter:
    """The network that ``config.control.net`` describes: a controlnet, or a t2i_adapter.

    Raises:
        ValueError: unknown name or options, listing those there are.
    """
    options: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in dict(section).items()
    }
    widths = tuple(int(base.channels * m) for m in base.multipliers)
    if options.get("kind") == "full_xl":  # whose last features are the middle's
        widths += widths[-1:]
    known: dict[str, Any] = {
        "controlnet": partial(ControlNet, base),
        "t2i_adapter": partial(T2IAdapter, widths=widths, dtype=base.dtype),
    }
    return build_section("network", options.pop("name", "controlnet"), known, options)


def make_controlled(section: Any, model: Diffusion) -> Controlled:
    """The base of a config and the network beside it that its ``control`` section describes.

    Raises:
        ValueError: as `make_controlnet`, and if an adapter is to act on the middle only.
    """
    net = make_controlnet(section.net, model.network)
    if section.only_middle and isinstance(net, T2IAdapter):
        raise ValueError("control.only_middle is of ControlNets; an adapter acts on the way down")
    return Controlled(model.network, net, section.only_middle)


def decoder_of(base: PyTree) -> PyTree:
    """The parameters of a base that an unlocked decoder trains."""
    return {k: v for k, v in base.items() if k.startswith(DECODER)}


def make_controlnet_task(
    config: Any, image_shape: tuple[int, int, int], levels: int = 256, num_classes: int = 0
) -> Task:
    """The task of a ControlNet; the other sections of the config are those of its base.

    A batch has ``hint`` (B, f H, f W, C) in [0, 1]. ``config.control`` says ``only_middle``: the
    skips get no residuals; ``train_decoder``: the base's decoder is trained too, and is
    ``params["decoder"]``. Samples take ``cond["hint"]``, and ``cond["strength"]`` (rows,) if it is
    not 1 everywhere; with guidance ``config.control.balance`` is one of
    `diffjax.control.BALANCES`.

    Raises:
        ValueError: as `make_task`, and for augmentations, which would move images under hints.
    """
    section = config.control
    if config.data.get("augment", 0.0):
        raise ValueError(f"data.augment={config.data.augment} would move images under their hints")
    plain = make_diffusion(config, image_shape, levels, num_classes)
    network = make_controlled(section, plain)
    inner = make_task(config, image_shape, levels, num_classes, wrap=lambda base: network)

    def init(key: jax.Array, frozen: PyTree, batch: Mapping[str, Array]) -> tuple[PyTree, PyTree]:
        base = frozen["base"]
        fresh, extra = inner.init(key, frozen, batch)
        params = {NET: copy_base(fresh[NET], base)}
        if section.train_decoder:
            params["decoder"] = jax.tree.map(jnp.copy, decoder_of(base))
        return params, {**extra, **frozen.get("statistics", {})}

    def base_of(params: PyTree, frozen: PyTree) -> PyTree:
        return {**frozen["base"], **params.get("decoder", {})}

    def loss(
        params: PyTree,
        frozen: PyTree,
        extra: PyTree,
        key: jax.Array,
        step: Array,
        batch: Mapping[str, Array],
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        joined = {**base_of(params, frozen), NET: params[NET], HINT: batch[HINT]}
        return inner.loss(joined, frozen, extra, key, step, batch)

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
        cond = dict(cond)
        hint, strength = cond.pop(HINT), cond.pop(STRENGTH, 1.0)
        one = at_work(
            plain,
            network,
            params[NET],
            hint,
            guidance.per_evaluation(strength) if jnp.ndim(strength) else strength,
            choose("balance", section.balance, control.BALANCES),
        )
        base = base_of(params, frozen)
        encode = partial(plain.condition.encode, base, frozen, extra)
        null = None if scale is None else encode(plain.condition.null(cond))
        denoise = controlled(plain, base, [one], encode(cond), null, scale)
        if config.sample.clip:
            denoise = samplers.clip(denoise)
        x = samplers.sample(noise, denoise, sampler, samplers.prior(noise, rows), rows, n=n)
        return jnp.clip(plain.space.leave(frozen, extra, x), -1, 1)

    return Task(init, loss, sample)


def controlled(
    model: Diffusion,
    base: PyTree,
    controls: Sequence[control.Control],
    cond: Cond,
    null: Cond,
    scale: Any,
) -> Denoiser:
    """The denoiser of a base with any number of ControlNets.

    Args:
        base: its parameters.
        cond, null: encoded conditions.
        scale: guidance by row, or None for none.
    """

    def conditional(z: Array, level: Level, cond: Cond) -> Prediction:
        return model.denoiser(base, cond)(z, level)

    if scale is None:
        return partial(_given, control.control(conditional, controls), cond)
    return control.guide(conditional, controls, cond, null, guidance.per_evaluation(scale))


def _given(denoise: guidance.Conditional, cond: Cond, z: Array, level: Level) -> Prediction:
    return denoise(z, level, cond)


def at_work(
    model: Diffusion,
    network: Controlled,
    params: PyTree,
    hint: Array,
    strength: guidance.Scale,
    balance: control.Balance,
) -> control.Control:
    """A ControlNet or an adapter with its parameters and a hint, as `diffjax.control` wants it."""
    if network.entry == "adapter":
        features = network.features(params, hint)
        return control.Control(control.made, features, strength, balance, network.entry)

    def residuals(z: Array, level: Level, cond: Cond) -> Residuals | Features:
        scaled = z * expand(jnp.asarray(model.parameterization.scale_in(level)), z)
        t = jnp.broadcast_to(jnp.asarray(level.t, jnp.float32), z.shape[:1])
        return network.residuals(params, scaled, t, cond)

    return control.Control(residuals, hint, strength, balance)
