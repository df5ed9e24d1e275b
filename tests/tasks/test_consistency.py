"""Consistency models, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import parameterization, schedules
from diffjax.model import predict
from diffjax.model.space import make_pixel_space
from diffjax.nets.perceptual import LPIPS
from diffjax.tasks.consistency import (
    _pair_on_grid,
    count_doubling,
    count_growing,
    make_consistency,
    step_teacher,
)
from diffjax.tasks.objectives import Drawn
from diffjax.types import Level
from tests.parity.ae_cases import WIDTHS, lpips_params
from tests.tasks.test_few_steps import SHAPE, SPREAD, make

EDM = schedules.edm()


def exact(z, t, span):
    """The consistency function of Gaussian data, as the raw output of EDM's parameterization.

    Its flow only scales, so that f is z times the ratio of the spreads.
    """
    sigma = jnp.exp(4 * t)
    inner = (sigma**2 + 0.25) ** 0.5  # z was divided by it
    f = inner * z * SPREAD / (sigma**2 + SPREAD**2) ** 0.5
    return (f - 0.25 / inner * z) / (sigma * 0.5 / inner)


def denoise(z, t, span):
    """The expected data of Gaussian data, likewise."""
    sigma = jnp.exp(4 * t)
    inner = (sigma**2 + 0.25) ** 0.5
    x = inner * z * SPREAD**2 / (sigma**2 + SPREAD**2)
    return (x - 0.25 / inner * z) / (sigma * 0.5 / inner)


def draw(model, sigma, step=0, teacher=None):
    sigma = jnp.asarray(sigma, jnp.float32)
    keys = jax.random.split(jax.random.key(3))
    x = SPREAD * jax.random.normal(keys[0], (len(sigma), *SHAPE))
    eps = jax.random.normal(keys[1], x.shape)
    level = Level(jnp.log(sigma) / 4, jnp.ones_like(sigma), sigma)
    return Drawn(
        x, eps, eps, level, level, None, jax.random.key(1), jnp.asarray(step), model, teacher
    )


def edm_model(formula):
    return make(formula, EDM, "edm", span_scale=0.0)


def test_a_consistency_function_is_the_identity_at_the_least_noise():
    param = parameterization.make("consistency")
    z, raw = np.ones((1, 2)), np.full((1, 2), 7.0)
    least = Level(0.0, np.float64(1.0), np.float64(0.002))
    np.testing.assert_allclose(param.decode(raw, z, least).x, z)
    far = Level(0.0, np.float64(1.0), np.float64(3.0))
    skip = 0.25 / (2.998**2 + 0.25)
    out = 2.998 * 0.5 / (9.25**0.5)
    np.testing.assert_allclose(param.decode(raw, z, far).x, skip * z + out * raw)
    assert param.gain(far) == pytest.approx(out)


@pytest.mark.parametrize("step, wanted", [(0, 2), (400_000, 107), (800_000, 151)])
def test_the_number_of_levels_grows_as_in_the_paper(step, wanted):
    assert int(count_growing(jnp.asarray(step), 800_000, 2, 150)) == wanted


def test_the_number_of_levels_doubles_eight_times():
    found = [int(count_doubling(jnp.asarray(k), 400_000, 10, 1280)) for k in
             (0, 49_999, 50_000, 100_000, 349_999, 350_000, 400_000)]  # fmt: skip
    assert found == [11, 11, 21, 41, 641, 1281, 1281]
    assert int(count_doubling(jnp.asarray(9), 10, 17, 17)) == 18


def test_the_pair_is_the_interval_that_the_level_lies_in():
    seen = {}
    model = edm_model(lambda z, t, span: seen.setdefault(float(t[0, 0, 0, 0]), 0.0) * z)
    make_consistency(model, 100, first=4, last=4).measure(model, draw(model, [1.0]))
    levels = (0.002 ** (1 / 7) + np.arange(5) / 4 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    assert levels[1] < 1.0 < levels[2]
    np.testing.assert_allclose(sorted(np.exp(4 * np.array(list(seen)))), levels[1:3], rtol=1e-4)


def test_ratios_are_those_of_easy_consistency_tuning():
    seen = []
    model = edm_model(lambda z, t, span: seen.append(np.exp(4 * np.ravel(t))) or 0.0 * z)
    objective = make_consistency(model, 800, spacing="ratio", huber=0.0)
    objective.measure(model, draw(model, [0.5, 30.0], step=250))  # stage 2 of 8
    gap = (1 + 8 / (1 + np.exp(np.array([0.5, 30.0])))) / 8
    np.testing.assert_allclose(seen[0], [0.5, 30.0], rtol=1e-4)
    np.testing.assert_allclose(seen[1], [0.5 * (1 - gap[0]), 30 * (1 - gap[1])], rtol=1e-4)


def test_in_the_first_stage_small_levels_are_paired_with_the_data():
    model = edm_model(denoise)
    objective = make_consistency(model, 800, spacing="ratio", metric="l2", by_step=False)
    drawn = draw(model, [0.3])
    values, _ = objective.measure(model, drawn)
    z = drawn.x + 0.3 * drawn.eps
    wanted = jnp.square(z * SPREAD**2 / (0.09 + SPREAD**2) - drawn.x).mean()
    assert float(values[0]) == pytest.approx(float(wanted), rel=1e-4)


def test_distance_and_weight_are_pseudo_huber_over_the_step():
    model = edm_model(denoise)
    drawn = draw(model, [0.7, 5.0])
    plain, _ = make_consistency(model, 10, first=6, last=6, metric="l2", by_step=False).measure(
        model, drawn
    )
    values, _ = make_consistency(model, 10, first=6, last=6).measure(model, drawn)
    levels = (0.002 ** (1 / 7) + np.arange(7) / 6 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    step = [np.diff(levels)[np.searchsorted(levels, s) - 1] for s in (0.7, 5.0)]
    c = 0.00054 * 2
    wanted = (np.sqrt(4 * np.asarray(plain) + c**2) - c) / step
    np.testing.assert_allclose(values, wanted, rtol=1e-4)


def test_lpips_compares_enlarged_pictures_by_the_frozen_network():
    lpips = lpips_params(WIDTHS)
    model = edm_model(denoise)._replace(frozen={"lpips": lpips})
    objective = make_consistency(model, 10, first=4, last=4, metric="lpips", by_step=False)
    drawn = draw(model, [0.4, 2.0])
    found = objective.measure(model, drawn)[0]
    # The same by hand: what is said at both ends of the interval of each level.
    ends = _pair_on_grid(model, lambda step: jnp.asarray(5))(drawn.level.sigma, 0)
    pictures = []
    for sigma in ends:
        level = Level(jnp.log(sigma) / 4, jnp.ones_like(sigma), sigma)
        said = predict(model, drawn.add_noise(level), level)[1].x
        pictures.append(jax.image.resize(said, (2, 224, 224, 1), "bilinear"))
    wanted = LPIPS(WIDTHS).apply({"params": lpips}, *pictures)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert np.all(np.asarray(found) > 0)


def test_the_exact_function_agrees_at_both_ends_of_a_teachers_step():
    teacher, student = edm_model(denoise), edm_model(exact)
    values = {}
    for solver in ("euler", "heun"):
        for count in (50, 200):
            objective = make_consistency(
                student, 10, first=count, last=count, metric="l2", by_step=False, solver=solver
            )
            drawn = draw(student, np.geomspace(0.01, 60, 40), teacher=teacher)
            values[solver, count] = float(objective.measure(student, drawn)[0].mean()) ** 0.5
    # The error of one step is of second order for Euler's method and of third for Heun's.
    assert values["euler", 50] / values["euler", 200] == pytest.approx(16, rel=0.3)
    assert values["heun", 50] < values["euler", 50] / 3
    wrong = make_consistency(student, 10, first=50, last=50, metric="l2", by_step=False)
    assert float(wrong.measure(student, draw(student, [1.0] * 40))[0].mean()) > 1e-3


def test_a_step_of_heun_has_the_mean_slope():
    teacher = edm_model(denoise)
    above, below = (Level(np.log(s) / 4, np.ones(1), np.full(1, s)) for s in (2.0, 1.0))
    z = jnp.ones((1, *SHAPE))

    def slope(z, sigma):
        return sigma * z / (sigma**2 + SPREAD**2)

    end = z - slope(z, 2.0)
    wanted = z - (slope(z, 2.0) + slope(end, 1.0)) / 2
    np.testing.assert_allclose(
        step_teacher(teacher, z, above, below, None, heun=True), wanted, rtol=1e-5
    )


def test_the_average_of_targets_slows_with_the_levels():
    model = edm_model(denoise)
    decay = make_consistency(
        model, 800_000, spacing="growing", first=2, last=150, initial_decay=0.9
    ).decay
    assert float(decay(jnp.asarray(0))) == pytest.approx(0.9)
    assert float(decay(jnp.asarray(800_000))) == pytest.approx(0.9 ** (2 / 151))
    assert make_consistency(model, 10).decay is None


@pytest.mark.parametrize("options, message", [
    ({"spacing": "doublin"}, "Did you mean 'doubling'"),
    ({"metric": "hubert"}, "Did you mean 'huber'"),
    ({"solver": "heum"}, "Did you mean 'heun'"),
    ({"first": 20, "last": 10}, "loss.first=20 and loss.last=10"),
    ({"huber": -1.0}, "loss.huber must be at least 0"),
    ({"spacing": "ratio", "initial_decay": 0.9}, "is for spacings by number"),
    ({"metric": "lpis"}, "Did you mean 'lpips'"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_consistency(edm_model(denoise), 10, **options)


def test_another_schedule_and_a_missing_teacher_are_refused():
    with pytest.raises(ValueError, match=r"needs schedule\.name=edm"):
        make_consistency(make(denoise), 10)
    model = edm_model(denoise)
    other = model._replace(space=make_pixel_space((2, 2, 4)))
    with pytest.raises(ValueError, match=r"pictures of 1 or 3 channels"):
        make_consistency(other, 10, metric="lpips")
    with pytest.raises(ValueError, match="set task=distillation"):
        make_consistency(model, 10, solver="heun").measure(model, draw(model, [1.0]))
