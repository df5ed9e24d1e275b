"""Schedulers against diffusers: timesteps, levels, and whole trajectories with a given noise."""

import inspect

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax.pretrained import (  # noqa: E402
    load_scheduler,
    to_config,
    with_class,
)
from diffjax.pretrained.betas import BETAS, compute_abar_table  # noqa: E402
from diffjax.pretrained.scheduler_kinds import KINDS  # noqa: E402
from tests.parity import scheduler_cases as cases  # noqa: E402
from tests.parity import scheduler_record as record  # noqa: E402


@pytest.mark.parametrize("name", cases.CASES)
def test_trajectory(name):
    case = cases.CASES[name]
    theirs = record.states(case)
    assert np.isfinite(theirs).all()
    assert cases.error(cases.our_states(case), theirs) < case.tolerance


@pytest.mark.parametrize("name", cases.CASES)
def test_levels(name):
    case = cases.CASES[name]
    made, (_, grid, rows) = record.scheduler(case), cases.ours(case)
    times = np.asarray(made.timesteps, np.float64)
    np.testing.assert_allclose(rows.level.t, times, rtol=1e-6, atol=2e-4)
    levels = grid.levels
    if case.in_ratios or case.kind.startswith("EDM"):
        init = grid.init_std / levels.alpha[0]
        assert init == pytest.approx(float(made.init_noise_sigma), rel=1e-6)
    if hasattr(made, "sigmas") and made.order == 1:  # else levels are there twice
        flow = case.kind.startswith("Flow") or "use_flow_sigmas" in case.options
        ours = levels.sigma if flow else levels.sigma / levels.alpha
        np.testing.assert_allclose(ours, made.sigmas[: len(ours)].numpy(), rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("name", cases.PARTS)
def test_part(name):
    part = cases.PARTS[name]
    (times, noised, end), theirs = cases.our_part(part), record.part(part)
    assert cases.error(noised, theirs[1]) < 1e-6
    if part.aligned:
        np.testing.assert_allclose(times, theirs[0], rtol=1e-6, atol=2e-4)
        assert cases.error(end, theirs[2]) < part.case.tolerance


@pytest.mark.parametrize("betas", BETAS)
def test_betas_are_the_same_to_the_bit(betas):
    made = {"exp": diffusers.HeunDiscreteScheduler, "laplace": diffusers.DDPMScheduler}
    for bounds in ((0.0001, 0.02), (0.00085, 0.012)):
        theirs = made.get(betas, diffusers.DDPMScheduler)(
            beta_schedule=betas, beta_start=bounds[0], beta_end=bounds[1]
        )
        options = dict(
            beta_schedule=betas,
            beta_start=bounds[0],
            beta_end=bounds[1],
            num_train_timesteps=1000,
            trained_betas=None,
        )
        ours = compute_abar_table(options)
        if betas == "sigmoid":  # of their exponential in float32
            np.testing.assert_allclose(ours, theirs.alphas_cumprod.numpy(), rtol=3e-7)
        else:
            np.testing.assert_array_equal(ours, theirs.alphas_cumprod.numpy())


@pytest.mark.parametrize(
    ("name", "kind"), [("sd", "DPMSolverMultistep"), ("linear", "DPMSolverMultistep")]
)
def test_rounded_timesteps_of_karras_do_not_flip(name, kind):
    options = {**(cases.SD if name == "sd" else {}), "use_karras_sigmas": True}
    ours = load_scheduler({"_class_name": f"{kind}Scheduler", **options})
    theirs = getattr(diffusers, f"{kind}Scheduler")(**options)
    for steps in range(2, 101):
        theirs.set_timesteps(steps)
        assert ours.grid(steps).levels.t[:-1].tolist() == theirs.timesteps.tolist(), steps


def test_what_we_write_is_what_diffusers_reads():
    for case in cases.RECORDED.values():
        written = to_config(load_scheduler(case.config))
        made = getattr(diffusers, f"{case.kind}Scheduler").from_config(written)
        for key, value in written.items():
            if not key.startswith("_") and key in made.config:
                known = {"algorithm_type", "solver_type", "lower_order_final"}
                assert made.config[key] == value or key in known, (case.name, key)
        assert set(made.config) - {"_use_default_values"} <= set(written) | {"_diffusers_version"}


@pytest.mark.parametrize("kind", sorted({case.kind for case in cases.CASES.values()}))
def test_options_and_defaults_are_those_of_diffusers(kind):
    theirs = inspect.signature(getattr(diffusers, f"{kind}Scheduler").__init__).parameters
    theirs = {key: value.default for key, value in theirs.items() if key != "self"}
    ours = dict(KINDS[f"{kind}Scheduler"].defaults)
    for table in (theirs, ours):
        if table.get("disable_corrector") is not None:
            table["disable_corrector"] = list(table["disable_corrector"])
    assert ours == theirs


SOURCES = {
    "stable diffusion 1": (
        "PNDM",
        {"skip_prk_steps": True, "steps_offset": 1, "clip_sample": False},
    ),
    "stable diffusion xl": (
        "EulerDiscrete",
        {
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "interpolation_type": "linear",
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "clip_sample": False,
            "sample_max_value": 1.0,
        },
    ),
    "zero snr": (
        "DDIM",
        {**cases.ZERO_SNR, "prediction_type": "v_prediction", "clip_sample": False},
    ),
    "karras": ("DPMSolverMultistep", {"use_karras_sigmas": True, "solver_type": "heun"}),
    "unipc": ("UniPCMultistep", {"solver_type": "bh1", "solver_order": 3}),
}
TARGETS = sorted({case.kind for case in cases.CASES.values()} - {"IPNDM"})


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_swapping_classes(source, target):
    """As ``target.from_config(source.config)``, and back."""
    kind, options = SOURCES[source]
    config = {"_class_name": f"{kind}Scheduler", **cases.SD, **options}
    theirs = getattr(diffusers, f"{kind}Scheduler").from_config(config)
    theirs = getattr(diffusers, f"{target}Scheduler").from_config(theirs.config)
    made = with_class(load_scheduler(config), target)
    options = made.grid.args[1]  # of the partial: those of the class, with its defaults
    for key, value in options.items():
        assert theirs.config[key] == value or [value] == [None] == [theirs.config[key]], key
    steps = 8 if target in ("LCM", "TCD") else 20
    theirs.set_timesteps(steps)
    times = made.rows(made.grid(steps)).level.t
    np.testing.assert_allclose(times, theirs.timesteps.numpy(), rtol=1e-6, atol=2e-4)
    back = with_class(made, kind)
    assert back.config == load_scheduler(config).config


KINDS_AND_STEPS = [
    (kind, steps)
    for kind in TARGETS
    for steps in (1, 2, 3, 50)
    if steps <= 8 or kind not in ("LCM", "TCD")
]


@pytest.mark.parametrize(("kind", "steps"), KINDS_AND_STEPS)
def test_few_and_many_steps(kind, steps):
    table = "beta_start" in KINDS[f"{kind}Scheduler"].defaults
    options = {"skip_prk_steps": True} if kind == "PNDM" else {}
    if kind.startswith("UniPC"):
        options = {"final_sigmas_type": "sigma_min"}
    case = cases.Case(kind, {**(cases.SD if table else {}), **options}, steps)
    made, rows = record.scheduler(case), cases.ours(case)[2]
    # A point between levels that all but coincide is where rounding puts it.
    atol = 0.02 if (kind, steps) == ("KDPM2AncestralDiscrete", 2) else 2e-4
    np.testing.assert_allclose(rows.level.t, made.timesteps.numpy(), rtol=1e-6, atol=atol)
    if len(rows.level.t) <= cases.ROWS:
        theirs = record.states(case)
        assert cases.error(cases.our_states(case), theirs) < case.tolerance
