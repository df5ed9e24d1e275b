"""The noise of a training step."""

from __future__ import annotations

import jax

from diffjax.types import Array


def draw_noise(
    key: jax.Array,
    shape: tuple[int, ...],
    *,
    offset: float = 0.0,
    perturbation: float = 0.0,
) -> tuple[Array, Array]:
    """Draw the noise of a training step: what the network is to find, and what is added to x.

    ``eps = n + offset * m`` with ``n ~ N(0, I)`` and one ``m ~ N(0, 1)`` for each image and
    channel, so that the network learns to change the mean brightness (Guttenberg 2023,
    https://www.crosslabs.org/blog/diffusion-with-offset-noise). To x is added
    ``eps + perturbation * xi`` with ``xi ~ N(0, I)``, while the target keeps eps (Ning et al. 2023,
    https://arxiv.org/abs/2301.11706, algorithm 1). With 0 for both, the two results are the same
    standard normal array.

    Args:
        key: the standard normal part depends on the key alone, whatever the two factors are.
        shape: (B, h, w, C).
        offset: customary values are 0.05 to 0.1.
        perturbation: 0.1 in the paper.

    Returns:
        ``(eps, added)`` of this shape, float32.
    """
    eps = jax.random.normal(key, shape)
    if offset:
        means = jax.random.normal(jax.random.fold_in(key, 1), (shape[0], 1, 1, shape[-1]))
        eps = eps + offset * means
    if not perturbation:
        return eps, eps
    return eps, eps + perturbation * jax.random.normal(jax.random.fold_in(key, 2), shape)
