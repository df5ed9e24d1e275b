"""How well a model on pixels codes images: bits per dimension, and the error of inversion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffjax import grids, likelihood, samplers
from diffjax.types import (
    Array,
    Cond,
    Denoiser,
    Grid,
    Noise,
    Parameterization,
    Params,
    Rows,
    Schedule,
)

CURVE_POINTS = 50  # points that are kept of the rate-distortion curve
INVERSION_STEPS = (10, 20, 50, 100, 200)
_INVERSION_ROWS = 256  # all plans are padded to this many rows, so that they compile once

Parts = dict[str, np.ndarray]


class PixelModel(NamedTuple):
    """A diffusion model on pixels, and how its likelihood is measured.

    Attributes:
        denoiser: ``(params, cond) -> Denoiser``, without guidance; ``cond`` is ``{"label": (B,)}``
            if there are labels, or None.
        params: of the network.
        schedule: how noise grows.
        parameterization: what the network predicts.
        levels: grey values of the data.
        grid: every timestep of a discrete schedule, else None: the bound needs it.
        variance: of the reverse steps of the bound, ``fixedsmall`` or ``fixedlarge``; ``learned``
            takes its place where the network predicts it.
        clip: whether the bound is of the model whose x is clipped, as samplers do it in the code
            of both DDPM papers. Else an error of eps near pure noise is one of eps / alpha in x.
        batch_size: images at a time.
    """

    denoiser: Callable[[Params, Cond], Denoiser]
    params: Params
    schedule: Schedule
    parameterization: Parameterization
    levels: int
    grid: Grid | None = None
    variance: str = "fixedsmall"
    clip: bool = False
    batch_size: int = 256

    @property
    def bound_variance(self) -> str:
        """The variance of the reverse steps that the bound uses."""
        return "learned" if self.parameterization.channels == 2 else self.variance


def measure_bits(
    model: PixelModel, images: np.ndarray, labels: np.ndarray | None = None
) -> dict[str, object]:
    """Measure the variational bound in bits per dimension, with one draw per level.

    Ho et al. 2020, eq. 5.

    Args:
        model: what is measured.
        images: (N, H, W, C) in [-1, 1], at least 2.
        labels: (N,), for a model of classes.

    Returns:
        ``bits_per_dim``, its standard error ``bits_per_dim_se``, ``bits_images``; how it was
        measured (``bits_variance``, ``bits_clip``); ``rate`` (all terms but the decoder's),
        ``distortion_bits`` (the decoder's), ``rate_in_last_tenth`` of the steps, as a share; and
        ``rate_distortion``, the curve of progressive coding.

    Raises:
        ValueError: the model has no grid.
    """
    if (grid := model.grid) is None:
        raise ValueError("the bound needs a discrete schedule; ode_bits measures continuous ones")

    def bound(denoise: Denoiser, x: Array, noise: Noise) -> dict[str, Array]:
        denoise = samplers.clip(denoise) if model.clip else denoise
        return likelihood.vlb_bits(
            denoise, x, noise, grid, variance=model.bound_variance, levels=model.levels
        )

    parts = _measure_batches(bound, model, images, labels)
    total, terms = parts["total"].astype(np.float64), parts["terms"]
    curve = likelihood.rate_distortion(parts, levels=model.levels)
    kept = np.unique(np.linspace(0, len(terms) - 1, CURVE_POINTS).astype(int))
    rate = float(total.mean() - terms[-1].mean())  # all but the decoder term
    tail = terms[-max(1, len(terms) // 10) : -1].sum(0).mean()
    return {
        **_summarize("bits", total),
        "bits_variance": model.bound_variance,
        "bits_clip": bool(model.clip),
        "rate": rate,
        "distortion_bits": float(terms[-1].mean()),
        "rate_in_last_tenth": float(tail / rate),
        "rate_distortion": {k: [float(v) for v in curve[k][kept]] for k in curve},
    }


def measure_bits_by_steps(
    model: PixelModel, images: np.ndarray, labels: np.ndarray | None, steps: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Measure the numbers of `measure_bits` on grids of fewer, evenly spaced steps.

    Args:
        model, images, labels: see `measure_bits`.
        steps: of every grid.

    Returns:
        The numbers by steps.
    """
    found = {}
    for count in steps:
        grid = grids.make("linspace", model.schedule, count)
        whole = measure_bits(model._replace(grid=grid), images, labels)
        found[str(count)] = {k: v for k, v in whole.items() if isinstance(v, float)}
    return found


def measure_ode_bits(
    model: PixelModel, images: np.ndarray, labels: np.ndarray | None = None
) -> dict[str, object]:
    """Estimate bits per dimension by the probability-flow ODE (Song et al. 2021, eq. 39).

    Args:
        model: what is measured.
        images: (N, H, W, C) in [-1, 1], at least 2.
        labels: (N,), for a model of classes.

    Returns:
        ``ode_bits_per_dim``, its standard error ``ode_bits_per_dim_se``, ``ode_bits_images``.

    Raises:
        ValueError: the schedule has no finite log-SNR at its noisy end.
    """

    def flow(denoise: Denoiser, x: Array, noise: Noise) -> dict[str, Array]:
        bits = likelihood.ode_bits(denoise, x, noise, model.schedule, levels=model.levels)
        return {"total": bits}

    total = _measure_batches(flow, model, images, labels)["total"]
    return _summarize("ode_bits", total.astype(np.float64))


def _summarize(name: str, total: np.ndarray) -> dict[str, object]:
    """Return the mean of values (N,), its standard error and N, under names with a prefix."""
    return {
        f"{name}_per_dim": float(total.mean()),
        f"{name}_per_dim_se": float(total.std(ddof=1) / np.sqrt(len(total))),
        f"{name}_images": len(total),
    }


def _measure_batches(
    measure: Callable[[Denoiser, Array, Noise], dict[str, Array]],
    model: PixelModel,
    images: np.ndarray,
    labels: np.ndarray | None,
) -> Parts:
    """Measure images batch by batch, and join the results along the last axis, the images.

    The noise of image k depends on k only, not on its batch.
    """

    @jax.jit
    def run(params: Params, x: Array, keys: jax.Array, cond: Cond) -> dict[str, Array]:
        noise = samplers.image_noise(keys, images.shape[1:])
        return measure(model.denoiser(params, cond), x, noise)

    size, parts = min(len(images), model.batch_size), []
    for start in tqdm(range(0, len(images), size), desc="bits/dim", leave=False):
        some = slice(start, min(start + size, len(images)))
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(2)))(
            jnp.arange(some.start, some.stop)
        )
        cond = None if labels is None else {"label": jnp.asarray(labels[some])}
        parts.append(jax.device_get(run(model.params, images[some], keys, cond)))
    return {k: np.concatenate([part[k] for part in parts], axis=-1) for k in parts[0]}


def measure_inversion(model: PixelModel, images: np.ndarray) -> dict[str, object]:
    """Measure the error of encoding images to noise and decoding them, by DDIM.

    Song et al. 2020, table 2.

    Args:
        model: what is measured.
        images: (N, H, W, C) in [-1, 1].

    Returns:
        ``reconstruction_mse``, the mean squared error of images in [0, 1] by steps: 10 to 200, as
        far as the schedule has as many; and ``reconstruction_slope``, that of its logarithm over
        the logarithm of the steps.
    """
    up, down = samplers.make("ddim_inverse"), samplers.make("ddim", {"eta": 0.0})

    @jax.jit
    def go_and_return(params: Params, x: Array, there: Rows, back: Rows, n: int) -> Array:
        def still(i: Array, k: int = 0) -> Array:
            return jnp.zeros_like(x)

        denoise = model.denoiser(params, None)
        z = samplers.sample(still, denoise, up, x, there, n=n)
        return jnp.square(samplers.sample(still, denoise, down, z, back, n=n) - x).mean() / 4

    errors, most = {}, model.schedule.steps or max(INVERSION_STEPS)
    for steps in [count for count in INVERSION_STEPS if count <= most]:
        grid = grids.make("leading", model.schedule, steps)
        there, back = (samplers.pad(s.plan(grid), _INVERSION_ROWS) for s in (up, down))
        errors[str(steps)] = float(go_and_return(model.params, images, there, back, steps))
    counts, values = np.array([*map(int, errors)]), np.array([*errors.values()])
    slope = float(np.polyfit(np.log(counts), np.log(values), 1)[0])
    return {"reconstruction_mse": errors, "reconstruction_slope": slope}
