"""Networks of the Stable Diffusion family in small, as the config.json of either library.

Nothing here needs torch; record.py has the other side. Weights are `cases.random_state`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from diffjax.pretrained import configs
from diffjax.pretrained.state_dict import from_state_dict, list_state_shapes
from tests.parity import cases

Config = dict[str, Any]


def _unet(**options: Any) -> Config:
    return dict(
        _class_name="UNet2DConditionModel",
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        **options,
    )


def _levels(kinds: str) -> Config:
    """Block types; a letter per level, ``x`` with attention to the text."""
    names = {"-": "", "x": "CrossAttn"}
    return dict(
        down_block_types=[f"{names[k]}DownBlock2D" for k in kinds],
        up_block_types=[f"{names[k]}UpBlock2D" for k in reversed(kinds)],
    )


_SD1 = dict(block_out_channels=[8, 16], attention_head_dim=2, **_levels("x-"))
UNETS = {
    "sd1": _unet(**_SD1),
    "sd1-inpainting": {**_unet(**_SD1), "in_channels": 9},
    "sd2": _unet(
        block_out_channels=[8, 16],
        attention_head_dim=[1, 2],
        use_linear_projection=True,
        upcast_attention=True,
        **_levels("x-"),
    ),
    "xl": _unet(
        block_out_channels=[8, 16, 16],
        attention_head_dim=[1, 2, 4],
        use_linear_projection=True,
        transformer_layers_per_block=[1, 2, 3],
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 + 6 * 8,
        **_levels("-xx"),
    ),
    "refiner": _unet(
        block_out_channels=[8, 16, 16, 16],
        attention_head_dim=[1, 2, 2, 2],
        use_linear_projection=True,
        transformer_layers_per_block=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 + 5 * 8,
        **_levels("-xx-"),
    ),
    # A guidance scale as an embedding (latent consistency models).
    "guided": {**_unet(**_SD1), "time_cond_proj_dim": 6},
    # Distilled networks: no middle, other numbers of layers, other depths on the way up.
    "distilled": {
        **_unet(block_out_channels=[8, 16], attention_head_dim=[1, 2], **_levels("xx")),
        "layers_per_block": [1, 2],
        "transformer_layers_per_block": [[2], [1, 3]],
        "reverse_transformer_layers_per_block": [[1, 2, 1], [1, 3]],
    },
    "no-middle": {**_unet(**_SD1), "mid_block_type": None, "layers_per_block": [2, 1]},
    "single-middle": {
        **_unet(block_out_channels=[8, 16], attention_head_dim=2, **_levels("xx")),
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 2],
        "reverse_transformer_layers_per_block": [1, 3],
    },
    # Upscalers: labels of noise, and a first attention that reads the text.
    "upscaler": {
        **_unet(**{**_SD1, **_levels("xx")}),
        "in_channels": 7,
        "only_cross_attention": [True, False],
        "num_class_embeds": 5,
        "encoder_hid_dim": 10,
    },
    "cross": {**_unet(**_SD1), "only_cross_attention": True},
}
# The network of the latent upscaler.
K_UNET: Config = dict(
    _class_name="UNet2DConditionModel",
    in_channels=8,
    out_channels=5,
    sample_size=None,
    block_out_channels=[32, 64, 64],
    layers_per_block=[2, 1, 2],
    down_block_types=["KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"],
    mid_block_type=None,
    up_block_types=["KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"],
    attention_head_dim=8,
    cross_attention_dim=12,
    time_cond_proj_dim=134,
    norm_num_groups=None,
    act_fn="gelu",
    conv_in_kernel=1,
    conv_out_kernel=1,
    resnet_time_scale_shift="scale_shift",
    time_embedding_type="fourier",
    timestep_post_act="gelu",
)


def _text(name: str, **options: Any) -> Config:
    return dict(
        architectures=[name],
        model_type="clip_text_model",
        vocab_size=40,
        max_position_embeddings=9,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=10,
        bos_token_id=38,
        pad_token_id=1,
        **options,
    )


TEXTS = {
    "clip": _text("CLIPTextModel", hidden_act="quick_gelu", eos_token_id=2),
    "openclip": _text("CLIPTextModelWithProjection", hidden_act="gelu", eos_token_id=39),
}


def unet_inputs(config: Config) -> dict[str, np.ndarray]:
    """z (2, H, W, C), t (2,), context (2, 5, 12), mask, added vectors, and residuals by shape."""
    rng = np.random.RandomState(1)
    vectors = config.get("projection_class_embeddings_input_dim")
    out = {
        "z": rng.standard_normal((2, 16, 8, config["in_channels"])).astype(np.float32),
        "t": np.array([3, 702]),
        "context": rng.standard_normal((2, 5, config.get("encoder_hid_dim", 12))).astype("f4"),
        "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], bool),
    }
    if vectors:
        out["text_embeds"] = rng.standard_normal((2, 6)).astype(np.float32)
        out["time_ids"] = rng.randint(0, 1024, (2, (vectors - 6) // 8)).astype(np.float32)
    if "time_cond_proj_dim" in config:
        out["guidance"] = np.array([6.5, 0.3], np.float32)
    if "num_class_embeds" in config:
        out["label"] = np.array([3, 0])
    return out


def control(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Residuals (B, H, W, C) of the shapes of all skips, and of the middle."""
    rng = np.random.RandomState(2)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def control_shapes(config: Config) -> list[tuple[int, ...]]:
    """Shapes of the skips of a network with one block per level, and of the middle."""
    widths, (h, w) = config["block_out_channels"], (16, 8)
    shapes = [(2, h, w, widths[0])]
    for i, width in enumerate(widths):
        shapes.append((2, h >> i, w >> i, width))
        if i < len(widths) - 1:
            shapes.append((2, h >> i + 1, w >> i + 1, width))
    return [*shapes, shapes[-1]]


def text_ids() -> np.ndarray:
    """Tokens (2, 7): the end token, also the largest id, comes once and twice."""
    return np.array([[38, 5, 7, 39, 1, 1, 1], [38, 4, 39, 3, 2, 39, 0]])


def random_params(config: Config) -> tuple[Any, Any]:
    """The network of a config and random weights."""
    net = configs.build(config)
    like = configs.shapes(net, config)
    return net, from_state_dict(cases.random_state(list_state_shapes(like)), like)


def our_unet(config: Config, *, masked: bool = False, controlled: bool = False) -> np.ndarray:
    """Output (2, 16, 8, 4) of our network."""
    net, params = random_params(config)
    given = unet_inputs(config)
    cond = {key: given[key] for key in ("context", "guidance", "label") if key in given}
    if masked:
        cond["mask"] = given["mask"]
    if "time_ids" in given:
        cond["added"] = {key: given[key] for key in ("text_embeds", "time_ids")}
    if controlled:
        *residuals, middle = control(control_shapes(config))
        cond["control"] = (residuals, middle)
    z = given["z"]
    if config["in_channels"] > 4:
        z, cond["concat"] = z[..., :4], z[..., 4:]
    return np.asarray(jax.jit(net.apply)({"params": params}, z, given["t"], cond))


def our_text(config: Config) -> dict[str, np.ndarray]:
    """last, hidden and pooled of our text encoder."""
    net, params = random_params(config)
    out = jax.jit(net.apply)({"params": params}, text_ids())
    return {key: np.asarray(value) for key, value in out._asdict().items()}
