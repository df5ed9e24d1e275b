"""Write a trained model as one safetensors file, the --weights of sample, evaluate and control.

    python -m experiments.export --workdir=runs/digits --out=digits.safetensors
    python -m experiments.sample --weights=digits.safetensors --workdir=runs/elsewhere

The file holds the averaged weights under diffusers' names, and the config; no optimiser state. An
autoencoder comes with the diffusion model in its latents; what a ControlNet controls does not, and
is read from where its config says.

    python -m experiments.export --workdir=runs/cats --out=cats

Of fine-tuning, an --out without suffix is a folder that diffusers and `diffjax.load` read: the
whole model, or of LoRA the file pytorch_lora_weights.safetensors. Of a ControlNet it is a folder
that diffusers and `diffjax generate --control` read.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags, logging

from experiments import common, controlled, finetuning, frozen, weights

OUT = flags.DEFINE_string(
    "out",
    None,
    "File to write, or a folder for fine-tuned models and ControlNets; weights.safetensors in "
    "--workdir if not set.",
)


FLAG_GROUPS = {"Export": ("workdir", "out", "best", "weights", "config")}
USES = ("config", "workdir", "weights", "best")  # flags of other modules


def main() -> None:
    cfg, folder = common.config(), common.workdir()
    out = Path(OUT.value) if OUT.value else folder / "weights.safetensors"
    control = cfg.task == "controlnet"
    whole = not out.suffix and (control or "model" in cfg)
    if out.suffix != ".safetensors" and not whole:
        raise common.UsageError(
            f"--out={out} must end in .safetensors; folders are for fine-tuning and ControlNets"
        )
    state = common.restore(cfg, common.task_of(cfg), folder)
    if whole and control:
        controlled.save(cfg, state.ema, out)
        return
    latent = cfg.get("autoencoder", None) and not control
    given = frozen.load(cfg, folder) if latent else None
    if whole:
        finetuning.save(cfg, state, given, out)
        finetuning.summary(cfg, out)
        return
    weights.write(out, cfg, state, given)
    logging.info("%.1f MB in %s", out.stat().st_size / 1e6, out)


if __name__ == "__main__":
    common.run(main, USES)
