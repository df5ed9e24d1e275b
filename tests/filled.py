"""Parameters for tests of what networks compute, without running how they begin."""

import jax
import jax.numpy as jnp
import numpy as np


def fill(net, *inputs, spread=0.3, seed=0):
    """Parameters of a Flax module from N(0, spread^2), none of which is zero.

    Only their shapes come from the module, so that nothing is compiled.
    """
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    return draw_like(shapes, spread=spread, seed=seed)


def draw_like(shapes, *, spread=0.3, seed=0):
    """A tree of arrays from N(0, spread^2), of the shapes and types of another tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, spread, leaf.shape), leaf.dtype), shapes
    )
