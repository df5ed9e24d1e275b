"""A web page to try a Stable Diffusion model on; it needs ``pip install 'diffjax[demo]'``.

    diffjax web --model=FOLDER

The flags that say what is loaded are those of `diffjax generate`; the same settings give the same
image there.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence

import jax.numpy as jnp
from absl import flags, logging

from diffjax import generate
from diffjax.cli import generate_flags
from diffjax.cli.command_line import UsageError, refuse_config
from diffjax.cli.image_options import ImageOptions
from diffjax.cli.image_request import load_control, load_pipeline
from diffjax.cli.path_arguments import parse_lora, split_kind
from diffjax.cli.web_form import Offered, name_choices, name_model
from diffjax.cli.web_limits import Limits, list_hosts

# The limits without flags.
_DEFAULTS = Limits()

flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.")
flags.DEFINE_multi_string(
    "controlnet",
    [],
    "Folder or file of a ControlNet to choose on the page; repeat it for several. NET#KIND is one "
    "that reads several kinds of hints, with the number of the kind.",
)
flags.DEFINE_string("title", None, "Heading of the page; the name of the model if not set.")
flags.DEFINE_multi_string("example", [], "A prompt to begin with; repeat it for several.")
flags.DEFINE_integer("port", 7860, "Port to listen on.", 1, 65535)
flags.DEFINE_list(
    "allowed_hosts", [], "Other names of this machine that browsers may use in its address."
)
flags.DEFINE_integer("max_pixels", _DEFAULTS.pixels, "Most pixels (height x width) of an image.", 1)
flags.DEFINE_integer("max_steps", _DEFAULTS.steps, "Most steps of a request.", 1)
flags.DEFINE_integer("max_characters", _DEFAULTS.characters, "Most characters of a prompt.", 1)
flags.DEFINE_integer("max_images", _DEFAULTS.images, "Most pictures of a request.", 1, 12)
flags.DEFINE_float("max_seconds", _DEFAULTS.seconds, "Seconds after which a request stops.", 1.0)
flags.DEFINE_integer("max_upload_mb", 20, "Most megabytes of an uploaded file.", 1)
flags.DEFINE_integer("max_folder_mb", 1000, "Most megabytes of all uploads and images.", 1)
flags.DEFINE_integer("max_queue", 20, "Most requests that wait.", 1)

# Flags in the order of the help, see `help_pages`.
FLAG_GROUPS = {
    "Page": ("model", "port", "host", "allowed_hosts", "title", "example"),
    "Model": (
        *("controlnet", "lora", "concept", "dtype", "variant", "tokenizer", "vae", "prediction"),
        "allow_legacy_pickle",
    ),
    "Limits": (
        *("max_pixels", "max_steps", "max_images", "max_characters", "max_seconds"),
        *("max_upload_mb", "max_folder_mb", "max_queue"),
    ),
}


def main() -> None:
    """Load the model, and serve its page until the process is stopped.

    Raises:
        UsageError: --model or gradio is missing, or a host name is wrong.
    """
    values = flags.FLAGS
    options = generate_flags.read_flags()
    if not options.model:
        raise UsageError("--model is needed")
    try:
        from diffjax.cli import web_page
    except ImportError as error:
        raise UsageError(f"{error}: the page needs pip install 'diffjax[demo]'") from error
    # Everything is loaded before the first visitor comes.
    pipe, offered = _load_all(options, values.controlnet)
    limits = Limits(
        values.max_pixels,
        values.max_steps,
        values.max_characters,
        seconds=values.max_seconds,
        images=values.max_images,
    )
    with refuse_config():
        hosts = list_hosts(values.host, values.allowed_hosts)
    with tempfile.TemporaryDirectory(prefix="diffjax-web-") as folder:  # for this user alone
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = web_page.build_page(
            pipe,
            offered,
            limits,
            values.max_queue,
            values.title or name_model(options.model),
            tuple(values.example) or web_page.EXAMPLES,
        )
        room = values.max_folder_mb
        web_page.serve(page, values.host, values.port, hosts, values.max_upload_mb, room)
        logging.info("http://%s:%d", values.host, values.port)
        page.block_thread()


def _load_all(
    options: ImageOptions, controlnets: Sequence[str]
) -> tuple[generate.Pipeline, Offered]:
    """Load the model, and what the page lets its visitors choose.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or is not what it has to be.
    """
    legacy = generate_flags.ALLOW_LEGACY_PICKLE.value
    # Adapters are chosen on the page, so they are not merged.
    plain = dataclasses.replace(options, lora=())
    pipe = load_pipeline(plain, str(options.model), allow_legacy_pickle=legacy)
    dtype = jnp.dtype(options.dtype)
    kinds = {text: split_kind(text) for text in controlnets}
    nets = {text: load_control(path, dtype, options.variant) for text, (path, _) in kinds.items()}
    loras = {
        path: generate.Lora(pipe.load_lora(path), scale)
        for path, scale in map(parse_lora, options.lora)
    }
    numbers = {text: kind for text, (_, kind) in kinds.items()}
    return pipe, Offered(name_choices(nets), name_choices(loras), name_choices(numbers))
