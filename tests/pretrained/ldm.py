"""State dicts of diffusers' layout put into single-file layout, the other way than we read them."""

from __future__ import annotations

import re

import numpy as np

State = dict[str, np.ndarray]
RES = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]
UNET = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
]


def unet(state: State, blocks: int) -> State:
    """A UNet, its blocks numbered in the order in which they run."""
    names = list(UNET)
    levels = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("down_blocks"))
    n = 1
    for i in range(levels):
        for j in range(blocks):
            names.append((f"down_blocks.{i}.resnets.{j}", f"input_blocks.{n}.0"))
            names.append((f"down_blocks.{i}.attentions.{j}", f"input_blocks.{n}.1"))
            n += 1
        names.append((f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{n}.0.op"))
        n += 1
    n = 0
    for i in range(levels):
        crossed = any(k.startswith(f"up_blocks.{i}.attentions") for k in state)
        for j in range(blocks + 1):
            names.append((f"up_blocks.{i}.resnets.{j}", f"output_blocks.{n}.0"))
            names.append((f"up_blocks.{i}.attentions.{j}", f"output_blocks.{n}.1"))
            n += 1
        last = f"output_blocks.{n - 1}.{2 if crossed else 1}.conv"
        names.append((f"up_blocks.{i}.upsamplers.0.conv", last))

    def name(key: str) -> str:
        old, new = next((old, new) for old, new in names if key.startswith(f"{old}."))
        rest = key[len(old) :]
        for theirs, ldm in RES:
            if ".resnets." in key:
                rest = re.sub(rf"^\.{theirs}\.", f".{ldm}.", rest)
        return new + rest

    return {name(key): value for key, value in state.items()}


def autoencoder(state: State, levels: int) -> State:
    """An autoencoder, with attention as 1x1 convolutions."""

    def name(key: str) -> str:
        for old, new in [
            ("conv_norm_out", "norm_out"),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0", "mid.attn_1"),
            ("attentions", "attn"),
            ("conv_shortcut", "nin_shortcut"),
            ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"),
            ("group_norm", "norm"),
            ("to_out.0", "proj_out"),
            ("to_", ""),
            ("resnets", "block"),
            ("down_blocks", "down"),
        ]:
            key = key.replace(old, new)
        return re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", key)

    return {
        name(k): v[:, :, None, None] if ".attentions." in k and v.ndim == 2 else v
        for k, v in state.items()
    }


def open_clip(state: State, *, extra: bool) -> State:
    """OpenCLIP's text half; ``extra`` adds the last layer and the projection that SD 2 leaves."""
    out: State = {"logit_scale": np.zeros((), np.float32)}
    layers = 1 + max(int(m[1]) for k in state if (m := re.search(r"layers\.(\d+)\.", k)))
    head = "text_model.encoder.layers."
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            fused = [state[f"{head}{i}.self_attn.{n}_proj.{leaf}"] for n in "qkv"]
            out[f"{block}.attn.in_proj_{leaf}"] = np.concatenate(fused)
            for old, new in [
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ]:
                out[f"{block}.{new}.{leaf}"] = state[f"{head}{i}.{old}.{leaf}"]
    for leaf in ("weight", "bias"):
        out[f"ln_final.{leaf}"] = state[f"text_model.final_layer_norm.{leaf}"]
    out["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    if "text_projection.weight" in state:
        out["text_projection"] = np.ascontiguousarray(state["text_projection.weight"].T)
    if extra:
        last = f"transformer.resblocks.{layers - 1}."
        again = {
            k.replace(f".{layers - 1}.", f".{layers}."): v for k, v in out.items() if last in k
        }
        out |= again | {"text_projection": np.ones((16, 16), np.float32)}
    return out


def under(prefix: str, state: State) -> State:
    """A state dict under a prefix."""
    return {prefix + key: value for key, value in state.items()}
