"""A web page to try a Stable Diffusion model on; needs ``pip install 'diffjax[demo]'``.

    python -m experiments.web --model=FOLDER

Takes the flags of experiments.generate that say what is loaded: --model, --dtype, --tokenizer,
--variant, --prediction, --lora and --concept; and --controlnet. The same settings give the same
image there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image
from absl import flags, logging

from diffjax import generate
from diffjax.pretrained.models import Model
from experiments import common
from experiments import generate as command

try:
    import gradio as gr
except ImportError as error:
    raise SystemExit(f"{error}: the page needs pip install 'diffjax[demo]'") from error

flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.")
flags.DEFINE_string("controlnet", None, "Folder or file of a ControlNet.")
flags.DEFINE_integer("port", 7860, "Port to listen on.")

OWN = "the model's own"
KEPT = 24  # images in the gallery
Shown = list[tuple[PIL.Image.Image, str]]


@dataclasses.dataclass
class Form:
    """What the page asks for, in the order of its inputs.

    Attributes:
        height, width: 0 for the model's own, or those of ``image``.
        control: image of the ControlNet, if there is one.
    """

    prompt: str = ""
    negative: str = ""
    seed: float | None = 0
    steps: float | None = 20
    guidance: float | None = 7.5
    sampler: str = OWN
    height: float | None = 0
    width: float | None = 0
    image: PIL.Image.Image | None = None
    strength: float = 0.8
    mask: PIL.Image.Image | None = None
    control: PIL.Image.Image | None = None
    control_scale: float = 1.0

    def caption(self) -> str:
        """The settings in words."""
        out = f"{self.prompt} | seed {self.seed:.0f}, {self.steps:.0f} steps"
        out += f", guidance {self.guidance:g}, sampler {self.sampler}"
        out += f", negative: {self.negative}" if self.negative else ""
        out += f", image at strength {self.strength:g}" if self.image else ""
        out += ", mask" if self.mask else ""
        return out + (f", ControlNet {self.control_scale:g}" if self.control else "")

    def request(self, net: Model | None) -> generate.Request:
        """The request that the page makes.

        Raises:
            ValueError: a field is empty or does not fit; it is named.
        """
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")
        for name in ("seed", "steps", "guidance", "height", "width"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is empty")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed:.0f}")
        if self.mask and not self.image:
            raise ValueError("a mask needs an image")
        if net and not self.control:
            raise ValueError("the ControlNet needs its image")
        name = None if self.sampler == OWN else self.sampler
        image = generate.Image(self.image, self.strength, self.mask) if self.image else None
        return generate.Request(
            [self.prompt],
            key=np.array([int(self.seed)]),
            sampler=generate.Sampling(name, int(self.steps)),
            guidance=generate.Guidance(self.guidance, self.negative or None),
            image=image,
            control=[generate.Control(net, self.control, self.control_scale)] if net else [],
            size=generate.Size(int(self.height), int(self.width)),
        )


def run(
    pipe: generate.Pipeline, net: Model | None, shown: Shown, *values: Any
) -> Iterator[tuple[str, Shown]]:
    """Status and gallery after every step, at the end with the new image in front.

    Raises:
        gr.Error: what is asked for is not possible; the page shows why.
    """
    shown = shown or []
    try:
        form = Form(*values)
        request = form.request(net)
        yield "preparing", shown
        for progress in pipe.steps(request):
            yield f"step {progress.i + 1} of {progress.count}", shown
        picture = pipe.decode(progress.step.run.z)[0]
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    yield "done", [(picture, form.caption()), *shown][:KEPT]


def _inputs(pipe: generate.Pipeline, control: bool) -> list[Any]:
    """The fields of `Form`."""
    new, guidance = Form(), 5.0 if pipe.is_xl else 7.5
    fields: list[Any] = [
        gr.Textbox(label="Prompt", lines=2),
        gr.Textbox(label="Negative prompt"),
    ]
    with gr.Row():
        fields += [
            gr.Number(new.seed, label="Seed", precision=0),
            gr.Slider(1, 150, new.steps, step=1, label="Steps"),
            gr.Slider(1, 20, guidance, step=0.1, label="Guidance"),
            gr.Dropdown([OWN, *generate.SAMPLERS], value=OWN, label="Sampler"),
        ]
    with gr.Row():
        fields += [
            gr.Number(0, label="Height (0: the model's)", precision=0),
            gr.Number(0, label="Width (0: the model's)", precision=0),
        ]
    with gr.Accordion("Image to start from", open=pipe.extra_channels > 0):
        fields += [
            gr.Image(label="Image", type="pil", height=200),
            gr.Slider(0.05, 1, new.strength, step=0.05, label="Strength"),
            gr.Image(label="Mask: white is filled in", type="pil", height=200),
        ]
    with gr.Accordion("ControlNet", visible=control):
        fields += [
            gr.Image(label="Control image", type="pil", height=200),
            gr.Slider(0, 2, new.control_scale, step=0.05, label="Control scale"),
        ]
    return fields


def build(pipe: generate.Pipeline, net: Model | None = None) -> gr.Blocks:
    """The page. Images are made one at a time, in the order in which they were asked for."""

    def make(shown: Shown, *values: Any) -> Iterator[tuple[str, Shown]]:
        yield from run(pipe, net, shown, *values)

    with gr.Blocks(title="diffjax", analytics_enabled=False) as page, gr.Row():
        with gr.Column():
            fields = _inputs(pipe, net is not None)
            with gr.Row():
                start = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop", variant="stop")
        with gr.Column():
            status = gr.Textbox("ready", label="Status", interactive=False)
            gallery = gr.Gallery(
                label="Images", type="pil", format="png", columns=2, interactive=False
            )
        going = start.click(
            make, [gallery, *fields], [status, gallery], show_progress="minimal", api_name="make"
        )
        # The generator is left at its next step. Of other pages nothing is stopped.
        stop.click(None, cancels=[going]).then(lambda: "stopped", None, status, queue=False)
    return page.queue(default_concurrency_limit=1)


USES = tuple(command.SETTINGS)  # flags of other modules


def main() -> None:
    values = flags.FLAGS
    chosen = {name: values[name].value for name in command.SETTINGS}
    if not chosen["model"]:
        raise common.UsageError("--model is needed")
    pipe = command.load(chosen, chosen["model"])
    path, dtype = flags.FLAGS.controlnet, jnp.dtype(chosen["dtype"])
    net = command.load_controlnet(path, dtype, chosen["variant"]) if path else None
    logging.info("http://%s:%d", values.host, values.port)
    build(pipe, net).launch(
        server_name=values.host, server_port=values.port, share=False, quiet=True
    )


if __name__ == "__main__":
    common.run(main, USES)
