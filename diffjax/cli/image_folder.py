"""A folder of numbered images, which the same command completes after an interruption.

Each image holds the options that it was made with. So the images that are missing are known, and
those of another command are not overwritten.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffjax.cli.image_options import ImageOptions, read_png
from diffjax.types import ConfigError


def make_image_path(folder: Path, number: int) -> Path:
    """Make the path of an image by its number: 00000.png and so on."""
    return folder / f"{number:05d}.png"


def list_images(options: ImageOptions, num: int) -> list[ImageOptions]:
    """List the options of each image in order, ``num`` images for each prompt.

    Image k has one prompt, and the seed ``options.seed + k``.
    """
    prompts = [prompt for prompt in options.prompt for _ in range(num)]
    return [
        dataclasses.replace(options, prompt=(prompt,), seed=options.seed + k)
        for k, prompt in enumerate(prompts)
    ]


def find_missing(images: Sequence[ImageOptions], folder: Path) -> list[int]:
    """Find the numbers of the images that the folder does not hold yet.

    Args:
        images: options of all images in order.
        folder: of the images.

    Returns:
        The numbers, in order.

    Raises:
        ConfigError: the folder holds an image with other options, or a file that is no such image.
    """
    missing = []
    for number, options in enumerate(images):
        path = make_image_path(folder, number)
        if not path.exists():
            missing.append(number)
        elif read_png(path) != options:
            raise ConfigError(f"{path} has other settings; choose another --out")
    return missing


def group_numbers(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the numbers in groups of one size, so that one compiled program makes them all.

    The last group is filled up with copies of its last number.
    """
    for start in range(0, len(numbers), size):
        group = list(numbers[start : start + size])
        yield group + group[-1:] * (size - len(group))
