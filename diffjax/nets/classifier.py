"""A small image classifier whose penultimate layer is the feature space of `diffjax.metrics`."""

from __future__ import annotations

import flax.linen as nn
import jax


class Classifier(nn.Module):
    """Convolutional classifier ``images -> (features, logits)`` for small square images.

    Three convolutions (two of stride 2), then one linear layer over all positions. The features
    are that layer's output *before* its non-linearity: they are unbounded, smooth in the image and
    none of them is clipped to zero, so that their mean and covariance describe them well. There is
    no normalisation layer, which would hide differences of brightness and contrast.

    Attributes:
        num_classes: number of logits ``K``.
        width: channels of the first convolution; the others have twice as many.
        features: size ``F`` of the feature vector.
    """

    num_classes: int
    width: int = 32
    features: int = 64

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features (B, F) and logits (B, K) of images (B, H, W, C), float32 in [-1, 1]."""
        x = nn.silu(nn.Conv(self.width, (5, 5), strides=2, name="stem")(images))
        x = nn.silu(nn.Conv(2 * self.width, (3, 3), name="conv_1")(x))
        x = nn.silu(nn.Conv(2 * self.width, (3, 3), strides=2, name="conv_2")(x))
        x = x.reshape(x.shape[0], -1)
        # "features" is already the name of the attribute, so the layer is called "embed".
        hidden = nn.Dense(self.features, name="embed")(x)
        return hidden, nn.Dense(self.num_classes, name="head")(nn.silu(hidden))
