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
| edits | 1,000 of one shape, each beside itself in another colour | "make it red" |
| any | 1,000 of one shape | "a shape" |
| given | a large thing of every colour and shape, to be asked for by its picture | what it is |
| example | a large red circle in the middle | what it is |
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from experiments.reproductions.personal_scenes import read_pictures, write_folder

WRITE = flags.DEFINE_enum(
    "write",
    None,
    ["subject", "word", "prior", "exchanged", "edits", "any", "given", "example"],
    "Pictures to write to --out.",
)
READ = flags.DEFINE_string("read", None, "Folder of pictures to read, of one set of prompts.")
PROMPTS = flags.DEFINE_enum(
    "prompts",
    "plain",
    ["plain", "subject", "word", "exchanged", "edits", "given"],
    "What the pictures of --read were asked to show.",
)
OUT = flags.DEFINE_string("out", None, "Folder of --write, or JSON file of --read.")


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
