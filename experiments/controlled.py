"""What experiments with ControlNets share: the frozen base, hints, and images with control."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax import control, data, guidance, samplers
from diffjax.pretrained import from_state_dict, load_model, open_safetensors, to_state_dict
from diffjax.tasks.controlnet import controlled, controller, make_controlled
from diffjax.types import Rows, Sampler
from experiments import common, stored_config

RANDOM = "random"  # in place of a base: untrained, for tests


def abstract(cfg: ConfigDict) -> Any:
    """Shapes of the frozen base."""
    network = common.diffusion_of(cfg).network
    cond = {"label": jnp.zeros(1, jnp.int32)} if cfg.data.num_classes else None
    z = jnp.zeros((1, *common.image_shape(cfg)))
    shapes = jax.eval_shape(network.init, jax.random.key(0), z, jnp.zeros(1), cond)
    return {"base": shapes["params"]}


def hint_shape(cfg: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) of a hint, which has the size of the images."""
    return (*common.image_shape(cfg)[:2], cfg.control.net.hint_channels)


def hints_of(cfg: ConfigDict) -> data.Hints:
    """How batches get their hints."""
    options = dict(cfg.control.hint)
    return data.make_hints(options.pop("name"), options, channels=cfg.control.net.hint_channels)


def load_base(cfg: ConfigDict) -> Any:
    """``{"base": parameters}``, from a workdir, an exported file or a diffusers folder.

    Raises:
        UsageError: there is none, or one of another shape.
    """
    like, where = abstract(cfg)["base"], cfg.control.base
    if not where:
        raise common.UsageError(
            "--config.control.base is needed: the workdir of a trained model, its exported "
            ".safetensors, or the unet folder of a diffusers model"
        )
    if where == RANDOM:
        logging.warning("the base is untrained: control.base=%s is for tests", RANDOM)
        rng = np.random.default_rng(0)
        draw = lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
        return {"base": jax.tree.map(draw, like)}
    try:
        params = from_state_dict(_state(Path(where)), like)
    except ValueError as error:
        raise common.UsageError(
            f"{where} is not the base that config.network describes: {error}"
        ) from error
    return {"base": jax.tree.map(jnp.asarray, params)}


def _state(where: Path) -> dict[str, Any]:
    if where.suffix == ".safetensors":
        file = open_safetensors(where)
        return {key: file[key] for key in file if not key.startswith("extra")}
    if not (where / "config.json").is_file():
        raise common.UsageError(f"{where} is no workdir, diffusers folder or .safetensors file")
    if "_class_name" in json.loads((where / "config.json").read_text()):
        return to_state_dict(load_model(where).params)
    stored = stored_config.get_config(str(where / "config.json"))
    return to_state_dict(common.restore(stored, common.task_of(stored), where).ema)


class Net(NamedTuple):
    """A trained ControlNet.

    Attributes:
        cfg: its config.
        params: its parameters.
    """

    cfg: ConfigDict
    params: Any


class Request(NamedTuple):
    """What to draw: ``num`` images of the test set's labels, noise by (seed, image).

    Attributes:
        hints: one array (num, H, W, C) per network.
        labels: (num,).
        scales, starts, ends: one per network, see `diffjax.control`.
        guidance: scale of classifier-free guidance.
    """

    hints: Sequence[np.ndarray]
    labels: np.ndarray
    seed: int = 0
    scales: Sequence[float] = (1.0,)
    starts: Sequence[float] = (0.0,)
    ends: Sequence[float] = (1.0,)
    balance: str = "balanced"
    guidance: float = 1.0


class Painter:
    """Images of a base under any number of ControlNets; compiles once per number of them.

    Args:
        cfg: config of the first network, whose base, sampler and guidance interval are used.
        frozen: from `load_base`, or with a trained decoder in its place.
    """

    def __init__(self, cfg: ConfigDict, frozen: Any):
        self.cfg, self.model, self._base = cfg, common.diffusion_of(cfg), frozen["base"]
        self._sampler, self._rows = common.sampler_of(cfg, self.model)
        self._compiled: dict[Any, Any] = {}

    def __call__(self, nets: Sequence[Net], request: Request) -> np.ndarray:
        """(num, H, W, C) in [-1, 1].

        Raises:
            ValueError: as `diffjax.control.make_controls`.
        """
        key = (len(nets), request.balance)
        if key not in self._compiled:
            run = _program(self.model, self._sampler, self._rows, nets, request.balance)
            self._compiled[key] = jax.jit(run)
        count, size = len(request.labels), self.cfg.sample.batch_size
        strengths = [
            scale * control.window(len(self._rows.level.t), start, end)
            for scale, start, end in zip(request.scales, request.starts, request.ends, strict=True)
        ]
        base, done = jax.random.key(request.seed), []
        keys = jax.vmap(lambda k: jax.random.fold_in(base, k))(jnp.arange(count))
        scale = guidance.interval(self._rows, request.guidance)
        for first in range(0, count, size):
            part = slice(first, first + size)
            hints = [hint[part] for hint in request.hints]
            params = [net.params for net in nets]
            given = (keys[part], request.labels[part], hints, strengths, scale)
            done.append(np.asarray(self._compiled[key](self._base, params, *given)))
        return np.concatenate(done)


def _program(model: Any, sampler: Sampler, rows: Rows, nets: Sequence[Net], balance: str) -> Any:
    networks = [make_controlled(net.cfg.control, model) for net in nets]
    chosen = control.BALANCES[balance]

    def run(
        base: Any, params: Any, keys: Any, labels: Any, hints: Any, strengths: Any, scale: Any
    ) -> Any:
        noise = samplers.image_noise(keys, model.image_shape)
        controls = [
            control.Control(
                controller(model, network, own), hint, guidance.per_evaluation(strength), chosen
            )
            for network, own, hint, strength in zip(networks, params, hints, strengths, strict=True)
        ]
        cond = {"label": labels} if model.num_classes else {}
        denoise = controlled(model, base, controls, cond, scale if model.num_classes else None)
        denoise = samplers.clip(denoise)
        z = samplers.prior(noise, rows)
        return jnp.clip(samplers.sample(noise, denoise, sampler, z, rows), -1, 1)

    return run


def examples(cfg: ConfigDict, count: int) -> dict[str, np.ndarray]:
    """Image, label and hint of the first test images."""
    source = common.source_of(cfg, "test")
    batch = data.batch_of(source, np.arange(count) % len(source))
    return {**batch, "hint": hints_of(cfg)(batch)}


def as_pictures(hints: np.ndarray, channels: int) -> np.ndarray:
    """Hints as images in [-1, 1]; of several channels, the largest one's number as a grey level."""
    if hints.shape[-1] not in (1, 3):
        hints = hints.argmax(-1, keepdims=True) / max(hints.shape[-1] - 1, 1)
    hints = hints if hints.shape[-1] == channels else hints.mean(-1, keepdims=True)
    return (2 * hints - 1).repeat(channels // hints.shape[-1], -1).astype(np.float32)


def unlocked(frozen: Any, params: Any) -> Any:
    """The base with the decoder that was trained with a ControlNet, if one was."""
    return {**frozen, "base": {**frozen["base"], **params.get("decoder", {})}}
