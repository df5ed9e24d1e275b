"""RefineNets with weights that follow from their names, here and in the releases."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.nets.refinenet import RefineNet
from diffjax.pretrained.state_dict import from_state_dict, list_state_shapes

SIDE, WIDTH, LEVELS = 12, 8, 5
NETS = {
    "ncsn": RefineNet(WIDTH, noise_levels=LEVELS),
    "ncsnv2": RefineNet(WIDTH),
}
INDEX = np.array([0, 3, LEVELS - 1])  # of the noise levels, from the least noise


def make_input():
    return np.random.default_rng(0).uniform(-1, 1, (3, SIDE, SIDE, 3)).astype("f4")


def make_weight(name, shape):
    """Weights of a layer in the axes of torch."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    spread = np.prod(shape[1:]) ** -0.5 if len(shape) == 4 else 0.5
    return rng.normal(0, spread, shape).astype("f4")


def ours(name):
    net, z, t = NETS[name], make_input(), jnp.asarray(INDEX, jnp.float32)
    like = jax.eval_shape(lambda: net.init(jax.random.key(0), z, t))["params"]
    shapes = list_state_shapes(like)
    params = from_state_dict({k: make_weight(k, s) for k, s in shapes.items()}, like)
    return np.asarray(net.apply({"params": params}, z, t))
