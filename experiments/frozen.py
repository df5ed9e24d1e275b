"""What a run reads but does not train: autoencoder, text encoders, the base of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from diffjax import metrics
from diffjax.model import make_autoencoder
from diffjax.model.condition import make_clips
from diffjax.nets.perceptual import LPIPS
from diffjax.pretrained import load_model
from diffjax.pretrained.files import open_safetensors
from diffjax.pretrained.perceptual import load_lpips
from diffjax.pretrained.state_dict import from_state_dict, to_state_dict
from diffjax.tasks import task_kind
from diffjax.train import Checkpoints
from diffjax.train.frozen import read
from diffjax.train.sharding import place, tree_sharding, with_sharding
from diffjax.untrusted import read_json
from experiments import classifying, common, controlled, finetuning, weights

RANDOM = "random"  # in place of weights: untrained, for tests


def abstract(cfg: ConfigDict) -> Any:
    """Shapes of what `load` gives, without reading anything large."""
    if cfg.task == "autoencoder":
        return _abstract_perceptual(cfg)
    out: dict[str, Any] = {}
    if cfg.get("autoencoder", None):
        net = autoencoder_of(cfg)
        size, channels = net.factor, cfg.data.channels
        image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
        out["autoencoder"] = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    for name, net in make_clips(cfg).items():
        out[name] = jax.eval_shape(net.init, jax.random.key(0), ids)["params"]
    if task_kind(cfg).trains_beside:
        out |= controlled.abstract(cfg)
    return out or None


def _abstract_perceptual(cfg: ConfigDict) -> Any:
    if cfg.loss.perceptual != "lpips":
        return jax.eval_shape(lambda tree: tree, _perceptual(cfg))
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    return {"lpips": jax.eval_shape(LPIPS().init, jax.random.key(0), image, image)["params"]}


def autoencoder_of(cfg: ConfigDict) -> Any:
    """The autoencoder that a latent diffusion config describes."""
    options = {k: v for k, v in cfg.autoencoder.items() if k not in ("weights", "scale")}
    return make_autoencoder(options, cfg.data.channels)


def load(cfg: ConfigDict, folder: Path, *, fresh: bool = False) -> Any:
    """Everything frozen that a config asks for, or None.

    A run stores what it was trained with in its workdir, from where it is read afterwards; the
    folders that the config names need not exist any more. An exported file holds it too, but for a
    ControlNet, whose base and autoencoder are read from where the config says. The classifier of
    classifier guidance joins it for sampling.

    Args:
        fresh: read what the config names, for training, and leave it on the host; the trainer
            compares it with what is stored, and places it.

    Raises:
        UsageError: weights are needed and not given, or do not fit the config.
    """
    found = _trained_with(cfg, folder, fresh)
    if fresh:
        return found
    if cfg.sample.get("classifier", ""):
        found = {**(found or {}), "classifier": classifying.params_of(cfg)}
    return place(found, tree_sharding(found, common.mesh_of(cfg)))


def _trained_with(cfg: ConfigDict, folder: Path, fresh: bool) -> Any:
    if cfg.task == "autoencoder":
        return _perceptual(cfg)
    if common.WEIGHTS.value and not task_kind(cfg).takes_hints and abstract(cfg):
        return weights.read_frozen(Path(common.WEIGHTS.value), abstract(cfg))
    if not fresh and not common.WEIGHTS.value and (stored := _stored(cfg, folder)):
        return stored
    out: dict[str, Any] = {}
    if finetuning.model_path(cfg):
        finetuning.check(cfg)
    if cfg.get("autoencoder", None):
        out["autoencoder"] = _autoencoder(cfg)
    for name, net in make_clips(cfg).items():
        out[name] = _text_encoder(cfg, name, net)
    if task_kind(cfg).trains_beside:
        out |= controlled.load_base(cfg)
    return out or None


def _perceptual(cfg: ConfigDict) -> Any:
    kind, where = cfg.loss.perceptual, cfg.loss.perceptual_weights
    if kind == "lpips":
        if not where:
            raise common.UsageError(
                "loss.perceptual=lpips needs --config.loss.perceptual_weights=FILE: LPIPS as "
                "safetensors, which docs/latent_diffusion.md says how to make. Without it, use "
                "--config.loss.perceptual=classifier (for data sets with a classifier of ours: "
                f"{', '.join(metrics.features.VERSIONS)}), or none"
            )
        return {"lpips": load_lpips(where)}
    if kind == "classifier":
        return {"classifier": _classifier(where or cfg.data.name).params}
    return None


def _classifier(name: str) -> metrics.FeatureNetwork:
    """One of the package by its data set's name, or that of a file of train_classifier."""
    if name.endswith(".safetensors"):
        return metrics.load_network(name)
    return metrics.feature_network(name)


def _text_encoder(cfg: ConfigDict, name: str, net: Any) -> Any:
    like, model = abstract(cfg)[name], finetuning.model_path(cfg)
    where = cfg.cond.weights or model
    if not where:
        raise common.UsageError(
            "cond.context=clip needs --config.cond.weights=FOLDER: a text_encoder of transformers"
        )
    if where == RANDOM:
        return jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    if where == model:
        return finetuning.part(cfg, name, net, like)
    try:
        return from_state_dict(to_state_dict(load_model(where).params), like)
    except ValueError as error:
        raise common.UsageError(
            f"the text encoder in {cfg.cond.weights} is not the one of config.cond.text: {error}"
        ) from error


def _stored(cfg: ConfigDict, folder: Path) -> Any:
    """What the newest checkpoint of a workdir was trained with; None if there is none."""
    shapes, steps = abstract(cfg), folder / "checkpoints"
    if shapes is None or not steps.is_dir():
        return None
    checkpoints = Checkpoints(steps)
    newest = checkpoints.newest()
    if newest is None:
        return None
    placed = with_sharding(shapes, tree_sharding(shapes, common.mesh_of(cfg)))
    return read(folder / "frozen", checkpoints.metadata(newest)["frozen"], placed)


def _autoencoder(cfg: ConfigDict) -> Any:
    like = abstract(cfg)["autoencoder"]
    model = finetuning.model_path(cfg)
    where = cfg.autoencoder.weights or model
    if not where:
        raise common.UsageError(
            "--config.autoencoder.weights is needed: the workdir of a trained autoencoder, its "
            "exported .safetensors, or the vae folder of a diffusers model"
        )
    if where == RANDOM:
        return _random(cfg)
    if where == model:
        return finetuning.part(cfg, "vae", autoencoder_of(cfg), like)
    return _fitting(Path(where), like)


def _random(cfg: ConfigDict) -> Any:
    logging.warning("the autoencoder is untrained: autoencoder.weights=%s is for tests", RANDOM)
    net = autoencoder_of(cfg)
    image = jnp.zeros((1, net.factor, net.factor, cfg.data.channels))
    return jax.jit(net.init)(jax.random.key(0), image)["params"]


def _fitting(where: Path, like: Any) -> Any:
    """The autoencoder in a workdir, exported file or diffusers folder, as the config describes it.

    Raises:
        UsageError: there is none, or one of another shape; both shapes are named.
    """
    try:
        state = {k: v for k, v in _state(where).items() if not k.startswith("discriminator.")}
        return from_state_dict(state, like)
    except ValueError as error:
        raise common.UsageError(
            f"the autoencoder in {where} is not the one of config.autoencoder: {error}"
        ) from error


def _state(where: Path) -> dict[str, Any]:
    if where.suffix == ".safetensors":
        file = open_safetensors(where)
        return {key: file[key] for key in file if not key.startswith("extra")}
    if not (where / "config.json").is_file():
        raise common.UsageError(f"{where} is no workdir, diffusers folder or .safetensors file")
    config = read_json(where / "config.json")
    if "_class_name" in config:
        return to_state_dict(load_model(where).params)
    if config.get("task") != "autoencoder":
        raise common.UsageError(f"{where} holds a run of task {config.get('task')!r}")
    stored = common.stored_config(where)
    state = common.restore_from(stored, common.task_of(stored), where / "checkpoints")
    return to_state_dict(state.ema)
