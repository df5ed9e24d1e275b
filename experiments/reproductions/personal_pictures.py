"""Write the folders that personal models are trained on, and read the pictures that they make.

    python -m experiments.reproductions.personal_pictures --write=subject --out=runs/subject
    python -m experiments.reproductions.personal_pictures --read=runs/pictures --prompts=subject \\
        --out=runs/subject.json

Pictures are the captioned shapes of `diffjax.data.shapes`, so that a program can read them.

| --write | pictures | captions |
|---|---|---|
| subject | a large purple cross at four places | "a sks at the left" |
| word | the same | "a <thing> at the left" |
| prior | a small shape of any kind and colour | "a shape" |
| exchanged | 1,000 of one shape | the caption names the next colour of the list |
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.data import pictures, shapes
from diffjax.evaluation.image_grids import save_png, tile
from diffjax.writing import write_atomically

# What the pictures of a person's own show, and what it is called.
SUBJECT = shapes.Thing(1, list(shapes.COLOURS).index("purple"), shapes.SHAPES.index("cross"), 0)
NAMES = {"subject": "sks", "word": "<thing>"}
# Places of the pictures that are trained on; the others are for measuring.
SEEN = (0, 2, 4, 7)
UNSEEN = tuple(place for place in range(len(shapes.PLACES)) if place not in SEEN)
# Pictures of the exchanged colours, and of the prior.
MANY, SOME = 1000, 60
# Pictures of each prompt.
COLUMNS = 4
SCALE = 3

WRITE = flags.DEFINE_enum(
    "write", None, ["subject", "word", "prior", "exchanged"], "Pictures to write to --out."
)
READ = flags.DEFINE_string("read", None, "Folder of pictures to read, of one set of prompts.")
PROMPTS = flags.DEFINE_enum(
    "prompts",
    "plain",
    ["plain", "subject", "word", "exchanged"],
    "What the pictures of --read were asked to show.",
)
OUT = flags.DEFINE_string("out", None, "Folder of --write, or JSON file of --read.")


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
            at.
    """
    if kind in NAMES:
        things = [SUBJECT._replace(place=place) for place in UNSEEN]
        return [Request(f"a {NAMES[kind]} at the {shapes.PLACES[t.place]}", t) for t in things]
    things = [shapes.Thing(1, k, k % len(shapes.SHAPES), (2 * k + 1) % 9) for k in range(6)]
    describe = rename if kind == "exchanged" else shapes.Thing.describe
    return [Request(describe(thing), thing) for thing in things]


def make_examples(kind: str) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the pictures (H, W, 3) uint8 of a folder with their captions.

    Args:
        kind: a choice of --write.
    """
    if kind in NAMES:
        rng = np.random.default_rng(1)
        for place in SEEN:
            scene = shapes.make_scene("train", 0)
            centre = np.array([shapes.CENTRES[place // 3], shapes.CENTRES[place % 3]])
            centre += rng.uniform(-shapes.JITTER, shapes.JITTER, 2)
            thing = SUBJECT._replace(place=place)
            radii = np.array([rng.uniform(*shapes.RADII[thing.size])])
            scene = shapes.Scene((thing,), centre[None], radii, int(rng.integers(*shapes.GREY)))
            yield shapes.draw(scene)[0], f"a {NAMES[kind]} at the {shapes.PLACES[place]}"
        return
    for k in range(MANY if kind == "exchanged" else SOME):
        scene = shapes.make_scene("test", k, single=True)
        caption = rename(scene.things[0]) if kind == "exchanged" else scene.caption()
        yield shapes.draw(scene)[0], caption


def write_folder(kind: str, out: Path) -> None:
    """Write pictures and metadata.jsonl, in the layout of a captioned folder.

    Args:
        kind: a choice of --write.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for k, (picture, caption) in enumerate(make_examples(kind)):
        Image.fromarray(picture).save(out / f"{k:05d}.png")
        lines.append(json.dumps({"file_name": f"{k:05d}.png", "text": caption}))
    write_atomically(out / "metadata.jsonl", "\n".join(lines) + "\n")


def read_pictures(folder: Path, kind: str, out: Path) -> None:
    """Read what pictures show, and write the shares as JSON and the pictures as one sheet.

    Args:
        folder: `COLUMNS` pictures of each request in turn, as `experiments.generate` writes them.
        kind: a choice of --prompts.
        out: the JSON file; the sheet is beside it as .png.

    Raises:
        UsageError: there are more or fewer pictures.
    """
    requests, files = list_requests(kind), sorted(folder.glob("*.png"))
    if len(files) != COLUMNS * len(requests):
        raise UsageError(f"{folder} has {len(files)} pictures of {COLUMNS * len(requests)}")
    images = np.stack([pictures.read_image(file) for file in files])
    verdicts = [
        shapes.check_picture(image, [requests[k // COLUMNS].thing])
        for k, image in enumerate(images)
    ]
    shares = {
        key: float(np.mean([getattr(verdict, key) for verdict in verdicts]))
        for key in shapes.Verdict._fields
    }
    write_atomically(out, json.dumps({"pictures": len(images), **shares}, indent=2) + "\n")
    save_png(tile(images / 127.5 - 1, columns=COLUMNS, scale=SCALE), out.with_suffix(".png"))


def main() -> None:
    """Write a folder, or read one.

    Raises:
        UsageError: neither or both are asked for, or --out is missing.
    """
    if bool(WRITE.value) == bool(READ.value) or not OUT.value:
        raise UsageError("give --write or --read, and --out")
    if WRITE.value:
        write_folder(WRITE.value, Path(OUT.value))
    else:
        read_pictures(Path(READ.value), PROMPTS.value, Path(OUT.value))


if __name__ == "__main__":
    run_flags.run(main)
