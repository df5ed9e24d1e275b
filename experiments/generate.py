"""Images of prompts, from the published weights of a Stable Diffusion model.

    python -m experiments.generate --model=FOLDER --prompt="a red cat" --num=4 --out=cats

Writes OUT/00000.png and so on. Image k has the seed SEED + k and does not depend on how many are
made at once. Every file holds its settings, and ``--from_image=FILE`` takes them from there; flags
that are given besides count more, and the files that it names are opened with ``--trust_paths``
only. The same command again makes what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image
from absl import flags, logging
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

import diffjax
from diffjax import control, generate
from diffjax.data import pictures
from diffjax.pretrained import load_model, load_single_file
from diffjax.pretrained.files import weights_file
from diffjax.pretrained.models import Model
from diffjax.writing import replace_file
from experiments import common, settings
from experiments.settings import ENTRY, SETTINGS, Settings, read_settings

__all__ = ["SETTINGS"]  # of the flags below

MOST = 10**6  # images of a command
_SAMPLERS, _GRIDS = ", ".join(generate.SAMPLERS), ", ".join(generate.GRIDS)

flags.DEFINE_string("model", None, "diffusers folder, or a single .safetensors file.")
flags.DEFINE_string("tokenizer", None, "Folder of a CLIP tokenizer; single files hold none.")
flags.DEFINE_string("vae", None, "Folder or file of an autoencoder in place of the model's own.")
flags.DEFINE_string("variant", None, "Part of the weights' file names, such as fp16.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Of the computation.")
flags.DEFINE_enum(
    "prediction",
    None,
    ["epsilon", "v_prediction"],
    "Of a single file of SD 2; v_prediction if not set.",
)
flags.DEFINE_multi_string(
    "lora", [], "Adapter, a file or a folder of peft, PATH or PATH:SCALE; several add up."
)
flags.DEFINE_multi_string("concept", [], "Textual inversion, FILE or FILE:WORD.")
flags.DEFINE_bool(
    "allow_legacy_pickle", False, "Read a --concept from a pickle too, without running its code."
)
flags.DEFINE_multi_string("prompt", [], "What to show; several make --num images each.")
flags.DEFINE_string("prompt_2", None, "What XL's second text encoder is told; --prompt if not set.")
flags.DEFINE_string("negative", None, "What not to show.")
flags.DEFINE_string("negative_2", None, "Likewise for XL's second text encoder.")
flags.DEFINE_bool("weighted", False, "Prompts with weights, as in (word:1.3), of any length.")
flags.DEFINE_integer("clip_skip", 0, "Layers of the text encoder left out.")
flags.DEFINE_string("sampler", None, f"The model's own if not set; or {_SAMPLERS}.")
flags.DEFINE_integer("steps", 50, "Number of steps.")
flags.DEFINE_string("grid", None, f"Where the steps lie: {_GRIDS}.")
flags.DEFINE_float("eta", None, "Of the samplers ddim and tcd.")
flags.DEFINE_float("guidance", None, "Scale; 7.5, or 5 for XL, if not set; 1: none.")
flags.DEFINE_float("rescale", 0.0, "Guidance rescale in [0, 1].")
flags.DEFINE_integer("height", 0, "In pixels; the model's own if 0.")
flags.DEFINE_integer("width", 0, "Likewise.")
flags.DEFINE_string("init_image", None, "Image to start from, or to fill in.")
flags.DEFINE_string("mask", None, "White where --init_image is to be filled in.")
flags.DEFINE_float("strength", None, "Share of the steps run from --init_image.")
flags.DEFINE_multi_string(
    "control",
    [],
    "NET:IMAGE[:SCALE[:START:END]]: folder or file of a ControlNet, or folder of a T2I-Adapter, "
    "its image, its scale, and the shares of the steps between which it acts; several add up.",
)
flags.DEFINE_enum(
    "balance", "balanced", sorted(control.BALANCES), "How ControlNets and guidance go together."
)
flags.DEFINE_string("refiner", None, "Folder or file of XL's refiner.")
flags.DEFINE_float("refiner_start", 0.8, "Share of the denoising done before it.")
flags.DEFINE_integer("seed", 0, "Seed of the first image.")
flags.DEFINE_integer("num", 1, "Images per prompt.")
flags.DEFINE_integer("batch_size", 1, "Images made at once.")
flags.DEFINE_string("out", "generated", "Folder of the images.")
flags.DEFINE_string("from_image", None, "Take the settings of an image that was made here.")
flags.DEFINE_bool(
    "trust_paths", False, "Open the models and pictures that --from_image names on this machine."
)


def _split(text: str) -> tuple[str, str | None]:
    """PATH:REST, where the path may hold colons if it exists as it is."""
    head, colon, tail = text.rpartition(":")
    return (head, tail) if colon and not Path(text).exists() else (text, None)


def _read_lora(text: str) -> tuple[str, float]:
    """File and scale of a --lora.

    Raises:
        UsageError: the scale is no number.
    """
    file, scale = _split(text)
    if scale is not None and not _is_number(scale):
        raise common.UsageError(f"--lora={text}: must be FILE or FILE:SCALE, with a number")
    return file, 1.0 if scale is None else float(scale)


def read_control(text: str) -> tuple[str, str, tuple[float, ...]]:
    """(net, image, (scale, start, end) as far as given) of a --control; paths may hold colons.

    Raises:
        UsageError: it does not name two that exist.
    """
    parts = text.split(":")
    for count in (3, 1, 0):
        paths, numbers = parts[: len(parts) - count], parts[len(parts) - count :]
        for k in range(1, len(paths)):
            net, image = ":".join(paths[:k]), ":".join(paths[k:])
            if Path(net).exists() and Path(image).is_file() and all(map(_is_number, numbers)):
                return net, image, tuple(map(float, numbers))
    raise common.UsageError(
        f"--control={text}: must be NET:IMAGE[:SCALE[:START:END]], with a ControlNet and an image "
        "that exist"
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


# What messages of the library call the arguments of these flags.
_ARGUMENTS = {
    "variant=": "--variant",
    "variant out": "--variant",
    "tokenizer=": "--tokenizer",
    "argument vae": "--vae",
    "with_lora": "--lora",
    "with_concept": "--concept",
    "a ControlNet": "--control",
    "allow_legacy_pickle": "--allow_legacy_pickle",
}


@contextlib.contextmanager
def _naming_flags() -> Iterator[None]:
    """Errors inside say which flags the arguments are that they name.

    Raises:
        FileNotFoundError, ValueError: there was one.
    """
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        named = {flag for argument, flag in _ARGUMENTS.items() if argument in str(error)}
        if not named:
            raise
        raise type(error)(f"{error} (here: {', '.join(sorted(named))})") from error


def load(chosen: Settings, path: str) -> generate.Pipeline:
    """The pipeline with adapters and words."""
    with _naming_flags():
        pipe = generate.load(
            path,
            dtype=jnp.dtype(chosen["dtype"]),
            variant=chosen["variant"],
            tokenizer=chosen["tokenizer"],
            prediction=chosen["prediction"],
            vae=chosen["vae"] or None,
        )
        for file, scale in map(_read_lora, chosen["lora"]):
            pipe = pipe.with_lora(file, scale=scale)
        for file, word in map(_split, chosen["concept"]):
            allowed = flags.FLAGS["allow_legacy_pickle"].value
            pipe = pipe.with_concept(file, name=word, allow_legacy_pickle=allowed)
    return pipe


def _open(flag: str, path: str) -> PIL.Image.Image:
    """The picture of a flag.

    Raises:
        UsageError: there is none, or it is damaged or too large.
    """
    try:
        return pictures.open_image(path)
    except OSError as error:
        raise common.UsageError(f"--{flag}: {path} cannot be read: {error}") from error
    except ValueError as error:
        raise common.UsageError(f"--{flag}: {error}") from error


def load_controlnet(path: str, dtype: Any, variant: str | None = None) -> Model:
    """A ControlNet or T2I-Adapter from a diffusers folder, or the former from a single file.

    Weights of the variant, if there are any, since that is said of the model.
    """
    if Path(path).is_dir():
        return load_model(
            path, dtype=dtype, variant=variant if weights_file(path, variant) else None
        )
    return load_single_file(path, parts=["controlnet"], dtype=dtype)["controlnet"]


def _told(first: str | None, second: str | None) -> str | generate.Prompt | None:
    """A prompt, in two parts if XL's encoders are told different texts."""
    return first if second is None else generate.Prompt(first or "", second)


def make_request(chosen: Settings) -> generate.Request:
    """What is asked for, without seeds and other networks, as far as it is right without a model.

    Raises:
        UsageError: a flag is wrong; it is named.
    """
    image = None
    if chosen["init_image"]:
        mask = _open("mask", chosen["mask"]) if chosen["mask"] else None
        picture = _open("init_image", chosen["init_image"])
        image = generate.Image(picture, chosen["strength"], mask)
    for text in chosen["control"]:
        read_control(text)
    for text in chosen["lora"]:
        _read_lora(text)
    with settings.name_flags():
        plain = settings.read_numbers(chosen)
        negative = _told(chosen["negative"], chosen["negative_2"])
        return dataclasses.replace(
            plain,
            prompt=[_told(prompt, chosen["prompt_2"]) for prompt in chosen["prompt"]],
            guidance=plain.guiding()._replace(negative=negative),
            image=image,
        ).read()


def add_networks(request: generate.Request, chosen: Settings) -> generate.Request:
    """A request with the refiner and the ControlNets of the flags."""
    refiner = None
    if chosen["refiner"]:
        plain = {**chosen, "lora": [], "concept": []}
        refiner = generate.Refiner(load(plain, chosen["refiner"]), chosen["refiner_start"])
    dtype = jnp.dtype(chosen["dtype"])
    nets = [
        generate.Control(
            load_controlnet(net, dtype, chosen["variant"]),
            _open("control", file),
            *numbers,
            balance=chosen["balance"],
        )
        for net, file, numbers in map(read_control, chosen["control"])
    ]
    return dataclasses.replace(request, refiner=refiner, control=nets)


def each(chosen: Settings, num: int) -> list[Settings]:
    """The settings of every image: one prompt and its seed."""
    prompts = [prompt for prompt in chosen["prompt"] for _ in range(num)]
    return [
        {**chosen, "prompt": [prompt], "seed": chosen["seed"] + k}
        for k, prompt in enumerate(prompts)
    ]


def missing(wanted: Sequence[Settings], folder: Path) -> list[int]:
    """Which images are not there yet.

    Raises:
        UsageError: there is one of other settings.
    """
    out = []
    for k, one in enumerate(wanted):
        path = folder / f"{k:05d}.png"
        if not path.exists():
            out.append(k)
        elif read_settings(path) != one:
            raise common.UsageError(f"{path} has other settings; choose another --out")
    return out


def save(picture: PIL.Image.Image, path: Path, chosen: Settings) -> None:
    """Write a PNG with its settings, all of it or nothing."""
    info = PngInfo()
    info.add_text(ENTRY, json.dumps({**chosen, "version": diffjax.__version__}))
    with replace_file(path) as partial:
        picture.save(partial, "PNG", pnginfo=info)


def batches(todo: Sequence[int], size: int) -> Iterator[list[int]]:
    """Groups of one size, so that one program makes them; the last one is filled up."""
    for start in range(0, len(todo), size):
        some = list(todo[start : start + size])
        yield some + some[-1:] * (size - len(some))


def main() -> None:
    chosen, values = settings.choose(), flags.FLAGS
    folder = Path(values.out)
    if values.num < 1 or values.batch_size < 1:
        raise common.UsageError("--num and --batch_size must be at least 1")
    _check_seeds(chosen["seed"], values.num * len(chosen["prompt"]))
    request = make_request(chosen)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = each(chosen, values.num)
    todo = missing(wanted, folder)
    if len(todo) < len(wanted):
        logging.info("%d of %d images are there already", len(wanted) - len(todo), len(wanted))
    if not todo:
        return
    pipe = load(chosen, chosen["model"])
    request = add_networks(request, chosen)
    size = min(values.batch_size, len(wanted))
    groups = math.ceil(len(todo) / size)
    for some in tqdm(batches(todo, size), total=groups, desc="images", unit="batch"):
        with settings.name_flags():
            made = run(pipe, request, [wanted[k] for k in some])
        for k, picture in dict(zip(some, made, strict=True)).items():
            save(picture, folder / f"{k:05d}.png", wanted[k])
    logging.info("%d images in %s", len(wanted), folder)


def _check_seeds(seed: int, count: int) -> None:
    """
    Raises:
        UsageError: there are too many images, or their seeds have more than 32 bits.
    """
    if count > MOST:
        raise common.UsageError(f"--num: {count} images are more than the {MOST} of one command")
    if not 0 <= seed <= 2**32 - count:
        raise common.UsageError(
            f"--seed: image k has the seed {seed} + k, but seeds must lie in [0, 2^32)"
        )


def run(
    pipe: generate.Pipeline, request: generate.Request, some: Sequence[Settings]
) -> list[PIL.Image.Image]:
    """The images of a batch, with a progress bar of its steps."""
    fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
    fields |= {
        "prompt": [_told(one["prompt"][0], one["prompt_2"]) for one in some],
        "key": np.array([one["seed"] for one in some]),
    }
    with tqdm(desc="steps", leave=False) as bar:

        def show(progress: generate.Progress) -> None:
            bar.total = progress.count
            bar.update()

        return pipe(fields.pop("prompt"), **fields, callback=show)


if __name__ == "__main__":
    common.run(main)
