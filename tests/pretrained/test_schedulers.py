"""Scheduler configs: what is read, refused, written, and swapped."""

import json
import math

import numpy as np
import pytest

from diffjax.pretrained import flow_mu, load_scheduler, save_scheduler, to_config, with_class
from diffjax.types import Level

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


def of(kind, **options):
    return load_scheduler({"_class_name": f"{kind}Scheduler", **options})


_FAMILY = {
    **{key: SD[key] for key in ("beta_start", "beta_end", "beta_schedule", "trained_betas")},
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
# As model repositories have them, with keys of the classes that they were converted from.
PUBLISHED = {
    "sd 2.1": (
        {**_FAMILY, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        50,
        [981, 961, 941],
    ),
    "sdxl": (
        {
            **_FAMILY,
            "_class_name": "EulerDiscreteScheduler",
            "interpolation_type": "linear",
            "prediction_type": "epsilon",
            "sample_max_value": 1.0,
            "timestep_spacing": "leading",
            "use_karras_sigmas": False,
        },
        30,
        [958, 925, 892],
    ),
    "sdxl turbo": (
        {
            **_FAMILY,
            "_class_name": "EulerAncestralDiscreteScheduler",
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": False,
        },
        4,
        [999, 749, 499],
    ),
    "deepfloyd": (
        {
            "_class_name": "DDPMScheduler",
            "beta_schedule": "squaredcos_cap_v2",
            "clip_sample": True,
            "clip_sample_range": 1.0,
            "dynamic_thresholding_ratio": 0.95,
            "sample_max_value": 1.5,
            "thresholding": True,
            "variance_type": "learned_range",
        },
        100,
        [990, 980, 970],
    ),
    "playground 2.5": (
        {
            "_class_name": "EDMDPMSolverMultistepScheduler",
            "algorithm_type": "dpmsolver++",
            "rho": 7.0,
            "sigma_data": 0.5,
            "sigma_max": 80.0,
            "sigma_min": 0.002,
            "solver_order": 2,
        },
        3,
        np.log([80.0, ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7, 0.002]) / 4,
    ),
    "sd 3": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, 2, [1000, 8.92857]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    config, steps, times = PUBLISHED[name]
    scheduler = load_scheduler(config)
    assert scheduler.rows(scheduler.grid(steps)).level.t[: len(times)] == pytest.approx(
        np.asarray(times, float), rel=1e-5
    )


@pytest.mark.parametrize(
    "options", [{"solver_type": "bh1"}, {"predict_x0": False}, {"lower_order_final": False}]
)
def test_unipc_ends_at_the_data(options):
    """Where diffusers' formulas are infinite times zero."""
    unipc = of("UniPCMultistep", solver_order=3, **options)
    grid = unipc.grid(10)
    assert grid.levels.sigma[-1] == 0
    assert np.isfinite(unipc.rows(grid).coef).all()


@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "DEISMultistep", "UniPCMultistep"])
def test_as_many_steps_as_timesteps(kind):
    """N + 1 points on N timesteps: the one that would be visited twice is visited once."""
    scheduler = of(kind)
    grid = scheduler.grid(1000)
    assert (np.diff(grid.levels.t[:-1]) < 0).all() and grid.steps > 990
    assert np.isfinite(scheduler.rows(grid).coef).all()


def test_options_that_other_classes_write_mean_the_same_here():
    """As from_config of diffusers: a name of another class's solver stands for the default."""
    unipc = of("UniPCMultistep", solver_type="bh1", final_sigmas_type="sigma_min")
    dpm = with_class(unipc, "DPMSolverMultistep")
    same = of("DPMSolverMultistep", final_sigmas_type="sigma_min")
    assert (dpm.rows(dpm.grid(8)).coef == same.rows(same.grid(8)).coef).all()
    deis = with_class(of("DPMSolverMultistep", algorithm_type="dpmsolver++"), "DEISMultistep")
    assert with_class(deis, "DPMSolverMultistep").config["algorithm_type"] == "dpmsolver++"
    ddpm, small = of("DDPM", variance_type=None), of("DDPM")
    assert (ddpm.rows(ddpm.grid(8)).coef == small.rows(small.grid(8)).coef).all()


def test_keys_of_other_classes_change_nothing():
    plain, more = of("EulerDiscrete"), of("EulerDiscrete", clip_sample=True, skip_prk_steps=True)
    denoise = object()
    assert more.bound(denoise) is denoise
    assert (plain.grid(7).levels.sigma == more.grid(7).levels.sigma).all()


def test_infinity_survives_writing(tmp_path):
    save_scheduler(of("DPMSolverMultistep"), tmp_path)
    assert load_scheduler(tmp_path).config["lambda_min_clipped"] == -math.inf


def test_arrays_of_betas_are_written():
    scheduler = of("DDPM", trained_betas=np.full(50, 0.01), num_train_timesteps=50)
    again = load_scheduler(to_config(scheduler))
    assert again.grid(5).levels.alpha.tolist() == scheduler.grid(5).levels.alpha.tolist()


def test_learned_variance():
    ddpm, dpm = (of(k, variance_type="learned_range") for k in ("DDPM", "DPMSolverMultistep"))
    assert ddpm.parameterization.channels == dpm.parameterization.channels == 2
    raw, z = np.ones((1, 2, 2, 6), np.float32), np.ones((1, 2, 2, 3), np.float32)
    level = Level(500, np.float32(0.6), np.float32(0.8))
    assert np.asarray(ddpm.parameterization.decode(raw, z, level).var) == pytest.approx(1.0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_networks_are_preconditioned(prediction):
    """Karras et al. 2022, table 1; the sign of the output differs for v."""
    target = of("EDMEuler", prediction_type=prediction, sigma_data=0.7).parameterization
    sigma, raw, z = np.float64(3.0), np.float64(0.4), np.float64(2.0)
    level, norm = Level(0.0, np.float64(1.0), sigma), sigma**2 + 0.7**2
    sign = -1 if prediction == "v_prediction" else 1
    expected = 0.49 / norm * z + sign * sigma * 0.7 / norm**0.5 * raw
    prediction = target.decode(raw, z, level)
    assert prediction.x == pytest.approx(expected)
    assert target.target(prediction.x, prediction.eps, level) == pytest.approx(raw)
    assert target.scale_in(level) == pytest.approx(norm**-0.5)
    assert target.gain(level) == pytest.approx(sign * sigma * 0.7 / norm**0.5)


def test_mu_of_a_number_of_tokens():
    flux = of("FlowMatchEulerDiscrete", use_dynamic_shifting=True, base_image_seq_len=100)
    assert [flow_mu(flux, tokens) for tokens in (100, 4096)] == pytest.approx([0.5, 1.15])
    levels = flux.grid(4, mu=flow_mu(flux, 1000)).levels
    shift, plain = math.exp(flow_mu(flux, 1000)), np.linspace(1, 0.001, 4)
    assert levels.sigma[:-1] == pytest.approx(shift * plain / (1 + (shift - 1) * plain))


def test_image_to_image_and_two_models():
    """Timesteps of diffusers' documentation: 10 steps, by hand."""
    euler = of("EulerDiscrete", timestep_spacing="leading")
    assert euler.grid(10, strength=0.35).levels.t.tolist() == [200, 100, 0, 0]
    base = euler.rows(euler.grid(10), end=0.8).level.t
    refiner = euler.rows(euler.grid(10, start=0.8)).level.t
    assert base.tolist() == [900, 800, 700, 600, 500, 400, 300, 200]
    assert refiner.tolist() == [100, 0]
    heun = of("HeunDiscrete", timestep_spacing="leading")
    times = [900, 800, 800, 700, 700, 600, 600, 500, 500, 400, 400, 300, 300, 200, 200]
    assert heun.rows(heun.grid(10), end=0.8).level.t.tolist() == times
    assert heun.rows(heun.grid(10, start=0.8)).level.t.tolist() == [200, 100, 100, 0, 0]
    whole = euler.rows(euler.grid(10, start=1.0, strength=1.0), end=1).level.t
    assert len(whole) == 10  # only fractions count


def test_solvers_count_their_steps_in_the_whole_grid():
    """A multistep solver does not lower its order where a base model hands over."""
    dpm = of("DPMSolverMultistep")
    whole, part = dpm.rows(dpm.grid(10)), dpm.rows(dpm.grid(10), end=0.5)
    assert (part.coef == whole.coef[: len(part.coef)]).all()
    long = dpm.rows(dpm.grid(20, strength=0.5))  # ten steps of twenty: no lower orders
    assert np.abs(long.coef[-2, 0, 1]) > 0 and (dpm.grid(20, strength=0.5).first == 10)


LEADING = {"steps_offset": 1, "timestep_spacing": "leading"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "Euler"},
            "unknown scheduler class 'Euler'; choose one of DDIMParallel",
        ),
        ({"_class_name": "DPMSolverSDEScheduler"}, "sde-dpmsolver\\+\\+"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "sampler 'pc'"),
        ({"beta_shedule": "linear"}, "beta_shedule='linear' \\(unknown\\)"),
        ({"beta_schedule": "cubic"}, "unknown beta_schedule 'cubic'; choose one of exp, laplace"),
        ({"prediction_type": "sample"}, "prediction_type='sample' \\(only 'epsilon' or"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        load_scheduler({**SD, **changes})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("DDPM", {"variance_type": "learned"}, "variance_type='learned' \\(only 'fixed_small'"),
        ("DDIM", {"prediction_type": "noise"}, "unknown prediction_type 'noise'"),
        ("EulerDiscrete", {"final_sigmas_type": "one"}, "final_sigmas_type='one' \\(only 'zero'"),
        ("DPMSolverMultistep", {"algorithm_type": "dpm"}, "unknown algorithm 'dpm'"),
        ("DPMSolverMultistep", {"solver_order": 4}, "order must be one of 1, 2, 3, got 4"),
        ("DEISMultistep", {"algorithm_type": "sde-dpmsolver++"}, "only 'deis'"),
        (
            "LMSDiscrete",
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            "only one of use_karras_sigmas, use_beta_sigmas",
        ),
        ("UniPCMultistep", {"solver_p": "DDIM"}, "solver_p='DDIM' \\(only None\\)"),
        ("UniPCMultistep", {"shift_terminal": 0.1}, "shift_terminal needs use_flow_sigmas"),
        ("UniPCMultistep", {**FLOW, "use_beta_sigmas": True}, "use_flow_sigmas with use_beta"),
        ("DEISMultistep", {"prediction_type": "flow_prediction"}, "needs use_flow_sigmas"),
        ("DEISMultistep", {**FLOW, "prediction_type": "v_prediction"}, "v_prediction"),
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "invert_sigmas=True \\(only False\\)"),
        ("EDMEuler", {"prediction_type": "sample"}, "prediction_type='sample' \\(only"),
        ("EDMEuler", {"sigma_schedule": "cubic"}, "unknown sigma_schedule 'cubic'"),
    ],
)
def test_options_of_a_class_that_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        of(kind, **options).grid(4)


@pytest.mark.parametrize(
    ("kind", "options", "ask", "message"),
    [
        ("DDIM", {}, {"timesteps": [3, 1]}, "takes steps, but timesteps is given"),
        ("DDPM", {}, {"steps": 4, "timesteps": [3, 1]}, "got steps and timesteps"),
        ("DDPM", {}, {}, "give one of steps, timesteps and sigmas, got none"),
        ("DDPM", {}, {"steps": 1001}, "steps must lie in 1 .. 1000, got 1001"),
        ("DDPM", {}, {"timesteps": [1, 3]}, "falling"),
        ("DDPM", {}, {"steps": 10, "mu": 1.0}, "takes steps or timesteps, but mu is given"),
        ("DDPM", {"timestep_spacing": "even"}, {"steps": 2}, "unknown timestep_spacing 'even'"),
        ("EulerDiscrete", {"use_karras_sigmas": True}, {"timesteps": [3, 1]}, "use_karras_sigmas"),
        ("UniPCMultistep", {}, {"sigmas": [1.0, 0.5]}, "sigmas cannot be given without"),
        ("DPMSolverMultistep", FLOW, {"timesteps": [3, 1]}, "cannot be given with use_flow_sigmas"),
        ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, {"steps": 4}, "give mu"),
        ("EulerDiscrete", {}, {"timesteps": [5, 5]}, "timesteps must be one falling sequence"),
        ("EulerDiscrete", {}, {"timesteps": [1000, 5]}, "timesteps must lie in 0 .. 999"),
        ("EulerDiscrete", {}, {"sigmas": [3.0]}, "must hold the last level too"),
        ("EulerDiscrete", {}, {"sigmas": [3.0, -1.0]}, "sigmas must lie in 0 .. inf, got 3 .. -1"),
        ("FlowMatchEulerDiscrete", {}, {"sigmas": [1.5, 1.0]}, "sigmas must lie in 0 .. 1"),
        (
            "FlowMatchEulerDiscrete",
            {},
            {"sigmas": [1.0, 0.5], "timesteps": [9.0]},
            "1 timesteps and 2 sigmas",
        ),
        ("DPMSolverMultistep", {"lambda_min_clipped": 9.0}, {"steps": 1}, "steps must lie in"),
        ("DDIM", {}, {"steps": 10, "strength": 0.05}, "strength must lie in"),
        ("DDIM", {}, {"steps": 10, "strength": 1.5}, "strength must lie in"),
        (
            "EulerDiscrete",
            {"steps_offset": 1, "timestep_spacing": "leading"},
            {"steps": 2, "start": 0.9999},
            "no step",
        ),
    ],
)
def test_grids_that_are_refused(kind, options, ask, message):
    with pytest.raises(ValueError, match=message):
        of(kind, **options).grid(**ask)


def test_other_bad_input():
    with pytest.raises(ValueError, match="has no _class_name"):
        load_scheduler({"beta_start": 0.1})
    with pytest.raises(ValueError, match="EulerDiscreteScheduler takes no eta"):
        load_scheduler({"_class_name": "EulerDiscreteScheduler"}, eta=0.5)
    euler = of("EulerDiscrete", timestep_spacing="leading")
    with pytest.raises(ValueError, match=r"no step of this grid lies before end=0\.01"):
        euler.rows(euler.grid(4), end=0.01)
