"""Which noise levels are trained at: distributions of training times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import Array, Options, Schedule, build

# What a time sampler remembers between steps: arrays by name, or () if it remembers nothing.
TimeState: TypeAlias = Mapping[str, jax.Array] | tuple[()]


class TimeSampler(NamedTuple):
    """How training times are drawn.

    Attributes:
        init: ``() -> state``, which is kept in the trainer's ``extra``.
        draw: ``(key, state, n) -> (t (n,), weight (n,))``. Losses are multiplied by the weight,
            which makes their mean an unbiased estimate of the mean over uniform times.
        update: ``(state, t, losses) -> state`` with the losses (n,) of the times that were drawn.
    """

    init: Callable[[], TimeState]
    draw: Callable[[jax.Array, TimeState, int], tuple[Array, Array]]
    update: Callable[[TimeState, Array, Array], TimeState]


def _stateless(draw: Callable[[jax.Array, int], Array]) -> TimeSampler:
    """Make a time sampler of a function ``(key, n) -> t`` that remembers nothing; weights are 1."""

    def weighted(key: jax.Array, state: TimeState, n: int) -> tuple[Array, Array]:
        t = draw(key, n)
        return t, jnp.ones(n)

    return TimeSampler(lambda: (), weighted, lambda state, t, losses: state)


def _share(share: float) -> float:
    """Return a share that lies in (0, 1].

    Raises:
        ValueError: it does not.
    """
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
    """Draw independent, uniform times.

    Args:
        schedule: the schedule that is trained on.
        share: draw from this share of the times, those with the least noise. The refiner of SDXL is
            trained on 0.2 of them (Podell et al. 2023, section 2.5).

    Raises:
        ValueError: a share outside (0, 1].
    """
    most = _share(share)
    return _stateless(lambda key, n: _scaled(schedule, most * jax.random.uniform(key, (n,))))


def low_discrepancy(schedule: Schedule, share: float = 1.0) -> TimeSampler:
    """Draw ``u_i = (u_0 + i/n) mod 1``: each is uniform, and a batch covers the span evenly.

    Kingma et al. 2021, appendix I.1. It lowers the variance of the loss.

    Args:
        schedule, share: as for `uniform`.

    Raises:
        ValueError: a share outside (0, 1].
    """
    most = _share(share)

    def draw(key: jax.Array, n: int) -> Array:
        return _scaled(schedule, most * ((jax.random.uniform(key) + jnp.arange(n) / n) % 1.0))

    return _stateless(draw)


def cubic(schedule: Schedule) -> TimeSampler:
    """Draw ``t = (1 - u^3) T``, mostly much noise, where structure forms (Mou et al. 2023, 3.5)."""
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


def _require_edm(schedule: Schedule, name: str) -> None:
    """Raise a ValueError if a schedule is not that of EDM."""
    if schedule.span[0] >= 0 or schedule.steps is not None:
        raise ValueError(f"{name} times need the edm schedule, whose time is log(sigma) / 4")


def log_normal(
    schedule: Schedule, mean: float = -1.2, std: float = 1.2, truncate: bool = False
) -> TimeSampler:
    """Draw ``log(sigma/alpha) ~ N(mean, std^2)`` (Karras et al. 2022, table 1).

    Args:
        schedule: `diffjax.schedules.edm`, whose time is ``log(sigma) / 4``.
        mean, std: P_mean and P_std of the paper.
        truncate: draw only what lies in the span of the schedule, as improved consistency training
            does (Song & Dhariwal 2023, section 3.5).

    Raises:
        ValueError: it is another schedule.
    """
    _require_edm(schedule, "log_normal")
    if not truncate:
        return _stateless(lambda key, n: (mean + std * jax.random.normal(key, (n,))) / 4)
    low, high = ((4 * t - mean) / std for t in schedule.span)
    return _stateless(
        lambda key, n: (mean + std * jax.random.truncated_normal(key, low, high, (n,))) / 4
    )


def karras(schedule: Schedule, rho: float = 7.0) -> TimeSampler:
    """Draw sigma with ``sigma^(1/rho)`` uniform over the span (Karras et al. 2022, eq. 5).

    It is a random place between the levels of `diffjax.grids.karras`, as consistency training and
    distillation use it (Song et al. 2023, algorithms 2 and 3).

    Args:
        schedule: `diffjax.schedules.edm`, whose time is ``log(sigma) / 4``.
        rho: the larger, the more small levels.

    Raises:
        ValueError: it is another schedule.
    """
    _require_edm(schedule, "karras")
    low, high = (np.exp(4 * t / rho) for t in schedule.span)
    return _stateless(
        lambda key, n: rho / 4 * jnp.log(low + jax.random.uniform(key, (n,)) * (high - low))
    )


def mode(schedule: Schedule, scale: float = 1.29) -> TimeSampler:
    """Draw ``t = 1 - u - s (cos^2(pi u/2) - 1 + u)``, u uniform (Esser et al. 2024, eq. 20).

    Args:
        schedule: onto whose span t is mapped.
        scale: s; above 0 the middle is drawn more often, below 0 the ends. 0 is uniform.

    Raises:
        ValueError: a scale outside [-1, 2 / (pi - 2)], where t no longer falls with u.
    """
    if not -1 <= scale <= 2 / (np.pi - 2):
        raise ValueError(f"times.scale must lie in [-1, 1.75], got {scale}")

    def draw(key: jax.Array, n: int) -> Array:
        u = jax.random.uniform(key, (n,))
        t = 1 - u - scale * (jnp.cos(np.pi / 2 * u) ** 2 - 1 + u)
        return _scaled(schedule, jnp.clip(t, 0.0, 1.0))

    return _stateless(draw)


def cosmap(schedule: Schedule) -> TimeSampler:
    """Draw ``t = 1 - 1 / (tan(pi u/2) + 1)``, u uniform (Esser et al. 2024, section 3.1).

    On straight lines these are the log-SNRs of the cosine schedule.

    Args:
        schedule: onto whose span t is mapped.
    """

    def draw(key: jax.Array, n: int) -> Array:
        angle = np.pi / 2 * jax.random.uniform(key, (n,))
        return _scaled(schedule, jnp.sin(angle) / (jnp.sin(angle) + jnp.cos(angle)))

    return _stateless(draw)


def logit_normal(schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """Draw ``logit(u) ~ N(mean, std^2)``, most often in the middle (Esser et al. 2024, eq. 19).

    Args:
        schedule: onto whose span u is mapped.
        mean, std: of the logit.
    """
    return _stateless(
        lambda key, n: _scaled(schedule, jax.nn.sigmoid(mean + std * jax.random.normal(key, (n,))))
    )


def loss_second_moment(
    schedule: Schedule, history: int = 10, uniform_prob: float = 0.001
) -> TimeSampler:
    """Draw t with ``p(t)`` proportional to the root mean square of the last losses at t.

    Times are uniform until every timestep has ``history`` losses (Nichol & Dhariwal 2021, eq. 18).

    Args:
        schedule: a discrete one.
        history: losses that are remembered for every timestep.
        uniform_prob: share of the probability that is spread evenly, so that none is 0.

    Raises:
        ValueError: the schedule is continuous.
    """
    if schedule.steps is None:
        raise ValueError("loss_second_moment needs a discrete schedule")
    steps = schedule.steps

    def init() -> TimeState:
        return {"losses": jnp.zeros((steps, history)), "counts": jnp.zeros(steps, jnp.int32)}

    def probabilities(state: Mapping[str, jax.Array]) -> jax.Array:
        rms = jnp.sqrt(jnp.mean(state["losses"] ** 2, axis=1))
        p = (1 - uniform_prob) * rms / jnp.maximum(rms.sum(), 1e-20) + uniform_prob / steps
        return jnp.where((state["counts"] >= history).all(), p, 1 / steps)

    def draw(key: jax.Array, state: TimeState, n: int) -> tuple[Array, Array]:
        p = probabilities(cast(Mapping[str, jax.Array], state))
        t = jax.random.categorical(key, jnp.log(p), shape=(n,))
        return t.astype(jnp.float32), 1 / (steps * p[t])

    def update(state: TimeState, t: Array, losses: Array) -> TimeState:
        def push(
            known: Mapping[str, jax.Array], item: tuple[Array, Array]
        ) -> tuple[Mapping[str, jax.Array], None]:
            index, loss = item
            row = jnp.roll(known["losses"][index], -1).at[-1].set(loss)
            return {
                "losses": known["losses"].at[index].set(row),
                "counts": known["counts"].at[index].add(1),
            }, None

        # The scan takes one after another, because a batch may hold the same timestep twice.
        start = cast(Mapping[str, jax.Array], state)
        return jax.lax.scan(push, start, (t.astype(jnp.int32), losses))[0]

    return TimeSampler(init, draw, update)


TIME_SAMPLERS = {
    "uniform": uniform,
    "low_discrepancy": low_discrepancy,
    "cubic": cubic,
    "antithetic": antithetic,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
    "karras": karras,
    "mode": mode,
    "cosmap": cosmap,
    "loss_second_moment": loss_second_moment,
}


def make_time_sampler(name: str, schedule: Schedule, options: Options | None = None) -> TimeSampler:
    """Return the named time sampler on a schedule.

    Args:
        name: a key of `TIME_SAMPLERS`.
        schedule: the schedule that is trained on.
        options: further keyword arguments.

    Raises:
        ValueError: unknown name or option, or a schedule that the sampler is not for.
    """
    return build("time sampler", name, TIME_SAMPLERS, {"schedule": schedule, **dict(options or {})})
