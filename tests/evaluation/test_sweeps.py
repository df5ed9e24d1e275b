"""Sweeps over sampler options: axes, cells, files that are gone on with, tables."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffjax.evaluation import sweeps
from diffjax.types import ConfigError
from diffjax.writing import read_json_lines

SAMPLE = {
    "sampler": "ddim",
    "grid": "leading",
    "steps": 50,
    "eta": 0.0,
    "clip": True,
    "s_churn": 0.0,
    "num": 16,
    "batch_size": 100,
}


def config(**sample):
    return ConfigDict({"sample": {**SAMPLE, **sample}})


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


def test_table_has_mean_and_spread():
    text = sweeps.format_table(rows(), ["eta", "steps"])
    assert text.splitlines()[0] == "| distance at evaluations | 5 | 10 | 20 | 50 |"
    assert "eta 0.0" in text
    assert "±" in text
    assert "3 sampling seed(s)" in text


def test_other_metrics_than_the_distance_are_shown():
    obeyed = [{"steps": 5, "evaluations": 5, "seed": k, "num": 9, "all": 0.5} for k in range(2)]
    text = sweeps.format_table(obeyed, ["steps"], "all")
    assert text.splitlines()[0] == "| all at evaluations | 5 |"
    assert "9 images per cell, 2 sampling seed(s)." in text


def test_axes_have_the_types_of_the_config():
    found = sweeps.parse_axes(["eta=0,0.5", "steps=5,10", "clip=False,true"], config().sample)
    assert found == {"eta": [0.0, 0.5], "steps": [5, 10], "clip": [False, True]}
    assert sweeps.parse_axes(["sampler=heun,ddim"], config().sample) == {
        "sampler": ["heun", "ddim"]
    }
    with pytest.raises(ConfigError, match=r"KEY one of .*eta.*sampler"):
        sweeps.parse_axes(["etta=1"], config().sample)


@pytest.mark.parametrize("axis, message", [
    ("steps=5,x", "'x' is not a whole number"),
    ("clip=maybe", "'maybe' is not true or false"),
    ("eta=a", "'a' is not a number"),
    ("step=5", "Did you mean 'steps'"),
    ("steps", "must be KEY=VALUE"),
])  # fmt: skip
def test_values_of_axes_have_the_type_of_their_key(axis, message):
    with pytest.raises(ConfigError, match=message):
        sweeps.parse_axes([axis], config().sample)


def test_axes_that_the_sampler_does_not_take_are_refused():
    with pytest.raises(ConfigError, match=r"sample.eta is not used.*belongs to ddim"):
        sweeps.check_axes(config(sampler="heun"), ["steps", "eta"])
    sweeps.check_axes(config(sampler="heun"), ["steps", "s_churn"])


def make_sweep(steps, section=None, weights="a", seeds=2):
    section = section or config().sample
    axes = {"sampler": ["ddim"], "steps": steps}
    stamp = sweeps.stamp_settings(axes, section, {"weights": weights})
    return sweeps.Sweep(axes, seeds, num=4, stamp=stamp)


def test_cells_are_all_combinations_with_every_seed():
    cells = make_sweep([5, 10]).cells()
    assert [(c["sampler"], c["steps"], c["seed"], c["num"]) for c in cells] == [
        ("ddim", 5, 0, 4),
        ("ddim", 10, 0, 4),
        ("ddim", 5, 1, 4),
        ("ddim", 10, 1, 4),
    ]


def test_stamps_of_files_are_kept():
    """What is in files of sweeps decides whether they go on: a changed stamp loses them."""
    assert make_sweep([5]).stamp == "a2a32cabfc9a"
    varied = config(steps=99, num=1, batch_size=3)  # neither changes a cell
    assert make_sweep([5, 7], varied.sample).stamp == make_sweep([5]).stamp
    assert make_sweep([5], config(eta=0.5).sample).stamp != make_sweep([5]).stamp


def test_a_sweep_goes_on_where_it_stopped(tmp_path):
    measured, out = [], tmp_path / "sweeps" / "x"

    def measure(cell):
        measured.append((cell["steps"], cell["seed"]))
        score = {"distance": float(len(measured)), "features": "fake-v1"}
        return {"evaluations": cell["steps"], **score}

    def run(steps, **options):
        sweeps.run_sweep(make_sweep(steps, **options), measure, out)

    run([5, 10])
    assert measured == [(5, 0), (10, 0), (5, 1), (10, 1)]
    lines = out.with_name("x.jsonl")
    lines.write_text(lines.read_text() + '{"cut": ')
    run([5, 10, 20])
    assert measured[4:] == [(20, 0), (20, 1)]
    assert out.with_name("x.png").exists()
    assert "| 5 | 10 | 20 |" in out.with_name("x.md").read_text()
    stored = read_json_lines(lines)
    assert len(stored) == 6
    assert list(stored[0])[:5] == ["sampler", "steps", "seed", "num", "settings"]

    # Rows of other fixed settings are not taken for these, nor mixed with them.
    for other in ({"weights": "b"}, {"section": config(eta=0.5).sample}):
        with pytest.raises(ConfigError, match=r"6 of 6 rows .* choose another name"):
            run([5, 10], **other)
    write(lines, [{k: v for k, v in row.items() if k != "settings"} for row in stored])
    with pytest.raises(ConfigError, match="or do not record it"):
        run([5, 10])
    write(lines, stored)
    run([5, 10], section=config(batch_size=3, steps=99).sample)
    assert len(measured) == 6
    assert "| 5 | 10 |" in out.with_name("x.md").read_text()  # the table is of what was asked for


def test_a_cell_that_cannot_be_measured_is_named(tmp_path):
    def measure(cell):
        if cell["steps"] == 10:
            raise ValueError("images must be finite")
        return {"evaluations": cell["steps"], "distance": 1.0}

    with pytest.raises(ValueError, match="sampler=ddim, steps=10, seed=0, num=4: images must be"):
        sweeps.run_sweep(make_sweep([5, 10, 20]), measure, tmp_path / "x")
    assert [row["steps"] for row in read_json_lines(tmp_path / "x.jsonl")] == [5]


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
