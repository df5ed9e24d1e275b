"""The safety checker of Stable Diffusion 1, as post-processing of images.

check = load_safety_checker("stable-diffusion-v1-5/safety_checker")
images = pipe("a red cat", finish=check)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from diffjax.nets.vision import clip_input
from diffjax.pretrained.clip import build_vision, load_params
from diffjax.pretrained.config_specs import NETWORK
from diffjax.pretrained.files import StrPath, Weights, open_folder, resolve_inside
from diffjax.pretrained.hub import download
from diffjax.types import Array, Params
from diffjax.untrusted import check, naming, read_json

SPECIAL = 0.01  # by how much a special concept lowers the thresholds of the others
_LISTS = ("concept_embeds", "special_care_embeds")


class SafetyChecker(NamedTuple):
    """Images that resemble a list of concepts become black, as in diffusers.

    Attributes:
        embed: images (B, H, W, 3) in [-1, 1] to embeddings (B, P).
        concepts: (K, P), of which one is enough.
        thresholds: (K,), cosines from which an image resembles a concept.
        special: (S, P), concepts that lower the thresholds of the others by `SPECIAL`.
        special_thresholds: (S,).
    """

    embed: Callable[[Array], Array]
    concepts: np.ndarray
    thresholds: np.ndarray
    special: np.ndarray
    special_thresholds: np.ndarray

    def find(self, images: np.ndarray) -> np.ndarray:
        """Find which images (B, H, W, 3) in [0, 1] resemble a concept, bool (B,)."""
        found = _normalise(np.asarray(self.embed(2 * images - 1)))
        special = found @ _normalise(self.special).T - self.special_thresholds
        lower = SPECIAL * (np.round(special, 3) > 0).any(1, keepdims=True)
        scores = found @ _normalise(self.concepts).T - self.thresholds + lower
        return np.asarray((np.round(scores, 3) > 0).any(1))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return images (B, H, W, 3) in [0, 1], black in place of those that `find` finds."""
        found = self.find(images)
        if found.any():
            which = ", ".join(map(str, np.flatnonzero(found)))
            logging.warning("images %s are black: the safety checker found them", which)
        return np.where(found[:, None, None, None], np.float32(0), images)


def _normalise(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def load_safety_checker(folder: StrPath) -> SafetyChecker:
    """Load the folder ``safety_checker`` of a model of diffusers.

    Args:
        folder: has config.json and safetensors; or its name on the Hub.

    Raises:
        FileNotFoundError: the folder lacks config.json or weights.
        ValueError: the folder is of something else, or its weights do not fit the config.
    """
    path = download(folder)
    file = resolve_inside(path, "config.json")
    config = read_json(file)
    if not isinstance(config.get("vision_config"), dict):
        raise ValueError(f"{path} is no safety checker: its config.json has no vision_config")
    check(config["vision_config"], NETWORK, file)
    weights = open_folder(path)
    with naming(path):
        if absent := [n for n in _LISTS if n not in weights or f"{n}_weights" not in weights]:
            raise ValueError(f"a safety checker has {absent[0]} and {absent[0]}_weights")
        net = build_vision({"projection_dim": 768, **config})
        # In published files the encoder is a whole model, so that its names begin twice with its
        # own; transformers 5 writes them once.
        renamed = {
            k.replace("vision_model.vision_model.", "vision_model.", 1): v
            for k, v in weights.tensors.items()
        }
        prefixes = ("vision_model.", "visual_projection.")
        shape = (1, net.size, net.size, 3)
        params = load_params(Weights(renamed), prefixes, net, shape, config["vision_config"])
        lists = [np.asarray(weights[k], "f4") for n in _LISTS for k in (n, f"{n}_weights")]

    @jax.jit
    def embed(params: Params, x: jax.Array) -> jax.Array:
        return net.apply({"params": params}, clip_input(x, net.size))  # type: ignore[return-value]

    return SafetyChecker(lambda x: embed(params, jnp.asarray(x)), *lists)
