"""The network that guides sampling in place of the null condition, and its parameters.

It is a classifier of noisy images (Dhariwal & Nichol 2021), ``config.sample.classifier``, or a
worse version of the model (autoguidance, Karras et al. 2024, arXiv:2406.02507),
``config.sample.guide``. Its parameters are read from its own run whenever the model samples; they
are not stored with the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.config import read_config
from diffjax.model import denoiser, encode
from diffjax.model.model import Model
from diffjax.model.steering_options import LogProb, WeakModel
from diffjax.runs.batches import read_image_shape
from diffjax.runs.locate import fit_weights, read_weights
from diffjax.runs.states import build_model, make_abstract_state, read_state
from diffjax.tasks import find_task_kind
from diffjax.tasks.classifier_task import make_classifier_log_prob, make_noisy_classifier
from diffjax.types import ArrayLike, Cond, ConfigError, Denoiser, Params

# Settings of ``config.sample`` that act on the null condition, which a guide replaces.
_OF_NULL = {"guidance_rule": "cfg", "guidance_rescale": 0.0}


@dataclasses.dataclass(frozen=True)
class _OfConfig:
    """A function that equals any other that was made of an equal config.

    So programs that were compiled with one of them serve for all, such as those of previews.
    """

    config: str
    function: Callable[..., Any] = dataclasses.field(compare=False)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def read_guides(cfg: ConfigDict) -> dict[str, Params]:
    """Read the parameters of the network that guides sampling.

    Returns:
        ``classifier`` or ``guide`` with its parameters; nothing if the config names neither.

    Raises:
        ConfigError: it names both, or one that does not belong to the model.
    """
    section = cfg.sample
    if section.classifier and section.guide:
        raise ConfigError(
            f"sample.classifier={section.classifier} and sample.guide={section.guide} exclude each "
            "other: one network guides; leave one of them empty"
        )
    if section.skip_scale and (section.classifier or section.guide):
        key = "classifier" if section.classifier else "guide"
        raise ConfigError(
            f"sample.skip_scale={section.skip_scale:g} has no effect beside sample.{key}: set it "
            f"to 0, or leave sample.{key} empty"
        )
    if section.classifier:
        for key, default in _OF_NULL.items():
            if section[key] != default:
                raise ConfigError(
                    f"sample.{key}={section[key]} has no effect beside sample.classifier: it "
                    f"combines two predictions; set it to {default!r}"
                )
        return {"classifier": read_classifier(cfg)}
    return {"guide": _read_guide(cfg)} if section.guide else {}


# ---- a worse version of the model ----------------------------------------------------------------


def make_weak_model(cfg: ConfigDict) -> WeakModel | None:
    """Make the function that turns parameters and a condition into the denoiser of autoguidance.

    Returns:
        ``(parts, cond, spans) -> Denoiser`` with the frozen parts of the model, of which ``guide``
        are the parameters of the weak one, the raw condition, and the times of the steps, for a
        network that is told them; None if ``config.sample.guide`` is empty.

    Raises:
        ConfigError: the guide is no diffusion model, or does not belong to the model.
    """
    if not cfg.sample.guide:
        return None
    found = _read_guide_config(cfg)
    described = build_model(found)

    def make(parts: Mapping[str, Params], cond: Cond, spans: ArrayLike) -> Denoiser:
        own = parts["guide"]
        model: Model = described._replace(
            params=own["params"], frozen=parts, statistics=own["statistics"]
        )
        return denoiser(model, encode(model, cond), spans=spans)

    return _OfConfig(found.to_json(), make)


def _read_guide(cfg: ConfigDict) -> Params:
    """Read ``params`` and ``statistics`` of the model that ``config.sample.guide`` names."""
    section, found = cfg.sample, _read_guide_config(cfg)
    state = read_state(found, Path(section.guide), ema_length=section.guide_ema_length or None)
    known = build_model(found).space.extra
    return {"params": state.ema, "statistics": {k: state.extra[k] for k in known}}


def _read_guide_config(cfg: ConfigDict) -> ConfigDict:
    """Read the config of the weak model, and check that it denoises what the model denoises.

    Raises:
        ConfigError: it is no diffusion model, has control networks, or has other conditions,
            data, space or another noise schedule.
    """
    path: str = cfg.sample.guide
    found, said = read_config(path), f"sample.guide={path}"
    kind = find_task_kind(found)
    if kind.assemble is None or kind.takes_hints or kind.trains_beside:
        raise ConfigError(f"{said} holds a run of task {found.get('task')!r}, no whole model")
    _check_space(found, cfg, said)
    ours, theirs = (dict(c.cond) for c in (cfg, found))
    for key in ("context", "concat"):
        if ours.get(key) != theirs.get(key):
            raise ConfigError(
                f"{said} is conditioned on {theirs.get(key) or 'nothing'} "
                f"(cond.{key}), the model on {ours.get(key) or 'nothing'}"
            )
    if found.network.conditional != cfg.network.conditional:
        raise ConfigError(f"{said} and the model: only one of them is conditioned on classes")
    return found


# ---- a classifier -------------------------------------------------------------------------------


def make_log_prob(cfg: ConfigDict) -> LogProb | None:
    """Make the log-likelihood of the classifier that guides sampling (classifier guidance).

    Returns:
        ``(parameters, z, level, label (B,)) -> log p(label | z) (B,)``, or None if
        ``config.sample.classifier`` is empty.

    Raises:
        ConfigError: the file holds no classifier, or one of other data or another noise schedule.
    """
    if not cfg.sample.classifier:
        return None
    found = _read_classifier_config(cfg)
    network = make_noisy_classifier(found, found.data.num_classes)
    return _OfConfig(found.to_json(), make_classifier_log_prob(network))


def read_classifier(cfg: ConfigDict) -> Params:
    """Read the parameters of the classifier that ``config.sample.classifier`` names.

    Raises:
        ConfigError: as `make_log_prob`, or the parameters do not fit their own config.
    """
    path, found = cfg.sample.classifier, _read_classifier_config(cfg)
    like = make_abstract_state(found).ema
    said = f"the classifier {path} is not the one that its config describes"
    return jax.tree.map(jnp.asarray, fit_weights(read_weights(path, "classifier"), like, said))


def _read_classifier_config(cfg: ConfigDict) -> ConfigDict:
    """Read the config of the classifier, and check that it fits the model that it is to guide.

    Raises:
        ConfigError: it is of another task, data set, space, time scale or noise schedule.
    """
    path: str = cfg.sample.classifier
    found = read_config(path)
    if found.get("task") != "classifier":
        raise ConfigError(f"{path} holds a run of task {found.get('task')!r}, no classifier")
    _check_space(found, cfg, f"the classifier {path}")
    ours, theirs = cfg.network.time_scale, found.network.time_scale
    if theirs != ours:
        raise ConfigError(f"the classifier {path} has time scale {theirs:g}, the model {ours:g}")
    return found


# ---- what both have in common --------------------------------------------------------------------


def _check_space(found: ConfigDict, cfg: ConfigDict, said: str) -> None:
    """Check that a network reads the noisy images or latents of the model that it guides.

    Args:
        found: config of the guiding network.
        cfg: config of the model.
        said: what the message calls the guiding network.

    Raises:
        ConfigError: schedule, latents, shape or classes differ.
    """
    if found.schedule.to_dict() != cfg.schedule.to_dict():
        raise ConfigError(f"{said} was trained with another noise schedule than the model")
    if _describe_space(found, cfg) != _describe_space(cfg, cfg):
        raise ConfigError(
            f"{said} and the model are of other latents, or one of pixels: compare their sections "
            "config.autoencoder"
        )
    theirs, ours = ((read_image_shape(c), c.data.num_classes) for c in (found, cfg))
    if theirs != ours:
        raise ConfigError(f"{said} is of (image shape, classes) {theirs}, and the model of {ours}")


def _describe_space(cfg: ConfigDict, model: ConfigDict) -> dict[str, object]:
    """Return what two configs have in common if one of them guides in the latents of the other.

    A scale that the model measured is not in its config, and is not compared.
    """
    section = dict(cfg.get("autoencoder", None) or {})
    known = bool((model.get("autoencoder", None) or {}).get("scale", 0.0))
    return {k: v for k, v in section.items() if k != "weights" and (known or k != "scale")}
