"""What evaluation and training share: real images, sets of images, and measures of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax import data, metrics
from diffjax.config import resolve
from diffjax.data import latents
from diffjax.data.datasets import ENV_DIR
from diffjax.data.folders import list_images
from diffjax.data.pictures import image_size
from diffjax.data.text import read_text, split_lines
from diffjax.nets.perceptual import LPIPS
from diffjax.pretrained import from_state_dict
from diffjax.pretrained.clip import load_clip
from diffjax.pretrained.files import PickleError
from diffjax.pretrained.perceptual import load_lpips
from diffjax.pretrained.pickles import open_weights
from diffjax.pretrained.tokenizers import load_tokenizer
from diffjax.tasks import Diffusion
from experiments import common, generation

INCEPTION = ("fid", "sfid", "is", "kid", "prdc", "rfid")  # metrics that need its weights
PAIRED = ("psnr", "ssim", "rfid")  # metrics of images and their originals, in the same order
ALONE = ("is", "clip", "diversity")  # metrics that need no reference
ARRAYS = ("images", "arr_0")  # names of images in an npz, ours and ADM's
PSNR_MOST = 100.0  # dB, of a pair that is equal: JSON has no infinity
CHUNK = 1000  # images in memory at a time
KID_SUBSET = 1000
BATCH = 32  # of CLIP


def reference(cfg: Any, num: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """``num`` real images in [-1, 1] and their labels, by a fixed permutation of the split."""
    source = common.source_of(pictured(cfg), split)
    batch = source.take(_shuffled(source)[:num])
    return data.to_float(batch["image"], source.levels), batch["label"]


def reference_images(cfg: Any, num: int, split: str = "train") -> np.ndarray:
    """The images of `reference`."""
    return reference(cfg, num, split)[0]


def pictured(cfg: Any) -> Any:
    """A config with its images for data; of stored latents, those that were encoded.

    Raises:
        UsageError: the latents do not say what they were made of.
    """
    if cfg.data.name != "latents":
        return cfg
    folder = cfg.data.dir or os.environ.get(ENV_DIR, "")
    found = latents.origin(Path(folder)) if folder else {}
    if not found:
        raise common.UsageError(
            f"the latents in {folder} do not say what they were made of, and there are no images "
            "to compare with: name their data set, as in --config.data.name=fashion_mnist "
            "--config.data.dir=FOLDER, or give --reference with metrics of Inception"
        )
    copy = ConfigDict(cfg.to_dict())
    copy.data.update(found)
    return copy


def _shuffled(source: data.Source) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(source))


def classes_of(cfg: Any, model: Diffusion) -> int:
    """Classes that generated images take in turn; 0 if none, or as a ControlNet's hints have it."""
    return 0 if cfg.task == "controlnet" else model.num_classes


def judge(network: Any, images: np.ndarray, real: np.ndarray, classes: int = 0) -> dict[str, Any]:
    """Image metrics after rounding to 8 bits, as saved images are.

    With ``classes``, image k was made as class ``k % classes``, and ``class_accuracy`` is the share
    that the frozen classifier sees so.
    """
    rounded = data.to_float(generation.to_uint8(images), 256)
    result = metrics.evaluate_images(network, rounded, real)
    if classes:
        seen = metrics.extract(network, rounded).probs.argmax(1)
        result["class_accuracy"] = float((seen == np.arange(len(seen)) % classes).mean())
    return result


# ---- sets of images ---------------------------------------------------------------------------


def sampler_options(cfg: Any) -> dict[str, Any]:
    """How images are sampled, with what the config leaves open filled in; JSON has no infinity."""
    options = resolve(cfg)["sample"]
    return {
        k: None if v == math.inf else v
        for k, v in options.items()
        if k not in ("num", "batch_size")
    }


class ImageSet(NamedTuple):
    """Images that are read or made when asked for.

    Attributes:
        name: what they are; equal names mean equal images.
        num: how many.
        read: (start, stop) -> uint8 0..255 or float in [-1, 1], (N, H, W, C).
    """

    name: str
    num: int
    read: Callable[[int, int], np.ndarray]

    def first(self, num: int | None) -> ImageSet:
        """At most ``num`` of them."""
        return self._replace(num=min(self.num, num or self.num))


def from_file(path: str) -> ImageSet:
    """The images of an npz file (``images`` or ADM's ``arr_0``), or of a folder.

    Raises:
        UsageError: there is neither, or it holds something else.
    """
    try:
        if Path(path).is_dir():
            source = data.load("image_folder", split="all", data_dir=path)
            _check_sizes(list_images(Path(path)))
            return ImageSet(
                _stamp(path), len(source), lambda a, b: source.take(np.arange(a, b))["image"]
            )
        images = metrics.load_array(path, ARRAYS)
    except (OSError, ValueError) as error:
        raise common.UsageError(f"cannot read images from {path}: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise common.UsageError(
            f"{path} must hold uint8 images (N, H, W, C), got {images.dtype} {images.shape}"
        )
    return ImageSet(_stamp(path), len(images), lambda a, b: np.asarray(images[a:b]))


def save(images: ImageSet, path: Path) -> None:
    """Write images (uint8 ``images``) as `from_file` reads them."""
    chunks = range(0, images.num, CHUNK)
    parts = [_levels(images.read(a, min(a + CHUNK, images.num))) for a in chunks]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=np.concatenate(parts))


def _check_sizes(files: list[Path]) -> None:
    first = image_size(files[0])
    for file in files:
        if (size := image_size(file)) != first:
            a, b = (f"{height}x{width} (height x width)" for height, width in (first, size))
            raise ValueError(f"images must have one size, but {files[0]} is {a} and {file} {b}")


def _stamp(path: str) -> str:
    """A path, and a digest of names, sizes and times of the file or of the images below it."""
    root = Path(path).resolve()
    digest = hashlib.sha256()
    for file in list_images(root) if root.is_dir() else [root]:
        stat = file.stat()
        digest.update(f"{file.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"{root} {digest.hexdigest()}"


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Grey images (N, H, W, 1) as RGB, or RGB ones without colour as grey.

    Raises:
        UsageError: there is colour, or another number of channels.
    """
    found = images.shape[-1]
    if found == 1 or found == channels:
        return np.broadcast_to(images, (*images.shape[:3], channels))
    if channels != 1 or (images != images[..., :1]).any():
        raise common.UsageError(
            f"images in colour cannot be judged as images of {channels} channels"
        )
    return images[..., :1]


def from_data(cfg: Any, split: str) -> ImageSet:
    """A split of the config's data set, in a fixed random order."""
    cfg = pictured(cfg)
    source = common.test_source(cfg) if split == "test" else common.source_of(cfg, split)
    order = _shuffled(source)

    def read(start: int, stop: int) -> np.ndarray:
        return data.to_float(source.take(order[start:stop])["image"], source.levels)

    name = f"{cfg.data.name} {cfg.data.dir} {split} {source.shape}"
    return ImageSet(name, len(source), read)


def generated(maker: generation.ImageMaker, num: int, *, seed: int, settings: Any) -> ImageSet:
    """Samples of a model; ``settings`` tell it and its sampler from others."""

    def read(start: int, stop: int) -> np.ndarray:
        return maker.make(num=stop - start, first=start, seed=seed)

    return ImageSet(json.dumps({**settings, "seed": seed}, sort_keys=True), num, read)


# ---- Inception --------------------------------------------------------------------------------


def inception(
    path: str | None, *, allow_legacy_pickle: bool, resize: str
) -> metrics.FeatureNetwork:
    """Inception with the weights of a file.

    Raises:
        UsageError: no file was given; says where to get it.
        ValueError: the file is damaged, refused, or not Inception.
    """
    if not path:
        raise common.UsageError(
            f"these metrics need Inception: {metrics.INCEPTION_SOURCE}. Then pass "
            "--inception=FILE, and --allow_legacy_pickle if it is the .pth file"
        )
    try:
        weights = open_weights(path, allow_legacy_pickle=allow_legacy_pickle)
    except PickleError as error:
        raise PickleError(f"{error} (the flag is --allow_legacy_pickle)") from error
    shapes = metrics.inception_shapes()
    return metrics.inception_network(
        jax.tree.map(np.asarray, from_state_dict(weights, shapes)), resize=resize
    )


_KEPT = re.compile(r"[0-9a-f]{12}")  # how `Collector` calls what it keeps of a set of images


class Collector:
    """Features of sets of images, kept in a folder so that a run can go on where it stopped."""

    def __init__(self, network: metrics.FeatureNetwork, folder: Path, *, spatial: bool):
        self._network, self._folder, self._spatial = network, folder, spatial

    def __call__(self, images: ImageSet) -> metrics.Features:
        """The features of a set."""
        what = f"{images.name} {images.num} {self._network.id} {self._spatial}"
        return metrics.collect(
            self._network,
            images.read,
            images.num,
            folder=self._folder / hashlib.sha256(what.encode()).hexdigest()[:12],
            source=images.name,
            chunk=CHUNK,
            spatial=self._spatial,
        )

    def clear(self) -> None:
        """Remove what was kept, and the folder if nothing of somebody else's is in it."""
        if not self._folder.is_dir():
            return
        for kept in self._folder.iterdir():
            if _KEPT.fullmatch(kept.name):
                shutil.rmtree(kept, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class Reference(NamedTuple):
    """What images are compared with: others, statistics of their features, or both.

    Attributes:
        images: real images, or originals.
        statistics: used where they do; ADM's are of more images than their file holds.
    """

    images: ImageSet | None = None
    statistics: metrics.Statistics | None = None


def read_reference(path: str | None, cfg: Any, num: int | None) -> Reference:
    """An npz of statistics, images in a file or folder, or the data set's training split.

    Args:
        num: how many of the images, whose file's statistics are then left out; None for all.

    Raises:
        UsageError: the file holds neither, or a number is given and there are no images.
        ValueError: the file is damaged.
    """
    if not path:
        return Reference(from_data(cfg, "train").first(num))
    names = metrics.array_names(path) if Path(path).is_file() else set()
    statistics = metrics.load_statistics(path) if "mu" in names else None
    if statistics is None or names & set(ARRAYS):
        return Reference(from_file(path).first(num), None if num else statistics)
    if num:
        raise common.UsageError(
            f"--reference_num={num} of the images, but {path} holds only their statistics"
        )
    return Reference(statistics=statistics)


def inception_metrics(
    collector: Collector, images: ImageSet, real: Reference, wanted: set[str]
) -> dict[str, Any]:
    """The wanted ones of `INCEPTION` for a set of images.

    Raises:
        UsageError: a metric needs what the reference does not have.
    """
    theirs = real.statistics
    by_images = wanted & {"kid", "prdc"}
    if theirs is None:
        by_images |= wanted - {"is"}
    elif theirs.spatial is None:
        by_images |= wanted & {"sfid"}
    if by_images and real.images is None:
        raise common.UsageError(
            f"{', '.join(sorted(by_images))} need reference images, not only their statistics; "
            "sfid takes statistics with mu_s and sigma_s too"
        )
    fake = collector(images)
    out: dict[str, Any] = {"num": images.num}
    if "is" in wanted:
        mean, spread = metrics.inception_score(fake.probs)
        out |= {"inception_score": mean, "inception_score_std": spread}
    if by_images:
        found = collector(real.images)
        out |= {"num_reference": found.features.shape[0], **_neighbours(found, fake, wanted)}
        own = metrics.statistics_of(found)
        theirs = (
            own
            if theirs is None
            else metrics.Statistics(
                theirs.features, own.spatial if theirs.spatial is None else theirs.spatial
            )
        )
    return out | _distances(metrics.statistics_of(fake), theirs, wanted)


def _distances(
    fake: metrics.Statistics, real: metrics.Statistics | None, wanted: set[str]
) -> dict[str, float]:
    out = {}
    for name in sorted(wanted & {"fid", "rfid"}):
        out[name] = metrics.frechet_distance(fake.features, real.features)
    if "sfid" in wanted:
        out["sfid"] = metrics.frechet_distance(fake.spatial, real.spatial)
    return out


def _neighbours(
    real: metrics.Features, fake: metrics.Features, wanted: set[str]
) -> dict[str, float]:
    out: dict[str, float] = {}
    if "kid" in wanted:
        size = min(KID_SUBSET, len(real.features), len(fake.features))
        mean, spread = metrics.kernel_distance(real.features, fake.features, size=size)
        out |= {"kid": mean, "kid_std": spread, "kid_subset": size}
    if "prdc" in wanted:
        out |= metrics.precision_recall(real.features, fake.features)._asdict()
    return out


def paired_metrics(images: ImageSet, originals: Reference, wanted: set[str]) -> dict[str, float]:
    """PSNR and SSIM of images and originals in the same order, means over the images.

    No pair has more than `PSNR_MOST`.

    Raises:
        UsageError: there are no originals, or not as many.
    """
    others = originals.images
    if others is None or others.num != images.num:
        have = "statistics" if others is None else f"{others.num} images"
        raise common.UsageError(
            f"{', '.join(PAIRED)} compare image k with original k: {images.num} images need as "
            f"many originals in --reference, which has {have}"
        )
    measures = {"psnr": metrics.psnr, "ssim": metrics.ssim}
    found: dict[str, list[np.ndarray]] = {name: [] for name in measures if name in wanted}
    for start in range(0, images.num, CHUNK):
        stop = min(start + CHUNK, images.num)
        pair = [_levels(one.read(start, stop)) for one in (images, others)]
        for name, values in found.items():
            values.append(np.asarray(measures[name](*pair, span=255.0), np.float64))
    whole = {name: np.concatenate(values) for name, values in found.items()}
    if "psnr" in whole:
        whole["psnr"] = np.minimum(whole["psnr"], PSNR_MOST)
    return {name: float(values.mean()) for name, values in whole.items()}


def _levels(images: np.ndarray) -> np.ndarray:
    return images if images.dtype == np.uint8 else generation.to_uint8(images)


# ---- other networks of the user's -------------------------------------------------------------


def clip_metrics(images: ImageSet, folder: str | None, prompts: str | None) -> dict[str, float]:
    """CLIP score in percent: image k against line k of the prompts, which start over at the end.

    Raises:
        UsageError: the folder of the weights or the file of prompts is missing, or a line is empty.
    """
    if not folder or not prompts:
        raise common.UsageError(
            "clip needs --clip=FOLDER, a CLIPModel of transformers with its tokenizer, and "
            "--prompts=FILE, a text a line"
        )
    lines = split_lines(read_text(prompts).rstrip())
    if not lines:
        raise common.UsageError(f"{prompts} holds no text")
    if empty := [k for k, line in enumerate(lines, 1) if not line.strip()]:
        raise common.UsageError(
            f"line {empty[0]} of {prompts} is empty, but line k is the text of image k"
        )
    clip, tokenizer = load_clip(folder), load_tokenizer(folder)
    ids = np.concatenate([tokenizer.plain(line).ids for line in lines])
    texts = np.concatenate([clip.texts(ids[k : k + BATCH]) for k in range(0, len(ids), BATCH)])
    parts = []
    for start in range(0, images.num, BATCH):
        levels = _levels(images.read(start, min(start + BATCH, images.num)))
        parts.append(clip.images(data.to_float(with_channels(levels, 3), 256)))
    found = np.concatenate(parts)
    mean, error = metrics.clip_score(found, texts[np.arange(len(found)) % len(texts)])
    return {"clip_score": mean, "clip_score_se": error}


def lpips_diversity(images: ImageSet, path: str | None, pairs: int) -> dict[str, float]:
    """Mean LPIPS of random pairs of the images, which have to fit in memory.

    Raises:
        UsageError: no weights were given.
    """
    if not path:
        raise common.UsageError(
            "diversity needs --lpips=FILE, the weights of LPIPS (VGG16) as safetensors: see "
            "diffjax.pretrained.perceptual.load_lpips"
        )
    params = load_lpips(path)
    distance = jax.jit(lambda x, y: LPIPS().apply({"params": params}, x, y))
    x = data.to_float(_levels(images.read(0, images.num)), 256)
    mean, error = metrics.diversity(distance, x, pairs=pairs)
    return {"lpips_diversity": mean, "lpips_diversity_se": error, "lpips_pairs": pairs}
