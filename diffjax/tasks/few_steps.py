"""Objectives of networks that need few steps: MeanFlow, shortcuts, progressive distillation.

Time t is that of the schedule `diffjax.schedules.flow` with shift 1: ``z = (1 - t) x + t eps``, and
the velocity is ``dz/dt = eps - x``. MeanFlow and shortcut models predict the mean velocity
``u(z, t, s)`` over a step of length s, so that ``z_{t-s} = z_t - s u``. The network reads s as a
second time (``cond.span``), and Euler's method with steps of any length samples it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.losses import per_image
from diffjax.model import Model, predict
from diffjax.parameterization import velocity
from diffjax.tasks.objectives import Drawn, Measure, Measured, Objective, measure_one_level
from diffjax.types import Array, Cond, Level, expand, mix

_FLOW = (
    "set schedule.name=flow, schedule.shift=1, parameterization.name=velocity and cond.span=True"
)


def _check_flow(model: Model, name: str) -> None:
    """Check that a model predicts velocities over steps of straight lines.

    Raises:
        ValueError: it does not.
    """
    t = np.linspace(*model.schedule.span, 5)
    straight = np.allclose(model.schedule.at(t), (1 - t, t))
    level = Level(*(np.asarray(v, np.float32) for v in (0.3, 0.7, 0.3)))
    x, eps = np.ones((1, 1)), np.full((1, 1), 3.0)
    ours, wanted = (p.target(x, eps, level) for p in (model.parameterization, velocity()))
    if not (straight and model.span_scale and np.allclose(ours, wanted)):
        raise ValueError(f"loss.name={name} needs velocities of straight lines: {_FLOW}")


def _find_level(t: Array) -> Level:
    """Return the level of straight lines at times t."""
    return Level(t, 1 - t, t)


def make_mean_flow(
    model: Model, ratio: float = 0.25, power: float = 1.0, floor: float = 1e-3
) -> Objective:
    """Make the objective of MeanFlow (Geng et al. 2025, algorithm 1 and eq. 22).

    With ``v = eps - x`` the mean velocity from t to r obeys ``u = v - (t - r) du/dt``, where du/dt
    is the derivative along the path, a Jacobian-vector product with ``(v, 0, 1)`` for (z, r, t).
    The error ``|u - stop_gradient(v - (t - r) du/dt)|^2``, summed over an image, is divided by its
    own value ``(error + floor)^power`` without a gradient.

    Args:
        model: of straight lines, with velocities as its target and a second time.
        ratio: share of the images whose two times differ.
        power: 1 for ImageNet, 0.75 for CIFAR-10; 0 is the squared error.
        floor: added to the error before the power.

    Raises:
        ValueError: another model, or a ratio outside [0, 1].
    """
    _check_flow(model, "mean_flow")
    if not 0 <= ratio <= 1:
        raise ValueError(f"loss.ratio must lie in [0, 1], got {ratio}")

    def measure(model: Model, drawn: Drawn) -> Measured:
        late = jnp.maximum(drawn.level.t, drawn.second.t)
        early = jnp.minimum(drawn.level.t, drawn.second.t)
        differ = jax.random.uniform(jax.random.fold_in(drawn.key, 3), late.shape) < ratio
        early = jnp.where(differ, early, late)
        v = drawn.eps - drawn.x

        def evaluate(z: Array, r: Array, t: Array) -> Array:
            return _predict_mean(model, z, t, t - r, drawn.cond, drawn.key)

        z = drawn.add_noise(_find_level(late))
        change = (v, jnp.zeros_like(early), jnp.ones_like(late))
        u, slope = jax.jvp(evaluate, (z, early, late), change)
        target = jax.lax.stop_gradient(v - expand(late - early, v) * slope)
        mean = per_image(jnp.square(u - target))
        total = mean * v[0].size
        scale = jax.lax.stop_gradient(total + floor) ** power
        return total / scale, {"mse": mean.mean()}

    return Objective(measure)


def _predict_mean(
    model: Model, z: Array, t: Array, span: Array, cond: Cond, key: jax.Array | None
) -> Array:
    """Evaluate the mean velocity over steps of length span; with a key, dropout is active."""
    train = {} if key is None else {"train": True, "rngs": {"dropout": key}}
    return predict(model, z, _find_level(t), cond, span=span, **train)[0]


def make_shortcut(
    model: Model, sections: int = 128, share: float = 0.125, target_decay: float = 0.999
) -> Objective:
    """Make the objective of shortcut models (Frans et al. 2024, eq. 5 and algorithm 1).

    For a share of the batch the target over a step 2d is the mean of the network's own two steps of
    length d, with a batch of averaged parameters and no gradient. The others learn the velocity
    over the shortest step, ``eps - x``. Lengths are ``1, 1/2, 1/4 .. 2 / sections``.

    Args:
        model: of straight lines, with velocities as its target and a second time.
        sections: number of shortest steps, a power of two.
        share: of the batch whose target are two steps.
        target_decay: of the average that makes these two steps.

    Raises:
        ValueError: another model, no power of two, or a share outside (0, 1).
    """
    _check_flow(model, "shortcut")
    if sections < 2 or sections & (sections - 1):
        raise ValueError(f"loss.sections must be a power of two, 2 or more, got {sections}")
    if not 0 < share < 1:
        raise ValueError(f"loss.share must lie between 0 and 1, got {share}")
    halvings = sections.bit_length() - 1

    def measure(model: Model, drawn: Drawn) -> Measured:
        batch = len(drawn.x)
        few = max(1, min(batch - 1, round(share * batch)))
        short, long = jax.random.split(jax.random.fold_in(drawn.key, 3))
        count = 2 ** (halvings - 1 - jnp.arange(few) % halvings)  # of steps of this length
        place = jax.random.randint(long, (few,), 0, count)
        t = 1 - jax.random.randint(short, (batch,), 0, sections) / sections
        t = t.at[:few].set(1 - place / count)
        span = jnp.full(batch, 1 / sections).at[:few].set(1 / count)
        z = drawn.add_noise(_find_level(t))
        cond = jax.tree.map(lambda leaf: leaf[:few], drawn.cond)
        wanted = _join_steps(drawn.target, z[:few], t[:few], span[:few] / 2, cond)
        flow = jnp.asarray(drawn.eps - drawn.x)
        target = flow.at[:few].set(jax.lax.stop_gradient(wanted))
        u = _predict_mean(model, z, t, span, drawn.cond, drawn.key)
        values = per_image(jnp.square(u - target))
        return values, {"flow": values[few:].mean(), "joined": values[:few].mean()}

    return Objective(measure, (lambda step: target_decay) if target_decay else None)


def _join_steps(target: Model, z: Array, t: Array, half: Array, cond: Cond) -> Array:
    """Return the mean velocity of two steps of length ``half`` each, bounded to [-4, 4]."""
    first = _predict_mean(target, z, t, half, cond, None)
    between = jnp.clip(z - expand(half, z) * first, -4, 4)
    second = _predict_mean(target, between, t - half, half, cond, None)
    return jnp.clip((first + second) / 2, -4, 4)


def make_progressive(model: Model, measure: Measure, student_steps: int = 8) -> Objective:
    """Make the objective of progressive distillation (Salimans & Ho 2022, algorithm 2).

    The student learns in one step of DDIM, from t to ``t - T/N``, where two steps of its teacher
    lead. With ``z''`` at their end, ``x = (z'' - s z) / (alpha'' - s alpha)`` with
    ``s = sigma''/sigma`` is what the student should say, and the loss is the simple one of this x
    and its noise.

    Args:
        model: with a continuous schedule; its teacher is the frozen base.
        measure: the simple loss; the paper weighs it by ``truncated_snr`` or ``snr_plus_one``.
        student_steps: N, half of the steps of the teacher.

    Raises:
        ValueError: a discrete schedule, or no steps.
    """
    if model.schedule.steps is not None:
        raise ValueError("loss.name=progressive needs a continuous schedule, such as log_snr")
    if student_steps < 1:
        raise ValueError(f"loss.student_steps must be at least 1, got {student_steps}")
    clean, noisy = model.schedule.span

    def find_level(share: Array) -> Level:
        t = clean + share * (noisy - clean)
        return Level(t, *model.schedule.at(t))

    def evaluate(model: Model, drawn: Drawn) -> Measured:
        key = jax.random.fold_in(drawn.key, 3)
        place = jax.random.randint(key, (len(drawn.x),), 1, student_steps + 1)
        upper, middle, lower = (find_level((place - k) / student_steps) for k in (0, 0.5, 1))
        z = drawn.add_noise(upper)
        end = z
        for a, b in ((upper, middle), (middle, lower)):
            end = step_ddim(require_teacher(drawn, "progressive"), end, a, b, drawn.cond)
        shrink = lower.sigma / upper.sigma
        x = (end - expand(shrink, z) * z) / expand(lower.alpha - shrink * upper.alpha, z)
        x = jax.lax.stop_gradient(x)
        eps = (z - expand(upper.alpha, z) * x) / expand(upper.sigma, z)
        rngs = {"dropout": drawn.key}
        raw, prediction = predict(model, z, upper, drawn.cond, train=True, rngs=rngs)
        return measure(raw, prediction, x, eps, upper)

    return Objective(evaluate)


def make_reflow(model: Model, measure: Measure, teacher_steps: int = 20) -> Objective:
    """Make the objective of a rectified flow that is straightened (Liu et al. 2022, section 2.1).

    The loss is the simple one of pairs of noise and the data that the teacher makes of it, by
    Euler's method on its flow. Pairs are made anew in each step, so that none is seen twice; the
    images of a batch give conditions alone.

    Args:
        model: of any schedule; its teacher is the frozen base.
        measure: the simple loss.
        teacher_steps: steps that make a pair.

    Raises:
        ValueError: no steps.
    """
    if teacher_steps < 1:
        raise ValueError(f"loss.teacher_steps must be at least 1, got {teacher_steps}")
    clean, noisy = model.schedule.span
    t = jnp.linspace(noisy, clean, teacher_steps + 1)

    def evaluate(model: Model, drawn: Drawn) -> Measured:
        teacher, (alpha, sigma) = require_teacher(drawn, "reflow"), model.schedule.at(t)
        table = jnp.stack([t, jnp.asarray(alpha), jnp.asarray(sigma)], axis=1)

        def step(z: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            above, below = (Level(row[0], row[1], row[2]) for row in pair)
            return step_ddim(teacher, z, above, below, drawn.cond), None

        x, _ = jax.lax.scan(step, sigma[0] * drawn.eps, (table[:-1], table[1:]))
        made = drawn._replace(x=jax.lax.stop_gradient(x))
        return measure_one_level(measure).measure(model, made)

    return Objective(evaluate)


def step_ddim(model: Model, z: Array, level: Level, after: Level, cond: Cond) -> Array:
    """Step from one level to another by DDIM, which is Euler's method on the probability flow."""
    found = predict(model, z, level, cond)[1]
    return mix(found.x, found.eps, after)


def require_teacher(drawn: Drawn, name: str) -> Model:
    """Return the teacher of a step of training.

    Raises:
        ValueError: there is none.
    """
    if drawn.teacher is None:
        raise ValueError(f"loss.name={name} asks a teacher: set task=distillation and distil.base")
    return drawn.teacher
