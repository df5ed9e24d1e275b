"""The cases of sd_cases.py as diffusers and transformers compute them; renews tests/golden/sd.npz.

python -m tests.parity.sd_record
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import torch_operators  # noqa: F401

# isort: split
import diffusers
import transformers

from tests.parity import cases, sd_cases
from tests.parity.layout import nchw, nhwc

GOLDEN = Path(__file__).parents[1] / "golden" / "sd.npz"


def network(config: sd_cases.Config) -> Any:
    """Their network of a config, with `cases.random_state` as weights."""
    if "architectures" in config:
        kind = getattr(transformers, config["architectures"][0])
        net = kind(transformers.CLIPTextConfig(**config)).eval()
    else:
        net = getattr(diffusers, config["_class_name"]).from_config(config).eval()
    ours = {
        key if key.startswith("text_") else f"text_model.{key}": key for key in net.state_dict()
    }
    names = ours if "architectures" in config else {key: key for key in net.state_dict()}
    shapes = {key: tuple(net.state_dict()[theirs].shape) for key, theirs in names.items()}
    state = cases.random_state(shapes)
    net.load_state_dict({names[key]: torch.from_numpy(value) for key, value in state.items()})
    return net


@torch.no_grad()
def unet(config: sd_cases.Config, *, masked: bool = False, controlled: bool = False) -> np.ndarray:
    """Output (2, H, W, 4)."""
    given = sd_cases.unet_inputs(config)
    extra: dict[str, Any] = {}
    if masked:
        extra["encoder_attention_mask"] = torch.from_numpy(given["mask"])
    if "time_ids" in given:
        added = {key: torch.from_numpy(given[key]) for key in ("text_embeds", "time_ids")}
        extra["added_cond_kwargs"] = added
    if "guidance" in given:
        kind = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
        w = torch.from_numpy(given["guidance"])
        extra["timestep_cond"] = kind(None, w, embedding_dim=config["time_cond_proj_dim"])
    if "label" in given:
        extra["class_labels"] = torch.from_numpy(given["label"])
    if controlled:
        *residuals, middle = sd_cases.control(sd_cases.control_shapes(config))
        extra["down_block_additional_residuals"] = [nchw(value) for value in residuals]
        extra["mid_block_additional_residual"] = nchw(middle)
    out = network(config)(
        nchw(given["z"]), torch.from_numpy(given["t"]), torch.from_numpy(given["context"]), **extra
    ).sample
    return nhwc(out)


@torch.no_grad()
def text(config: sd_cases.Config) -> dict[str, np.ndarray]:
    """last, hidden (without the last layer, which transformers normalises) and pooled."""
    out = network(config)(torch.from_numpy(sd_cases.text_ids()), output_hidden_states=True)
    pooled = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
    hidden = np.stack([value.numpy() for value in out.hidden_states[:-1]])
    return {"last": out.last_hidden_state.numpy(), "hidden": hidden, "pooled": pooled.numpy()}


def _record() -> None:
    out = {f"unet.{name}": unet(config) for name, config in sd_cases.UNETS.items()}
    out["unet.masked"] = unet(sd_cases.UNETS["sd1"], masked=True)
    out["unet.controlled"] = unet(sd_cases.UNETS["xl"], controlled=True)
    for name, config in sd_cases.TEXTS.items():
        out.update({f"text.{name}.{key}": value for key, value in text(config).items()})
    np.savez_compressed(GOLDEN, **out)


if __name__ == "__main__":
    _record()
