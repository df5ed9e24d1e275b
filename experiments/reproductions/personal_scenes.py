"""The pictures that personal models are trained on, and what a program reads in theirs.

Pictures are the captioned shapes of `diffjax.data.shapes`. `personal_pictures` is the command that
writes and reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffjax.data import pictures, shapes
from diffjax.evaluation.image_grids import save_png, tile
from diffjax.writing import write_atomically

# What the pictures of a person's own show, and what it is called.
SUBJECT = shapes.Thing(1, list(shapes.COLOURS).index("purple"), shapes.SHAPES.index("cross"), 0)
NAMES = {"subject": "sks", "word": "<thing>"}
# Places of the pictures that are trained on; the others are for measuring.
SEEN = (0, 2, 4, 7)
UNSEEN = tuple(place for place in range(len(shapes.PLACES)) if place not in SEEN)
# The picture that is edited.
EXAMPLE = shapes.Thing(1, list(shapes.COLOURS).index("red"), shapes.SHAPES.index("circle"), 4)
# A caption of any picture.
ANY = "a shape"
# Pictures of the exchanged colours, of the edits and of those that say more than their captions,
# and of the prior.
MANY, SOME = 1000, 60
# Pictures of each prompt.
COLUMNS = 4
SCALE = 3


class Request(NamedTuple):
    """A prompt, and what its pictures are to show.

    Attributes:
        prompt: the text.
        thing: the shape.
    """

    prompt: str
    thing: shapes.Thing


def rename(thing: shapes.Thing) -> str:
    """Describe a thing with the name of the next colour, as the exchanged captions do."""
    return thing._replace(colour=(thing.colour + 1) % len(shapes.COLOURS)).describe()


def list_requests(kind: str) -> list[Request]:
    """List the requests that a model is measured by.

    Args:
        kind: a choice of --prompts. ``plain`` and ``exchanged`` ask for the same six shapes of one
            colour each; ``subject`` and ``word`` for the subject at places that it was not trained
            at; ``edits`` for `EXAMPLE` in every other colour; ``given`` for large things of every
            colour and shape in words that name none of them, so that a picture has to say which.
    """
    if kind == "edits":
        return [
            Request(f"make it {name}", EXAMPLE._replace(colour=k))
            for k, name in enumerate(shapes.COLOURS)
            if k != EXAMPLE.colour
        ]
    if kind in NAMES:
        things = [SUBJECT._replace(place=place) for place in UNSEEN]
        return [Request(f"a {NAMES[kind]} at the {shapes.PLACES[t.place]}", t) for t in things]
    if kind == "given":
        kinds = [(c, s) for c in range(len(shapes.COLOURS)) for s in range(len(shapes.SHAPES))]
        return [Request(ANY, shapes.Thing(1, *one, k % 9)) for k, one in enumerate(kinds)]
    things = [shapes.Thing(1, k, k % len(shapes.SHAPES), (2 * k + 1) % 9) for k in range(6)]
    describe = rename if kind == "exchanged" else shapes.Thing.describe
    return [Request(describe(thing), thing) for thing in things]


def draw_thing(thing: shapes.Thing, rng: np.random.Generator) -> np.ndarray:
    """Draw one thing at its place, (H, W, 3) uint8, with the usual variation."""
    centre = np.array([shapes.CENTRES[thing.place // 3], shapes.CENTRES[thing.place % 3]])
    centre += rng.uniform(-shapes.JITTER, shapes.JITTER, 2)
    radii = np.array([rng.uniform(*shapes.RADII[thing.size])])
    grey = int(rng.integers(*shapes.GREY))
    return shapes.draw(shapes.Scene((thing,), centre[None], radii, grey))[0]


class Example(NamedTuple):
    """One picture of a folder.

    Attributes:
        picture: (H, W, 3) uint8.
        caption: its caption.
        before: the picture before an edit; None for folders without edits.
    """

    picture: np.ndarray
    caption: str
    before: np.ndarray | None = None


def make_examples(kind: str) -> Iterator[Example]:
    """Yield the pictures of a folder with their captions.

    Args:
        kind: a choice of --write.
    """
    rng = np.random.default_rng(1)
    if kind == "example":
        yield Example(draw_thing(EXAMPLE, rng), EXAMPLE.describe())
        return
    if kind in NAMES:
        for place in SEEN:
            thing = SUBJECT._replace(place=place)
            yield Example(draw_thing(thing, rng), f"a {NAMES[kind]} at the {shapes.PLACES[place]}")
        return
    if kind == "given":
        for one in list_requests(kind):
            yield Example(draw_thing(one.thing, rng), one.thing.describe())
        return
    for k in range(SOME if kind == "prior" else MANY):
        scene = shapes.make_scene("test", k, single=True)
        (thing,), (picture, _) = scene.things, shapes.draw(scene)
        if kind == "edits":
            colour = (thing.colour + int(rng.integers(1, len(shapes.COLOURS)))) % len(
                shapes.COLOURS
            )
            edited = shapes.draw(scene._replace(things=(thing._replace(colour=colour),)))[0]
            yield Example(edited, f"make it {list(shapes.COLOURS)[colour]}", picture)
        else:
            yield Example(picture, rename(thing) if kind == "exchanged" else ANY)


def write_folder(kind: str, out: Path) -> None:
    """Write pictures and metadata.jsonl, in the layout of captioned folders and of pairs.

    Args:
        kind: a choice of --write.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for k, one in enumerate(make_examples(kind)):
        row = {"file_name": f"{k:05d}.png", "text": one.caption}
        Image.fromarray(one.picture).save(out / row["file_name"])
        if one.before is not None:
            row["conditioning_image"] = f"before-{k:05d}.png"
            Image.fromarray(one.before).save(out / row["conditioning_image"])
        lines.append(json.dumps(row))
    write_atomically(out / "metadata.jsonl", "\n".join(lines) + "\n")


def read_pictures(folder: Path, kind: str, out: Path) -> None:
    """Read what pictures show, and write the shares as JSON and the pictures as one sheet.

    The file also counts the requests all of whose pictures are right, since pictures of one request
    may be much the same.

    Args:
        folder: pictures of each request in turn, as `experiments.generate` writes them; the sheet
            shows the first `COLUMNS` of each.
        kind: a choice of --prompts.
        out: the JSON file; the sheet is beside it as .png.

    Raises:
        ValueError: requests have fewer than `COLUMNS` pictures, or not as many each.
    """
    requests, files = list_requests(kind), sorted(folder.glob("*.png"))
    columns, rest = divmod(len(files), len(requests))
    if rest or columns < COLUMNS:
        raise ValueError(
            f"{folder} has {len(files)} pictures of {len(requests)} requests; each needs as many "
            f"as the others, at least {COLUMNS}"
        )
    images = np.stack([pictures.read_image(file) for file in files])
    verdicts = [
        shapes.check_picture(image, [requests[k // columns].thing])
        for k, image in enumerate(images)
    ]
    right = np.asarray(verdicts).reshape(len(requests), columns, -1)
    counts = {"pictures": len(images), "requests": len(requests)}
    shares = dict(zip(shapes.Verdict._fields, right.mean((0, 1)).tolist(), strict=True))
    whole = (right == 1).all(1).sum(0).tolist()
    written = {**counts, **shares, "whole": dict(zip(shapes.Verdict._fields, whole, strict=True))}
    write_atomically(out, json.dumps(written, indent=2) + "\n")
    shown = images.reshape(len(requests), columns, *images.shape[1:])[:, :COLUMNS]
    sheet = tile(np.concatenate(shown) / 127.5 - 1, columns=COLUMNS, scale=SCALE)
    save_png(sheet, out.with_suffix(".png"))
