import math

import numpy as np
import pytest

from diffjax import grids, schedules

LINEAR = schedules.linear()


def test_ddim_timesteps():
    t = grids.leading(LINEAR, 10).levels.t
    assert t.tolist() == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0, -1]
    t = grids.quadratic(LINEAR, 10).levels.t
    assert t[:-1][::-1].tolist() == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]


def test_quadratic_visits_coinciding_timesteps_once():
    t = grids.quadratic(LINEAR, 100).levels.t
    assert (np.diff(t) < 0).all()
    assert len(t) - 1 < 100


def test_trailing_starts_at_the_noisiest():
    assert grids.trailing(LINEAR, 4).levels.t.tolist() == [999, 749, 499, 249, -1]


@pytest.mark.parametrize("name", ["leading", "trailing", "linspace", "full"])
def test_all_steps_are_the_whole_schedule(name):
    g = grids.make(name, LINEAR, 1000)
    assert g.levels.t.tolist() == list(range(999, -2, -1))
    assert g.levels.sigma[-1] == 0
    assert g.levels.alpha[-1] == 1


def test_names_and_options_hold_for_all_steps_too():
    assert grids.make("quadratic", LINEAR, 1000).steps < 1000
    shifted = grids.make("leading", LINEAR, 500, {"offset": 1, "final": "first"})
    assert shifted.levels.t[-2:].tolist() == [1, 0]
    for name, steps, options, message in (
        ("leadin", 1000, {}, "unknown grid 'leadin'"),
        ("leadin", None, {}, "unknown grid 'leadin'"),
        ("leading", 1000, {"ofset": 1}, "unknown grid option 'ofset'"),
    ):
        with pytest.raises(ValueError, match=message):
            grids.make(name, LINEAR, steps, options)


def test_karras_formula():
    g = grids.karras(schedules.edm(), 18)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert g.levels.sigma[:-1] == pytest.approx(expected, rel=1e-9)
    assert g.init_std == pytest.approx(80)


@pytest.mark.parametrize("schedule", ["linear", "vp_sde", "sub_vp", "ve", "edm", "log_snr", "flow"])
def test_log_snr_grids_are_even_on_every_schedule(schedule):
    s = schedules.make(schedule)
    lam = schedules.logsnr(*grids.uniform_logsnr(s, 12).levels[1:3])[:-1]
    assert np.diff(lam) == pytest.approx(np.full(11, lam[1] - lam[0]), rel=1e-6)


def test_truncated_grids_know_the_whole():
    g = grids.truncate(grids.leading(LINEAR, 10), strength=0.35)
    assert g.levels.t.tolist() == [200, 100, 0, -1]
    assert (g.steps, g.first, [g.remaining(i) for i in range(3)]) == (10, 7, [3, 2, 1])
    again = grids.skip(g, 1)
    assert (again.first, again.remaining(0), again.levels.t[0]) == (8, 2, 100)


def test_truncation_keeps_or_drops_the_scale_of_the_prior():
    g = grids.karras(schedules.edm(), 10)
    assert grids.truncate(g, strength=0.5).init_std == pytest.approx(g.levels.sigma[5])
    assert grids.skip(g, 0) is g
    assert grids.truncate(grids.leading(LINEAR, 10), strength=0.5).init_std == 1


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.8])
def test_windows_share_their_cut(cut):
    g = grids.trailing(LINEAR, 30)
    base, rest = grids.window(g, end=cut), grids.window(g, start=cut)
    assert base.levels.t[-1] == rest.levels.t[0] < 1000 - 1000 * cut <= base.levels.t[-2]
    assert len(base.levels.t) + len(rest.levels.t) == 32
    assert (rest.first, base.remaining(0)) == (len(base.levels.t) - 1, 30)


def test_given_ratios():
    g = grids.from_sigmas(schedules.edm(), [20.0, 3.0, 0.5, 0.0])
    assert g.levels.sigma.tolist() == pytest.approx([20, 3, 0.5, 0])
    vp = grids.from_sigmas(LINEAR, [20.0, 3.0, 0.5])
    assert vp.levels.sigma[:-1] / vp.levels.alpha[:-1] == pytest.approx([20, 3, 0.5], rel=1e-6)
    assert (vp.levels.alpha[-1], vp.levels.sigma[-1]) == (1, 0)


def test_beta_levels_are_quantiles():
    g = grids.beta(schedules.ve(0.01, 50.0), 9, a=0.6, b=0.6)
    share = (g.levels.sigma[:-1] - 0.01) / (50 - 0.01)
    assert share[[0, 4, 8]] == pytest.approx([1, 0.5, 0], abs=1e-9)  # symmetric
    # The density of Beta(0.6, 0.6) integrates to 1/8 between neighbours.
    x = np.linspace(share[3], share[2], 20_001)
    density = (x * (1 - x)) ** -0.4 * math.gamma(1.2) / math.gamma(0.6) ** 2
    assert np.trapezoid(density, x) == pytest.approx(1 / 8, rel=1e-5)


def test_shift_of_flow_grows_with_the_image():
    assert grids.flow_shift(256) == pytest.approx(math.exp(0.5))
    assert grids.flow_shift(4096) == pytest.approx(math.exp(1.15))
    assert grids.flow_shift(10, base=0.0, maximum=1.0, fewest=10, most=20) == 1


def test_ends_of_given_times():
    for final, end in (("clean", (-1, 1, 0)), ("first", (0, *map(float, LINEAR.at(0.0))))):
        levels = grids.from_times(LINEAR, [900, 300], final=final).levels
        assert (levels.t[-1], levels.alpha[-1], levels.sigma[-1]) == pytest.approx(end)
    assert grids.from_times(LINEAR, [900, 300], final="last").levels.t.tolist() == [900, 300]


def test_levels_off_the_grid():
    g = grids.leading(LINEAR, 10)
    level = g.at(0.0)
    assert level.alpha == pytest.approx(np.sqrt(0.5), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grids.leading(LINEAR, 0), "steps must lie in 1 .. 1000"),
        (lambda: grids.leading(LINEAR, 1001), "steps must lie in 1 .. 1000"),
        (lambda: grids.leading(schedules.ve(), 10), "needs a discrete schedule"),
        (lambda: grids.make("lead", LINEAR, 10), "unknown grid 'lead'; choose one of beta"),
        (lambda: grids.from_times(LINEAR, [1, 2]), "falling"),
        (lambda: grids.from_times(LINEAR, [1000.0]), "must lie in 0 .. 999"),
        (lambda: grids.from_times(LINEAR, [9, 1], final="end"), "final must be 'clean'"),
        (lambda: grids.from_sigmas(LINEAR, [3.0, -1.0]), "positive numbers"),
        (lambda: grids.truncate(grids.leading(LINEAR, 10), strength=0.05), "strength must lie in"),
        (lambda: grids.window(grids.leading(LINEAR, 10), start=0.9, end=0.2), "need 0 <= start"),
        (lambda: grids.window(grids.leading(LINEAR, 4), start=0.9, end=0.95), "no step of this"),
        (lambda: grids.make("uniform", schedules.ve(), None), "needs a number of steps"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_cut_belongs_to_the_first_model():
    g = grids.leading(LINEAR, 10)
    assert grids.window(g, end=0.1).levels.t.tolist() == [900, 800]  # 1000 - 0.1 * 1000 = 900
    assert grids.window(g, start=0.1).levels.t[0] == 800
    assert grids.window(g, end=0.6, total=2000).levels.t.tolist() == [900, 800, 700]
    whole = grids.window(g)
    assert whole.levels.t.tolist() == g.levels.t.tolist()


@pytest.mark.parametrize("make", [grids.uniform, grids.uniform_logsnr, grids.karras, grids.beta])
def test_grids_have_their_number_of_steps_however_they_end(make):
    s = schedules.vp_sde()
    for final in ("clean", "last"):
        g = make(s, 6, final=final)
        assert (g.steps, len(g.levels.t), g.levels.sigma[-1] == 0) == (6, 7, final == "clean")
    even = grids.uniform(s, 4).levels.t
    assert even == pytest.approx(np.linspace(1, 1e-5, 5))


def test_strided_takes_all_of_the_range():
    schedule = schedules.linear()
    for steps, count in ((10, 10), (50, 50), (400, 500), (30, 31)):
        grid = grids.make("strided", schedule, steps)
        assert np.array_equal(grid.levels.t[:-1][::-1], np.arange(0, 1000, 1000 // steps))
        assert grid.steps == count
    shifted = grids.make("strided", schedule, 250, {"offset": 1, "final": "first"})
    assert shifted.levels.t[0] == 997
    assert shifted.levels.t[-2] == 1
    assert np.allclose((shifted.levels.alpha[-1], shifted.levels.sigma[-1]), schedule.at(0.0))


def test_uniform_may_end_before_the_span():
    grid = grids.make("uniform", schedules.vp_sde(), 5, {"final": "clean", "t_end": 0.2})
    assert np.allclose(grid.levels.t[:-1], np.linspace(1, 0.2, 5))
    with pytest.raises(ValueError, match="t_end must lie in"):
        grids.make("uniform", schedules.vp_sde(), 5, {"t_end": 1.5})
