"""MeanFlow, shortcut models and progressive distillation, against closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import losses, parameterization, samplers, schedules
from diffjax.grids import uniform
from diffjax.model import Model, predict, sample
from diffjax.model.condition import UNCONDITIONAL
from diffjax.model.space import make_pixel_space
from diffjax.tasks.few_steps import make_mean_flow, make_progressive, make_reflow, make_shortcut
from diffjax.tasks.objectives import Drawn, measure_simple
from diffjax.types import Level

SHAPE = (2, 2, 1)
SPREAD = 0.6  # standard deviation of Gaussian data around 0
FLOW = schedules.flow(t_min=0.0, t_max=1.0)


class Formula:
    """A network that is a formula of (z, t, s) and one parameter, with ``init`` and ``apply``."""

    def __init__(self, formula):
        self.formula = formula

    def init(self, key, *inputs, **options):
        return {"params": {"shift": jnp.zeros(())}}

    def apply(self, variables, z, t, cond, train=False, rngs=None):
        span = cond["added"]["time_ids"][:, 0] if cond else jnp.zeros(len(z))
        t, span = (jnp.broadcast_to(v, len(z))[:, None, None, None] for v in (t, span))
        return self.formula(z, t, span) + variables["params"]["shift"]


def make(formula, schedule=FLOW, name="velocity", shift=0.0, span_scale=1.0):
    return Model(
        schedule,
        parameterization.make(name),
        Formula(formula),
        make_pixel_space(SHAPE),
        UNCONDITIONAL,
        params={"shift": jnp.asarray(shift)},
        span_scale=span_scale,
    )


def width(t):
    """The standard deviation of z at time t, for Gaussian data."""
    return jnp.sqrt((1 - t) ** 2 * SPREAD**2 + t**2)


def mean_velocity(z, t, span):
    """The flow of Gaussian data only scales: ``z_r = z_t width(r) / width(t)``."""
    near = span < 1e-6
    step = jnp.where(near, 1.0, span)
    slope = (t - (1 - t) * SPREAD**2) / width(t) ** 2  # d log(width) / dt
    return z * jnp.where(near, slope, (1 - width(t - span) / width(t)) / step)


def draw(model, batch=4000, teacher=None, step=0):
    keys = jax.random.split(jax.random.key(7), 4)
    x = SPREAD * jax.random.normal(keys[0], (batch, *SHAPE))
    eps = jax.random.normal(keys[1], x.shape)
    times = (jax.random.uniform(k, (batch,)) for k in keys[2:])
    levels = (Level(t, *model.schedule.at(t)) for t in times)
    return Drawn(x, eps, eps, *levels, None, jax.random.key(9), jnp.asarray(step), model, teacher)


def test_the_exact_mean_velocity_is_where_the_gradient_of_mean_flow_vanishes():
    # Its identity u = v - (t - r) du/dt holds on average over v, which is what the target is.
    def gradient(factor):
        model = make(lambda z, t, s: factor * mean_velocity(z, t, s))
        drawn = draw(model)
        objective = make_mean_flow(model, ratio=0.5, power=0.0)

        def loss(shift, scale):
            own = model._replace(
                params={"shift": shift},
                network=Formula(lambda z, t, s: scale * model.network.formula(z, t, s)),
            )
            return objective.measure(own, drawn)[0].mean()

        return jax.grad(loss, argnums=(0, 1))(jnp.zeros(()), jnp.ones(()))

    exact, other = gradient(1.0), gradient(1.3)
    assert abs(exact[0]) < 0.3  # a mean over 4000 images
    assert abs(exact[1]) < 0.05 < 0.5 < abs(other[1])


def test_where_both_times_are_one_mean_flow_is_flow_matching():
    model = make(lambda z, t, s: 0.3 * z - t + 5.0 * s, shift=0.1)
    drawn = draw(model, 6)
    values, metrics = make_mean_flow(model, ratio=0.0, power=0.0).measure(model, drawn)
    t = jnp.maximum(drawn.level.t, drawn.second.t)[:, None, None, None]
    z = (1 - t) * drawn.x + t * drawn.eps
    wanted = jnp.square(0.3 * z - t + 0.1 - (drawn.eps - drawn.x))
    np.testing.assert_allclose(values, wanted.sum((1, 2, 3)), rtol=1e-4)
    assert float(metrics["mse"]) == pytest.approx(float(wanted.mean()), rel=1e-4)


def test_the_power_of_mean_flow_divides_by_the_error_without_a_gradient():
    model = make(lambda z, t, s: 0.3 * z)
    drawn = draw(model, 6)
    plain, _ = make_mean_flow(model, power=0.0).measure(model, drawn)
    values, _ = make_mean_flow(model, power=0.75, floor=0.5).measure(model, drawn)
    np.testing.assert_allclose(values, plain / (plain + 0.5) ** 0.75, rtol=1e-5)


def test_the_network_is_told_its_steps_and_one_step_is_exact():
    model = make(mean_velocity)
    sampler = samplers.make("euler")
    for steps in (1, 2, 5):
        rows = sampler.plan(uniform(FLOW, steps, final="last"))
        keys = jax.vmap(jax.random.key)(jnp.arange(3))
        found = sample(model, None, sampler, rows, keys)
        start = samplers.prior(samplers.image_noise(keys, SHAPE), rows)
        np.testing.assert_allclose(found, jnp.clip(SPREAD * start, -1, 1), atol=1e-5)


def test_two_half_steps_of_an_exact_shortcut_are_its_whole_step():
    model = make(mean_velocity)
    objective = make_shortcut(model, sections=8, share=0.5)
    _, exact = objective.measure(model, draw(model, 400))
    _, wrong = objective.measure(make(lambda z, t, s: z), draw(make(lambda z, t, s: z), 400))
    assert float(exact["joined"]) < 1e-10 < 0.01 < float(wrong["joined"])
    assert objective.decay(jnp.asarray(5)) == 0.999


def test_a_student_that_makes_two_steps_of_its_teacher_at_once_has_no_loss():
    schedule = schedules.vp_sde(t_min=1e-3)

    def denoise(z, level):  # of Gaussian data: both x and eps are multiples of z
        a, s = (v[:, None, None, None] for v in (level.alpha, level.sigma))
        return a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * z

    def teach(z, t, span):
        flat = t[:, 0, 0, 0]
        return denoise(z, Level(flat, *schedule.at(flat)))

    def jump(z, t, span, parts=4):
        """What DDIM in one step has to say to get where two steps of the teacher lead."""
        flat, end = t[:, 0, 0, 0], z
        length = (schedule.span[1] - schedule.span[0]) / parts
        levels = [Level(u, *schedule.at(u)) for u in (flat, flat - length / 2, flat - length)]
        model = make(teach, schedule, "x0", span_scale=0.0)
        for above, below in itertools.pairwise(levels):
            found = predict(model, end, above)[1]
            a, s = (v[:, None, None, None] for v in (below.alpha, below.sigma))
            end = a * found.x + s * found.eps
        (a, s), (b, r) = (
            [v[:, None, None, None] for v in (one.alpha, one.sigma)]
            for one in (levels[0], levels[2])
        )
        return (end - r / s * z) / (b - r / s * a)

    student, teacher = (make(f, schedule, "x0", span_scale=0.0) for f in (jump, teach))
    measure = measure_simple(student, losses.truncated_snr(), losses.ERRORS["l2"])
    objective = make_progressive(student, measure, student_steps=4)
    drawn = draw(student, 50, teacher)
    assert float(objective.measure(student, drawn)[0].max()) < 1e-6
    assert float(objective.measure(teacher, drawn)[0].mean()) > 1e-4


def test_a_straightened_flow_learns_what_its_teacher_makes_of_noise():
    # The flow of Gaussian data takes eps to SPREAD eps, along a line once it is straight.
    def straight(z, t, span):
        return z * (1 - SPREAD) / ((1 - t) * SPREAD + t)

    student, teacher = (
        make(f, span_scale=0.0) for f in (straight, lambda z, t, s: mean_velocity(z, t, 0 * s))
    )
    measure = measure_simple(student, losses.simple(), losses.ERRORS["l2"])
    drawn = draw(student, 20, teacher)
    found = [
        float(make_reflow(student, measure, steps).measure(student, drawn)[0].mean())
        for steps in (1, 200)
    ]
    assert found[1] < 1e-4 < found[0]
    with pytest.raises(ValueError, match=r"loss\.teacher_steps must be at least 1"):
        make_reflow(student, measure, 0)


@pytest.mark.parametrize("call, message", [
    (lambda: make_mean_flow(make(mean_velocity, name="x0")), "needs velocities of straight lines"),
    (lambda: make_mean_flow(make(mean_velocity, span_scale=0.0)), "and cond.span=True"),
    (lambda: make_shortcut(make(mean_velocity, schedules.flow(3.0))), "schedule.shift=1"),
    (lambda: make_mean_flow(make(mean_velocity), ratio=1.5), r"loss.ratio must lie in \[0, 1\]"),
    (lambda: make_shortcut(make(mean_velocity), sections=12), "power of two, 2 or more, got 12"),
    (lambda: make_shortcut(make(mean_velocity), share=1.0), "loss.share must lie between 0 and 1"),
    (lambda: make_progressive(make(mean_velocity, schedules.linear()), None), "a continuous sched"),
    (lambda: make_progressive(make(mean_velocity), None, 0), "student_steps must be at least 1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_that_asks_a_teacher_says_so():
    model = make(mean_velocity)
    with pytest.raises(ValueError, match=r"set task=distillation and distil\.base"):
        make_progressive(model, None).measure(model, draw(model, 4))
