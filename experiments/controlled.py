"""What experiments with ControlNets share: the frozen base, hints, and images with control."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax import control, data, guidance, samplers
from diffjax.evaluation.hint_fidelity import measure_fidelity
from diffjax.pretrained import configs, from_state_dict, load_model, save_model, to_state_dict
from diffjax.tasks import make_task
from diffjax.tasks.controlnet import NET, at_work, controlled, make_controlled
from diffjax.train.sharding import replicated
from diffjax.types import choose, select_options
from diffjax.untrusted import read_json
from experiments import common, finetuning, generation, inputs, stored_config, weights

RANDOM = "random"  # in place of a base: untrained, for tests


def _plain(cfg: ConfigDict) -> Any:
    """The task of the base."""
    return make_task(cfg, common.image_shape(cfg), cfg.data.levels, cfg.data.num_classes)


def abstract(cfg: ConfigDict) -> dict[str, Any]:
    """Shapes of the frozen base, and of what it measured of its data."""
    key, batch = jax.random.key(0), inputs.abstract_batch(cfg, 1)
    params, extra = jax.eval_shape(lambda k, b: _plain(cfg).init(k, None, b), key, batch)
    return _joined(params, {k: v for k, v in extra.items() if k != "times"})


def _joined(params: Any, statistics: dict[str, Any]) -> dict[str, Any]:
    return {"base": params, **({"statistics": statistics} if statistics else {})}


def hint_shape(cfg: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) of a hint, which has the size of the images."""
    return (*common.image_shape(cfg)[:2], cfg.control.net.hint_channels)


def hints_of(cfg: ConfigDict) -> data.Hints:
    """How batches get their hints."""
    name, channels = cfg.control.hint.name, cfg.control.net.hint_channels
    options = select_options("hint", name, data.HINTS, cfg.control.hint)
    return data.make_hints(name, options, channels=channels)


def load_base(cfg: ConfigDict) -> dict[str, Any]:
    """The frozen base: the UNet of ``config.model``, or what ``config.control.base`` names.

    That is a workdir, an exported file or the unet folder of a diffusers model.

    Raises:
        UsageError: there is none, or one of another shape.
    """
    like = abstract(cfg)
    path = finetuning.model_path(cfg)
    if path not in ("", RANDOM):
        net = common.diffusion_of(cfg).network
        return _joined(finetuning.part(cfg, "unet", net, like["base"]), _statistics(cfg))
    where = path or cfg.control.base
    if not where:
        raise common.UsageError(
            "--config.control.base is needed: the workdir of a trained model, its exported "
            ".safetensors, or the unet folder of a diffusers model"
        )
    if where == RANDOM:
        return _random(cfg)
    try:
        state, found = _state(Path(where))
        params = jax.tree.map(np.asarray, from_state_dict(state, like["base"]))
    except ValueError as error:
        raise common.UsageError(
            f"{where} is not the base that config.network describes: {error}"
        ) from error
    default = _statistics(cfg)
    return _joined(params, {k: jnp.asarray(found.get(k, v)) for k, v in default.items()})


def _statistics(cfg: ConfigDict) -> dict[str, Any]:
    """What a base without statistics of its own goes by: the config's."""
    space = common.diffusion_of(cfg).space
    return dict(space.extra)


def _random(cfg: ConfigDict) -> dict[str, Any]:
    logging.warning("the base is untrained: %s weights are for tests", RANDOM)
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> jax.Array:
        return jnp.asarray(0.1 * rng.standard_normal(leaf.shape), leaf.dtype)

    return _joined(jax.tree.map(draw, abstract(cfg)["base"]), _statistics(cfg))


def _state(where: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """State dict and statistics."""
    if where.suffix == ".safetensors":
        stored = stored_config.get_config(str(where))
        state = weights.read(where, common.abstract_state(stored, common.task_of(stored)))
        return to_state_dict(state.ema), state.extra
    if not (where / "config.json").is_file():
        raise common.UsageError(f"{where} is no workdir, diffusers folder or .safetensors file")
    if "_class_name" in read_json(where / "config.json"):
        return to_state_dict(load_model(where).params), {}
    stored = stored_config.get_config(str(where / "config.json"))
    state = common.restore_from(stored, common.task_of(stored), where / "checkpoints")
    return to_state_dict(state.ema), state.extra


def save(cfg: ConfigDict, params: Any, out: Path) -> None:
    """Write a trained ControlNet or adapter as a folder of diffusers.

    Args:
        params: what was trained.

    Raises:
        UsageError: diffusers has no such ControlNet.
    """
    model = common.diffusion_of(cfg)
    net = make_controlled(cfg.control, model).net
    try:
        described = configs.describe(net, in_channels=model.image_shape[-1])
    except ValueError as error:
        raise common.UsageError(f"{error}; an --out=FILE.safetensors keeps it") from error
    if "decoder" in params:
        logging.warning("the base's decoder, which was trained too, is not in %s", out)
    save_model(out, net, params[NET], config=described)
    kind = described["_class_name"]
    logging.info("a %s in %s; experiments.generate --control=%s:IMAGE", kind, out, out)


class Net(NamedTuple):
    """A trained ControlNet.

    Attributes:
        cfg: its config.
        params: what was trained: "control", and "decoder" if that was unlocked.
    """

    cfg: ConfigDict
    params: Any


class Request(NamedTuple):
    """What to draw; noise is by (seed, image).

    Attributes:
        batch: what the condition is made of (num, ...), see `examples`.
        hints: one array (num, H, W, C) per network.
        scales, starts, ends: one per network, see `diffjax.control`.
        balance: a name in `diffjax.control.BALANCES`.
        guidance: scale of classifier-free guidance, 1 for none.
        prompt: whether the base is told the condition.
    """

    batch: dict[str, np.ndarray]
    hints: Sequence[np.ndarray]
    seed: int = 0
    scales: Sequence[float] = (1.0,)
    starts: Sequence[float] = (0.0,)
    ends: Sequence[float] = (1.0,)
    balance: str = "balanced"
    guidance: float = 1.0
    prompt: bool = True


class Painter:
    """Images of a base under any number of ControlNets; compiles once per number and balance.

    Args:
        cfg: config of the first network, whose base and sampler are used.
        frozen: see `experiments.frozen`.
        extra: statistics of the run.
    """

    def __init__(self, cfg: ConfigDict, frozen: Any, extra: Any):
        self._cfg, self._model = cfg, common.diffusion_of(cfg)
        self._given = frozen, extra
        self._sampler, self._rows = generation.sampler_of(cfg, self._model)
        self._compiled: dict[Any, Any] = {}

    def __call__(self, nets: Sequence[Net], request: Request) -> np.ndarray:
        """(num, H, W, C) in [-1, 1].

        Raises:
            ValueError: an empty window, or another number of hints or scales than of networks.
        """
        key = (len(nets), request.balance)
        if key not in self._compiled:
            whole = replicated(common.mesh_of(self._cfg))  # every process has all images
            run = self._program(nets, request.balance)
            self._compiled[key] = jax.jit(run, out_shardings=whole)
        strengths = [
            scale * control.window(len(self._rows.level.t), start, end)
            for _, scale, start, end in zip(
                nets, request.scales, request.starts, request.ends, strict=True
            )
        ]
        count, size = len(request.hints[0]), self._cfg.sample.batch_size
        seed, done = jax.random.key(request.seed), []
        keys = generation.keys_of(request.seed, np.arange(count))
        raw = self._model.condition.take(request.batch, seed)
        raw = raw if request.prompt or not raw else self._model.condition.null(raw)
        raw = jax.tree.map(np.asarray, raw)
        scale = guidance.interval(self._rows, request.guidance)
        for first in range(0, count, size):
            hints, cond = jax.tree.map(
                lambda leaf, part=slice(first, first + size): leaf[part],
                (list(request.hints), raw),
            )
            params = [net.params for net in nets]
            given = (keys[first : first + size], cond, hints, strengths, scale)
            done.append(np.asarray(self._compiled[key](self._given, params, *given)))
        return np.concatenate(done)

    def _program(self, nets: Sequence[Net], balance: str) -> Any:
        model, rows = self._model, self._rows
        networks = [make_controlled(net.cfg.control, model) for net in nets]
        chosen = choose("balance", balance, control.BALANCES)

        def run(
            given: Any, params: Any, keys: Any, raw: Any, hints: Any, strengths: Any, scale: Any
        ) -> Any:
            (frozen, extra), noise = given, generation.noise_of(keys, model)
            base = {**frozen["base"], **params[0].get("decoder", {})}
            each = zip(networks, params, hints, strengths, strict=True)
            controls = [
                at_work(model, network, own[NET], hint, guidance.per_evaluation(strength), chosen)
                for network, own, hint, strength in each
            ]
            encode = partial(model.condition.encode, base, frozen, extra)
            null = encode(model.condition.null(raw)) if raw else None
            by_row = scale if model.condition.guided else None
            denoise = controlled(model, base, controls, encode(raw) if raw else {}, null, by_row)
            if self._cfg.sample.clip:
                denoise = samplers.clip(denoise)
            z = samplers.prior(noise, rows)
            x = samplers.sample(noise, denoise, self._sampler, z, rows)
            return jnp.clip(model.space.leave(frozen, extra, x), -1, 1)

        return run


def examples(cfg: ConfigDict, count: int) -> dict[str, np.ndarray]:
    """Image, label and hint of the first test images."""
    source = common.test_source(cfg)
    batch = data.batch_of(source, np.arange(count) % len(source))
    return {**batch, "hint": hints_of(cfg)(batch)}


def fidelity(cfg: Any, hints: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Edge F1 or mask IoU between hints and images, see `measure_fidelity`."""
    of_shapes = cfg.data.name.startswith("shapes")
    return measure_fidelity(cfg.control.hint, hints, images, of_shapes=of_shapes)


def as_pictures(hints: np.ndarray, channels: int) -> np.ndarray:
    """Hints as images in [-1, 1]; of several channels, the largest one's number as a grey level."""
    if hints.shape[-1] not in (1, 3):
        hints = hints.argmax(-1, keepdims=True) / max(hints.shape[-1] - 1, 1)
    hints = hints if hints.shape[-1] == channels else hints.mean(-1, keepdims=True)
    return (2 * hints - 1).repeat(channels // hints.shape[-1], -1).astype(np.float32)
