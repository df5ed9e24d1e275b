"""The parameters that a run reads but does not train.

These are the autoencoder of latent diffusion, frozen text encoders, the base beside which a
ControlNet or adapters are trained, the perceptual network of a loss, the encoder that REPA reads,
and the network that guides sampling. `load_fixed_parts` returns them by name, as the task reads
them: ``autoencoder``, ``text_encoder``, ``text_encoder_2``, ``base`` and ``statistics`` of the
base, ``lpips``, ``classifier`` or ``feature_encoder``. Training loads them from where the config
says; afterwards they are read from the workdir.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax import metrics
from diffjax.model import make_autoencoder
from diffjax.model.condition import list_frozen_clips
from diffjax.model.image_prompt_condition import ENCODER, make_image_encoder
from diffjax.nets.autoencoder import Autoencoder
from diffjax.nets.initialisation import describe_network, init_network
from diffjax.nets.perceptual import LPIPS
from diffjax.pretrained.lpips import load_lpips
from diffjax.runs.exported import read_exported_parts
from diffjax.runs.finetuning import check_noise, find_differences, read_part
from diffjax.runs.guides import read_guides
from diffjax.runs.locate import fit_weights, read_weights
from diffjax.runs.states import (
    build_model,
    join_base,
    make_abstract_base,
    make_abstract_encoders,
    make_run_mesh,
)
from diffjax.runs.tokens import RANDOM, find_model_path
from diffjax.tasks import find_task_kind
from diffjax.tasks.alignment import ENCODER as FEATURES
from diffjax.tasks.alignment import make_feature_encoder
from diffjax.tasks.objective_table import compares_pictures
from diffjax.train import Checkpoints
from diffjax.train.frozen import read
from diffjax.train.sharding import make_tree_sharding, place, with_sharding
from diffjax.types import ConfigError, Module, Params

Parts = dict[str, Params]


def make_abstract_fixed_parts(cfg: ConfigDict) -> Parts | None:
    """Describe what `load_fixed_parts` returns by shapes and types, without reading large files.

    Returns:
        Shapes by the name of the part, or None if the task reads no frozen parameters.
    """
    if find_task_kind(cfg).reconstructs:
        return _make_abstract_perceptual(cfg)
    out: Parts = {}
    if cfg.get("autoencoder", None):
        net = describe_autoencoder(cfg)
        size, channels = net.factor, cfg.data.channels
        image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
        out["autoencoder"] = describe_network(net, image)
    out |= make_abstract_encoders(cfg)
    if find_task_kind(cfg).trains_beside:
        out |= make_abstract_base(cfg)
    if compares_pictures(cfg):
        out |= _make_abstract_perceptual(cfg) or {}
    if features := make_feature_encoder(cfg):
        patch = jax.ShapeDtypeStruct((1, features.patch, features.patch, 3), jnp.float32)
        out[FEATURES] = describe_network(features, patch)
    return out or None


def _make_abstract_perceptual(cfg: ConfigDict) -> Parts | None:
    """Describe the perceptual network of a loss; None if the loss has none."""
    if _name_perceptual(cfg) != "lpips":
        found: Parts | None = jax.eval_shape(lambda tree: tree, _read_perceptual(cfg))
        return found
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    return {"lpips": describe_network(LPIPS(), image, image)}


def _name_perceptual(cfg: ConfigDict) -> str:
    """Name the perceptual network of the loss of an autoencoder or of a consistency model."""
    return "lpips" if compares_pictures(cfg) else str(cfg.loss.perceptual)


def describe_autoencoder(cfg: ConfigDict) -> Autoencoder:
    """Build the autoencoder module that a latent diffusion config describes, without parameters."""
    options = {k: v for k, v in cfg.autoencoder.items() if k not in ("weights", "scale")}
    return make_autoencoder(options, cfg.data.channels)


def load_fixed_parts(
    cfg: ConfigDict, folder: Path, *, exported: Path | None = None, fresh: bool = False
) -> Parts | None:
    """Load every parameter that the task of a config reads but does not train.

    A run stores what it was trained with in its workdir, and that is read afterwards; the files
    that the config names need not exist any more. An exported file holds these parameters too,
    except for a ControlNet, whose base and autoencoder are read from where the config says. For
    sampling, the network that guides is added (`diffjax.runs.guides`).

    Args:
        folder: the workdir.
        exported: the exported file that is used in place of the run's checkpoint.
        fresh: whether to read what the config names, for training, and to leave it on the host.
            The trainer compares it with what is stored, and places it on the devices.

    Returns:
        Parameters by part, placed on the devices unless ``fresh``; None if there are none.

    Raises:
        ConfigError: weights are needed and not given, or do not fit the config.
    """
    found = _find_parts(cfg, folder, exported, fresh)
    if fresh:
        return found
    if guides := read_guides(cfg):
        found = {**(found or {}), **guides}
    placed: Parts | None = place(found, make_tree_sharding(found, make_run_mesh(cfg)))
    return placed


def _find_parts(cfg: ConfigDict, folder: Path, exported: Path | None, fresh: bool) -> Parts | None:
    """Read the parts from the exported file, the workdir or the places that the config names."""
    kind = find_task_kind(cfg)
    if kind.reconstructs:
        return _read_perceptual(cfg)
    if (
        exported
        and not kind.takes_hints
        and (shapes := leave_out_base(cfg, make_abstract_fixed_parts(cfg)))
    ):
        return dict(read_exported_parts(exported, shapes))
    if exported and kind.trains_copy:
        return None
    if not fresh and not exported and (stored := _read_stored(cfg, folder)):
        return stored
    out: Parts = {}
    if find_model_path(cfg):
        check_noise(cfg)
    if cfg.get("autoencoder", None):
        out["autoencoder"] = _read_autoencoder(cfg)
    for name, net in list_frozen_clips(cfg).items():
        out[name] = _read_text_encoder(cfg, name, net)
    if (vision := make_image_encoder(cfg)) is not None:
        out[ENCODER] = _read_encoder(cfg, "ip_adapter", ENCODER, vision.size, vision)
    if kind.trains_beside:
        out |= read_base(cfg)
    if compares_pictures(cfg) and not exported:
        out |= _read_perceptual(cfg) or {}
    if (features := make_feature_encoder(cfg)) and not exported:
        out[FEATURES] = _read_encoder(cfg, "align", FEATURES, features.patch, features)
    return out or None


def leave_out_base(cfg: ConfigDict, parts: Parts | None) -> Parts | None:
    """Leave out of the parts what a whole model needs for its training alone.

    That is the base that it began as, the network of a perceptual loss, and the encoder of REPA.
    """
    kind = find_task_kind(cfg)
    surplus = {FEATURES, *(("base", "statistics") if kind.trains_copy else ())}
    surplus |= {"lpips"} if not kind.reconstructs else set()
    return {k: v for k, v in (parts or {}).items() if k not in surplus} or None


def _read_stored(cfg: ConfigDict, folder: Path) -> Parts | None:
    """Read the parts that the newest checkpoint was trained with; None without a checkpoint."""
    shapes, steps = make_abstract_fixed_parts(cfg), folder / "checkpoints"
    if shapes is None or not steps.is_dir():
        return None
    checkpoints = Checkpoints(steps)
    newest = checkpoints.newest()
    if newest is None:
        return None
    placed = with_sharding(shapes, make_tree_sharding(shapes, make_run_mesh(cfg)))
    stored: Parts = read(folder / "frozen", checkpoints.metadata(newest)["frozen"], placed)
    return stored


# ---- by part -------------------------------------------------------------------------------------


def _read_perceptual(cfg: ConfigDict) -> Parts | None:
    """Read the perceptual network of a loss: LPIPS, or a small classifier of ours.

    Raises:
        ConfigError: LPIPS without the file of its weights.
    """
    kind, where = _name_perceptual(cfg), cfg.loss.perceptual_weights
    if kind == "lpips":
        if not where:
            ours = ", ".join(metrics.features.VERSIONS)
            others = f"classifier (for data sets with a classifier of ours: {ours}), or none"
            key, others = (
                ("metric", "huber or l2") if compares_pictures(cfg) else ("perceptual", others)
            )
            raise ConfigError(
                f"loss.{key}=lpips needs config.loss.perceptual_weights: LPIPS as safetensors, "
                "which docs/latent_diffusion.md says how to make. Without it, use "
                f"config.loss.{key}={others}"
            )
        return {"lpips": load_lpips(where)}
    if kind == "classifier":
        name = where or cfg.data.name
        own = name.endswith(".safetensors")  # of experiments.train_classifier
        network = metrics.load_network(name) if own else metrics.feature_network(name)
        assert network.params is not None  # networks of ours have them
        return {"classifier": network.params}
    return None


def _read_text_encoder(cfg: ConfigDict, name: str, net: Module) -> Params:
    """Read a frozen text encoder from ``cond.weights`` or ``model.path``.

    Args:
        name: ``text_encoder`` or ``text_encoder_2``.
        net: its module.

    Raises:
        ConfigError: no weights are given, or they do not fit ``config.cond``.
    """
    like, model = (make_abstract_fixed_parts(cfg) or {})[name], find_model_path(cfg)
    where = cfg.cond.weights or model
    if not where:
        raise ConfigError(
            "cond.context=clip needs config.cond.weights: a text_encoder folder of transformers"
        )
    if where == RANDOM:
        return _init_random(net, jnp.zeros((1, 1), jnp.int32))
    if where == model:
        return read_part(cfg, name, net, like)
    said = f"the text encoder in {where} is not the one of config.cond.text"
    return fit_weights(read_weights(where, name), like, said)


def _read_encoder(cfg: ConfigDict, section: str, name: str, side: int, net: Module) -> Params:
    """Read the frozen encoder of pictures that ``config.SECTION.encoder`` names.

    Args:
        section: ``ip_adapter`` or ``align``, whose ``vision`` describes the encoder.
        name: of the part.
        side: pixels on a side of the smallest picture that it takes.
        net: its module.

    Raises:
        ConfigError: none is given, or it is not the one of ``config.SECTION.vision``.
    """
    where, title = cfg[section].encoder, name.replace("_", " ")
    if not where:
        raise ConfigError(f"config.{section}.encoder is needed: {_PUBLISHED_AS[section]}")
    example = jnp.zeros((1, side, side, 3))
    if where == RANDOM:
        logging.warning("the %s is untrained: %s weights are for tests", title, RANDOM)
        return _init_random(net, example)
    said = f"the {title} in {where} is not the one of config.{section}.vision"
    found = read_weights(where, name)
    params = fit_weights(found, describe_network(net, example), said)
    if differences := find_differences(name, net, found.network):
        raise ConfigError(f"{said}: {'; '.join(differences)}")
    return params


# What an encoder of pictures is published as, by the section that names it.
_PUBLISHED_AS = {
    "ip_adapter": "a folder of CLIPVisionModelWithProjection of transformers, such as the "
    "image_encoder of a published IP-Adapter",
    "align": "a folder of Dinov2Model of transformers, or its name on the Hub, such as "
    "facebook/dinov2-base",
}


def _read_autoencoder(cfg: ConfigDict) -> Params:
    """Read the autoencoder from ``autoencoder.weights`` or ``model.path``.

    Raises:
        ConfigError: no weights are given, or they do not fit ``config.autoencoder``.
    """
    like, model = (make_abstract_fixed_parts(cfg) or {})["autoencoder"], find_model_path(cfg)
    where, net = cfg.autoencoder.weights or model, describe_autoencoder(cfg)
    if not where:
        raise ConfigError(
            "config.autoencoder.weights is needed: the workdir of a trained autoencoder, its "
            "exported .safetensors, or the vae folder of a diffusers model"
        )
    if where == RANDOM:
        logging.warning("the autoencoder is untrained: autoencoder.weights=%s is for tests", RANDOM)
        return _init_random(net, jnp.zeros((1, net.factor, net.factor, cfg.data.channels)))
    if where == model:
        return read_part(cfg, "vae", net, like)
    said = f"the autoencoder in {where} is not the one of config.autoencoder"
    return fit_weights(read_weights(where, "vae"), like, said)


def _init_random(net: Module, example: jax.Array) -> Params:
    """Initialise a network with a fixed seed, for tests and smoke runs."""
    return init_network(net, jax.random.key(0), example)["params"]


def read_base(cfg: ConfigDict) -> Parts:
    """Read the frozen base beside which adapters or a ControlNet are trained.

    It is the UNet of ``config.model.path`` if the config has a section ``model``, and else what
    ``config.control.base`` or ``config.distil.base`` names: a workdir, an exported file or the unet
    folder of a diffusers model.

    Returns:
        ``base``, its parameters, and ``statistics``, what it measured of its data, if anything.

    Raises:
        ConfigError: none is given, or its parameters have other shapes than the config says.
    """
    like, described = make_abstract_base(cfg)["base"], build_model(cfg)
    path = find_model_path(cfg)
    if path not in ("", RANDOM):
        params = read_part(cfg, "unet", described.network, like)
        return join_base(params, dict(described.space.extra))
    key = "distil" if "distil" in cfg else "control"
    where = path or cfg[key].base
    if not where:
        raise ConfigError(
            f"config.{key}.base is needed: the workdir of a trained model, its exported "
            ".safetensors, or the unet folder of a diffusers model"
        )
    if where == RANDOM:
        logging.warning("the base is untrained: %s weights are for tests", RANDOM)
        rng = np.random.default_rng(0)

        def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            return jnp.asarray(0.1 * rng.standard_normal(leaf.shape), leaf.dtype)

        return join_base(jax.tree.map(draw, like), dict(described.space.extra))
    found = read_weights(where, "unet")
    params = fit_weights(found, like, f"{where} is not the base that config.network describes")
    statistics = {
        name: jnp.asarray(found.statistics.get(name, value))
        for name, value in described.space.extra.items()
    }
    return join_base(params, statistics)
