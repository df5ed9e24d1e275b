"""The making of the pictures of the web page, with a status for everything that takes time."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image

from diffjax import generate
from diffjax.cli.web_form import DEFAULT_LIMITS, SEEDS, Form, Offered, Picture
from diffjax.cli.web_limits import Limits
from diffjax.types import T

# Images in a gallery.
KEPT = 12
# Seconds between two statuses of something that takes long.
TICK = 1.0
# A gallery: images and their captions, the newest first.
Shown = list[tuple[Picture, str]]


class Update(NamedTuple):
    """What the page shows after a step.

    Attributes:
        status: one line.
        shown: the gallery.
        seed: that of the first picture of the request.
    """

    status: str
    shown: Shown
    seed: int


# The first step of a request, which may compile for minutes. One thread, since one request runs at
# a time; if its client leaves, the next request waits until the step is over.
_worker = ThreadPoolExecutor(1, thread_name_prefix="web-page")
# What programs were compiled for: sizes of images, and what else changes a program.
_compiled: set[tuple[Any, ...]] = set()


def generate_images(
    pipe: generate.Pipeline,
    offered: Offered,
    shown: Shown,
    *values: Any,
    limits: Limits = DEFAULT_LIMITS,
    keep: Callable[[PIL.Image.Image], Picture] | None = None,
) -> Iterator[Update]:
    """Generate the images of a form one after another, and yield what the page shows meanwhile.

    The last galleries have the new images in front. A client that goes away, and the stop button,
    leave the generator at its next step.

    Args:
        pipe: the pipeline of the model.
        offered: the ControlNets and adapters of the page.
        shown: the gallery so far.
        values: of the fields of `Form`, in their order.
        limits: the most that the page allows.
        keep: turns a new image into what the gallery holds of it.

    Raises:
        ValueError: what is asked for is not possible or takes too long; the message says why.
    """
    # Time counts from here; a request is stopped between two steps.
    shown, begin = shown or [], time.monotonic()
    form = Form(*values)
    if form.random:
        form = dataclasses.replace(form, seed=secrets.randbelow(SEEDS - limits.images))
    form = dataclasses.replace(form, random=False)
    num, seed = form.read_counts(limits)
    request = form.make_request(offered, limits, _find_native_size(pipe))
    for k in range(num):
        one = dataclasses.replace(request, key=np.array([seed + k]))
        title = f"picture {k + 1} of {num}: " if num > 1 else ""
        making = _make_image(pipe, one, _describe_program(form, request, limits))
        while True:
            try:
                status = next(making)
            except StopIteration as done:
                picture = done.value
                break
            elapsed = time.monotonic() - begin
            if elapsed > limits.seconds:
                raise ValueError(
                    f"stopped after {limits.seconds:g} seconds, which is the most on this page"
                )
            yield Update(f"{title}{status}, {elapsed:.0f} s", shown, seed)
        caption = dataclasses.replace(form, seed=seed + k).format_caption()
        shown = [(keep(picture) if keep else picture, caption), *shown][:KEPT]
        yield Update(f"{title}done, {time.monotonic() - begin:.0f} s", shown, seed)


def _make_image(
    pipe: generate.Pipeline, request: generate.Request, program: tuple[str, tuple[Any, ...]]
) -> Generator[str, None, PIL.Image.Image]:
    """Make one image, yield what is being done, and return the image."""
    status, key = program
    yield status
    steps = pipe.steps(request)
    progress = yield from _wait(status, lambda: next(steps))
    yield f"step 1 of {progress.count}"
    for progress in steps:
        yield f"step {progress.i + 1} of {progress.count}"
    last = progress
    pictures = yield from _wait("decoding", lambda: pipe.decode(last.step.run.z))
    _compiled.add(key)
    return pictures[0]


def _wait(status: str, work: Callable[[], T]) -> Generator[str, None, T]:
    """Yield a status every second until work that runs in another thread is done."""
    future = _worker.submit(work)
    while True:
        try:
            return future.result(timeout=TICK)
        except TimeoutError:
            if future.done():
                raise
            yield status


def _describe_program(
    form: Form, request: generate.Request, limits: Limits
) -> tuple[str, tuple[Any, ...]]:
    """Say whether a request will compile, and return the key of its program.

    Compiled programs are dropped when there are those of too many sizes, since each takes memory.
    """
    size = request.read_size()[:2]
    if request.image is not None and not all(size):
        size = request.image.pixels.size[::-1]  # type: ignore[attr-defined]  # an opened picture
    key = (
        *(size, request.image is not None, bool(form.mask or form.painted), form.net),
        *(tuple(sorted(set(form.loras))), form.sampler),
    )
    sizes = {known for known, *_ in _compiled}
    if size in sizes:
        return ("preparing" if key in _compiled else "compiling (first of these settings)"), key
    if len(sizes) >= limits.sizes:
        jax.clear_caches()
        _compiled.clear()
    return "compiling (first picture of this size)", key


def _find_native_size(pipe: generate.Pipeline) -> tuple[int, int]:
    """Find the size of the model's own images; (0, 0) if the model does not say."""
    with contextlib.suppress(ValueError):
        return pipe.native_size()
    return (0, 0)
