"""Random weights and images of the Inception cases, the same for every framework."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.nets.inception import Inception
from diffjax.nets.vision import CLIPVision
from diffjax.pretrained.state_dict import from_state_dict, list_state_shapes
from tests.parity import cases


def like():
    """The shapes of Inception's parameters."""
    start = jnp.zeros((1, 75, 75, 3))
    return jax.eval_shape(Inception().init, jax.random.key(0), start)["params"]


@functools.cache
def state():
    """A state dict under which neither signal nor differences between images die out.

    Kernels are N(0, 2 / fan-in) and the statistics near those of such activations.
    """
    rng = np.random.RandomState(0)
    out = {}
    for key, shape in sorted(list_state_shapes(like()).items()):
        value = rng.standard_normal(shape)
        if key.endswith(("bias", "running_mean")):
            value = 0.1 * value
        elif len(shape) == 1:
            value = 1 + 0.1 * np.abs(value)
        else:
            value *= (2 / np.prod(shape[1:])) ** 0.5
        out[key] = value.astype(np.float32)
    return out


def images(num, *, seed=0, height=40, width=56):
    """uint8 (num, H, W, 3): smooth shapes of different colours, with noise."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width] / 16.0
    phase = rng.uniform(0, 6, (2, num, 1, 1, 3))
    waves = np.sin(y[..., None] * phase[0]) + np.cos(x[..., None] * phase[1])
    values = 127 + 50 * waves + 10 * rng.standard_normal((num, height, width, 3))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


CLIP = dict(  # a small image encoder, in transformers' words
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=12,
    patch_size=4,
    projection_dim=10,
)


def clip_images():
    """Inputs (2, 12, 12, 3) of the small image encoder."""
    return np.random.RandomState(3).standard_normal((2, 12, 12, 3)).astype(np.float32)


def our_clip_vision():
    """Our embeddings of `clip_images` with `cases.random_state` as weights."""
    net = CLIPVision(
        size=CLIP["image_size"],
        patch=CLIP["patch_size"],
        features=CLIP["hidden_size"],
        width=CLIP["intermediate_size"],
        layers=CLIP["num_hidden_layers"],
        heads=CLIP["num_attention_heads"],
        projection=CLIP["projection_dim"],
    )
    shapes = jax.eval_shape(net.init, jax.random.key(0), clip_images())["params"]
    params = from_state_dict(cases.random_state(list_state_shapes(shapes)), shapes)
    return np.asarray(jax.jit(net.apply)({"params": params}, clip_images()))
