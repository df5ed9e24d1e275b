"""Schedulers against runs of diffusers recorded by tests/parity/scheduler_record.py."""

from pathlib import Path

import numpy as np
import pytest

from diffjax.pretrained import load_scheduler
from diffjax.types import Level
from tests.parity import scheduler_cases as cases

GOLDEN = Path(__file__).parent / "golden" / "schedulers.npz"


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN) as file:
        return dict(file)


def unpacked(recorded, names, prefix):
    """(timesteps, two more) by name."""
    times = np.split(recorded[f"{prefix}times"], np.cumsum(recorded[f"{prefix}lengths"])[:-1])
    more = (recorded[f"{prefix}{k}"] for k in range(2))
    return dict(zip(recorded[names].tolist(), zip(times, *more, strict=True), strict=True))


def kinds(table, kind_of):
    """Names by class: one test each, so that a failure names the class without 300 tests."""
    out = {}
    for name, case in table.items():
        out.setdefault(kind_of(case), []).append(name)
    return sorted(out.items())


def check_times(ours, theirs, name):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(("kind", "names"), kinds(cases.RECORDED, lambda case: case.kind))
@pytest.mark.filterwarnings("ignore:divide by zero")  # eps at zero SNR has no x
def test_whole_runs(recorded, kind, names):
    runs = unpacked(recorded, "names", "whole")
    for name in names:
        case, (times, init, end) = cases.RECORDED[name], runs[name]
        _, grid, rows = cases.ours(case)
        check_times(rows.level.t, times, name)
        scale = grid.levels.alpha[0] if case.in_ratios else 1.0
        assert grid.init_std / scale == pytest.approx(float(init), rel=1e-6), name
        assert cases.error(cases.our_states(case)[-1], end) < case.tolerance, name


@pytest.mark.parametrize(
    ("kind", "names"), kinds(cases.RECORDED_PARTS, lambda part: part.case.kind)
)
def test_parts_of_runs(recorded, kind, names):
    parts = unpacked(recorded, "parts", "part")
    for name in names:
        part, (times, noised, end) = cases.RECORDED_PARTS[name], parts[name]
        ours = cases.our_part(part)
        assert cases.error(ours[1], noised) < 1e-6, name
        if part.aligned:
            check_times(ours[0], times, name)
            assert cases.error(ours[2], end) < part.case.tolerance, name


def test_everything_is_recorded(recorded):
    assert recorded["names"].tolist() == list(cases.RECORDED)
    assert recorded["parts"].tolist() == list(cases.RECORDED_PARTS)


@pytest.mark.parametrize(
    "name",
    [
        "KDPM2AncestralDiscrete-10-sd-timestep_spacing=leading-steps_offset=1",
        "UniPCMultistep-10-sd-thresholding=True-sample_max_value=1.5-dynamic_thresholding_ratio=0.9",
        "PNDM-10-sd-timestep_spacing=trailing-prediction_type=v_prediction",
        "EDMEuler-10",
    ],
)
def test_the_compiled_loop_is_the_walk(name):
    case = cases.CASES[name]
    states, end = cases.our_states(case), cases.our_loop(case)
    last = cases.ours(case)[2].next.alpha[-1] if case.in_ratios else 1.0
    assert cases.error(end / last, states[-1]) < 2e-6


# ---- the full loops of diffusers' own tests ---------------------------------------------------

LINEAR = {"beta_start": 0.0001, "beta_end": 0.02}
LONG = {**LINEAR, "num_train_timesteps": 1100}
SIGMA_MIN = {**LINEAR, "final_sigmas_type": "sigma_min", "lower_order_final": False}
EDM = {"num_train_timesteps": 256}
# Class, options, how often the loop overwrites the state with the network's input, sum or mean.
LITERALS = [
    ("DDIM", LINEAR, False, np.sum, 172.0067, 1e-4),
    ("PNDM", LINEAR, False, np.sum, 198.1318, 1e-4),
    ("EulerDiscrete", LONG, True, np.sum, 10.0807, 1e-3),
    ("EulerDiscrete", {**LONG, "use_karras_sigmas": True}, True, np.sum, 124.5230, 1e-4),
    ("HeunDiscrete", LONG, True, np.sum, 0.1233, 1e-3),
    ("LMSDiscrete", LONG, True, np.sum, 1006.388, 1e-4),
    ("EDMEuler", EDM, False, np.sum, 34.1855, 1e-4),
    ("DPMSolverMultistep", SIGMA_MIN, False, np.mean, 0.3301, 1e-3),
    ("DPMSolverSinglestep", SIGMA_MIN, False, np.mean, 0.2791, 1e-3),
    ("UniPCMultistep", {**SIGMA_MIN, "lower_order_final": True}, False, np.mean, 0.2464, 1e-3),
    ("DEISMultistep", LINEAR, False, np.mean, 0.23916, 1e-3),
]


@pytest.mark.parametrize(("kind", "options", "overwrites", "measure", "value", "rtol"), LITERALS)
def test_full_loop_literals(kind, options, overwrites, measure, value, rtol):
    """``raw = z t / (t + 1)`` from ``arange / count``, 10 steps."""
    scheduler = load_scheduler({"_class_name": f"{kind}Scheduler", **options})
    grid = scheduler.grid(10)
    rows, target = scheduler.rows(grid), scheduler.parameterization

    def denoise(z, level):
        seen = z / level.alpha if overwrites else z * target.scale_in(level)
        return target.decode(seen * level.t / (level.t + 1), z, level)

    bounded, count = scheduler.bound(denoise), 4 * 3 * 8 * 8
    stack = np.zeros((rows.coef.shape[1], count), np.float32)
    stack[0] = grid.init_std * (np.arange(count, dtype=np.float32) / count)
    for k, coef in enumerate(rows.coef):
        level = Level(*(leaf[k] for leaf in rows.level))
        if overwrites:  # their state, z / alpha, with z
            stack[0] *= level.alpha
        x, eps, _ = bounded(stack[0], level)
        stack = coef @ np.concatenate([stack, np.stack([x, eps, 0 * x])])
    assert measure(np.abs(stack[0])) == pytest.approx(value, rel=rtol)
