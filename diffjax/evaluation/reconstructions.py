"""Reconstructions of a trained autoencoder: pictures, and how good they are."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from diffjax import data, metrics
from diffjax.nets.autoencoder import VQModel
from diffjax.tasks import make_autoencoder
from diffjax.train import hosts
from diffjax.train.sharding import replicated
from experiments import common, generation

BATCH = 64
COLLAPSED = 0.1  # share of codes in use below which a warning is due


def reconstruct(cfg: Any, params: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructions (N, H, W, C) of images in [-1, 1], and codes (N, h, w) or empty."""
    run = _reconstructor(make_autoencoder(cfg.network, cfg.data.channels), common.mesh_of(cfg))
    own = {k: v for k, v in params.items() if k != "discriminator"}
    parts = []
    for start in range(0, len(images), BATCH):
        some = images[start : start + BATCH]
        padding = [(0, min(BATCH, len(images)) - len(some))] + [(0, 0)] * 3
        parts.append([np.asarray(v)[: len(some)] for v in run(own, np.pad(some, padding))])
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


@functools.lru_cache(maxsize=2)  # previews and evaluations of a run compile once
def _reconstructor(net: Any, mesh: jax.sharding.Mesh) -> Any:
    def run(params: Any, x: Any) -> Any:
        x_hat, code = net.apply({"params": params}, x)
        codes = code.indices if isinstance(net, VQModel) else jnp.zeros((len(x), 0, 0), jnp.int32)
        return jnp.clip(x_hat, -1, 1), codes

    return jax.jit(run, out_shardings=replicated(mesh))  # every process has all of them


def pictures(cfg: Any, params: Any, num: int = 32) -> np.ndarray:
    """Test images above their reconstructions."""
    images = _test_images(cfg, num)
    return side_by_side(images, reconstruct(cfg, params, images)[0])


def preview(cfg: Any, folder: Any) -> Any:
    """Callback that writes test images above their reconstructions, and warns of a collapse."""

    def write(state: Any, given: Any, step: int, reporter: Any) -> None:
        picture = pictures(cfg, state.ema)
        if not hosts.is_writer():
            return
        generation.save_png(picture, folder / "samples" / f"{step:08d}.png")
        reporter.image("reconstructions", step, picture)
        if "usage" in state.extra:
            _warn_of_collapse(np.asarray(state.extra["usage"]))

    return write


def _warn_of_collapse(usage: np.ndarray) -> None:
    alive = float((usage * len(usage) > 0.1).mean())
    if alive < COLLAPSED:
        logging.warning(
            "the codebook has collapsed: %.1f%% of %d codes are in use. Lower optim.lr or "
            "network.codes, or raise loss.dead",
            *(100 * alive, len(usage)),
        )


def side_by_side(images: np.ndarray, again: np.ndarray, columns: int = 16) -> np.ndarray:
    """Rows of images, each above the row of its reconstructions."""
    rows = [
        part
        for start in range(0, len(images) - len(images) % columns or len(images), columns)
        for part in (images[start : start + columns], again[start : start + columns])
    ]
    return generation.tile(np.concatenate(rows), columns=min(columns, len(images)))


def _test_images(cfg: Any, num: int) -> np.ndarray:
    source = common.test_source(cfg)
    index = np.random.default_rng(0).permutation(len(source))[:num]
    return data.batch_of(source, index)["image"]


def measure(cfg: Any, state: Any, num: int) -> dict[str, Any]:
    """Errors of reconstructed test images, their distance to the originals, and codes in use."""
    judged = cfg.eval.features
    real = _test_images(cfg, 2 * num if judged else num)
    images = real[:num]
    again, codes = reconstruct(cfg, state.ema, images)
    square = ((images - again) ** 2).mean((1, 2, 3))
    out: dict[str, Any] = {
        "step": int(state.step),
        "images": len(images),
        "l1": float(np.abs(images - again).mean()),
        "psnr": float((10 * np.log10(4 / np.maximum(square, 1e-10))).mean()),
    }
    if judged:
        network = metrics.feature_network(judged)
        rounded = data.to_float(generation.to_uint8(again), 256)
        out |= metrics.evaluate_images(network, rounded, images)
        half = len(real) // 2  # the floor falls like 1/N: of as many images, if there are
        out["floor"] = metrics.floor(network, real[:half], real[half : 2 * half])
        out["floor_num"] = half
    if codes.size:
        share = np.bincount(codes.ravel(), minlength=cfg.network.codes) / codes.size
        entropy = -(share * np.log(np.maximum(share, 1e-12))).sum()
        out |= {"codes_used": float((share > 0).mean()), "perplexity": float(np.exp(entropy))}
    return out
