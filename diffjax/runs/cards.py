"""The model card of what a run trained: what it is, and how it was made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from diffjax.pretrained.cards import CARD, PICTURE, UNKNOWN, Card, write_card
from diffjax.pretrained.hub import parse_name
from diffjax.pretrained.hub_uploads import list_uploads
from diffjax.runs.tokens import RANDOM, find_model_path
from diffjax.tasks import find_task_kind
from diffjax.train import State

# By what was trained: title, summary, usage, the Hub's name of the task, and tags.
_KINDS = {
    "control": (
        "a ControlNet",
        'net = diffjax.pretrained.load_model("{name}")\n'
        "pipe(prompt, control=diffjax.Control(net, image))",
        *("text-to-image", ("controlnet",)),
    ),
    "lora": (
        "a low-rank adapter (LoRA)",
        'pipe = diffjax.load("{base}").with_lora("{name}")\npipe(prompt)[0].save("image.png")',
        *("text-to-image", ("lora",)),
    ),
    "ip_adapter": (
        "an IP-Adapter",
        'pipe = diffjax.load("{base}")\nadapter = pipe.load_image_adapter("{name}")\n'
        "pipe(prompt, image_prompt=diffjax.ImagePrompt(adapter, image))",
        *("text-to-image", ("ip-adapter",)),
    ),
    "concept": (
        "a word (textual inversion)",
        'pipe = diffjax.load("{base}").with_concept("{name}/learned_embeds.safetensors")',
        *("text-to-image", ("textual_inversion",)),
    ),
    "whole": (
        "a text-to-image model",
        'pipe = diffjax.load("{name}")\npipe(prompt)[0].save("image.png")',
        *("text-to-image", ("stable-diffusion",)),
    ),
    "diffusion": (
        "a diffusion model",
        'model = diffjax.open("{name}")\nimages = diffjax.draw(model, num=16)',
        *("unconditional-image-generation", ("diffusion",)),
    ),
    "other": (
        "a network of task {task!r}",
        'path = diffjax.download("{name}")  # the weights, for --weights and the keys of configs',
        *("image-to-image", ()),
    ),
}


def make_card(
    cfg: ConfigDict, state: State, name: str, *, whole: bool, license: str = UNKNOWN
) -> Card:
    """The card of what a run trained.

    Args:
        name: what it will be loaded by, a path or a name on the Hub.
        whole: whether it was written as a folder for diffusers rather than one file.
        license: the Hub's identifier of its licence.
    """
    kind, base = _find_kind(cfg, whole), find_model_path(cfg)
    what, usage, task, tags = _KINDS[kind]
    usage = "import diffjax\n\n" + usage.format(name=name, base=base)
    summary = f"This is {what.format(task=cfg.task)}, trained with diffjax on {cfg.data.name}."
    if base and base != RANDOM:
        summary += f" The training began from {base}."
    return Card(
        name.rstrip("/").split("/")[-1],
        summary,
        usage,
        _describe_training(cfg, state),
        license,
        "diffusers" if whole else "diffjax",
        task,
        tags,
        base if parse_name(base) and not Path(base).exists() else None,
    )


def _find_kind(cfg: ConfigDict, whole: bool) -> str:
    kind = find_task_kind(cfg)
    if whole:
        if kind.learns_word or kind.reads_pictures:
            return "concept" if kind.learns_word else "ip_adapter"
        adapts = kind.trains_beside and not kind.trains_copy
        return "control" if kind.takes_hints else "lora" if adapts else "whole"
    return "diffusion" if cfg.task == "diffusion" or kind.trains_copy else "other"


def _describe_training(cfg: ConfigDict, state: State) -> dict[str, object]:
    found: dict[str, object] = {
        "data set": cfg.data.name,
        "image size": cfg.data.image_size,
        "steps": f"{int(state.step):,}",
        "batch size": cfg.data.batch_size,
        "optimiser": f"{cfg.optim.name}, learning rate {cfg.optim.lr:g}",
        "weights": f"power-function average of length {cfg.ema.lengths[0]:g}"
        if cfg.ema.kind == "power"
        else f"average with decay {cfg.ema.decay:g}",
        "seed": cfg.seed,
    }
    for key in ("schedule", "parameterization", "loss"):
        if key in cfg and "name" in cfg[key]:
            found[key] = cfg[key].name
    return found


def gather_uploads(out: Path, card: Card, folder: Path, extra: Path) -> Mapping[str, Path]:
    """The files of an export by their names on the Hub, with a card and the newest picture.

    Args:
        out: the folder or the file that was exported.
        folder: the workdir, whose newest picture of samples is taken.
        extra: folder to write the card to; that of the export, if it is one.
    """
    files = list_uploads(out) if out.is_dir() else {out.name: out}
    pictures = sorted((folder / "samples").glob("*.png"))
    if pictures and not (extra / PICTURE).exists():
        shutil.copy(pictures[-1], extra / PICTURE)
    write_card(extra, card._replace(picture=(extra / PICTURE).exists()))
    beside = {name: extra / name for name in (CARD, PICTURE) if (extra / name).exists()}
    return {**files, **beside}
