"""The web page that `diffjax web` serves; it needs gradio, ``pip install 'diffjax[demo]'``.

`build_page` lays out the fields of `web_form.Form`, whose pictures `web_run` makes, and `serve`
starts the server behind the limits of `web_limits`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from diffjax import generate
from diffjax.cli import web_brush
from diffjax.cli.web_form import DEFAULT_LIMITS, NONE, NOTHING, OWN, STEPS, Form, Offered
from diffjax.cli.web_limits import BodyLimit, Limits, measure_folder
from diffjax.cli.web_run import Shown, generate_images

# Users whose galleries are kept at a time.
SESSIONS = 100
# Seconds after which files and galleries of users who left are removed.
FORGET = 3600
# Prompts to begin with, for models that know English.
EXAMPLES = (
    "a red fox in the snow, photograph",
    "a lighthouse at sunset, oil painting",
    "a bowl of fruit on a wooden table",
)
# Captions below their pictures, on as many lines as they need; gradio lays one cut line over them.
CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
#pictures .grid-container { grid-template-rows: none; grid-auto-rows: auto; align-items: start; }
#pictures .thumbnail-lg {
  display: flex; flex-direction: column; height: auto; aspect-ratio: auto;
  overflow: visible; background: none; border: none; box-shadow: none;
}
#pictures .thumbnail-lg > img { height: auto; }
#pictures .caption-label {
  position: static; max-width: 100%; white-space: normal; background: none; border: none;
  color: var(--body-text-color); font-size: 0.85rem; line-height: 1.35; padding: 0.3rem 0;
  overflow-wrap: anywhere;
}
#pictures .caption { white-space: normal; overflow-wrap: anywhere; }
"""


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


def make_upload(label: str, elem_id: str | None = None) -> gr.Image:
    """Make an image field that takes uploaded files only.

    Gradio's own field would also fetch what an address names, from inside of this machine's
    network.

    Raises:
        ValueError: (when a value is sent) an address is given in place of a file.
    """
    field = gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        height=200,
        elem_id=elem_id,
        sources=["upload", "clipboard"],
    )
    keep = field.async_move_resource_to_block_cache

    async def keep_file(path: str) -> str | None:
        if str(path).lower().startswith(("http:", "https:")):
            raise ValueError("an image must be uploaded; this page fetches no address")
        return await keep(path)

    # Of this field alone: for a class of its own gradio would write a file beside this one.
    field.async_move_resource_to_block_cache = keep_file
    return field


def _make_fields(
    pipe: generate.Pipeline, offered: Offered, limits: Limits, examples: Sequence[str]
) -> list[Any]:
    """Make the fields of `Form`, in its order."""
    # One line that grows: Enter makes the pictures, Shift and Enter begins another line.
    fields: list[Any] = [gr.Textbox(label="Prompt", lines=1, max_lines=6)]
    _make_examples(examples, fields[0])
    fields += [gr.Textbox(label="Negative prompt", lines=1, max_lines=6)]
    with gr.Row():
        fields += [
            gr.Slider(1, limits.images, 1, step=1, label="Pictures", visible=limits.images > 1),
            gr.Checkbox(True, label="Random seed"),
            gr.Number(0, label="Seed", precision=0),
        ]
    with gr.Accordion("Steps, guidance and size", open=False):
        fields += _make_sampling_fields(5.0 if pipe.is_xl else 7.5, limits)
    with gr.Accordion("Image to start from", open=bool(pipe.beside)):
        fields += _make_image_fields(Form().strength)
    nets, loras = list(offered.nets), list(offered.loras)
    with gr.Accordion("ControlNet", visible=bool(nets), open=False):
        fields += [
            gr.Dropdown([NONE, *nets], value=NONE, label="ControlNet"),
            make_upload("Control image"),
            gr.Slider(0, 2, Form().control_scale, step=0.05, label="Control scale"),
        ]
    with gr.Accordion("LoRA", visible=bool(loras), open=False):
        fields += [
            gr.Dropdown(loras, value=loras, multiselect=True, label="LoRA"),
            gr.Slider(0, 2, Form().lora_scale, step=0.05, label="LoRA scale"),
        ]
    return fields


def _make_sampling_fields(guidance: float, limits: Limits) -> list[Any]:
    """Make the fields from ``steps`` to ``width``."""
    with gr.Row():
        sampling = [
            gr.Slider(1, limits.steps, min(STEPS, limits.steps), step=1, label="Steps"),
            gr.Slider(1, 20, guidance, step=0.1, label="Guidance"),
            gr.Dropdown([OWN, *generate.SAMPLERS], value=OWN, label="Sampler"),
        ]
    with gr.Row():
        size = [
            gr.Number(0, label="Height (0: the model's)", precision=0),
            gr.Number(0, label="Width (0: the model's)", precision=0),
        ]
    return [*sampling, *size]


def _make_image_fields(strength: float) -> list[Any]:
    """Make the fields from ``image`` to ``mask``, and the brush."""
    image = make_upload("Image", web_brush.SOURCE)
    gr.HTML(
        html_template=web_brush.HTML,
        css_template=web_brush.CSS,
        js_on_load=web_brush.SCRIPT,
    )
    image.change(None, image, None, js=web_brush.SHOW)
    slider = gr.Slider(0.05, 1, strength, step=0.05, label="Strength")
    painted = gr.Textbox("", visible="hidden", elem_id=web_brush.TARGET, max_lines=1)
    return [
        image,
        slider,
        painted,
        make_upload("Mask file, in place of painting: white is filled in"),
    ]


def _make_heading(name: str, pipe: generate.Pipeline) -> None:
    """Show the name of the model, and what it is."""
    kind = str(pipe.parts.manifest.get("_class_name", "text-to-image model"))
    gr.Markdown(f"# {_quote(name)}")
    gr.Markdown(f"{_quote(kind)}, served by diffjax. Press Enter in the prompt to make pictures.")


def _quote(text: str) -> str:
    """Quote a text for Markdown, in which it may be anything."""
    return "".join(f"&#{ord(c)};" if not c.isalnum() and c != " " else c for c in text)


def _make_examples(examples: Sequence[str], prompt: gr.Textbox) -> None:
    """Show prompts that a click takes over."""
    if examples:
        with gr.Row(elem_id="examples"):
            for text in examples:
                button = gr.Button(text, size="sm", min_width=160)
                button.click(None, None, prompt, js=f"() => {json.dumps(text)}")


def build_page(
    pipe: generate.Pipeline,
    offered: Offered = NOTHING,
    limits: Limits = DEFAULT_LIMITS,
    queue: int = 20,
    name: str = "diffjax",
    examples: Sequence[str] = EXAMPLES,
) -> gr.Blocks:
    """Build the page. Images are made one at a time, in the order in which they were asked for.

    The gallery of a user stays on the server, apart from everybody else's.

    Args:
        pipe: the pipeline of the model.
        offered: ControlNets and adapters to choose from.
        limits: the most that one request may ask for.
        queue: number of requests that may wait.
        name: that of the model, for the heading.
        examples: prompts that a click takes over.
    """

    def make(shown: Shown, *values: Any) -> Iterator[tuple[str, Shown, Shown, Any]]:
        yield "checking", shown, shown, gr.skip()
        try:
            # Images are files below the private folder, so that a gallery takes no memory.
            updates = generate_images(
                pipe, offered, shown, *values, limits=limits, keep=_save_image
            )
            for status, kept, seed in updates:
                _remove_images([old for old in shown if old not in kept])
                shown = kept
                yield status, kept, kept, seed
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(
        title=f"{name} - diffjax", analytics_enabled=False, delete_cache=(FORGET // 4, FORGET)
    ) as page:
        mine = gr.State([], time_to_live=FORGET, delete_callback=_remove_images)
        _make_heading(name, pipe)
        with gr.Row():
            with gr.Column(min_width=300):
                fields = _make_fields(pipe, offered, limits, examples)
            with gr.Column(min_width=300):
                with gr.Row():
                    start = gr.Button("Generate", variant="primary", min_width=120)
                    stop = gr.Button("Stop", variant="stop", min_width=120)
                status = gr.Textbox("ready", label="Status", interactive=False)
                gallery = gr.Gallery(
                    label="Pictures",
                    show_label=False,  # it would lie on the first one
                    type="filepath",
                    format="png",
                    columns=2,
                    interactive=False,
                    object_fit="contain",
                    elem_id="pictures",
                )
        going = gr.on(
            [start.click, fields[0].submit, fields[1].submit],
            make,
            [mine, *fields],
            [status, gallery, mine, fields[4]],
            show_progress="hidden",
            api_name="make",
        )
        # A run that was stopped counts as a failure too.
        going.failure(None, status, status, js="(said) => said === 'stopped' ? said : 'ready'")
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
        css=CSS,
        run_history=False,  # which would connect to the hub as strangers ask
        state_session_capacity=SESSIONS,
        allowed_paths=[],
        app_kwargs={"middleware": guards},
    )
