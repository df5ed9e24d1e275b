"""Effects and verdicts in closed form."""

import numpy as np
import pytest

from experiments.reproductions import verdicts
from experiments.reproductions.verdicts import CONTRADICTED, HELD, NOT_RUN, UNDECIDED, Effect


def test_the_interval_is_students_of_the_mean():
    # t of 4 degrees of freedom at 0.995 is 4.6041 in tables; the s.d. of 1..5 is sqrt(2.5).
    found = verdicts.estimate_mean([1, 2, 3, 4, 5])
    half = 4.6041 * np.sqrt(2.5 / 5)
    assert found[:4] == pytest.approx((3, 3 - half, 3 + half, 5), rel=1e-4)


def test_pairs_take_out_the_noise_that_they_share():
    shared = np.random.default_rng(0).normal(0, 100, 5)
    a, b = shared + np.arange(3, 8), shared
    assert verdicts.estimate_difference(a, b) == pytest.approx(
        verdicts.estimate_mean([3, 4, 5, 6, 7])
    )
    assert verdicts.estimate_difference(a, b[:2]).count == 2


def test_ratios_are_geometric():
    found = verdicts.estimate_ratio([2, 8], [1, 1])
    # The logs are 1 and 3 times log 2; t of 1 degree of freedom at 0.995 is 63.657.
    half = 2 ** (63.657 * np.sqrt(2) / np.sqrt(2))
    assert found[:3] == pytest.approx((4, 4 / half, 4 * half), rel=1e-3)
    with pytest.raises(ValueError, match=r"above 0, got \[0.0\] and \[1.0\]"):
        verdicts.estimate_ratio([0], [1])


def test_shares_have_the_interval_of_clopper_and_pearson():
    # With no success the upper end p satisfies (1 - p)^n = 0.005.
    found = verdicts.estimate_share(0, 10)
    assert found[:3] == pytest.approx((0, 0, 1 - 0.005**0.1))


def test_a_line_without_noise_has_a_slope_without_interval():
    found = verdicts.estimate_slope([1, 2, 3], [5, 3, 1])
    assert found[:3] == pytest.approx((-2, -2, -2))
    wide = verdicts.estimate_slope([0, 1, 2], [0, 1, 0])
    assert wide.low < 0 < wide.high


def make(low, high, count=5, **options):
    return Effect((low + high) / 2, low, high, count, **options)


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (make(1, 3), HELD),
        (make(-1, 3), UNDECIDED),
        (make(-3, -1), CONTRADICTED),
        (verdicts.estimate_mean([]), NOT_RUN),
        (verdicts.estimate_mean([7]), UNDECIDED),
        (verdicts.state_exactly(0), HELD),
        (verdicts.state_exactly(-1), CONTRADICTED),
    ],
)
def test_a_claim_needs_the_whole_interval(effect, verdict):
    assert verdicts.judge_range(effect, 0) == verdict


def test_equality_needs_the_whole_interval_inside_the_margin():
    near, wide, far = make(0.95, 1.05), make(0.8, 1.3), make(1.2, 1.4)
    found = [verdicts.judge_range(effect, 1 / 1.1, 1.1) for effect in (near, wide, far)]
    assert found == [HELD, UNDECIDED, CONTRADICTED]


def test_effects_are_written_with_their_intervals():
    write = verdicts.format_effect
    assert write(make(-1, 3)) == "+1 [-1, +3], n = 5"
    assert write(make(1, 3, ratio=True)) == "x 2 [1, 3], n = 5"
    assert write(verdicts.estimate_ratio([3], [2])) == "x 1.5, no interval (one pair)"
    assert write(verdicts.state_exactly(5.36)) == "5.36, exact"
    assert write(verdicts.estimate_mean([])) == "-"
