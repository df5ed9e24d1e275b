"""Previews and measures of an autoencoder, the first stage of latent diffusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffjax import metrics
from diffjax.evaluation.image_grids import interleave_rows, save_png
from diffjax.evaluation.reconstructions import (
    Reconstruct,
    measure_reconstructions,
    reconstruct,
    warn_of_collapse,
)
from diffjax.model import make_autoencoder
from diffjax.runs import real_images
from diffjax.runs.states import make_run_mesh
from diffjax.train import Reporter, State, hosts
from diffjax.train.training_loop import OnSample
from diffjax.types import Frozen, Params

SHOWN = 32  # images of a picture


def make_reconstructor(cfg: ConfigDict, params: Params) -> Reconstruct:
    """Make the function ``images -> (reconstructions, codes)`` of a config's autoencoder.

    Args:
        params: of the autoencoder. Entries of the discriminator are not read.

    Returns:
        A function of images (N, H, W, C) in [-1, 1], see `evaluation.reconstructions.reconstruct`.
    """
    net, mesh = make_autoencoder(cfg.network, cfg.data.channels), make_run_mesh(cfg)
    return lambda images: reconstruct(net, params, images, mesh)


def draw_reconstructions(cfg: ConfigDict, params: Params) -> np.ndarray:
    """Draw `SHOWN` test images, each row of them above the row of their reconstructions.

    Returns:
        A picture (H, W, 3) uint8.
    """
    images = real_images.open_split(cfg, "test").first(SHOWN).read_all()
    return interleave_rows(images, make_reconstructor(cfg, params)(images)[0])


def make_preview(cfg: ConfigDict, folder: Path) -> OnSample:
    """Make the callback that writes `draw_reconstructions` to samples/STEP.png of a workdir.

    It also warns if most codes of a codebook are out of use.
    """

    def write(state: State, frozen: Frozen | None, step: int, reporter: Reporter) -> None:
        picture = draw_reconstructions(cfg, state.ema)
        if not hosts.is_writer():
            return
        save_png(picture, folder / "samples" / f"{step:08d}.png")
        reporter.image("reconstructions", step, picture)
        if "usage" in state.extra:
            warn_of_collapse(np.asarray(state.extra["usage"]))

    return write


def measure_first_stage(cfg: ConfigDict, state: State, num: int) -> dict[str, float | int | str]:
    """Measure how well an autoencoder reconstructs the first ``num`` test images.

    Returns:
        ``step`` and the numbers of `evaluation.reconstructions.measure_reconstructions`.
    """
    network = metrics.feature_network(cfg.eval.features) if cfg.eval.features else None
    test = real_images.open_split(cfg, "test")
    scores = measure_reconstructions(
        make_reconstructor(cfg, state.ema),
        test.first(2 * num if network else num).read_all(),
        num,
        network=network,
        num_codes=cfg.network.codes if cfg.network.name == "vq" else 0,
    )
    return {"step": int(state.step), **scores}
