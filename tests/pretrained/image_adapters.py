"""IP-Adapters in small, with random weights, in the files of their authors."""

import jax
import numpy as np

from diffjax.nets.image_prompts import FullProjection, ImageProjection, Resampler, copy_layers
from diffjax.nets.vision import CLIPVision
from diffjax.pretrained import save_image_adapter, save_model
from diffjax.pretrained.image_adapters import ENCODER, trace_projection

VISION = CLIPVision(
    size=8, patch=4, features=8, width=16, layers=3, heads=2, projection=6, activation="gelu"
)


def draw(like, seed=0):
    """Random parameters of given shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype("f4"), like)


def make_projection(kind, width):
    """A projection in small."""
    if kind == "plus":
        return Resampler(width, tokens=3, features=8, heads=1, layers=4)
    return FullProjection(width) if kind == "full" else ImageProjection(width)


def write_encoder(folder):
    """Write an image encoder in small."""
    image = jax.ShapeDtypeStruct((1, VISION.size, VISION.size, 3), "float32")
    like = jax.eval_shape(VISION.init, jax.random.key(0), image)["params"]
    save_model(folder / ENCODER, VISION, draw(like))


def write_adapter(folder, unet, kind):
    """Write an adapter of a kind for a UNet, and an image encoder beside it."""
    projection = make_projection(kind, unet.net.context_dim)
    params = draw(trace_projection(projection, VISION), 1)
    layers = draw(jax.eval_shape(copy_layers, unet.params), 2)
    path = folder / f"{kind}.safetensors"
    save_image_adapter(path, unet.params, params, layers)
    write_encoder(folder)
    return path
