"""Write the latents of a data set once, so that training on them need not encode again.

    python -m experiments.encode --config=configs/ldm.py:fashion_mnist \\
        --config.autoencoder.weights=runs/ae --out=runs/latents
    python -m experiments.train --config=configs/ldm.py:fashion_mnist --workdir=runs/ldm \\
        --config.autoencoder.weights=runs/ae \\
        --config.data.name=latents --config.data.dir=runs/latents

Mean and log-variance are stored, in float32: with the same seed, training draws the same posterior
samples, and its losses are those of encoding on the fly. Images are not flipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict
from tqdm import tqdm

from diffjax import data, runs
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.data import latents
from diffjax.model.space import encode_moments
from diffjax.runs.fixed_parts import describe_autoencoder
from diffjax.train.frozen import hash_content
from diffjax.types import Params

OUT = flags.DEFINE_string(
    "out", None, "Folder that the latents are written to, with a sub-folder per split."
)
SPLITS = flags.DEFINE_list("splits", ["train"], "Splits of the data to encode.")
# Images that are encoded at a time.
BATCH = 64


def encode_batches(
    cfg: ConfigDict, source: data.Source, params: Params
) -> Iterator[dict[str, np.ndarray]]:
    """Encode a data set in batches, in its order.

    Args:
        source: the data set.
        params: of the autoencoder that the config describes.

    Yields:
        ``moments`` (B, h, w, 2C), see `model.space.encode_moments`, with labels and texts. The last
        batch is padded while it is encoded, so that one program encodes all.
    """
    net = describe_autoencoder(cfg)
    run = jax.jit(lambda params, images: encode_moments(net, params, images))
    for start in tqdm(range(0, len(source), BATCH), desc="encoding", unit="batch"):
        batch = data.batch_of(source, np.arange(start, min(start + BATCH, len(source))))
        images = batch.pop("image")
        # A batch of another size would be compiled again.
        padding = [(0, BATCH - len(images))] + [(0, 0)] * 3
        stored = np.asarray(run(params, np.pad(images, padding)))[: len(images)]
        kept = {k: v for k, v in batch.items() if k in ("label", "text")}
        yield {"moments": stored, **kept}


FLAG_GROUPS = {"Latents": ("out", "workdir", "weights", "splits", "config")}
# Flags of other modules that this command uses.
USES = ("config", "workdir", "weights")


def main() -> None:
    """Encode the splits that the flags name, and write them below --out.

    What is written says which data set and autoencoder it came from, so that training on it with
    another autoencoder is refused.

    Raises:
        UsageError: --out is missing, or the config has no autoencoder.
    """
    cfg = run_flags.read_config()
    if not OUT.value:
        raise UsageError("--out=FOLDER is needed: where the latents go")
    if not cfg.get("autoencoder", None):
        raise UsageError("this config has no section autoencoder; use one of configs/ldm.py")
    out = Path(OUT.value)
    # The autoencoder's hash is stored with the latents, and compared when they are trained on.
    params = runs.load_fixed_parts(cfg, out, fresh=True)["autoencoder"]
    for split in SPLITS.value:
        source = runs.load_source(cfg, split)
        latents.write(
            out / split,
            encode_batches(cfg, source, params),
            count=len(source),
            image_shape=runs.read_image_shape(cfg),
            num_classes=source.num_classes,
            levels=source.levels,
            encoder=hash_content(params),
            images={"name": cfg.data.name, "dir": cfg.data.dir},
        )
        logging.info("%d latents in %s", len(source), out / split)


if __name__ == "__main__":
    run_flags.run(main, USES)
