"""Random access to labelled images, and what else is known of each."""

from __future__ import annotations

import dataclasses
import hashlib
import operator
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffjax.types import JsonObject

Indices = Sequence[int] | np.ndarray
Arrays = tuple[np.ndarray, np.ndarray]
Originals = tuple[list[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Random access to labelled images: `source[i]`, or `source.take(indices)` for many at once.

    Attributes:
      shape: (H, W, C) of every image.
      num_classes: labels are 0 to num_classes - 1; 0 means unlabelled, and every label is 0.
      levels: images hold 0 to levels - 1 (uint8).
      length: number of images.
      read: indices -> (images uint8 (B, H, W, C), labels (B,)).
      images: all of them, if they are in memory (read-only), else None.
      labels: all labels, int32 (N,), if they are in memory, else None.
      more: indices -> further arrays by name, such as "text" (token ids), "mask", "edges"; or
        "moments", latents that stand for the images. None if there are none.
      originals: indices -> (the pictures before they were cropped to ``shape``, uint8 (H, W, C)
        each, labels (B,)), for crops that are random; None if there are none.
      captions: indices -> texts of the images; None if there are none.
      groups: (N,) int, if images differ in shape: those of one group have one shape, and a batch is
        made of one group. ``shape`` is that of no group in particular.
      class_names: of the labels in their order; empty if they are not known.
      paths: files of the images, if each is one.
      fingerprint: () -> what tells these data from others, which JSON can hold.
      first: rows alternate between the first so many images and the others; 0: no such halves.
    """

    shape: tuple[int, int, int]
    num_classes: int
    levels: int
    length: int
    read: Callable[[Indices], Arrays]
    images: np.ndarray | None = None
    labels: np.ndarray | None = None
    more: Callable[[Indices], dict[str, np.ndarray]] | None = None
    originals: Callable[[Indices], Originals] | None = None
    captions: Callable[[Indices], list[str]] | None = None
    groups: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    paths: Sequence[Path] | None = None
    fingerprint: Callable[[], JsonObject] | None = None
    first: int = 0

    def __len__(self) -> int:
        return self.length

    def take(self, indices: Indices) -> dict[str, np.ndarray]:
        """Return {"image": uint8 (B, H, W, C), "label": int32 (B,), ...} of indices.

        Raises:
          ValueError: a label is no class; or a damaged image.
        """
        images, labels = self.read(indices)
        _check_labels(labels, self.num_classes, indices)
        more = self.more(indices) if self.more else {}
        pictures = {} if "moments" in more else {"image": images}
        return {**pictures, "label": labels, **more}

    def take_originals(self, indices: Indices) -> Originals:
        """(Pictures, labels int32 (B,)) of indices before cropping; those of ``shape`` if need be.

        Raises:
          ValueError: a label is no class; or a damaged image.
        """
        pictures, labels = (self.originals or self.read)(indices)
        _check_labels(labels, self.num_classes, indices)
        return list(pictures), labels

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        i = operator.index(index)
        if not -self.length <= i < self.length:
            raise IndexError(f"index {i} is out of range: the source has {self.length} images")
        return {k: v[0] for k, v in self.take([i % self.length]).items()}


def _check_labels(labels: np.ndarray, num_classes: int, indices: Indices) -> None:
    wrong = (labels < 0) | (labels >= max(num_classes, 1))
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(
            f"image {indices[k]} has label {labels[k]}, but there are num_classes={num_classes}"
        )


def from_arrays(
    images: np.ndarray, labels: np.ndarray | None = None, *, num_classes: int = 0, levels: int = 256
) -> Source:
    """Make a source of images in memory.

    Args:
      images: uint8 (N, H, W, C), values 0 to levels - 1.
      labels: (N,), 0 to num_classes - 1; None for unlabelled images.
      num_classes: 0 for unlabelled images.
      levels: number of grey levels, 2 to 256.

    Raises:
      ValueError: another type, shape or range.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {images.shape}: expected uint8 (N, H, W, C)")
    if not 2 <= levels <= 256:
        raise ValueError(f"levels={levels}: choose from 2 to 256")
    if images.max(initial=0) >= levels:
        raise ValueError(f"images reach {images.max()}: levels={levels} allows 0 to {levels - 1}")
    labels = np.zeros(len(images), np.int32) if labels is None else labels.astype(np.int32)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images but labels of shape {labels.shape}")
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= max(num_classes, 1):
        raise ValueError(f"labels {labels.min()} to {labels.max()} with num_classes={num_classes}")
    images, labels = images.view(), labels.view()
    images.flags.writeable = labels.flags.writeable = False

    def read(indices: Indices) -> Arrays:
        return images[indices], labels[indices]

    height, width, channels = images.shape[1:]
    shape = (height, width, channels)
    return Source(
        *(shape, num_classes, levels, len(images), read, images, labels),
        fingerprint=lambda: _make_fingerprint(images, labels),
    )


def _make_fingerprint(images: np.ndarray, labels: np.ndarray) -> JsonObject:
    digest = hashlib.sha256(images.tobytes())
    digest.update(labels.tobytes())
    return {"count": len(images), "digest": digest.hexdigest()}


def join_alternating(source: Source, prior: Source, weight: float) -> Source:
    """Join two data sets whose images take turns in batches, with weights for their losses.

    A batch has the further entry ``weight`` (B,): 2 for the first data set and ``2 weight`` for the
    second. So the mean of weighted losses over as many rows of each is the mean loss of the first
    plus ``weight`` times that of the second, which is prior preservation (Ruiz et al. 2022, eq. 2).

    Args:
      source, prior: images of one shape, with the same further arrays.
      weight: of the second data set, at least 0.

    Raises:
      ValueError: one of them is empty or has groups of shapes, or the shapes differ.
    """
    if source.shape != prior.shape or source.groups is not None or prior.groups is not None:
        raise ValueError(
            f"images of two sources that alternate need one shape, got {source.shape} and "
            f"{prior.shape}: set data.bucket_step=0"
        )
    if not len(source) or not len(prior):
        raise ValueError(f"there are {len(source)} and {len(prior)} images to alternate between")
    count = len(source)

    def split(indices: Indices) -> list[tuple[Source, list[int]]]:
        rows = [int(i) for i in indices]
        return [(source, [i]) if i < count else (prior, [i - count]) for i in rows]

    def read(indices: Indices) -> Arrays:
        parts = [one.read(row) for one, row in split(indices)]
        images, labels = zip(*parts, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    def more(indices: Indices) -> dict[str, np.ndarray]:
        rows = [one.more(row) if one.more else {} for one, row in split(indices)]
        known = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        return {**known, "weight": np.where(np.asarray(indices) < count, 2.0, 2 * weight)
                .astype(np.float32)}  # fmt: skip

    def fingerprint() -> JsonObject:
        known = [one.fingerprint() if one.fingerprint else {} for one in (source, prior)]
        return {**known[0], "prior": known[1]}

    return Source(
        *(source.shape, source.num_classes, source.levels, count + len(prior), read),
        more=more,
        fingerprint=fingerprint,
        first=count,
    )
