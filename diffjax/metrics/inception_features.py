"""The feature network of FID, KID, Inception score and spatial FID, from a user's weights."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.metrics.features import FeatureNetwork, Features
from diffjax.nets.inception import SIZE, Inception, inception_input
from diffjax.types import Params

SOURCE = (
    "the Inception weights of FID are not part of this package. Download "
    "pt_inception-2015-12-05-6726825d.pth (91 MB) from the release fid_weights of "
    "https://github.com/mseitzer/pytorch-fid, or make a safetensors file of the same keys"
)


def inception_shapes() -> Params:
    """Return names and shapes of Inception's parameters, without memory for them."""
    images = jnp.zeros((1, SIZE, SIZE, 3))
    return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]


def inception_network(
    params: Params, *, resize: str = "tensorflow", batch_size: int = 32
) -> FeatureNetwork:
    """Make a feature network of Inception, for images of any size.

    Images in [-1, 1] are rounded to 8 bits first, as saved images are. Probabilities are the
    softmax of the logits without their bias, as in every published Inception score.

    Args:
        params: parameters with the names and shapes of `inception_shapes`.
        resize: ``tensorflow`` or ``pytorch_fid``, see `diffjax.nets.inception.inception_input`.
        batch_size: images at a time; 32 take about 0.6 GB.

    Raises:
        ValueError: (when called) unknown resize.
    """
    # Parameters, which are passed at every call, have to be on every device that takes part.
    mesh = jax.sharding.Mesh(jax.local_devices(), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return FeatureNetwork(
        name="inception",
        version=f"2015-12-05-{resize}",
        dim=2048,
        apply=functools.partial(_apply, resize, jax.device_put(params, everywhere)),
        shape=None,
        accuracy=None,
        levels=256,
        batch_size=batch_size,
    )


@functools.partial(jax.jit, static_argnums=0)
def _apply(resize: str, params: Params, images: jax.Array) -> Features:
    """Compute pooled and spatial features and class probabilities of images."""
    x = inception_input(_to_levels(images), resize=resize)
    out: Any = Inception().apply({"params": params}, x)
    return Features(out.pool, jax.nn.softmax(out.logits), out.spatial)


def _to_levels(images: jax.Array) -> jax.Array:
    """Convert uint8, or [-1, 1] rounded to the 256 levels, to float32 in 0 to 255."""
    levels = images.astype(jnp.float32)
    if images.dtype == jnp.uint8:
        return levels
    return jnp.clip(jnp.rint((levels + 1) * 127.5), 0, 255)
