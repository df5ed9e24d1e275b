"""A small model personalised: DreamBooth, a new word, adapters, edits and pictures as prompts.

Four pictures of one thing, or a thousand with other captions, change the small text-to-image model
of the other pages; a program reads what the pictures show before and after.
"""

from __future__ import annotations

from pathlib import Path

from experiments.reproductions.all_pipelines import KEPT
from experiments.reproductions.claims import Claim, format_training, read_file
from experiments.reproductions.personal_scenes import ANY, COLUMNS, list_requests
from experiments.reproductions.pieces import Piece
from experiments.reproductions.plotting import label_rows
from experiments.reproductions.verdicts import Effect, estimate_share, judge_range

# The config file with the variants for large models.
CONFIG = "stable_diffusion"
# Trainings by name: what is asked of each, and how `experiments.generate` adds it to the model.
TRAININGS = {
    "adapted": ("exchanged", "--lora={runs}/own-adapted/folder/pytorch_lora_weights.safetensors"),
    "subject": ("subject", "--lora={runs}/own-subject/folder/pytorch_lora_weights.safetensors"),
    "word": ("word", "--concept={runs}/own-word/folder/learned_embeds.safetensors:<thing>"),
}
# Pictures of each prompt where four decided nothing; sheets show the first ones.
MORE = {"adapted": 16}
VARIANTS = {"adapted": "shapes_lora", "subject": "shapes_dreambooth", "word": "shapes_word"}
_SCRIPT = "reproductions.personal_pictures"


def _draw(
    name: str, kind: str, *flags: str, model: str = KEPT, columns: int = COLUMNS
) -> tuple[tuple[str, ...], ...]:
    """Make the commands that draw the pictures of a set of prompts and read them.

    Args:
        name: of the folder, and of the files that are kept.
        kind: a set of prompts, see `personal_scenes`.
        flags: further ones of `experiments.generate`.
        model: folder of the model.
        columns: pictures of a prompt.
    """
    prompts = (f"--prompt={one.prompt}" for one in list_requests(kind))
    size = (f"--num={columns}", f"--batch_size={columns}", "--steps=25", "--guidance=3")
    out = f"{{runs}}/own/{name}"
    return (
        ("generate", f"--model={model}", "--sampler=dpmpp_2m", *size, *prompts, *flags,
         f"--out={out}"),
        (_SCRIPT, f"--read={out}", f"--prompts={kind}", f"--out={{runs}}/own/{name}.json"),
    )  # fmt: skip


def _keep(*names: str) -> dict[str, str]:
    """List the files that are kept of sets of pictures."""
    found = {f"own/{name}.json": f"data/own-{name}.json" for name in names}
    return found | {f"own/{name}.png": f"data/sheets/own-{name}.png" for name in names}


def _make_piece(name: str, minutes: float, folders: tuple[str, ...], *flags: str) -> Piece:
    """Make the piece that trains something, and draws with it what it was trained for, and others.

    Args:
        name: a key of `TRAININGS`.
        minutes: about what it takes on one core.
        folders: of `personal_pictures`, the first of which is trained on.
        flags: of `experiments.train`.
    """
    kind, added = TRAININGS[name]
    where = f"--workdir={{runs}}/own-{name}"
    train = (
        *("train", f"--config=configs/stable_diffusion.py:{VARIANTS[name]}", where),
        f"--config.model.path={KEPT}",
        "--config.data.name=captioned_folder",
        f"--config.data.dir={{runs}}/own-{folders[0]}",
        *("--config.data.bucket_step=0", "--config.data.batch_size=16"),
        *("--config.train.minutes=0.0", "--config.train.sample_every=0", *flags),
    )
    commands = (
        *((_SCRIPT, f"--write={one}", f"--out={{runs}}/own-{one}") for one in folders),
        train,
        ("export", where, f"--out={{runs}}/own-{name}/folder"),
        *_draw(f"{name}-after", kind, added, columns=MORE.get(name, COLUMNS)),
        *_draw(f"{name}-plain", "plain", added),
    )
    summary = {f"own-{name}/summary.json": f"data/own-{name}-summary.json"}
    return Piece(
        f"own-{name}", commands, summary | _keep(f"{name}-after", f"{name}-plain"), minutes
    )


PIECES = (
    Piece(
        "own-before",
        (
            *_draw("plain", "plain"),
            *_draw("adapted-before", "exchanged"),
            *_draw("subject-before", "subject"),
        ),
        _keep("plain", "adapted-before", "subject-before"),
        2,
    ),
    _make_piece("adapted", 4, ("exchanged",), "--config.train.steps=400"),
    _make_piece(
        *("subject", 4, ("subject", "prior"), "--config.prior.dir={runs}/own-prior"),
        *("--config.prior.prompt=a shape", "--config.train.steps=250"),
    ),
    _make_piece(
        *("word", 4, ("word",), "--config.concept.word=<thing>"),
        *("--config.concept.initial=small red circle", "--config.concept.vectors=3"),
        "--config.train.steps=250",
    ),
)


def _make_edit_piece(minutes: float) -> Piece:
    """Make the piece that trains edits by instruction, and edits a picture before and after."""
    where, given = "--workdir={runs}/own-edit", "--init_image={runs}/own-example/00000.png"
    commands = (
        *((_SCRIPT, f"--write={one}", f"--out={{runs}}/own-{one}") for one in ("edits", "example")),
        (
            *("train", "--config=configs/stable_diffusion.py:shapes_edit", where),
            *(f"--config.model.path={KEPT}", "--config.data.dir={runs}/own-edits"),
            *("--config.train.minutes=0.0", "--config.train.sample_every=0"),
            *("--config.train.steps=600", "--config.optim.lr=1e-3", "--config.data.batch_size=16"),
        ),
        ("export", where, "--out={runs}/own-edit/folder"),
        *_draw("edit-before", "edits", given, "--strength=0.6"),
        *_draw("edit-after", "edits", given, model="{runs}/own-edit/folder"),
    )
    keep = _keep("edit-before", "edit-after")
    keep["own-edit/summary.json"] = "data/own-edit-summary.json"
    return Piece("own-edit", commands, keep, minutes)


def _make_picture_piece(minutes: float) -> Piece:
    """Make the piece that trains an IP-Adapter, and asks by pictures before and after."""
    where = "--workdir={runs}/own-picture"
    vision = {"patch": 32, "features": 256, "width": 512}
    section = {"encoder": "random", "kind": "plus", "features": 128, "heads": 4, "layers": 2}
    commands = (
        *((_SCRIPT, f"--write={one}", f"--out={{runs}}/own-{one}") for one in ("any", "given")),
        (
            *("train", "--config=configs/stable_diffusion.py:shapes_ip_adapter", where),
            *(f"--config.model.path={KEPT}", "--config.data.name=captioned_folder"),
            *("--config.data.dir={runs}/own-any", "--config.data.batch_size=16"),
            *(f"--config.ip_adapter.{key}={value}" for key, value in section.items()),
            *(f"--config.ip_adapter.vision.{key}={value}" for key, value in vision.items()),
            *("--config.train.minutes=0.0", "--config.train.sample_every=0"),
            *("--config.train.steps=2000", "--config.train.checkpoint_every=250"),
        ),
        ("export", where, "--out={runs}/own-picture/folder"),
    )
    adapter, given = "{runs}/own-picture/folder", "{runs}/own-given"
    for name, flags in (("before", ()), ("after", (f"--adapter={adapter}",))):
        out = f"{{runs}}/own/picture-{name}"
        drawn = (f"--model={KEPT}", f"--pictures={given}", *flags, f"--out={out}")
        commands += (
            ("reproductions.personal_prompted", *drawn),
            (_SCRIPT, f"--read={out}", "--prompts=given", f"--out={out}.json"),
        )
    keep = _keep("picture-before", "picture-after")
    keep["own-picture/summary.json"] = "data/own-picture-summary.json"
    return Piece("own-picture", commands, keep, minutes)


PIECES += (_make_edit_piece(6), _make_picture_piece(15))


# What may explain that ordinary captions suffer.
_WHY = (
    'The prior here is sixty pictures called "a shape", which name no colour, so that nothing '
    "holds the words for colours in place. The paper's prior is pictures that the model itself "
    "draws of the subject's class."
)


# What may explain that the shape of a picture prompt is lost.
_WHY_SHAPE = (
    "The image encoder is random and reads the whole picture as one patch, and 2,000 steps are "
    "few. Published adapters are trained for a million steps beside an encoder that has learned "
    "to tell pictures by their texts."
)


def _read(data: Path, name: str) -> tuple[Effect, str]:
    """Read the share of pictures of a set that show all that was asked for, and its counts."""
    found = read_file(data / f"own-{name}.json")
    right = round(found["all"] * found["pictures"])
    return estimate_share(right, found["pictures"]), f"{right} of {found['pictures']}"


def judge_claims(data: Path) -> list[Claim]:
    """Judge whether each training teaches what it is for, as a program sees it.

    Args:
        data: folder of the files that the pieces left.
    """
    texts = {
        "adapted": "after training an adapter, most pictures have the exchanged colours",
        "subject": "after DreamBooth, most pictures show the thing at places that it was not "
        "trained at",
        "word": "after textual inversion, most pictures of the word show the thing at such places",
    }
    texts["edit"] = "after training edits, most pictures are the given one in the colour asked for"
    before = {name: f"{name}-before" for name in texts} | {"word": "subject-before"}
    out = []
    for name, text in texts.items():
        (_, old), (share, new) = _read(data, before[name]), _read(data, f"{name}-after")
        out.append(Claim(text, judge_range(share, 0.5), share, f"{new} pictures, before {old}"))
    (_, old), (share, new) = _read(data, "plain"), _read(data, "subject-plain")
    text = "with prior preservation, DreamBooth keeps what ordinary captions mean: at least .8 obey"
    figures = f"{new} pictures, before {old}"
    out.append(Claim(text, judge_range(share, 0.8), share, figures, _WHY))
    for key in ("colour", "shape"):
        old, new = (read_file(data / f"own-picture-{x}.json") for x in ("before", "after"))
        right, count = new["whole"][key], new["requests"]
        text = f'most picture prompts give all their pictures their {key}, beside the words "{ANY}"'
        figures = f"{right} of {count} picture prompts, before {old['whole'][key]}"
        share = estimate_share(right, count)
        why = _WHY_SHAPE if key == "shape" else ""
        out.append(Claim(text, judge_range(share, 0.5), share, figures, why))
    return out


def _format_row(data: Path, name: str) -> str:
    """Format a row of the table: shares of size, colour, shape, place and all."""
    found = read_file(data / f"own-{name}.json")
    keys = ("size", "colour", "shape", "place", "all")
    return f"| {name} | {' | '.join(f'{found[k]:.2f}' for k in keys)} | {found['pictures']} |"


def _list_sets() -> dict[str, str]:
    """List the sets of pictures in their order: what was asked for, by name."""
    found = {"plain": "plain", "adapted-before": "exchanged", "subject-before": "subject"}
    for name, (kind, _) in TRAININGS.items():
        found |= {f"{name}-after": kind, f"{name}-plain": "plain"}
    found |= {"edit-before": "edits", "edit-after": "edits"}
    return found | {"picture-before": "given", "picture-after": "given"}


def draw_plots(data: Path) -> None:
    """Write the prompts beside the rows of the sheets of pictures.

    Args:
        data: folder of the files that the pieces left; pictures are written beside it.
    """
    for name, kind in _list_sets().items():
        asked = list_requests(kind)
        rows = [one.thing.describe() if kind == "given" else one.prompt for one in asked]
        source = data / "sheets" / f"own-{name}.png"
        label_rows(source, data.parent / source.name, rows, "columns: seeds")


def format_page(data: Path) -> str:
    """Format the page as Markdown, without the claims.

    Args:
        data: folder of the files that the pieces left.
    """
    variants = VARIANTS | {"edit": "shapes_edit", "picture": "shapes_ip_adapter"}
    rows = "\n".join(_format_row(data, name) for name in _list_sets())
    how = "\n".join(
        f"- {name}: `{variant}`, "
        + ", ".join(
            f"{value} {key}"
            for key, value in format_training(read_file(data / f"own-{name}-summary.json")).items()
        )
        for name, variant in variants.items()
    )
    return f"""Each training begins with the folder `docs/results/models/small-model`:

{how}

The table has the share of pictures in which a program finds size, colour, shape and place as they
should be, and all of them. `plain` are six ordinary captions. Four pictures of each prompt left it
open what the adapter does (17 of 24), so it was trained again and drew {MORE["adapted"]} of each.

| | size | colour | shape | place | all | pictures |
|---|---|---|---|---|---|---|
{rows}

The ordinary captions before any training:

![ordinary captions before any training](own-plain.png)

## An adapter (LoRA)

The captions of a thousand pictures name another colour than the picture has: "green" for red,
"blue" for green, and so on. Rows are six such captions, columns are seeds. Before and after:

![before](own-adapted-before.png) ![after](own-adapted-after.png)

The ordinary captions with the adapter. Their colours are exchanged too, and some shapes change:

![ordinary captions with the adapter](own-adapted-plain.png)

## A subject (DreamBooth)

Four pictures of a large purple cross are called "a sks at the ...". Sixty other pictures, called
"a shape", keep the rest as it was. Rows are the five places that were not trained on. Before and
after:

![before](own-subject-before.png) ![after](own-subject-after.png)

Ordinary captions after it:

![plain](own-subject-plain.png)

## A new word (textual inversion)

The same four pictures are called "a <thing> at the ...". The three embeddings of the word are all
that is trained; they begin with those of "small red circle".

![after](own-word-after.png)

Ordinary captions do not contain the word, and nothing else was trained. The pictures are the same:

![ordinary captions beside the new word](own-word-plain.png)

## Edits by instruction (InstructPix2Pix)

A thousand pictures beside the same in another colour are trained with "make it blue" and the like.
A large red circle in the middle is edited by the base, as image-to-image with strength 0.6, and
after the training:

![before](own-edit-before.png) ![after](own-edit-after.png)

## Pictures as prompts (IP-Adapter)

A thousand pictures of one shape are all called "{ANY}", so that only the picture beside the words
says which it is. The image encoder is random: it has seen no picture, and what is trained has to
find colour and shape in its features. Each row has a picture of the thing that it names as its
prompt, beside "{ANY}". Without and with it:

![before](own-picture-before.png) ![after](own-picture-after.png)

Six picture prompts with sixteen seeds each left it open what the adapter does, for the seeds of one
made much the same picture. So each colour and shape got a prompt, with four seeds, and a claim
counts the prompts all of whose pictures are right.
"""
