"""Draw what pictures ask for through an IP-Adapter, or the same without it.

    python -m experiments.reproductions.personal_prompted --model=MODEL --adapter=ADAPTER \\
        --pictures=FOLDER --out=runs/pictures

Every picture of the folder is the prompt of `COLUMNS` pictures beside the same words, as
`personal_scenes` has them. All have noise of their own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

import diffjax
from diffjax.cli import run_flags
from diffjax.data import pictures
from experiments.reproductions.personal_scenes import ANY, COLUMNS

MODEL = flags.DEFINE_string("model", None, "Folder of the model.", required=True)
ADAPTER = flags.DEFINE_string("adapter", None, "Folder of the IP-Adapter; none if not set.")
PICTURES = flags.DEFINE_string("pictures", None, "Folder of picture prompts.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)


def main() -> None:
    """Draw the pictures of every prompt in turn, and write them as 00000.png and so on."""
    pipe = diffjax.load(MODEL.value)
    files = sorted(Path(PICTURES.value).glob("*.png"))
    given = np.stack([pictures.read_image(file) for file in files])
    prompts: tuple[diffjax.ImagePrompt, ...] = ()
    if ADAPTER.value:
        prompts = (diffjax.ImagePrompt(pipe.load_image_adapter(ADAPTER.value), given),)
    drawn = pipe(
        [ANY] * len(given),
        key=0,
        sampler=diffjax.Sampling("dpmpp_2m", 25),
        guidance=3.0,
        image_prompt=prompts,
        num=COLUMNS,
        output="np",
    )
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(drawn):
        Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(out / f"{k:05d}.png")


if __name__ == "__main__":
    run_flags.run(main)
