"""Whole sampling loops of our samplers and of diffusers' schedulers, with the same noise.

diffusers forms abar and all coefficients in float32. Its loops are therefore compared twice: as
they are, and in float64 from the same abar, which leaves our own rounding as the only difference.
"""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax import grids, schedules  # noqa: E402
from tests.parity import cases, record  # noqa: E402


@pytest.mark.parametrize("case", cases.SAMPLER_CASES, ids=lambda case: case.name)
def test_loops_end_at_the_same_place(case):
    ours = cases.our_sample(case, cases.linear_schedule(record.abar()))
    long = case.steps > 50
    exact = record.sample(case, torch.float64)
    assert cases.relative_error(ours, exact) < (5e-5 if long else 1e-5)
    assert cases.relative_error(ours, record.sample(case)) < (1e-4 if long else 2e-5)


@pytest.mark.parametrize("case", cases.SAMPLER_CASES, ids=lambda case: case.name)
def test_our_float64_betas_end_there_too(case):
    ours = cases.our_sample(case, cases.linear_schedule())
    theirs = record.sample(case, torch.float64)
    assert cases.relative_error(ours, theirs) < (5e-5 if case.steps > 50 else 2e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 50, 250, 300, 999, 1000])
def test_timesteps_are_the_same(spacing, steps):
    if (spacing, steps) == ("linspace", 1):
        pytest.skip("diffusers' one step starts at timestep 0, ours at the noisiest")
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    grid = getattr(grids, spacing)(schedules.linear(), steps)
    np.testing.assert_array_equal(grid.levels.t[:-1], scheduler.timesteps.numpy())


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (schedules.linear(), {}),
        (schedules.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (
            schedules.scaled_linear(),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (schedules.zero_terminal_snr(schedules.linear()), {"rescale_betas_zero_snr": True}),
    ],
    ids=["linear", "cosine", "scaled_linear", "zero_snr"],
)
def test_schedules_are_the_same(ours, theirs):
    abar = diffusers.DDPMScheduler(**theirs).alphas_cumprod.numpy()
    alpha, _ = ours.at(np.arange(1000))
    # One rounding of each float32 factor of the product.
    np.testing.assert_allclose(alpha**2, abar, rtol=0, atol=2e-6)
