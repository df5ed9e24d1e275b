"""Perceptual distances: LPIPS over VGG16, and one over a small classifier where that is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.classifier import Classifier
from diffjax.types import Params

Array = jax.Array
SHIFT = (-0.030, -0.088, -0.188)  # channel means of ImageNet, for images in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
CONVOLUTIONS = (2, 2, 3, 3, 3)  # in each of the five stages of VGG16


def unit(x: Array, eps: float = 1e-10) -> Array:
    """Normalise features along the channels, ``x / (|x| + eps)``.

    The gradient at 0 is 0, where a plain norm would give NaN.
    """
    square = (x**2).sum(-1, keepdims=True)
    safe = jnp.where(square > 0, square, 1.0)
    return jnp.where(square > 0, x / (jnp.sqrt(safe) + eps), 0.0)


class LPIPS(nn.Module):
    """The perceptual distance of Zhang et al. 2018, eq. 1, (B,).

    ``sum_l mean_hw w_l . (unit f_l(x) - unit f_l(y))^2`` with features f_l of VGG16. Parameters
    have the keys of the lpips package (VGG16, version 0.1): ``net.slice1.0``, ...,
    ``lin4.model.1``.

    Attributes:
        widths: channels of the five stages.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """Return distances (B,) of images (B, H, W, 1 or 3) in [-1, 1]; one channel counts as grey.

        Raises:
            ValueError: there are other channels, or fewer than 16 pixels on a side.
        """
        if x.shape[-1] not in (1, 3) or min(x.shape[1:3]) < 16:
            raise ValueError(
                f"LPIPS takes images (B, H, W, 1 or 3) of at least 16x16 pixels, got {x.shape}"
            )
        both = jnp.concatenate([x, y])
        both = jnp.broadcast_to(both, (*both.shape[:3], 3))
        both = (both - jnp.array(SHIFT)) / jnp.array(SCALE)
        total = jnp.zeros(len(x))
        for i, features in enumerate(self._compute_stages(both)):
            a, b = jnp.split(unit(features), 2)
            lin = nn.Conv(1, (1, 1), use_bias=False, name=f"lin{i}.model.1")
            total = total + lin((a - b) ** 2).mean((1, 2, 3))
        return total

    def _compute_stages(self, h: Array) -> list[Array]:
        """Return the outputs of relu1_2, 2_2, 3_3, 4_3 and 5_3."""
        out, index = [], 0
        for stage, (width, count) in enumerate(zip(self.widths, CONVOLUTIONS, strict=True)):
            if stage:
                h, index = nn.max_pool(h, (2, 2), (2, 2)), index + 1
            for _ in range(count):
                name = f"net.slice{stage + 1}.{index}"
                h = nn.relu(nn.Conv(width, (3, 3), padding=1, name=name)(h))
                index += 2
            out.append(h)
        return out


def classifier_distance(params: Params, x: Array, y: Array) -> Array:
    """LPIPS with the convolutions of a small classifier and equal weights, (B,).

    For machines without the weights of LPIPS: the classifiers of `diffjax.metrics` have been
    trained on the same kind of images. Pre-activations are compared, which have no dead pixels.

    Args:
        params: of `diffjax.nets.classifier.Classifier`.
        x, y: images (B, H, W, C) in [-1, 1].

    Raises:
        ValueError: the images have other channels than those it was trained on.
    """
    wanted, width = params["stem"]["kernel"].shape[2:]
    if x.shape[-1] != wanted:
        raise ValueError(f"the classifier takes {wanted} channels, got images of shape {x.shape}")
    net = Classifier(params["head"]["kernel"].shape[-1], width, params["embed"]["kernel"].shape[-1])
    names = ("stem", "conv_1", "conv_2")
    _, state = net.apply(
        {"params": params},
        jnp.concatenate([x, y]),
        capture_intermediates=lambda module, method: module.name in names,
    )
    caught: Mapping[str, Any] = state["intermediates"]
    total = jnp.zeros(len(x))
    for name in names:
        a, b = jnp.split(unit(caught[name]["__call__"][0]), 2)
        total = total + ((a - b) ** 2).sum(-1).mean((1, 2))
    return total
