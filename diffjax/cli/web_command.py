"""A web page to try a Stable Diffusion model on; it needs ``pip install 'diffjax[demo]'``.

    diffjax web --model=FOLDER

The flags that say what is loaded are those of `diffjax generate`; the same settings give the same
image there.
"""

from __future__ import annotations

import os
import tempfile

import jax.numpy as jnp
from absl import flags, logging

from diffjax.cli import generate_flags
from diffjax.cli.command_line import UsageError, refuse_config
from diffjax.cli.image_request import load_control, load_pipeline
from diffjax.cli.web_limits import Limits, list_hosts

# The limits without flags.
_DEFAULTS = Limits()

flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.")
flags.DEFINE_string("controlnet", None, "Folder or file of a ControlNet.")
flags.DEFINE_integer("port", 7860, "Port to listen on.", 1, 65535)
flags.DEFINE_list(
    "allowed_hosts", [], "Other names of this machine that browsers may use in its address."
)
flags.DEFINE_integer("max_pixels", _DEFAULTS.pixels, "Most pixels (height x width) of an image.", 1)
flags.DEFINE_integer("max_steps", _DEFAULTS.steps, "Most steps of a request.", 1)
flags.DEFINE_integer("max_characters", _DEFAULTS.characters, "Most characters of a prompt.", 1)
flags.DEFINE_float("max_seconds", _DEFAULTS.seconds, "Seconds after which a request stops.", 1.0)
flags.DEFINE_integer("max_upload_mb", 20, "Most megabytes of an uploaded file.", 1)
flags.DEFINE_integer("max_folder_mb", 1000, "Most megabytes of all uploads and images.", 1)
flags.DEFINE_integer("max_queue", 20, "Most requests that wait.", 1)

# Flags in the order of the help, see `help_pages`.
FLAG_GROUPS = {
    "Page": ("model", "port", "host", "allowed_hosts"),
    "Model": (
        *("controlnet", "lora", "concept", "dtype", "variant", "tokenizer", "vae", "prediction"),
        "allow_legacy_pickle",
    ),
    "Limits": (
        *("max_pixels", "max_steps", "max_characters", "max_seconds", "max_upload_mb"),
        *("max_folder_mb", "max_queue"),
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
    legacy = generate_flags.ALLOW_LEGACY_PICKLE.value
    # Everything is loaded before the first visitor comes.
    pipe = load_pipeline(options, options.model, allow_legacy_pickle=legacy)
    path, dtype = values.controlnet, jnp.dtype(options.dtype)
    control = load_control(path, dtype, options.variant) if path else None
    limits = Limits(
        values.max_pixels,
        values.max_steps,
        values.max_characters,
        seconds=values.max_seconds,
    )
    with refuse_config():
        hosts = list_hosts(values.host, values.allowed_hosts)
    with tempfile.TemporaryDirectory(prefix="diffjax-web-") as folder:  # for this user alone
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = web_page.build_page(pipe, control, limits, values.max_queue)
        room = values.max_folder_mb
        web_page.serve(page, values.host, values.port, hosts, values.max_upload_mb, room)
        logging.info("http://%s:%d", values.host, values.port)
        page.block_thread()
