"""Batches as a function of (seed, step).

Global position p = step * batch_size + row runs through epoch after epoch: p = epoch * N + offset.
Every epoch is its own permutation of the N images (grain's index shuffle) and a batch may lie
across two epochs, so nothing is dropped. What a position holds depends on (seed, p) alone: not on
the number of processes or threads, nor on where the iteration began.

Images in groups (buckets of aspect ratios) are batched within them. Steps go in rounds of N: each
round is a permutation of the N images, and image k of it says that step k takes its batch from the
group of that image. So every round has as many steps of a group as it has images, whatever its
size; the rows of those steps run through the group's own permutations, and every image is seen
exactly batch_size times a round.

Images of two sources that alternate (`source.join_alternating`) have even and odd positions, and
each source its own permutations.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np

from diffjax.data.degradation import Degradation
from diffjax.data.formats import crop_resize_at, halve_crop_at
from diffjax.data.hint_makers import Hints
from diffjax.data.source import Source
from diffjax.types import T, choose

Batch = dict[str, np.ndarray]


def to_float(images: np.ndarray, levels: int) -> np.ndarray:
    """Map grey levels to [-1, 1]: ``x = 2 u / (levels - 1) - 1``, float32 correctly rounded.

    Args:
      images: integers 0 to levels - 1, any shape.
      levels: number of grey levels.
    """
    table = (2.0 * np.arange(levels) / (levels - 1) - 1.0).astype(np.float32)
    return table[images]


def to_levels(x: np.ndarray, levels: int) -> np.ndarray:
    """Return the nearest grey level, uint8, in 0 .. levels - 1: the inverse of `to_float`."""
    u = np.rint((np.asarray(x, np.float64) + 1.0) * (0.5 * (levels - 1)))
    return np.clip(u, 0, levels - 1).astype(np.uint8)


def _draw_fair_bits(seed: int, positions: np.ndarray) -> np.ndarray:
    """Draw a fair bit per position, bool (B,)."""
    return (_mix(seed, positions) >> np.uint64(63)).astype(bool)


def _draw_uniform(seed: Sequence[int], positions: np.ndarray) -> np.ndarray:
    """Draw a number in [0, 1) per position, float64 (B,)."""
    return (_mix(seed, positions) >> np.uint64(11)) * 2.0**-53


def _mix(seed: int | Sequence[int], positions: np.ndarray) -> np.ndarray:
    """64 random bits per position by SplitMix64's finaliser (Steele et al. 2014), uint64 (B,)."""
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    z = start + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class RandomCrop(NamedTuple):
    """Crops at random places, whose share of the largest lies between ``low`` and ``high``.

    Attributes:
      low, high: bounds of the share.
      resize: a name in `formats.RESIZERS`.
      resized: pictures are resized by halves first, and then cut (`formats.halve_crop_at`);
        otherwise they are cut, with a share that is uniform, and resized.
    """

    low: float
    high: float
    resize: str = "bicubic"
    resized: bool = False

    def take(self, source: Source, indices: np.ndarray, seed: int, positions: np.ndarray) -> Batch:
        """As `Source.take`, of a source of images and labels, cropped by (seed, position)."""
        pictures, labels = source.take_originals(indices)
        share, top, left = (_draw_uniform((seed, k), positions) for k in (1, 2, 3))
        images = [
            self._cut(picture, source.shape[:2], share[k], (top[k], left[k]))
            for k, picture in enumerate(pictures)
        ]
        return {"image": np.stack(images), "label": labels}

    def _cut(
        self, picture: np.ndarray, size: tuple[int, int], share: float, place: tuple[float, float]
    ) -> np.ndarray:
        if self.resized:
            bounds = (self.low, self.high)
            return halve_crop_at(picture, size, share=share, place=place, bounds=bounds)
        share = self.low + share * (self.high - self.low)
        return crop_resize_at(picture, size, share=share, place=place, resize=self.resize)


def make_crop(name: str, share: Sequence[float], resize: str = "bicubic") -> RandomCrop | None:
    """The crops of ``data.crop``, ``data.crop_share`` and ``data.resize``; None for central ones.

    Raises:
      ValueError: an unknown name, shares that are no two numbers in (0, 1], or a way to resize
        that the crops do not have.
    """
    kinds = {"center": None, "random": False, "random_after": True}
    resized = choose("data.crop", name, kinds)
    if resized is None:
        return None
    if resized and resize != "halves":
        raise ValueError(
            f"data.crop={name!r} resizes pictures by halves before it cuts them, and data.resize "
            f"is {resize!r}: set data.resize=halves, or data.crop=random"
        )
    if len(share) != 2 or not 0 < share[0] <= share[1] <= 1:
        raise ValueError(f"data.crop_share={tuple(share)} must be two rising numbers in (0, 1]")
    return RandomCrop(share[0], share[1], resize, resized)


def _check(
    source: Source, batch_size: int, seed: int, process_index: int, process_count: int
) -> None:
    """Check the arguments of `dataset`.

    Raises:
      ValueError: one is out of range; the message names it.
    """
    if len(source) == 0:
        raise ValueError("the source is empty: there is nothing to batch")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} with process_count={process_count}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} (over all processes) must be a positive multiple of "
            f"process_count={process_count}"
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: choose from 0 to 2**32 - 1")


def dataset(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    flip: bool = False,
    crop: RandomCrop | None = None,
    degradation: Degradation | None = None,
    hints: Hints | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Make the endless random-access data set of batches: element k is the batch of step k.

    Args:
      source: where the images are.
      batch_size: images per step over all processes. It may exceed len(source): a batch then
        spans several epochs and repeats images.
      seed: of the order and of the flips, 0 to 2**32 - 1.
      flip: mirror each image left to right with probability 1/2, by (seed, position).
      crop: how each image is cropped, by (seed, position); None for its middle.
      degradation: makes the entry "low", a small picture of each image, by (seed, position).
      hints: computes the entry "hint" from a batch, see `diffjax.data.make_hints`.
      process_index: this process gets the contiguous rows process_index * B, ... of the global
        batch, B = batch_size / process_count. Concatenated, they are the batch of one process.
      process_count: number of processes.

    Returns:
      MapDataset of {"image": float32 (B, H, W, C) in [-1, 1], "label": int32 (B,)}, and whatever
      else the source has.

    Raises:
      ValueError: empty source, an argument out of range, or flips of images that come with a text
        or a mask.
    """
    _check(source, batch_size, seed, process_index, process_count)
    if (flip or crop) and source.more:
        which = "flip=True" if flip else "a random crop"
        raise ValueError(f"{which}: the texts and masks of these images would no longer fit")
    rows = batch_size // process_count
    own = process_index * rows + np.arange(rows)

    def read(step: int, indices: np.ndarray) -> Batch:
        batch = read_images(step, indices)
        return batch if hints is None else {**batch, "hint": hints(batch)}

    def read_images(step: int, indices: np.ndarray) -> Batch:
        positions = step * batch_size + own
        if crop is not None:
            batch = crop.take(source, indices, seed, positions)
        else:
            batch = source.take(indices)
        if "image" not in batch:  # there are latents in place of images
            return batch
        images = batch["image"]
        if flip:
            mirrored = _draw_fair_bits(seed, positions)[:, None, None, None]
            images = np.where(mirrored, images[:, :, ::-1], images)
        if degradation is not None:
            low = degradation(images, seed, positions)
            batch = {**batch, "low": to_float(low, source.levels)}
        return {**batch, "image": to_float(images, source.levels)}

    # grain's `batch` cannot take single elements of an endless order: its length overflows.
    steps = grain.MapDataset.range(1).repeat()
    if source.groups is not None:
        chosen = _order_within_groups(source.groups, seed)
        order = steps.map_with_index(lambda step, _: chosen(step, batch_size)[own])
    else:
        find = _order_images(source, seed)
        order = steps.map_with_index(
            lambda step, _: np.asarray([find(step * batch_size + int(k)) for k in own])
        )
    return order.map_with_index(read)


def _shuffle(count: int, seed: int) -> grain.MapDataset:
    """Return endless epochs of 0 to count - 1, each with its own permutation."""
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


def _order_images(source: Source, seed: int) -> Callable[[int], int]:
    """Return the function from positions to images; see the module for two sources."""
    if not source.first:
        whole = _shuffle(len(source), seed)
        return lambda position: int(whole[position])
    first, rest = _shuffle(source.first, seed), _shuffle(len(source) - source.first, seed)

    def find(position: int) -> int:
        place, odd = divmod(position, 2)
        return source.first + int(rest[place]) if odd else int(first[place])

    return find


def _order_within_groups(groups: np.ndarray, seed: int) -> Callable[[int, int], np.ndarray]:
    """Return a function ``(step, batch_size) -> indices`` whose batches stay in one group."""
    members = {int(g): np.flatnonzero(groups == g) for g in np.unique(groups)}
    seeds = {g: int(np.random.SeedSequence([seed, g]).generate_state(1)[0]) for g in members}
    orders = {g: _shuffle(len(some), seeds[g]) for g, some in members.items()}

    @functools.lru_cache(maxsize=2)
    def leaders(number: int) -> np.ndarray:
        return np.random.default_rng([seed, number]).permutation(groups)

    def indices(step: int, batch_size: int) -> np.ndarray:
        number, k = divmod(step, len(groups))
        round_ = leaders(number)
        group = int(round_[k])
        before = number * len(members[group]) + int((round_[:k] == group).sum())
        positions = range(before * batch_size, (before + 1) * batch_size)
        return members[group][[int(orders[group][p]) for p in positions]]

    return indices


def batch_of(source: Source, indices: np.ndarray, degradation: Degradation | None = None) -> Batch:
    """Return the rows of a source by index, with images in [-1, 1] as training sees them.

    Args:
      degradation: makes the entry "low", which depends on the index.
    """
    batch = source.take(indices)
    if "image" not in batch:
        return batch
    if degradation is not None:
        low = degradation(batch["image"], 0, np.asarray(indices))
        batch["low"] = to_float(low, source.levels)
    return {**batch, "image": to_float(batch["image"], source.levels)}


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"step={step}: steps count from 0")


def batch_at(
    source: Source,
    step: int,
    *,
    batch_size: int,
    seed: int,
    flip: bool = False,
    crop: RandomCrop | None = None,
    degradation: Degradation | None = None,
    hints: Hints | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Batch:
    """Return the batch of one step; arguments, result and errors are those of `dataset`.

    Raises:
      ValueError: the step is negative.
    """
    _check_step(step)
    batches_of_steps = dataset(
        source,
        batch_size=batch_size,
        seed=seed,
        flip=flip,
        crop=crop,
        degradation=degradation,
        hints=hints,
        process_index=process_index,
        process_count=process_count,
    )
    return batches_of_steps[step]


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    step: int = 0,
    flip: bool = False,
    crop: RandomCrop | None = None,
    degradation: Degradation | None = None,
    num_threads: int = 2,
    prefetch: int = 2,
    hints: Hints | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of step, step + 1, ... for ever; arguments and errors as `dataset`.

    Args are checked at the call. Closing the iterator, or dropping it, ends its threads.

    Args:
      step: first step, 0 or more.
      num_threads: threads that read ahead; 0 reads in the caller's.
      prefetch: batches read ahead; 0 reads none.
    """
    _check_step(step)
    if num_threads < 0 or prefetch < 0:
        raise ValueError(f"num_threads={num_threads}, prefetch={prefetch}: neither may be negative")
    endless = dataset(
        source,
        batch_size=batch_size,
        seed=seed,
        flip=flip,
        crop=crop,
        degradation=degradation,
        hints=hints,
        process_index=process_index,
        process_count=process_count,
    )
    options = grain.ReadOptions(
        num_threads=num_threads if prefetch else 0, prefetch_buffer_size=prefetch
    )
    return _iterate(endless[step:], options)


def _iterate(steps: grain.MapDataset, options: grain.ReadOptions) -> Iterator[Batch]:
    iterator = iter(steps.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Return the steps after which every image has been seen: ceil(N / batch_size)."""
    return math.ceil(len(source) / batch_size)


def device_prefetch(
    iterator: Iterable[T], sharding: jax.sharding.Sharding | None = None, size: int = 2
) -> Iterator[T]:
    """Put batches on the devices `size` steps before they are used.

    Args:
      iterator: of pytrees of host arrays; with several processes, each gives its own rows.
      sharding: of the global arrays, for every leaf (a spec such as P("data") shards the leading
        axis); None puts them whole on the default device.
      size: batches in flight, at least 1.

    Returns:
      Iterator of pytrees of jax.Array, with global shapes. Closing it closes `iterator`.

    Raises:
      ValueError: the size is below 1.
    """
    if size < 1:
        raise ValueError(f"size={size}: at least 1 batch must be in flight")
    return _prefetch(iter(iterator), sharding, size)


def _prefetch(
    iterator: Iterator[T], sharding: jax.sharding.Sharding | None, size: int
) -> Iterator[T]:
    """Yield batches of an iterator, ``size`` steps after they were put on the devices."""

    def put(batch: T) -> T:
        if sharding is None or jax.process_count() == 1:
            # One call for all leaves, since the training loop waits for it.
            return jax.device_put(batch, sharding)
        return jax.tree.map(
            functools.partial(jax.make_array_from_process_local_data, sharding), batch
        )

    queue: collections.deque = collections.deque()
    try:
        for batch in iterator:
            queue.append(put(batch))
            if len(queue) > size:
                yield queue.popleft()
        while queue:
            yield queue.popleft()
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
