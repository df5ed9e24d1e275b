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
"""

from __future__ import annotations

from pathlib import Path

from absl import flags, logging

from diffjax import runs
from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.tasks import find_task_kind

OUT = flags.DEFINE_string(
    "out",
    None,
    "File to write, or a folder for fine-tuned models and ControlNets; weights.safetensors in "
    "--workdir if not set.",
)


# Flags in the order of the help, see `help_pages`.
FLAG_GROUPS = {"Export": ("workdir", "out", "best", "weights", "config")}
# Flags of other modules that this command uses.
USES = ("config", "workdir", "weights", "best")


def main() -> None:
    """Write the weights of a run to --out.

    Raises:
        UsageError: a folder is asked for, and the run has no format of diffusers.
        ConfigError: the run has no checkpoint, or its frozen parts are missing.
    """
    cfg, folder = run_flags.read_config(), run_flags.read_workdir()
    out = Path(OUT.value) if OUT.value else folder / "weights.safetensors"
    # A path without suffix is a folder of diffusers.
    whole = not out.suffix and runs.is_publishable(cfg)
    if out.suffix != ".safetensors" and not whole:
        raise UsageError(
            f"--out={out} must end in .safetensors; folders are for fine-tuning and ControlNets"
        )
    state = runs.read_state(cfg, Path(run_flags.WEIGHTS.value or folder), best=run_flags.BEST.value)
    frozen = None
    if cfg.get("autoencoder", None) and not find_task_kind(cfg).takes_hints:
        exported = Path(run_flags.WEIGHTS.value) if run_flags.WEIGHTS.value else None
        frozen = runs.load_fixed_parts(cfg, folder, exported=exported)
    if whole:
        logging.info("%s", runs.publish(cfg, state, frozen, out, folder=folder))
        return
    runs.write_export(out, cfg, state, frozen)
    logging.info("%.1f MB in %s", out.stat().st_size / 1e6, out)


if __name__ == "__main__":
    run_flags.run(main, USES)
