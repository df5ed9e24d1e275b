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
        (lambda: grids.make("uniform", schedules.ve(), None), "needs a number of steps"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
