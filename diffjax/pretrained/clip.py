"""Load both halves of CLIP from a folder of transformers' CLIPModel.

CLIP scores (`diffjax.metrics.clip_similarity`) compare the embeddings of images and texts. The text
encoders of Stable Diffusion are loaded by `pipelines` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.nets.text import CLIPText
from diffjax.nets.vision import CLIPVision, clip_input
from diffjax.pretrained.config_specs import NETWORK, check_counts
from diffjax.pretrained.configs import trace_params
from diffjax.pretrained.files import StrPath, Weights, open_folder, resolve_inside
from diffjax.pretrained.hub import download
from diffjax.pretrained.state_dict import from_state_dict
from diffjax.pretrained.text_configs import VISION_DEFAULTS, build_image_encoder
from diffjax.types import Array, Config, Module, Params
from diffjax.untrusted import check, naming, read_json

_TEXT = ("text_model.", "text_projection.")
_VISION = ("vision_model.", "visual_projection.")


class CLIP(NamedTuple):
    """Functions that embed images and texts in one space.

    Attributes:
        images: (B, H, W, 3) in [-1, 1], of any size, to (B, P); compiled.
        texts: token ids (B, M) to (B, P); compiled.
    """

    images: Callable[[Array], jax.Array]
    texts: Callable[[Array], jax.Array]


def load_clip(folder: StrPath) -> CLIP:
    """Load the two encoders of a folder with config.json and safetensors, as transformers writes
    it.

    Args:
        folder: the folder of a CLIPModel, or its name on the Hub.

    Raises:
        FileNotFoundError: the folder lacks config.json or weights.
        ValueError: the folder is not of CLIP, or its weights do not fit the config, are damaged, or
            are pickles.
    """
    path = download(folder)
    file = resolve_inside(path, "config.json")
    config = read_json(file)
    if not all(isinstance(config.get(name), dict) for name in ("text_config", "vision_config")):
        raise ValueError(
            f"{path} is not CLIP: its config.json has no text_config and vision_config"
        )
    for part in (config, config["text_config"], config["vision_config"]):
        check(part, NETWORK, file)
    weights = open_folder(path)
    text, vision = _build_text(config), build_vision(config)
    size = (1, vision.size, vision.size, 3)
    with naming(path):
        text_params = load_params(weights, _TEXT, text, (1, 2), config["text_config"])
        vision_params = load_params(weights, _VISION, vision, size, config["vision_config"])

    @jax.jit
    def embed_texts(params: Params, ids: Array) -> jax.Array:
        return text.apply({"params": params}, ids).pooled  # type: ignore[union-attr]

    @jax.jit
    def embed_images(params: Params, x: jax.Array) -> jax.Array:
        return vision.apply({"params": params}, clip_input(x, vision.size))  # type: ignore[return-value]

    return CLIP(lambda x: embed_images(vision_params, x), lambda ids: embed_texts(text_params, ids))


def _build_text(config: Config) -> CLIPText:
    """Build the text encoder. Keys that the config leaves out have the defaults of transformers."""
    part: Config = config["text_config"]
    return CLIPText(
        vocabulary=part.get("vocab_size", 49408),
        positions=part.get("max_position_embeddings", 77),
        features=part.get("hidden_size", 512),
        width=part.get("intermediate_size", 2048),
        layers=part.get("num_hidden_layers", 12),
        heads=part.get("num_attention_heads", 8),
        projection=config.get("projection_dim", 512),
        activation=part.get("hidden_act", "quick_gelu"),
        eps=part.get("layer_norm_eps", 1e-5),
        end=part.get("eos_token_id", 49407),
    )


def build_vision(config: Config) -> CLIPVision:
    """Build the image encoder. Keys that the config leaves out have the defaults of
    transformers.
    """
    projection = config.get("projection_dim", 512)
    return build_image_encoder(
        {**VISION_DEFAULTS, **config["vision_config"], "projection_dim": projection}
    )


def load_params(
    weights: Weights,
    prefixes: tuple[str, ...],
    net: Module,
    shape: tuple[int, ...],
    config: Config,
) -> Params:
    """Load the parameters of one encoder from the weights whose keys have its prefixes.

    Args:
        weights: the weights of both encoders.
        prefixes: beginnings of the keys of this encoder.
        net: the encoder.
        shape: shape of its input; two axes are token ids, four are an image.
        config: the encoder's section of the config, to compare numbers of layers.

    Raises:
        ValueError: the weights do not fit the network.
    """
    kept = Weights({k: v for k, v in weights.tensors.items() if k.startswith(prefixes)})
    check_counts(config, kept)
    kind = jnp.int32 if len(shape) == 2 else jnp.float32
    like = trace_params(net, lambda: (jnp.zeros(shape, kind),))
    return jax.tree.map(np.asarray, from_state_dict(kept, like))
