"""Orders of convergence on the probability flow of a mixture, in float64 and without a network."""

import functools
import itertools
import sys

import numpy as np
import pytest

from diffjax import grids, samplers, schedules
from diffjax.samplers import dpm_solver, dpm_solver_single, unipc
from diffjax.types import Level

WEIGHTS, MEANS, STD = np.array([0.3, 0.3, 0.4]), np.array([-1.0, 0.2, 1.0]), 0.15
START = np.random.default_rng(0).standard_normal(64)
SCHEDULE = schedules.log_snr(-8.0, 8.0)


def exact(z, alpha, sigma):
    """(x, eps) of the mixture's exact denoiser."""
    var, gap = alpha**2 * STD**2 + sigma**2, z[:, None] - alpha * MEANS
    logits = np.log(WEIGHTS) - gap**2 / (2 * var)
    weight = np.exp(logits - logits.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    return (weight * (MEANS + alpha * STD**2 / var * gap)).sum(1), (weight * gap).sum(
        1
    ) * sigma / var


def run(sampler, grid, z):
    rows = sampler.plan(grid)
    stack = np.zeros((rows.coef.shape[1], len(z)))
    stack[0] = z
    for coef, alpha, sigma in zip(rows.coef, rows.level.alpha, rows.level.sigma, strict=True):
        x, eps = exact(stack[0], alpha, sigma)
        stack = coef @ np.vstack([stack, x, eps, 0 * x])
    return stack[0]


@pytest.fixture
def float64_rows(monkeypatch):
    monkeypatch.setattr(sys.modules["diffjax.samplers.affine"], "ROW_DTYPE", np.float64)


@pytest.fixture
def reference(float64_rows):
    return _reference()


@functools.cache  # the fixture above is per test, its rows are slow to plan
def _reference():
    grid = grids.uniform_logsnr(SCHEDULE, 4096, final="last")
    return run(unipc(order=3, lower_order_final=False), grid, START)


free = dict(lower_order_final=False)
CASES = {
    "euler": (samplers.ddim(0.0), 0.9, 1.3),
    "heun": (samplers.heun(), 1.9, 2.1),
    "heun in z": (samplers.flow_heun(), 1.9, 2.1),
    "dpm2": (samplers.dpm2(), 1.9, 2.1),
    "plms": (samplers.plms(), 1.8, 2.1),  # weights of equal steps, where the steps are not
    "plms after Runge-Kutta": (samplers.plms(runge_kutta=True), 1.8, 2.1),
    "plms in v": (samplers.plms(output="v"), 0.9, 1.3),  # as diffusers, which mixes two levels
    "ipndm": (samplers.ipndm(), 1.8, 2.1),
    "lms": (samplers.lms(), 3.5, 4.3),
    "deis": (samplers.deis(**free), 2.7, 3.2),
    "deis 2": (samplers.deis(order=2, **free), 1.8, 2.2),
    "2M": (dpm_solver(**free), 1.9, 2.1),
    "2M heun": (dpm_solver(solver_type="heun", **free), 1.9, 2.1),
    "2M eps": (dpm_solver(algorithm="dpmsolver", **free), 1.9, 2.1),
    "3M as published": (dpm_solver(order=3, **free), 1.9, 2.3),
    "3M corrected": (dpm_solver(order=3, corrected=True, **free), 2.9, 3.3),
    "2S": (dpm_solver_single(), 1.9, 2.1),
    "3S": (dpm_solver_single(order=3), 2.6, 3.2),
    "3S heun": (dpm_solver_single(order=3, solver_type="heun"), 2.6, 3.2),
    "UniPC 2": (unipc(**free), 2.9, 3.2),
    "UniPC 2 eps": (unipc(predict_x=False, **free), 2.9, 3.2),
    "UniPC 2 bh1": (unipc(solver_type="bh1", **free), 2.8, 3.2),
    "UniPC 2 without corrector": (unipc(corrector=False, **free), 1.9, 2.1),
    "UniPC 3": (unipc(order=3, **free), 3.5, 5.0),
}


@pytest.mark.parametrize("name", CASES)
def test_order(name, reference):
    sampler, low, high = CASES[name]
    # A multiple of 3 and of 2: the singlestep solvers then end with a full group.
    sizes = (96, 192, 384) if name == "euler" else (48, 96, 192)
    ends = [run(sampler, grids.uniform_logsnr(SCHEDULE, n, final="last"), START) for n in sizes]
    errors = [np.sqrt(np.mean((end - reference) ** 2)) for end in ends]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert low < orders[-1] < high, (errors, orders)


def test_churned_heun_is_the_loop_of_the_paper(float64_rows):
    count, churn, noise_scale = 18, 40.0, 1.003
    grid = grids.karras(schedules.edm(), count)
    sampler = samplers.heun(s_churn=churn, s_tmin=0.05, s_tmax=50.0, s_noise=noise_scale)
    rows = sampler.plan(grid)
    noise = np.random.default_rng(1).standard_normal((count, len(START)))
    sigmas = grid.levels.sigma

    def denoised(z, sigma):
        return exact(z, 1.0, sigma)[0]

    z = 80.0 * START
    for k in range(count):
        gamma = min(churn / count, 2**0.5 - 1) if 0.05 <= sigmas[k] <= 50 else 0.0
        raised = sigmas[k] * (1 + gamma)
        z = z + np.sqrt(raised**2 - sigmas[k] ** 2) * noise_scale * noise[k]
        slope = (z - denoised(z, raised)) / raised
        moved = z + (sigmas[k + 1] - raised) * slope
        if sigmas[k + 1] > 0:
            other = (moved - denoised(moved, sigmas[k + 1])) / sigmas[k + 1]
            moved = z + (sigmas[k + 1] - raised) * (slope + other) / 2
        z = moved

    assert len(rows.coef) == 2 * count - 1
    stack = np.zeros((rows.coef.shape[1], len(z)))
    stack[0] = 80.0 * START
    for k, coef in enumerate(rows.coef):
        # Rounded times would move sigma: the row's own level is what the network sees.
        x, _ = exact(stack[0], rows.level.alpha[k], rows.level.sigma[k])
        eps = (stack[0] - rows.level.alpha[k] * x) / rows.level.sigma[k]
        drawn = noise[min((k + 1) // 2, count - 1)]
        stack = coef @ np.vstack([stack, x, eps, drawn])
    assert np.abs(stack[0] - z).max() < 1e-11


def test_flow_match_euler_and_heun_are_euler_and_heun(float64_rows):
    # Esser et al. 2024: dz/dt = velocity = eps - x, z = (1 - t) x + t eps.
    schedule = schedules.flow()
    times = np.linspace(0.99, 0.01, 21)
    grid = grids.from_times(schedule, times, final="last")
    euler = heun = START
    for now, after in itertools.pairwise(times):
        x, eps = exact(euler, 1 - now, now)
        euler = euler + (after - now) * (eps - x)
        x, eps = exact(heun, 1 - now, now)
        slope = eps - x
        x, eps = exact(heun + (after - now) * slope, 1 - after, after)
        heun = heun + (after - now) * (slope + eps - x) / 2
    assert run(samplers.ddim(0.0), grid, START) == pytest.approx(euler, abs=1e-12)
    assert run(samplers.flow_heun(), grid, START) == pytest.approx(heun, abs=1e-12)


def test_lcm_is_its_formula():
    grid = grids.lcm(schedules.linear(), 4)
    assert grid.levels.t.tolist() == [999, 759, 499, 259, -1]
    rows = samplers.lcm().plan(grid)
    alpha = grid.levels.alpha
    out = rows.coef[:, 0]
    skip = 0.25 / ((grid.levels.t[:-1] * 10) ** 2 + 0.25)
    assert out[:-1, 0] == pytest.approx(alpha[1:-1] * skip[:-1], rel=1e-5)
    assert out[:-1, 1] == pytest.approx(alpha[1:-1] * np.sqrt(1 - skip[:-1]), rel=1e-5)
    assert out[:-1, 3] == pytest.approx(grid.levels.sigma[1:-1], rel=1e-6)
    assert out[-1, 3] == 0 and out[-1, 1] == pytest.approx(1, abs=1e-6)


def test_tcd_keeps_the_marginals():
    grid = grids.leading(schedules.linear(), 8)
    rows = samplers.tcd(gamma=0.4).plan(grid)
    x, eps, noise = rows.coef[:, 0, 1:].T
    assert x == pytest.approx(grid.levels.alpha[1:], rel=1e-5)
    assert eps**2 + noise**2 == pytest.approx(grid.levels.sigma[1:] ** 2, abs=1e-6)
    assert (noise[:-2] > 0).all() and noise[-1] == 0
    none = samplers.tcd(gamma=0.0).plan(grid).coef
    assert none == pytest.approx(samplers.ddim(0.0).plan(grid).coef, abs=1e-6)


def test_langevin_reaches_the_data(float64_rows):
    grid = grids.karras(schedules.edm(0.01, 1.0), 10, final="last")
    assert isinstance(grid.levels, Level)
    rows = samplers.annealed_langevin(steps_per_level=60, step_size=4e-5).plan(grid)
    rng, mean, std = np.random.default_rng(0), 0.3, 0.2
    z = rng.uniform(0, 1, 20_000)
    for coef, sigma in zip(rows.coef, rows.level.sigma, strict=True):
        eps = sigma * (z - mean) / (std**2 + sigma**2)  # of N(mean, std^2)
        z = coef[0, 0] * z + coef[0, 2] * eps + coef[0, 3] * rng.standard_normal(len(z))
    assert z.mean() == pytest.approx(mean, abs=0.01)
    assert z.std() == pytest.approx(std, rel=0.05)


INVARIANT = {
    "ddim": {"eta": 0.5},
    "ddpm": {},
    "heun": {"s_churn": 20.0, "s_noise": 1.1},
    "dpm2": {},
    "dpm2_ancestral": {},
    "lms": {},
    "plms": {},
    "ipndm": {},
    "deis": {},
    "dpm_solver_2m": {},
    "dpm_solver_3m": {},
    "dpmpp_2m_sde": {},
    "dpmpp_3m_sde": {},
    "dpmpp_2s": {},
    "dpmpp_3s": {},
    "unipc": {},
    "unipc_3": {},
    "consistency": {},
}


@pytest.mark.parametrize("name", INVARIANT)
def test_variance_preserving_and_exploding_runs_are_one(name, float64_rows):
    """In z / alpha both are one process where their ratios sigma / alpha are (Song et al. 2020)."""
    ratios = [30.0, 11.0, 4.0, 1.7, 0.8, 0.3, 0.1]
    ends = []
    for schedule in (SCHEDULE, schedules.edm()):
        grid = grids.from_sigmas(schedule, ratios)
        rows = samplers.make(name, INVARIANT[name]).plan(grid)
        rng = np.random.default_rng(3)
        stack = np.zeros((rows.coef.shape[1], len(START)))
        stack[0] = rows.level.sigma[0] * START
        for coef, alpha, sigma in zip(rows.coef, rows.level.alpha, rows.level.sigma, strict=True):
            drawn = rng.standard_normal(len(START))
            stack = coef @ np.vstack([stack, *exact(stack[0], alpha, sigma), drawn])
        ends.append(stack[0] / grid.levels.alpha[-1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-8, abs=1e-8)
    assert np.abs(ends[0]).std() > 0.1
