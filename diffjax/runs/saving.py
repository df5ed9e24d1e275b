"""Models in memory as folders that `diffjax.open` reads: ``diffjax.save``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import PIL.Image
from ml_collections import ConfigDict

from diffjax.config import complete
from diffjax.model import Model
from diffjax.model.condition import ENCODERS
from diffjax.model.model import merge_adapters
from diffjax.pretrained.cards import PICTURE, UNKNOWN, Card, check_license, write_card
from diffjax.pretrained.components import Components, save_components
from diffjax.pretrained.files import StrPath
from diffjax.runs.cards import make_card
from diffjax.runs.exported import write_export
from diffjax.runs.fixed_parts import leave_out_base, make_abstract_fixed_parts
from diffjax.runs.states import make_abstract_state
from diffjax.train import State
from diffjax.types import ConfigError

WEIGHTS_FILE = "model.safetensors"
# Tasks whose networks are those of the task "diffusion" once adapters are merged.
_PLAIN = ("diffusion", "lora", "consistency", "ip_adapter")


class Source(NamedTuple):
    """Where a model came from, as far as it takes to write it again; `Model.source`.

    Attributes:
        config: of the run that trained it.
        step: how many steps it was trained.
    """

    config: ConfigDict
    step: int = 0

    def __repr__(self) -> str:
        return f"Source(task={self.config.task!r}, step={self.step})"


class PublishedSource(NamedTuple):
    """The same of a published model: its networks, tokenizers and configs."""

    parts: Components

    def __repr__(self) -> str:
        return f"PublishedSource({self.parts.manifest.get('_class_name', 'of parts')!r})"


def save_model(
    model: Model,
    folder: StrPath,
    *,
    config: ConfigDict | None = None,
    license: str = UNKNOWN,
    picture: PIL.Image.Image | None = None,
) -> None:
    """Write a model as a folder with a model card, which `diffjax.open` reads to the same model.

    A published model becomes a folder of diffusers, and all else one file of weights with the
    config in it. Adapters are merged. A card that is there already stays as it is.

    Args:
        model: from `diffjax.open`, maybe with other parameters.
        folder: to write.
        config: that describes the model, for one that was not opened.
        license: the Hub's identifier of the licence, for the card.
        picture: an image that the model made, for the card.

    Raises:
        ConfigError: ``license`` is no identifier, nothing describes the model, or it has parts
            that no such folder can hold.
        ValueError, FileExistsError: the folder holds another model.
    """
    check_license(license)
    path, source = Path(folder), model.source if config is None else Source(complete(config))
    if model.params is None:
        raise ConfigError("this model has no parameters: train it, or give model._replace(params=)")
    if model.controls:
        raise ConfigError(
            "a model with control networks is written by diffjax export, from the workdir of its "
            "run; without them, save model._replace(controls=())"
        )
    merged = merge_adapters(model)
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(source, PublishedSource):
        card = _save_published(merged, source.parts, path)
    elif isinstance(source, Source):
        card = _save_trained(merged, source, path)
    else:
        raise ConfigError(
            "this model was put together by hand, and nothing says how to make it again: give "
            "config=, that of diffjax.config.make, or keep model.params by "
            "diffjax.pretrained.save_safetensors(path, params)"
        )
    if picture is not None:
        picture.save(path / PICTURE)
    card = card._replace(license=license, picture=(path / PICTURE).exists())
    write_card(path, card)


def _save_published(model: Model, parts: Components, folder: Path) -> Card:
    """Write a folder of diffusers with the parameters of a model, and make its card."""
    frozen = model.frozen or {}
    texts = {
        name: text._replace(model=text.model._replace(params=frozen.get(name, text.model.params)))
        for name, text in parts.texts.items()
    }
    vae = parts.vae._replace(params=frozen.get("autoencoder", parts.vae.params))
    unet = parts.unet._replace(params=model.params or {})
    save_components(folder, parts._replace(unet=unet, vae=vae, texts=texts))
    kind = parts.manifest.get("_class_name", "text-to-image model")
    usage = f'import diffjax\n\npipe = diffjax.load("{folder.name}")\npipe("a red cat")[0]'
    summary = f"A text-to-image model in the layout of diffusers' {kind}, written by diffjax."
    return Card(folder.name, summary, usage, library="diffusers")


def _save_trained(model: Model, source: Source, folder: Path) -> Card:
    """Write weights with their config, and make the card.

    Raises:
        ConfigError: the task trains something else than a whole model.
    """
    cfg, params = _make_plain(source.config, model), model.params or {}
    like = make_abstract_state(cfg)
    ours, wanted = (jax.tree.map(jnp.shape, tree) for tree in (params, like.ema))
    if ours != wanted:
        raise ConfigError(
            "the parameters of this model are not those of its config: give config= of the network "
            "that it has"
        )
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like.extra)
    extra = {**blank, **{k: v for k, v in (model.statistics or {}).items() if k in blank}}
    known = leave_out_base(cfg, make_abstract_fixed_parts(cfg)) or {}
    frozen = {name: (model.frozen or {})[name] for name in known}
    state = State(jnp.asarray(source.step, jnp.int32), params, params, None, extra)
    write_export(folder / WEIGHTS_FILE, cfg, state, frozen or None)
    return make_card(cfg, state, folder.name, whole=False)


def _make_plain(config: ConfigDict, model: Model) -> ConfigDict:
    """Make the config of a whole model from that of a run, whose adapters are merged.

    Raises:
        ConfigError: the task trains no diffusion model, or a word, which its tokenizer has.
    """
    if config.task not in _PLAIN:
        raise ConfigError(
            f"task={config.task} is written by diffjax export, from the workdir of its run; "
            f"diffjax.save takes {', '.join(_PLAIN)}"
        )
    kept = {k: v for k, v in config.to_dict().items() if k not in ("lora", "consistency")}
    out = ConfigDict({**kept, "task": "diffusion"})
    if any(name in (model.params or {}) for name in ENCODERS.values()):
        out.cond.train_text = True
    return out
