"""Reconstructions of a trained autoencoder, and how good they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from diffjax import metrics
from diffjax.evaluation.feature_distance import measure_distance
from diffjax.nets.autoencoder import Autoencoder, VQModel
from diffjax.train.sharding import make_mesh, make_replicated_sharding
from diffjax.types import Array, Params

BATCH = 64
COLLAPSED = 0.1  # share of codes in use below which a warning is due

# Images (N, H, W, C) to their reconstructions, and to codes (N, h, w) or (N, 0, 0).
Reconstruct = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
_Run = Callable[[Params, np.ndarray], tuple[Array, Array]]


def reconstruct(
    net: Autoencoder,
    params: Params,
    images: np.ndarray,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return reconstructions of images, and their codes.

    Args:
        net: the autoencoder.
        params: its parameters; those of a discriminator beside them are left out.
        images: (N, H, W, C) in [-1, 1].
        mesh: devices; default: all of them.

    Returns:
        Images (N, H, W, C), clipped to [-1, 1]; codes (N, h, w), or (N, 0, 0) without a codebook.
        Every process has all of them.
    """
    run = _compile(net, make_mesh() if mesh is None else mesh)
    own = {k: v for k, v in params.items() if k != "discriminator"}
    parts = []
    for start in range(0, len(images), BATCH):
        some = images[start : start + BATCH]
        padding = [(0, min(BATCH, len(images)) - len(some))] + [(0, 0)] * 3
        found = run(own, np.pad(some, padding))
        parts.append([np.asarray(value)[: len(some)] for value in found])
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


@functools.lru_cache(maxsize=2)  # previews and evaluations of a run compile once
def _compile(net: Autoencoder, mesh: jax.sharding.Mesh) -> _Run:
    """Compile the reconstruction by an autoencoder, with its result whole on every device."""

    def run(params: Params, x: Array) -> tuple[Array, Array]:
        output: Any = net.apply({"params": params}, x)
        x_hat, code = output
        codes = code.indices if isinstance(net, VQModel) else jnp.zeros((len(x), 0, 0), jnp.int32)
        return jnp.clip(x_hat, -1, 1), codes

    compiled: _Run = jax.jit(run, out_shardings=make_replicated_sharding(mesh))
    return compiled


def measure_reconstructions(
    again: Reconstruct,
    real: np.ndarray,
    num: int,
    *,
    network: metrics.FeatureNetwork | None = None,
    num_codes: int = 0,
) -> dict[str, float | int | str]:
    """Measure errors of reconstructed images, their distance to the originals, and codes in use.

    Args:
        again: reconstructs images, see `reconstruct`.
        real: (M, H, W, C) in [-1, 1]. The first ``num`` are reconstructed; for the floor of the
            distance, which needs disjoint sets, there should be twice as many.
        num: number of images that are reconstructed.
        network: of the distance; None for no distance.
        num_codes: size of the codebook.

    Returns:
        ``images``, how many; ``l1`` and ``psnr`` (dB) of unrounded images; with a network the
        scores of `measure_distance`, and ``floor`` between two sets of ``floor_num`` originals;
        with a codebook ``codes_used``, a share, and ``perplexity`` of the codes.
    """
    images = real[:num]
    found, codes = again(images)
    square = ((images - found) ** 2).mean((1, 2, 3))
    out: dict[str, float | int | str] = {
        "images": len(images),
        "l1": float(np.abs(images - found).mean()),
        "psnr": float((10 * np.log10(4 / np.maximum(square, 1e-10))).mean()),
    }
    if network is not None:
        out |= measure_distance(network, found, images)
        half = len(real) // 2  # the floor falls like 1/N, so it should be of as many images
        out["floor"] = metrics.floor(network, real[:half], real[half : 2 * half])
        out["floor_num"] = half
    if codes.size:
        share = np.bincount(codes.ravel(), minlength=num_codes) / codes.size
        entropy = -(share * np.log(np.maximum(share, 1e-12))).sum()
        out |= {"codes_used": float((share > 0).mean()), "perplexity": float(np.exp(entropy))}
    return out


def warn_of_collapse(usage: np.ndarray) -> None:
    """Log a warning if few codes of a codebook are in use.

    Args:
        usage: running share of latents that fall to each code, (K,).
    """
    alive = float((usage * len(usage) > 0.1).mean())
    if alive < COLLAPSED:
        logging.warning(
            "the codebook has collapsed: %.1f%% of %d codes are in use. Lower optim.lr or "
            "network.codes, or raise loss.dead",
            *(100 * alive, len(usage)),
        )
