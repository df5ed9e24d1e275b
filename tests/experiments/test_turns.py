"""Costs in turns: the order of the calls, and the claims that their ratios decide."""

import json
import time

import pytest

from experiments.benchmarks.sides.turns import take_turns
from experiments.reproductions import cfg, controlnet_paper
from experiments.reproductions.verdicts import CONTRADICTED, HELD, UNDECIDED


def test_calls_alternate_and_the_first_turn_warms_up():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    found = take_turns(calls, 3)
    assert "".join(order) == "abbaabba"
    assert {c: {n: len(v) for n, v in s.items()} for c, s in found.items()} == {
        "wall": {"a": 3, "b": 3},
        "cpu": {"a": 3, "b": 3},
    }


def test_sleep_takes_wall_time_alone():
    found = take_turns({"sleep": lambda: time.sleep(0.05)}, 1)
    assert found["wall"]["sleep"][0] >= 0.05 > found["cpu"]["sleep"][0]


def test_no_turns_are_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        take_turns({}, 0)


@pytest.mark.parametrize(
    ("times", "verdict"),
    [([0.9, 0.91, 0.92], HELD), ([1.2, 1.21, 1.22], CONTRADICTED), ([0.9, 1.1, 1.0], UNDECIDED)],
)
def test_the_turns_decide_what_a_controlnet_costs(tmp_path, times, verdict):
    turns = {"wall": {"controlnet": times, "fine_tuning": [1.0] * 3}}
    cost = {"turns": turns, "time_ratio": 1.0, "memory_ratio": 0.8}
    (tmp_path / "control-cost.json").write_text(json.dumps(cost))
    assert [c.verdict for c in controlnet_paper._judge_costs(tmp_path)] == [verdict, HELD]


def test_the_faster_way_of_guidance_counts(tmp_path):
    times = {"unguided": [1.0] * 3, "guided": [2.4] * 3, "guided_sequential": [1.8, 1.81, 1.82]}
    ratio = {"guided": 2.4, "guided_sequential": 1.81}
    cost = {"turns": {"wall": times}, "time_ratio": ratio, "memory_ratio": ratio}
    (tmp_path / "guidance-cost.json").write_text(json.dumps(cost))
    found = cfg._judge_cost(tmp_path)
    assert found.verdict == HELD and found.effect.count == 3


def test_medians_alone_decide_nothing(tmp_path):
    cost = {"step_seconds": {"controlnet": 0.5, "fine_tuning": 1.0}, "time_ratio": 0.5,
            "memory_ratio": 0.8}  # fmt: skip
    (tmp_path / "control-cost.json").write_text(json.dumps(cost))
    assert [c.verdict for c in controlnet_paper._judge_costs(tmp_path)] == [UNDECIDED, HELD]
