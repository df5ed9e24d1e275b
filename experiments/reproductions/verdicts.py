"""Effects with their intervals, and the verdict on a claim that follows from them.

All comparisons are paired: cells of one sampling seed begin with the same noise, and trainings of
one seed see the same images in the same order. The interval is Student's, at 99 %, of the mean over
the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

HELD, CONTRADICTED, UNDECIDED, NOT_RUN = "held", "contradicted", "undecided", "not run"
VERDICTS = (HELD, CONTRADICTED, UNDECIDED, NOT_RUN)
CONFIDENCE = 0.99

RULE = """A claim **held** if the whole 99 % interval of its effect agrees with it, and is **contradicted** if none of
the interval does; otherwise it is **undecided**. Intervals are Student's over pairs: cells with the same sampling seed
begin with the same noise, and where trainings differ, trainings of the same seed are the pairs, however many images are
drawn from each. An interval over sampling seeds holds for the one model that was sampled. Distances, bits and speeds are compared as ratios (x), shares as differences (+, -). That two values
agree is held only if the whole interval lies inside the margin. One pair has no interval and decides nothing. "Exact"
marks what is computed without chance. Cells above 80 % of an untrained network's distance decide nothing."""  # noqa: E501

Values = Sequence[float] | np.ndarray


class Effect(NamedTuple):
    """A mean over pairs with its interval.

    Attributes:
        mean: the effect; NaN without pairs.
        low, high: ends of the interval; infinite for a single pair.
        count: number of pairs; 0 if nothing was measured.
        ratio: whether it is a ratio, whose mean is geometric.
        exact: whether it is computed without chance, so that the ends are the mean.
    """

    mean: float
    low: float
    high: float
    count: int
    ratio: bool = False
    exact: bool = False


def estimate_mean(values: Values) -> Effect:
    """Estimate a mean with Student's interval, ``mean +- t s / sqrt(n)``.

    Args:
        values: one for each unit: a pair, a training or a sampling seed.
    """
    x = np.asarray(values, np.float64)
    if not len(x):
        return Effect(np.nan, np.nan, np.nan, 0)
    mean = float(x.mean())
    if len(x) == 1:
        return Effect(mean, -np.inf, np.inf, 1)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1)
    half = float(quantile * x.std(ddof=1) / np.sqrt(len(x)))
    return Effect(mean, mean - half, mean + half, len(x))


def estimate_difference(a: Values, b: Values, factor: float = 1.0) -> Effect:
    """Estimate ``a - factor b`` over pairs.

    Args:
        a, b: values of the same units in the same order; units at the end of one alone are left
            out.
        factor: of the second.
    """
    x, y = _pair(a, b)
    return estimate_mean(x - factor * y)


def estimate_ratio(a: Values, b: Values) -> Effect:
    """Estimate ``a / b`` over pairs, as the exponential of the interval of ``log a - log b``.

    Args:
        a, b: as in `estimate_difference`, all above 0.

    Raises:
        ValueError: a value is not above 0.
    """
    x, y = _pair(a, b)
    if (x <= 0).any() or (y <= 0).any():
        raise ValueError(f"ratios need values above 0, got {x.tolist()} and {y.tolist()}")
    found = estimate_mean(np.log(x) - np.log(y))
    mean, low, high = (float(np.exp(v)) for v in found[:3])
    return Effect(mean, low, high, found.count, ratio=True)


def estimate_share(count: int, total: int) -> Effect:
    """Estimate a share of independent trials with the exact interval of Clopper and Pearson (1934).

    Args:
        count: how many of the trials succeeded.
        total: number of trials, at least 1.
    """
    found = stats.binomtest(count, total).proportion_ci(CONFIDENCE)
    return Effect(count / total, float(found.low), float(found.high), total)


def estimate_slope(x: Values, y: Values) -> Effect:
    """Estimate the slope of a line through points, with the interval of least squares.

    Args:
        x, y: coordinates of at least 3 points.
    """
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * fit.stderr)
    return Effect(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half, len(x))


def state_exactly(value: float, *, ratio: bool = False) -> Effect:
    """State a value that is computed without chance."""
    return Effect(value, value, value, 1, ratio, exact=True)


def judge_range(effect: Effect, low: float = -np.inf, high: float = np.inf) -> str:
    """Judge whether an effect lies between two bounds.

    Args:
        effect: with its interval.
        low, high: the bounds; equality agrees for effects that are exact.

    Returns:
        An entry of `VERDICTS`.
    """
    if not effect.count:
        return NOT_RUN
    if effect.exact:
        return HELD if low <= effect.mean <= high else CONTRADICTED
    if effect.low > low and effect.high < high:
        return HELD
    return CONTRADICTED if effect.high < low or effect.low > high else UNDECIDED


def format_effect(effect: Effect) -> str:
    """Format an effect as "+9.3 [+2.1, +16.6]" or "x 2.1 [1.8, 2.4]", with its number of units."""
    if not effect.count:
        return "-"
    text = ("x {:.3g}" if effect.ratio else "{:+.3g}").format(effect.mean)
    if effect.exact:
        return f"{text.removeprefix('+')}, exact"
    if not np.isfinite(effect.low + effect.high):
        return f"{text}, no interval (one pair)"
    ends = ("{:.3g}" if effect.ratio else "{:+.3g}").format
    return f"{text} [{ends(effect.low)}, {ends(effect.high)}], n = {effect.count}"


def _pair(a: Values, b: Values) -> tuple[np.ndarray, np.ndarray]:
    """Cut two sets of values to the units that both have."""
    count = min(len(a), len(b))
    x, y = np.asarray(a, np.float64)[:count], np.asarray(b, np.float64)[:count]
    return x, y
