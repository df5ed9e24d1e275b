"""Write a trained model as one safetensors file, the --weights of sample, evaluate and control.

    diffjax export --workdir=runs/digits --out=digits.safetensors
    python -m experiments.sample --weights=digits.safetensors --workdir=runs/elsewhere

The file holds the averaged weights under diffusers' names, and the config; no optimiser state. An
autoencoder comes with the diffusion model in its latents; what a ControlNet controls does not, and
is read from where its config says.

    diffjax export --workdir=runs/cats --out=cats

Of fine-tuning, an --out without suffix is a folder that diffusers and `diffjax.load` read: the
whole model, or of LoRA the file pytorch_lora_weights.safetensors. Of a ControlNet it is a folder
that diffusers and `diffjax generate --control` read.

    diffjax export --workdir=runs/cats --out=cats --push=OWNER/NAME --license=openrail++

puts the same into a repository on the Hugging Face Hub, with a model card that says what it is and
how it was trained. Folders get the card in any case.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from absl import flags, logging

from diffjax import runs
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError, name_keys
from diffjax.pretrained.cards import UNKNOWN, check_license
from diffjax.pretrained.hub_uploads import check_target, upload
from diffjax.tasks import find_task_kind

OUT = flags.DEFINE_string(
    "out",
    None,
    "File to write, or a folder for fine-tuned models and ControlNets; weights.safetensors in "
    "--workdir if not set.",
)


PUSH = flags.DEFINE_string(
    "push",
    None,
    "OWNER/NAME on the Hugging Face Hub to put the export into, with a model card.",
)
PRIVATE = flags.DEFINE_bool("private", None, "Whether a repository that --push makes is private.")
LICENSE = flags.DEFINE_string(
    "license", UNKNOWN, "The Hub's identifier of the licence, for the model card."
)
# Flags in the order of the help, see `help_pages`.
FLAG_GROUPS = {
    "Export": ("workdir", "out", "best", "ema_length", "weights", "config"),
    "Hugging Face Hub": ("push", "private", "license"),
}
# Flags of other modules that this command uses.
USES = ("config", "workdir", "weights", "best", "ema_length")


def main() -> None:
    """Write the weights of a run to --out, and with --push to the Hub.

    Raises:
        UsageError: a folder is asked for, and the run has no format of diffusers.
        ConfigError: the run has no checkpoint, or its frozen parts are missing.
        OSError: the Hub cannot be reached.
    """
    _check_flags()
    cfg, folder = run_flags.read_config(), run_flags.read_workdir()
    out = Path(OUT.value) if OUT.value else folder / "weights.safetensors"
    # A path without suffix is a folder of diffusers.
    whole = not out.suffix and runs.is_publishable(cfg)
    if out.suffix != ".safetensors" and not whole:
        raise UsageError(
            f"--out={out} must end in .safetensors; folders are for fine-tuning and ControlNets"
        )
    where = Path(run_flags.WEIGHTS.value or folder)
    with name_keys({"ema_length": "--ema_length"}):
        state = runs.read_state(
            cfg, where, best=run_flags.BEST.value, ema_length=run_flags.EMA_LENGTH.value
        )
    if run_flags.EMA_LENGTH.value is not None:
        cfg.ema.lengths = (run_flags.EMA_LENGTH.value,)  # that of the file
    frozen = None
    kind = find_task_kind(cfg)
    hinted = kind.takes_hints
    reads = kind.reads_pictures or ("lora" in cfg if hinted else cfg.get("autoencoder", None))
    if reads:
        exported = Path(run_flags.WEIGHTS.value) if run_flags.WEIGHTS.value else None
        frozen = runs.load_fixed_parts(cfg, folder, exported=exported)
    card = runs.make_card(cfg, state, PUSH.value or str(out), whole=whole, license=LICENSE.value)
    if whole:
        logging.info("%s", runs.publish(cfg, state, frozen, out, folder=folder))
        files = runs.gather_uploads(out, card, folder, out)
    else:
        kept = None if hinted else runs.leave_out_base(cfg, frozen)
        runs.write_export(out, cfg, state, kept)
        logging.info("%.1f MB in %s", out.stat().st_size / 1e6, out)
    if not PUSH.value:
        return
    with tempfile.TemporaryDirectory() as extra:
        if not whole:
            files = runs.gather_uploads(out, card, folder, Path(extra))
        logging.info("%s", upload(files, PUSH.value, private=PRIVATE.value))


def _check_flags() -> None:
    """
    Raises:
        ConfigError: --license or --push is wrong; nothing has been written then.
    """
    with name_keys({"license": "--license"}):
        check_license(LICENSE.value)
    if PRIVATE.value is not None and not PUSH.value:
        raise UsageError("--private needs --push")
    if PUSH.value:
        check_target(PUSH.value)


if __name__ == "__main__":
    run_flags.run(main, USES)
