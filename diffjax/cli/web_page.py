"""The web page that `diffjax web` serves; it needs gradio, ``pip install 'diffjax[demo]'``.

`build_page` lays out the fields of `Form`, `generate_image` makes a picture of them step by step,
and `serve` starts the server behind the limits of `web_limits`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import jax
import numpy as np
import PIL.Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from diffjax import generate
from diffjax.cli.web_limits import (
    BodyLimit,
    Limits,
    check_number,
    check_text,
    check_work,
    measure_folder,
)
from diffjax.data import pictures
from diffjax.pretrained.models import Component

DEFAULT_LIMITS = Limits()
# The choice of the sampler that the model names itself.
OWN = "the model's own"
# Steps before the user chooses.
STEPS = 20
# Images in a gallery.
KEPT = 12
# Users whose galleries are kept at a time.
SESSIONS = 100
# Seconds after which files and galleries of users who left are removed.
FORGET = 3600
# An image as the library has it, or the file that was uploaded.
Picture = PIL.Image.Image | str
# A gallery: images and their captions, the newest first.
Shown = list[tuple[Picture, str]]


@dataclasses.dataclass
class Form:
    """The fields of the page, in their order. Values come from the browser and may be anything.

    Attributes:
        prompt, negative: texts.
        seed: of the noise, in [0, 2^32).
        steps: of the sampler.
        guidance: scale ``s = 1 + w``.
        sampler: a name in `generate.SAMPLERS`, or `OWN`.
        height, width: in pixels; 0 for the model's own, or those of ``image``.
        image, strength, mask: the image to start from, the share of the steps that are run, and
            where it is filled in.
        control, control_scale: image and scale of the ControlNet, if there is one.
    """

    prompt: str = ""
    negative: str = ""
    seed: float | None = 0
    steps: float | None = STEPS
    guidance: float | None = 7.5
    sampler: str = OWN
    height: float | None = 0
    width: float | None = 0
    image: Picture | None = None
    strength: float = 0.8
    mask: Picture | None = None
    control: Picture | None = None
    control_scale: float = 1.0

    def format_caption(self) -> str:
        """Format the settings as the caption of their image."""
        out = f"{self.prompt} | seed {self.seed:.0f}, {self.steps:.0f} steps"
        out += f", guidance {self.guidance:g}, sampler {self.sampler}"
        out += f", negative: {self.negative}" if self.negative else ""
        out += f", image at strength {self.strength:g}" if self.image else ""
        out += ", mask" if self.mask else ""
        return out + (f", ControlNet {self.control_scale:g}" if self.control else "")

    def make_request(
        self,
        net: Component | None,
        limits: Limits = DEFAULT_LIMITS,
        native: tuple[int, int] = (0, 0),
    ) -> generate.Request:
        """Make the request of the fields, all of which are checked.

        Args:
            net: the ControlNet of the page, or None.
            limits: the most that the page allows.
            native: (height, width) of the model's own images.

        Raises:
            ValueError: a field is empty, does not fit or is too large; the message names it.
        """
        check_text("the prompt", self.prompt, limits)
        check_text("the negative prompt", self.negative, limits)
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")
        names = ("seed", "steps", "guidance", "height", "width", "strength", "control_scale")
        # The browser may send anything in place of a number.
        numbers = {name: check_number(name, getattr(self, name)) for name in names}
        seed, steps = numbers["seed"], numbers["steps"]
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {seed:.0f}")
        if self.mask and not self.image:
            raise ValueError("a mask needs an image")
        if net and not self.control:
            raise ValueError("the ControlNet needs its image")
        sampler = None if self.sampler == OWN else self.sampler
        start, mask, hint = (_open_upload(p, limits) for p in (self.image, self.mask, self.control))
        own_height, own_width = start.size[::-1] if start else native
        height, width = numbers["height"] or own_height, numbers["width"] or own_width
        # The cost is known now, and nothing has been reserved.
        check_work(height or 1, width or 1, steps, limits)
        image = generate.Image(start, numbers["strength"], mask) if start else None
        return generate.Request(
            [self.prompt],
            key=np.array([int(seed)]),
            sampler=generate.Sampling(sampler, int(steps)),
            guidance=generate.Guidance(numbers["guidance"], self.negative or None),
            image=image,
            control=[generate.Control(net, hint, numbers["control_scale"])] if net else [],
            size=generate.Size(int(numbers["height"]), int(numbers["width"])),
        )


def _open_upload(picture: Picture | None, limits: Limits) -> PIL.Image.Image | None:
    """Open an uploaded file as an image.

    Raises:
        ValueError: it is no picture that we read, or has too many pixels. The message does not show
            the folder, which is this machine's.
    """
    if not isinstance(picture, str):
        return picture
    try:
        height, width = pictures.read_size(picture)
        if height * width > limits.upload_pixels:
            raise ValueError(
                f"{picture} has {height} x {width} pixels; this page reads at most "
                f"{limits.upload_pixels}"
            )
        return pictures.open_image(picture)
    except ValueError as error:  # without the folder, which is this machine's
        raise ValueError(str(error).replace(picture, Path(picture).name)) from error


def generate_image(
    pipe: generate.Pipeline,
    net: Component | None,
    shown: Shown,
    *values: Any,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[tuple[str, Shown]]:
    """Generate an image, and yield status and gallery after every step.

    The last gallery has the new image in front. A client that goes away, and the stop button, leave
    the generator at its next step.

    Args:
        pipe: the pipeline of the model.
        net: the ControlNet of the page, or None.
        shown: the gallery so far.
        values: of the fields of `Form`, in their order.

    Raises:
        gr.Error: what is asked for is not possible or takes too long; the page shows why.
    """
    # Time counts from here; a request is stopped between two steps.
    shown, end = shown or [], time.monotonic() + limits.seconds
    try:
        form = Form(*values)
        request = form.make_request(net, limits, _find_native_size(pipe))
        _limit_compiled_sizes(request.read_size(), limits)
        yield "preparing", shown
        for progress in pipe.steps(request):
            if time.monotonic() > end:
                raise ValueError(
                    f"stopped after {limits.seconds:g} seconds, which is the most on this page"
                )
            yield f"step {progress.i + 1} of {progress.count}", shown
        picture = pipe.decode(progress.step.run.z)[0]
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    yield "done", [(picture, form.format_caption()), *shown][:KEPT]


def _find_native_size(pipe: generate.Pipeline) -> tuple[int, int]:
    """Find the size of the model's own images; (0, 0) if the model does not say."""
    with contextlib.suppress(ValueError):
        return pipe.native_size()
    return (0, 0)


# Sizes of images whose programs are compiled.
_sizes: set[generate.Size] = set()


def _limit_compiled_sizes(size: generate.Size, limits: Limits) -> None:
    """Drop compiled programs when there are those of too many sizes, since each takes memory."""
    _sizes.add(size)
    if len(_sizes) > limits.sizes:
        jax.clear_caches()
        _sizes.clear()
        _sizes.add(size)


def _save_image(picture: PIL.Image.Image) -> str:
    """Write an image under a name that nobody can guess, into the page's private folder."""
    path = Path(os.environ["GRADIO_TEMP_DIR"]) / "made" / f"{secrets.token_hex(16)}.png"
    path.parent.mkdir(exist_ok=True)
    picture.save(path)
    return str(path)


def _remove_images(shown: Shown) -> None:
    """Remove the images of a user who left."""
    for picture, _ in shown:
        if isinstance(picture, str):
            with contextlib.suppress(OSError):
                os.unlink(picture)


def make_upload(label: str) -> gr.Image:
    """Make an image field that takes uploaded files only.

    Gradio's own field would also fetch what an address names, from inside of this machine's
    network.

    Raises:
        ValueError: (when a value is sent) an address is given in place of a file.
    """
    field = gr.Image(label=label, type="filepath", image_mode=None, height=200)
    keep = field.async_move_resource_to_block_cache

    async def keep_file(path: str) -> str | None:
        if str(path).lower().startswith(("http:", "https:")):
            raise ValueError("an image must be uploaded; this page fetches no address")
        return await keep(path)

    # Of this field alone: for a class of its own gradio would write a file beside this one.
    field.async_move_resource_to_block_cache = keep_file
    return field


def _make_fields(pipe: generate.Pipeline, control: bool, limits: Limits) -> list[Any]:
    """Make the fields of `Form`, in its order."""
    new, guidance = Form(), 5.0 if pipe.is_xl else 7.5
    fields: list[Any] = [
        gr.Textbox(label="Prompt", lines=2),
        gr.Textbox(label="Negative prompt"),
    ]
    with gr.Row():
        fields += [
            gr.Number(new.seed, label="Seed", precision=0),
            gr.Slider(1, limits.steps, min(STEPS, limits.steps), step=1, label="Steps"),
            gr.Slider(1, 20, guidance, step=0.1, label="Guidance"),
            gr.Dropdown([OWN, *generate.SAMPLERS], value=OWN, label="Sampler"),
        ]
    with gr.Row():
        fields += [
            gr.Number(0, label="Height (0: the model's)", precision=0),
            gr.Number(0, label="Width (0: the model's)", precision=0),
        ]
    with gr.Accordion("Image to start from", open=bool(pipe.beside)):
        fields += [
            make_upload("Image"),
            gr.Slider(0.05, 1, new.strength, step=0.05, label="Strength"),
            make_upload("Mask: white is filled in"),
        ]
    with gr.Accordion("ControlNet", visible=control):
        fields += [
            make_upload("Control image"),
            gr.Slider(0, 2, new.control_scale, step=0.05, label="Control scale"),
        ]
    return fields


def build_page(
    pipe: generate.Pipeline,
    net: Component | None = None,
    limits: Limits = DEFAULT_LIMITS,
    queue: int = 20,
) -> gr.Blocks:
    """Build the page. Images are made one at a time, in the order in which they were asked for.

    The gallery of a user stays on the server, apart from everybody else's.

    Args:
        pipe: the pipeline of the model.
        net: the ControlNet of the page, or None.
        limits: the most that one request may ask for.
        queue: number of requests that may wait.
    """

    def make(shown: Shown, *values: Any) -> Iterator[tuple[str, Shown, Shown]]:
        for status, now in generate_image(pipe, net, shown, *values, limits=limits):
            # Images are files below the private folder, so that a gallery takes no memory.
            kept: Shown = [(p if isinstance(p, str) else _save_image(p), text) for p, text in now]
            _remove_images([old for old in shown if old not in kept])
            yield status, kept, kept

    with gr.Blocks(
        title="diffjax", analytics_enabled=False, delete_cache=(FORGET // 4, FORGET)
    ) as page:
        mine = gr.State([], time_to_live=FORGET, delete_callback=_remove_images)
        with gr.Row():
            with gr.Column():
                fields = _make_fields(pipe, net is not None, limits)
                with gr.Row():
                    start = gr.Button("Generate", variant="primary")
                    stop = gr.Button("Stop", variant="stop")
            with gr.Column():
                status = gr.Textbox("ready", label="Status", interactive=False)
                gallery = gr.Gallery(
                    label="Images", type="filepath", format="png", columns=2, interactive=False
                )
        going = start.click(
            make, [mine, *fields], [status, gallery, mine], show_progress="minimal", api_name="make"
        )
        # The generator is left at its next step. Of other pages nothing is stopped.
        stop.click(None, cancels=[going]).then(lambda: "stopped", None, status, queue=False)
    return page.queue(default_concurrency_limit=1, max_size=queue)


def serve(
    page: gr.Blocks, host: str, port: int, hosts: list[str], megabytes: int, room: int = 1000
) -> Any:
    """Start the server and return at once; the values are those of gradio's ``launch``.

    Args:
        host, port: where it listens.
        hosts: values of the Host header that are answered; others get status 400.
        megabytes: the most that an uploaded file may have.
        room: megabytes of all files in the page's folder, beyond which uploads get status 507.
    """

    def is_full() -> bool:
        return measure_folder(Path(os.environ["GRADIO_TEMP_DIR"])) > room * 2**20

    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
        Middleware(BodyLimit, upload=megabytes * 2**20, is_full=is_full),
    ]
    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=megabytes * 2**20,
        enable_monitoring=False,
        run_history=False,  # which would connect to the hub as strangers ask
        state_session_capacity=SESSIONS,
        allowed_paths=[],
        app_kwargs={"middleware": guards},
    )
