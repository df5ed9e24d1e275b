"""Scheduler configs: what is read, refused, written, and swapped."""

import json

import pytest

from diffjax.pretrained import load_scheduler, save_scheduler, to_config, with_class

SD = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,  # of another class
}


def test_stable_diffusion():
    scheduler = load_scheduler(SD)
    grid = scheduler.grid(50)
    assert grid.levels.t[:3].tolist() == [981, 961, 941]
    assert (grid.levels.t[-2], grid.levels.t[-1], grid.init_std) == (1, 0, 1.0)
    assert scheduler.rows(grid).level.t[:4].tolist() == [981, 961, 961, 941]


def test_files_and_back(tmp_path):
    scheduler = load_scheduler(SD)
    save_scheduler(scheduler, tmp_path / "scheduler")
    written = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert written == to_config(scheduler) and written.items() >= SD.items()
    assert written["timestep_spacing"] == "leading"
    for source in ("scheduler", "scheduler/scheduler_config.json"):
        assert load_scheduler(tmp_path / source).config == written
    with pytest.raises(FileNotFoundError):
        load_scheduler(tmp_path)


def test_another_class_for_the_same_model():
    euler = with_class(load_scheduler(SD), "EulerDiscrete", {"use_karras_sigmas": True})
    grid = euler.grid(10)
    assert (euler.name, len(grid.levels.t)) == ("EulerDiscreteScheduler", 11)
    assert grid.levels.t[0] == pytest.approx(999)  # linspace, the default of the new class
    back = with_class(euler, "PNDMScheduler")
    assert back.grid(50).levels.t.tolist() == load_scheduler(SD).grid(50).levels.t.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "Euler"}, "unknown scheduler class 'Euler'; choose one of DDIMScheduler"),
        ({"_class_name": "DPMSolverSDEScheduler"}, "sde-dpmsolver\\+\\+"),
        ({"beta_shedule": "linear"}, "beta_shedule='linear' \\(unknown\\)"),
        ({"beta_schedule": "cubic"}, "unknown beta_schedule 'cubic'; choose one of exp, laplace"),
        ({"prediction_type": "sample"}, "prediction_type='sample' \\(only 'epsilon' or"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        load_scheduler({**SD, **changes})
