r"""Training objectives: which level to train at, and how each level counts.

Weights are functions ``w_x(log-SNR)`` on ``|x - x_hat|^2``; `Parameterization.gain` turns them into
weights on the raw output, so one table serves every parameterization. ``simple`` is the unweighted
squared error of the raw output (Ho et al. 2020, eq. 14).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.schedules import logsnr
from diffjax.types import Array, Level, Parameterization, Schedule, build

# ---- weights --------------------------------------------------------------------------------

Weight = Callable[[Level, Parameterization], Any]


def _on_x(weight: Callable[[Any], Any]) -> Weight:
    """Weight on the raw error from a weight on x as a function of the SNR."""

    def raw(level: Level, parameterization: Parameterization) -> Any:
        snr = jnp.exp(jnp.clip(logsnr(level.alpha, level.sigma), -60.0, 60.0))
        return weight(snr) * parameterization.gain(level) ** 2

    return raw


def simple() -> Weight:
    """1 on the raw output, whatever it means."""
    return lambda level, parameterization: jnp.ones_like(level.sigma)


def snr() -> Weight:
    """``w_x = SNR``: plain error of eps, in any parameterization."""
    return _on_x(lambda r: r)


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    """``w_eps = (k + SNR)^-gamma`` (Choi et al. 2022, eq. 8)."""
    return _on_x(lambda r: r / (k + r) ** gamma)


def min_snr(gamma: float = 5.0) -> Weight:
    """``w_x = min(SNR, gamma)`` (Hang et al. 2023, section 3.4)."""
    return _on_x(lambda r: jnp.minimum(r, gamma))


def edm_weight(sigma_data: float = 0.5) -> Weight:
    """``w_x = (sigma^2 + sd^2)/(sigma sd)^2``, sigma^2 = 1/SNR (Karras et al. 2022, table 1)."""
    return _on_x(lambda r: r + 1 / sigma_data**2)


def likelihood(schedule: Schedule) -> Weight:
    """``w_eps = g^2 / sigma^2 = -d log-SNR / dt``, which bounds likelihoods (Song et al. 2021b).

    With uniform times of a continuous schedule; ``g^2`` is that of its SDE, and section 4 there.

    Raises:
        ValueError: the schedule is discrete.
    """
    if schedule.steps is not None:
        raise ValueError("the likelihood weight needs a continuous schedule, such as vp_sde")

    def raw(level: Level, parameterization: Parameterization) -> Any:
        t = jnp.asarray(level.t, jnp.float32)
        (alpha, sigma), (da, ds) = jax.jvp(schedule.at, (t,), (jnp.ones_like(t),))
        snr = jnp.square(alpha / sigma)
        return 2 * (ds / sigma - da / alpha) * snr * parameterization.gain(level) ** 2

    return raw


WEIGHTS: dict[str, Callable[..., Weight]] = {
    "simple": simple,
    "snr": snr,
    "p2": p2,
    "min_snr": min_snr,
    "edm": edm_weight,
    "likelihood": likelihood,
}


def make_weight(name: str, options: Any = None) -> Weight:
    """The named weight."""
    return build("loss weight", name, WEIGHTS, options)


# ---- which times to train at ----------------------------------------------------------------


class TimeSampler(NamedTuple):
    """Draws training times.

    Attributes:
        init: ``() -> state``, kept in the trainer's ``extra``.
        draw: ``(key, state, n) -> (t (n,), weight (n,))``; the weight makes the loss unbiased.
        update: ``(state, t, losses) -> state``.
    """

    init: Callable[[], Any]
    draw: Callable[[jax.Array, Any, int], tuple[Array, Array]]
    update: Callable[[Any, Array, Array], Any]


def _stateless(draw: Callable[[jax.Array, int], Array]) -> TimeSampler:
    def weighted(key: jax.Array, state: Any, n: int) -> tuple[Array, Array]:
        t = draw(key, n)
        return t, jnp.ones(n)

    return TimeSampler(lambda: (), weighted, lambda state, t, losses: state)


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"a share of the times must lie in (0, 1], got {share}")
    return share


def _scaled(schedule: Schedule, u: Array) -> Array:
    """Map u in [0, 1) to whole timesteps of a discrete schedule, or onto the span."""
    if schedule.steps is not None:
        return jnp.clip(jnp.floor(u * schedule.steps), 0, schedule.steps - 1)
    low, high = schedule.span
    return low + u * (high - low)


def uniform(schedule: Schedule, share: float = 1.0) -> TimeSampler:
    """Independent uniform times, of the ``share`` of them with the least noise.

    XL's refiner is trained on 0.2 of the times (Podell et al. 2023, section 2.5).

    Raises:
        ValueError: a share outside (0, 1].
    """
    most = _share(share)
    return _stateless(lambda key, n: _scaled(schedule, most * jax.random.uniform(key, (n,))))


def low_discrepancy(schedule: Schedule, share: float = 1.0) -> TimeSampler:
    """``u_i = (u_0 + i/n) mod 1``: uniform marginals, even coverage (Kingma et al. 2021, I.1).

    ``share`` as of `uniform`.
    """
    most = _share(share)

    def draw(key: jax.Array, n: int) -> Array:
        return _scaled(schedule, most * ((jax.random.uniform(key) + jnp.arange(n) / n) % 1.0))

    return _stateless(draw)


def cubic(schedule: Schedule) -> TimeSampler:
    """``t = (1 - u^3) T``: mostly much noise, where structure forms (Mou et al. 2023, 3.5)."""
    return _stateless(lambda key, n: _scaled(schedule, 1 - jax.random.uniform(key, (n,)) ** 3))


def antithetic(schedule: Schedule) -> TimeSampler:
    """Pairs of timesteps t and T - 1 - t, each uniform (Song et al. 2020, released code).

    Raises:
        ValueError: the schedule is continuous.
    """
    if schedule.steps is None:
        raise ValueError("antithetic times need a discrete schedule")
    last = schedule.steps - 1

    def draw(key: jax.Array, n: int) -> Array:
        t = _scaled(schedule, jax.random.uniform(key, (n // 2 + 1,)))
        return jnp.concatenate([t, last - t])[:n]

    return _stateless(draw)


def log_normal(schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> TimeSampler:
    """``log(sigma/alpha) ~ N(mean, std^2)`` (Karras et al. 2022, table 1), for the EDM schedule."""
    if schedule.span[0] >= 0 or schedule.steps is not None:
        raise ValueError("log_normal times need the edm schedule, whose time is log(sigma) / 4")
    return _stateless(lambda key, n: (mean + std * jax.random.normal(key, (n,))) / 4)


def logit_normal(schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """``logit(u) ~ N(mean, std^2)`` (Esser et al. 2024, eq. 19)."""
    return _stateless(
        lambda key, n: _scaled(schedule, jax.nn.sigmoid(mean + std * jax.random.normal(key, (n,))))
    )


def loss_second_moment(
    schedule: Schedule, history: int = 10, uniform_prob: float = 0.001
) -> TimeSampler:
    """``p(t)`` proportional to the root mean square of the last losses at t.

    Uniform until every timestep has ``history`` losses (Nichol & Dhariwal 2021, eq. 18).

    Raises:
        ValueError: the schedule is continuous.
    """
    if schedule.steps is None:
        raise ValueError("loss_second_moment needs a discrete schedule")
    steps = schedule.steps

    def init() -> dict[str, Array]:
        return {"losses": jnp.zeros((steps, history)), "counts": jnp.zeros(steps, jnp.int32)}

    def probabilities(state: Any) -> Array:
        rms = jnp.sqrt(jnp.mean(state["losses"] ** 2, axis=1))
        p = (1 - uniform_prob) * rms / jnp.maximum(rms.sum(), 1e-20) + uniform_prob / steps
        return jnp.where((state["counts"] >= history).all(), p, 1 / steps)

    def draw(key: jax.Array, state: Any, n: int) -> tuple[Array, Array]:
        p = probabilities(state)
        t = jax.random.categorical(key, jnp.log(p), shape=(n,))
        return t.astype(jnp.float32), 1 / (steps * p[t])

    def update(state: Any, t: Array, losses: Array) -> dict[str, Array]:
        def push(state: Any, item: tuple[Array, Array]) -> tuple[Any, None]:
            index, loss = item
            row = jnp.roll(state["losses"][index], -1).at[-1].set(loss)
            return {
                "losses": state["losses"].at[index].set(row),
                "counts": state["counts"].at[index].add(1),
            }, None

        # One after another, because a batch may hold the same timestep twice.
        return jax.lax.scan(push, state, (t.astype(jnp.int32), losses))[0]

    return TimeSampler(init, draw, update)


TIME_SAMPLERS = {
    "uniform": uniform,
    "low_discrepancy": low_discrepancy,
    "cubic": cubic,
    "antithetic": antithetic,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
    "loss_second_moment": loss_second_moment,
}


def make_time_sampler(name: str, schedule: Schedule, options: Any = None) -> TimeSampler:
    """The named time sampler on a schedule."""
    return build("time sampler", name, TIME_SAMPLERS, {"schedule": schedule, **dict(options or {})})


# ---- reductions -----------------------------------------------------------------------------


def per_image(values: Array) -> Array:
    """Mean over all axes but the first."""
    return values.reshape(values.shape[0], -1).mean(axis=1)


def squared_error(raw: Array, target: Array) -> Array:
    """Squared error (B,), mean over the image, in float32."""
    return per_image(jnp.square(raw.astype(jnp.float32) - target.astype(jnp.float32)))


def absolute_error(raw: Array, target: Array) -> Array:
    """Absolute error (B,), mean over the image, in float32."""
    return per_image(jnp.abs(raw.astype(jnp.float32) - target.astype(jnp.float32)))


ERRORS = {"l1": absolute_error, "l2": squared_error}

# Numbers in an image -> what its mean error is multiplied by. Gradients that are clipped at a norm
# differ, and so does Adam where its eps counts. Song & Ermon 2019 and Song et al. 2021 take half.
REDUCTIONS: dict[str, Callable[[int], float]] = {
    "mean": lambda size: 1.0,
    "sum": lambda size: float(size),
    "half_sum": lambda size: size / 2,
}

LOG2 = float(np.log(2.0))
