"""Images of prompts, from the published weights of a Stable Diffusion model.

    diffjax generate --model=FOLDER --prompt="a red cat" --num=4 --out=cats

Writes OUT/00000.png and so on. Image k has the seed SEED + k and does not depend on how many are
made at once. Every file holds its settings, and ``--from_image=FILE`` takes them from there. Flags
that are given as well take precedence, and the files that the picture names are opened only with
``--trust_paths``. The same command, run again, makes the images that are missing.
"""

from __future__ import annotations

import math
from pathlib import Path

from absl import flags, logging
from tqdm import tqdm

from diffjax.cli import generate_flags
from diffjax.cli.command_line import UsageError
from diffjax.cli.image_folder import find_missing, group_numbers, list_images, make_image_path
from diffjax.cli.image_options import save_png
from diffjax.cli.image_request import add_networks, generate_images, load_pipeline, make_request

# The most images of a command.
MOST = 10**6

NUM = flags.DEFINE_integer("num", 1, "Number of images per prompt.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Number of images that are made at once.")
OUT = flags.DEFINE_string("out", "generated", "Folder that the images are written to.")

# Flags in the order of the help, see `help_pages`.
FLAG_GROUPS = {
    "Request": ("model", "prompt", "negative", "out", "num", "seed", "batch_size"),
    "Sampling": ("steps", "sampler", "guidance", "height", "width"),
    "Images to start from": ("init_image", "strength", "mask", "control", "balance"),
    "Adapters and refiner": ("lora", "concept", "refiner", "refiner_start"),
    "Repeat an image": ("from_image", "trust_paths"),
    "More about the model": (
        *("dtype", "variant", "tokenizer", "vae", "prediction", "allow_legacy_pickle"),
    ),
    "More about prompts and sampling": (
        *("weighted", "clip_skip", "prompt_2", "negative_2", "grid", "eta", "rescale"),
        *("timesteps", "sigmas", "pag", "pag_layers", "pag_adaptive", "freeu"),
    ),
    "More about images and the refiner": (
        *("image_prompt", "mask_padding", "image_guidance", "depth", "noise_level"),
        *("refiner_prompt", "refiner_negative", "refiner_guidance"),
    ),
    "Size conditions of XL": (
        *("original_size", "crop", "target_size", "aesthetic", "negative_original_size"),
        *("negative_crop", "negative_target_size", "negative_aesthetic"),
    ),
}


def main() -> None:
    """Generate the images that the folder does not hold yet.

    Raises:
        UsageError: a flag is missing or out of range.
        ConfigError: the folder holds images with other settings, or the request is wrong.
    """
    options, folder = generate_flags.read_options(), Path(OUT.value)
    legacy = generate_flags.ALLOW_LEGACY_PICKLE.value
    if NUM.value < 1 or BATCH_SIZE.value < 1:
        raise UsageError("--num and --batch_size must be at least 1")
    _check_seeds(options.seed, NUM.value * len(options.prompt))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out={folder} is a file; give the name of a folder")
    # Wrong flags are found before minutes of loading.
    request = make_request(options)
    folder.mkdir(parents=True, exist_ok=True)
    images = list_images(options, NUM.value)
    missing = find_missing(images, folder)
    if len(missing) < len(images):
        logging.info("%d of %d images are there already", len(images) - len(missing), len(images))
    if not missing:
        return
    pipe = load_pipeline(options, options.model or "", allow_legacy_pickle=legacy)
    request = add_networks(request, options, pipe, allow_legacy_pickle=legacy)
    # All batches have one size, so that one program makes them all.
    size = min(BATCH_SIZE.value, len(images))
    count = math.ceil(len(missing) / size)
    for group in tqdm(group_numbers(missing, size), total=count, desc="images", unit="batch"):
        made = generate_images(pipe, request, [images[k] for k in group])
        for number, picture in dict(zip(group, made, strict=True)).items():
            save_png(picture, make_image_path(folder, number), images[number])
    logging.info("%d images in %s", len(images), folder)


def _check_seeds(seed: int, count: int) -> None:
    """Check that all images have seeds of 32 bits, before anything is loaded.

    Args:
        seed: of the first image.
        count: number of images.

    Raises:
        UsageError: there are too many images, or their seeds have more than 32 bits.
    """
    if count > MOST:
        raise UsageError(f"--num: {count} images are more than the {MOST} of one command")
    if not 0 <= seed <= 2**32 - count:
        raise UsageError(
            f"--seed: image k has the seed {seed} + k, but seeds must lie in [0, 2^32)"
        )
