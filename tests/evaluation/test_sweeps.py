"""Sweeps, and the verdicts on claims, from made-up measurements."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import ddpm
from diffjax import grids, parameterization, samplers, schedules
from diffjax.evaluation import sweeps as sampler_sweep
from experiments import common, generation
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
    assert claims.above(high, low) is True
    assert claims.above(low, high) is False
    assert claims.above(low + 0.05, low) is False
    assert claims.above(high, low, factor=2) is False
    assert claims.above(high, low[:1]) is None  # one seed says nothing


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
        return ddim.claims(tmp_path)

    return leave


def test_verdicts_follow_the_measurements(measured):
    found = measured(rows())
    assert [c.held for c in found] == [True] * 11 + [None, None, True]
    flipped = measured([{**r, "eta": 1.0 - r["eta"]} for r in rows()])
    assert [c.held for c in flipped][:6] == [False] * 6
    assert "| not run |" in claims.verdicts(found)


def test_table_has_mean_and_spread():
    text = sampler_sweep.table(rows(), ["eta", "steps"])
    assert text.splitlines()[0] == "| distance at evaluations | 5 | 10 | 20 | 50 |"
    assert "eta 0.0" in text
    assert "±" in text
    assert "3 sampling seed(s)" in text


def test_other_metrics_than_the_distance_are_shown():
    obeyed = [{"steps": 5, "evaluations": 5, "seed": k, "num": 9, "all": 0.5} for k in range(2)]
    text = sampler_sweep.table(obeyed, ["steps"], "all")
    assert text.splitlines()[0] == "| all at evaluations | 5 |"
    assert "9 images per cell, 2 sampling seed(s)." in text


def test_axes_are_checked_against_the_config():
    cfg = ddpm.digits()
    assert sampler_sweep.parse(["eta=0,0.5", "steps=5,10"], cfg) == {
        "eta": [0.0, 0.5],
        "steps": [5, 10],
    }
    with pytest.raises(common.UsageError, match=r"KEY one of .*eta.*sampler"):
        sampler_sweep.parse(["etta=1"], cfg)


@pytest.mark.parametrize("axis, message", [
    ("steps=5,x", "'x' is not a whole number"),
    ("clip=maybe", "'maybe' is not true or false"),
    ("eta=a", "'a' is not a number"),
    ("step=5", "Did you mean 'steps'"),
])  # fmt: skip
def test_values_of_axes_have_the_type_of_their_key(axis, message):
    with pytest.raises(common.UsageError, match=message):
        sampler_sweep.parse([axis], ddpm.digits())


def test_false_is_false():
    assert sampler_sweep.parse(["clip=False,true"], ddpm.digits()) == {"clip": [False, True]}


def test_axes_that_the_sampler_does_not_take_are_refused():
    cfg = generation.with_sample(ddpm.digits(), sampler="heun")
    with pytest.raises(common.UsageError, match=r"sample.eta is not used.*belongs to ddim"):
        sampler_sweep.check_axes(cfg, ["steps", "eta"])
    sampler_sweep.check_axes(cfg, ["steps", "s_churn"])


def test_a_sweep_goes_on_where_it_stopped(tmp_path):
    cfg, made = ddpm.digits(), []
    model = SimpleNamespace(schedule=schedules.linear(), parameterization=parameterization.eps())

    def make(*, num, seed, sampler, rows, scale):
        made.append((len(rows.level.t), seed))
        return np.full((num, 8, 8, 1), 0.0, np.float32)

    maker = generation.ImageMaker(make, model)

    def judge(images):
        return {"distance": float(len(made)), "features": "fake-v1"}

    out = tmp_path / "sweeps" / "x"

    def run(steps, cfg=cfg, weights="a"):
        axes = ["sampler=ddim", f"steps={steps}"]
        settings = {"weights": weights}
        sampler_sweep.run(cfg, maker, judge, out, axes=axes, seeds=2, num=4, settings=settings)

    run("5,10")
    assert made == [(5, 0), (10, 0), (5, 1), (10, 1)]
    lines = out.with_name("x.jsonl")
    lines.write_text(lines.read_text() + '{"cut": ')
    run("5,10,20")
    assert made[4:] == [(20, 0), (20, 1)]
    assert out.with_name("x.png").exists()
    assert "| 5 | 10 | 20 |" in out.with_name("x.md").read_text()
    stored = common.read_jsonl(lines)
    assert len(stored) == 6
    assert json.dumps(stored[0])

    # Rows of other fixed settings are not taken for these, nor mixed with them.
    others = ({"weights": "b"}, {"cfg": generation.with_sample(cfg, eta=0.5)})
    for other in others:
        with pytest.raises(common.UsageError, match=r"6 of 6 rows .* choose another --name"):
            run("5,10", **other)
    write(lines, [{k: v for k, v in row.items() if k != "settings"} for row in stored])
    with pytest.raises(common.UsageError, match="do not say of which"):
        run("5,10")
    run_on = generation.with_sample(cfg, batch_size=3, steps=99)  # neither changes a cell
    write(lines, stored)
    run("5,10", cfg=run_on)
    assert len(made) == 6


def test_sampler_of_a_config():
    cfg = generation.with_sample(ddpm.digits(), sampler="ddim", steps=7, eta=0.5)
    sampler, plan = generation.sampler_of(
        cfg, SimpleNamespace(schedule=schedules.linear(), parameterization=parameterization.eps())
    )
    expected = samplers.ddim(0.5).plan(grids.leading(schedules.linear(), 7))
    assert np.array_equal(plan.coef, expected.coef)
    assert sampler.step is samplers.ddim().step


def test_tile_lays_out_rows_and_enlarges():
    images = np.stack([np.full((8, 8, 1), v, np.float32) for v in (-1, 0, 1)])
    picture = generation.tile(images, columns=2, scale=2)
    assert picture.shape == (36, 36, 3)
    assert picture[5, 5].tolist() == [0, 0, 0]
    assert picture[5, 23].tolist() == [128, 128, 128]
    assert picture[23, 5].tolist() == [255, 255, 255]
