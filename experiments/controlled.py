"""What experiments with ControlNets share: the frozen base, hints, and images with control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax import data
from diffjax.config import store as stored_config
from diffjax.evaluation.hint_fidelity import measure_fidelity
from diffjax.model import Inputs, Model, make_control_network
from diffjax.pretrained import configs, from_state_dict, load_model, save_model, to_state_dict
from diffjax.runs import abstract_batch
from diffjax.runs.hints import make_hints as hints_of
from diffjax.tasks import make_task
from diffjax.tasks.controlnet import NET
from diffjax.untrusted import read_json
from experiments import common, finetuning, weights

RANDOM = "random"  # in place of a base: untrained, for tests


def _plain(cfg: ConfigDict) -> Any:
    """The task of the base."""
    return make_task(cfg, common.image_shape(cfg), cfg.data.levels, cfg.data.num_classes)


def abstract(cfg: ConfigDict) -> dict[str, Any]:
    """Shapes of the frozen base, and of what it measured of its data."""
    key, batch = jax.random.key(0), abstract_batch(cfg, 1)
    params, extra = jax.eval_shape(lambda k, b: _plain(cfg).init(k, None, b), key, batch)
    return _joined(params, {k: v for k, v in extra.items() if k != "times"})


def _joined(params: Any, statistics: dict[str, Any]) -> dict[str, Any]:
    return {"base": params, **({"statistics": statistics} if statistics else {})}


def load_base(cfg: ConfigDict) -> dict[str, Any]:
    """The frozen base: the UNet of ``config.model``, or what ``config.control.base`` names.

    That is a workdir, an exported file or the unet folder of a diffusers model.

    Raises:
        UsageError: there is none, or one of another shape.
    """
    like = abstract(cfg)
    path = finetuning.model_path(cfg)
    if path not in ("", RANDOM):
        net = common.model_of(cfg).network
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
    space = common.model_of(cfg).space
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
    model = common.model_of(cfg)
    net = make_control_network(cfg.control, model.network).net
    try:
        described = configs.describe(net, in_channels=model.space.shape[-1])
    except ValueError as error:
        raise common.UsageError(f"{error}; an --out=FILE.safetensors keeps it") from error
    if "decoder" in params:
        logging.warning("the base's decoder, which was trained too, is not in %s", out)
    save_model(out, net, params[NET], config=described)
    kind = described["_class_name"]
    logging.info("a %s in %s; experiments.generate --control=%s:IMAGE", kind, out, out)


def examples(cfg: ConfigDict, count: int) -> dict[str, np.ndarray]:
    """Image, label and hint of the first test images."""
    source = common.test_source(cfg)
    batch = data.batch_of(source, np.arange(count) % len(source))
    return {**batch, "hint": hints_of(cfg)(batch)}


def inputs_of(
    model: Model, batch: dict[str, np.ndarray], hints: Sequence[np.ndarray], *, prompt: bool = True
) -> Callable[[np.ndarray], Inputs]:
    """What images number ``index`` are made of: the conditions of a batch, and hints.

    Args:
        hints: (N, H, W, C) for each control network.
        prompt: whether the base is told the condition.
    """
    raw = model.condition.take(batch, jax.random.key(0))
    raw = raw if prompt or not raw else model.condition.null(raw)
    whole = jax.tree.map(np.asarray, Inputs(raw, list(hints)))

    def read(index: np.ndarray) -> Inputs:
        picked: Inputs = jax.tree.map(lambda leaf: leaf[index % len(leaf)], whole)
        return picked

    return read


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
