"""Claims of papers, judged by made-up measurements."""

import json

import numpy as np
import pytest

from experiments.reproductions import claims, ddim
from experiments.reproductions.verdicts import CONTRADICTED, HELD, NOT_RUN, UNDECIDED

SCALE = claims.Scale(floor=10, untrained=110)


def make_rows(grid="leading", seeds=5, factor=1.0):
    """Rows in which noise costs, and seeds shift all cells by much more than that."""
    return [
        {"grid": grid, "eta": eta, "steps": steps, "seed": seed, "num": 100,
         "distance": factor * (100 / steps + 10 * eta) * (1 + seed) * (1 + 0.001 * (seed % 2)),
         "texture_distance": factor, "background_rms": factor}
        for eta in (0.0, 0.2, 0.5, 1.0)
        for steps in (5, 10, 20, 50, 100)
        for seed in range(seeds)
    ]  # fmt: skip


@pytest.fixture
def judge(tmp_path):
    """Judge DDIM's claims by rows of any seeds, and of a sigma-hat some times as bad."""

    def write(name, rows):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def leave(seeds, factor, more=None):
        for pieces in (ddim.LINEAR, ddim.QUADRATIC, ddim.PAIRED[:2]):
            for piece in pieces:
                write(piece.name, [])
        large = [r for r in make_rows(seeds=seeds, factor=factor) if r["eta"] == 1.0]
        both = [*make_rows(seeds=seeds), *make_rows("quadratic", seeds)]
        write("ddim", make_rows(seeds=seeds))
        write("ddim-paired", both)
        close = [r for r in both if (r["grid"], r["steps"]) == ddim.CLOSE]
        write("ddim-paired-close", close if more is None else more)
        write("ddim-sigma-hat", large)
        write("ddim-paired-sigma-hat", large)
        write("ddim-1000-fixedlarge", [])
        write("ddim-1000-fixedsmall", [])
        errors = {str(n): n**-1.2 for n in (10, 20, 50)}
        (tmp_path / "reconstruction.json").write_text(json.dumps({"reconstruction_mse": errors}))
        return {c.text: c.verdict for c in ddim.judge_claims(tmp_path)}

    return leave


def test_verdicts_follow_the_measurements(judge):
    found = judge(seeds=5, factor=7.0)
    assert found.pop("fixedsmall is worse than fixedlarge at 1000 steps") == NOT_RUN
    assert set(found.values()) == {HELD}
    found = judge(seeds=5, factor=0.5)
    assert found["fixedlarge is at least 2 times worse than fixedsmall at 10 steps"] == CONTRADICTED
    assert set(judge(seeds=1, factor=7.0).values()) == {UNDECIDED, NOT_RUN, HELD}  # HELD: the slope


def test_the_close_cell_is_judged_by_its_own_sweep(judge):
    worse = [r | {"distance": 1 + r["eta"], "grid": "quadratic"} for r in make_rows(seeds=5)]
    found = judge(seeds=5, factor=7.0, more=[r | {"distance": 3 - r["distance"]} for r in worse])
    others = [v for text, v in found.items() if text.startswith("eta 1 is worse")]
    assert others == [HELD] * 5 + [CONTRADICTED]


def test_values_are_ordered_by_seed_and_seeds_come_once():
    rows = [{"seed": seed, "distance": 10.0 * seed} for seed in (2, 0, 1)]
    assert claims.select_values(rows).tolist() == [0, 10, 20]
    with pytest.raises(ValueError, match=r"have the seeds \[0, 1, 2, 2\]"):
        claims.select_values([*rows, rows[0]])


def test_what_learned_nothing_decides_nothing():
    values = np.asarray([100.0, 101, 102])
    assert claims.compare("", values, values / 10).verdict == HELD
    found = claims.compare("", values, values / 10, scale=SCALE)
    assert found.verdict == UNDECIDED and "hardly above an untrained network" in found.figures


def test_distances_are_shown_as_shares_of_an_untrained_network():
    assert claims.format_spread(np.asarray([34.0, 36]), SCALE) == "35 ± 1.4 (25 %)"


def test_no_smaller_than_has_a_margin():
    low = np.asarray([0.5, 0.6, 0.7])
    assert claims.compare_shares("", low, low + 0.01).verdict == CONTRADICTED
    assert claims.compare_shares("", low, low + 0.01, above=-0.05).verdict == HELD
    assert claims.compare_closeness("", low, low * 1.2, 0.1).verdict == CONTRADICTED


def test_contradicted_claims_are_discussed_once_for_each_reason():
    low = np.asarray([0.5, 0.6, 0.7])
    found = [claims.compare_shares(text, low, low + 1, why="Because.") for text in ("one", "two")]
    table = claims.format_verdicts(found)
    assert "| one | contradicted | -1 [-1, -1], n = 3 |" in table
    assert table.endswith("Contradicted:\n\n- *one*; *two*: Because.")
