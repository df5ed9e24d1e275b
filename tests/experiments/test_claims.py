"""Verdicts on the claims of papers, from made-up measurements."""

import json

import numpy as np
import pytest

from experiments.reproductions import claims, ddim


def rows(**shift):
    rng = np.random.default_rng(0)
    return [
        {
            "eta": eta,
            "steps": steps,
            "seed": seed,
            "num": 100,
            "evaluations": steps,
            "features": "fake-v1",
            "distance": 100 / steps + 10 * eta + shift.get("all", 0) + 0.01 * rng.standard_normal(),
        }
        for eta in (0.0, 1.0)
        for steps in (5, 10, 20, 50)
        for seed in range(3)
    ]


def test_a_claim_needs_three_standard_deviations():
    rng = np.random.default_rng(0)
    low, high = 1 + 0.1 * rng.standard_normal(5), 2 + 0.1 * rng.standard_normal(5)
    assert claims.is_above(high, low) is True
    assert claims.is_above(low, high) is False
    assert claims.is_above(low + 0.05, low) is False
    assert claims.is_above(high, low, factor=2) is False
    assert claims.is_above(high, low[:1]) is None  # one seed says nothing


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture
def measured(tmp_path):
    """The files of the DDIM page, as a run might have left them."""

    def leave(found):
        write(tmp_path / "ddim.jsonl", found)
        write(tmp_path / "ddim-100.jsonl", [{**r, "steps": 100} for r in found if r["steps"] == 50])
        write(tmp_path / "ddim-quadratic.jsonl", found)
        most = [r for r in found if r["eta"] == 1.0]
        large = [{**r, "distance": 7 * r["distance"]} for r in most]
        write(tmp_path / "ddim-sigma-hat.jsonl", large)
        write(tmp_path / "ddim-1000-fixedlarge.jsonl", [r for r in most if r["steps"] == 50])
        write(tmp_path / "ddim-1000-fixedsmall.jsonl", [])
        errors = {"reconstruction_slope": -1.0, "reconstruction_mse": {"10": 0.1, "100": 0.01}}
        (tmp_path / "reconstruction.json").write_text(json.dumps(errors))
        return ddim.judge_claims(tmp_path)

    return leave


def test_verdicts_follow_the_measurements(measured):
    found = measured(rows())
    assert [c.held for c in found] == [True] * 11 + [None, None, True]
    flipped = measured([{**r, "eta": 1.0 - r["eta"]} for r in rows()])
    assert [c.held for c in flipped][:6] == [False] * 6
    assert "| not run |" in claims.format_verdicts(found)
