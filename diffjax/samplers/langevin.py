"""Langevin dynamics: annealed, and as the corrector of another sampler.

Both follow the score ``grad log q(z) = -eps / sigma`` and add noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from diffjax.samplers.affine import Entry, Terms, affine
from diffjax.types import Array, Denoiser, Grid, Memory, Noise, Rows, Sampler, choose, expand


def annealed_langevin(
    *,
    steps_per_level: int = 100,
    step_size: float = 2e-5,
    denoise: bool = False,
    rule: str = "printed",
    start: str = "normal",
) -> Sampler:
    """Make annealed Langevin dynamics (Song & Ermon 2019, algorithm 1).

    At each level ``z' = z + a/2 score + sqrt(a) noise`` with ``a = step_size sigma_i^2/sigma_L^2``.
    sigma_L is the smallest noise of the grid.

    Args:
        steps_per_level: rows at each level, 100 in the paper.
        step_size: a at the last level.
        denoise: end with the predicted data (Song & Ermon 2020; Jolicoeur-Martineau et al. 2020).
        rule: ``printed`` is the step above. ``released`` is that of the code of both papers,
            ``z' = z + a score + sqrt(2 a) noise``: the printed one with twice the step size, and
            what made their figures.
        start: ``normal`` noise of the first level, or ``uniform`` in [-1, 1], as released.

    Raises:
        ValueError: no steps, a step size that is not positive, an unknown rule or start, or (from
            ``plan``) levels with an alpha other than 1.
    """
    factor = choose("Langevin rule", rule, {"printed": 1.0, "released": 2.0})
    first = choose("Langevin start", start, {"normal": None, "uniform": _draw_uniform})
    if steps_per_level < 1 or step_size <= 0:
        raise ValueError(
            f"steps_per_level and step_size must be positive, got {steps_per_level} and {step_size}"
        )

    def table(grid: Grid) -> Sequence[Entry]:
        sigma, alpha = grid.levels.sigma, grid.levels.alpha
        if (alpha != 1).any():
            raise ValueError("annealed Langevin needs a variance-exploding schedule (alpha = 1)")
        levels = [i for i in range(len(sigma)) if sigma[i] > 0]
        smallest = sigma[levels[-1]]
        entries: list[Entry] = []
        for i in levels:
            size = factor * step_size * (sigma[i] / smallest) ** 2
            move: Terms = {0: 1.0, "eps": -size / 2 / sigma[i], "noise": size**0.5}
            entries += [(i, {0: move})] * steps_per_level
        return [*entries, (levels[-1], {0: {"x": 1.0}})] if denoise else entries

    return affine(table)._replace(start=first)


def _draw_uniform(noise: Array) -> Array:
    """Turn standard normal numbers into uniform ones in [-1, 1]."""
    return 2 * ndtr(noise) - 1


def predictor_corrector(
    inner: Sampler, *, snr: float = 0.16, corrections: int = 1, norm: str = "image"
) -> Sampler:
    """Add Langevin corrections before each row of another sampler.

    Song et al. 2021, algorithms 2 to 5: ``z' = z + e score + sqrt(2 e) noise``, ``e = 2 a (snr
    |noise| / |score|)^2`` and ``a = 1 - beta = (alpha_t/alpha_s)^2`` of the
    step from t to s, which is 1 where variances explode.

    Args:
        inner: the predictor.
        snr: signal-to-noise ratio of a correction, 0.16 in the paper for CIFAR-10.
        corrections: per row; each is one more network evaluation.
        norm: of each ``image``, or the mean over the ``batch``, as released. With the latter an
            image depends on those that are drawn beside it.

    Raises:
        ValueError: negative snr, no corrections, or an unknown norm.
    """
    whole = choose("corrector's norm", norm, {"image": False, "batch": True})
    if snr < 0 or corrections < 1:
        raise ValueError(f"need snr >= 0 and corrections >= 1, got {snr} and {corrections}")

    def size_of(value: Array) -> jax.Array:
        each = jnp.sqrt(jnp.square(value).sum(tuple(range(1, value.ndim)), keepdims=True))
        return each.mean() if whole else each

    def step(
        noise: Noise, denoise: Denoiser, z: Array, memory: Memory, row: Rows
    ) -> tuple[Array, Memory]:
        for k in range(1, corrections + 1):
            drawn = noise(row.level.i, k + 1)  # 0 is the row's own noise, 1 the prior's
            score = -denoise(z, row.level).eps / expand(row.level.sigma, z)
            ratio = expand(row.level.alpha / row.next.alpha, z)
            size = 2 * jnp.square(ratio * snr * size_of(drawn) / size_of(score))
            z = z + size * score + jnp.sqrt(2 * size) * drawn
        return inner.step(noise, denoise, z, memory, row)

    return Sampler(inner.plan, inner.init, step)
