"""The speed suites: their rows, the lines between processes, figures, and the page."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from diffjax import runs
from experiments.benchmarks.sides import by_diffjax, measure, server, speed_page
from experiments.benchmarks.sides.rows import KINDS, OURS, PEERS, ROWS, SUITES

NO_FLAGS = measure.Setup(Path(sys.executable), Path("torch"), Path("flax"), 1, True, None)


# Rows of the other suites have the same networks.
MODELS = ["digits_step", "fashion_mnist_ddim", "sd15_forward_32", "gpu_sdxl_generate"]


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", [*MODELS, "gpu_cifar10_edm"])
def test_models_of_rows_can_be_built_and_described(name, tiny):
    row = ROWS[name]
    changes = {**row.changes, **(row.tiny if tiny else {})}
    cfg = by_diffjax.make_config({"config": row.config, "changes": changes})
    model = runs.build_model(cfg)
    if not row.goals:
        return
    net = by_diffjax.describe_network(model.network, model.space.shape[-1])
    assert len(net["down_block_types"]) == len(net["block_out_channels"])
    reads_text = net["_class_name"] == "UNet2DConditionModel"
    assert reads_text == ("stable_diffusion" in row.config) == bool(model.network.context_dim)


def test_a_row_without_peers_needs_no_words_of_diffusers(tmp_path, monkeypatch):
    """EDM's network has no counterpart there; its weights are drawn all the same."""
    done = type("Done", (), {"returncode": 0})()
    monkeypatch.setattr(measure.subprocess, "run", lambda *_, **__: done)
    measure.prepare_row(ROWS["gpu_cifar10_edm"], tmp_path, NO_FLAGS)
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), OURS])
    by_diffjax.prepare(server.read_work())
    assert (tmp_path / "unet.safetensors").stat().st_size > 2**16
    assert json.loads((tmp_path / "unet.json").read_text()) == {}


def test_rows_name_known_suites_kinds_and_peers():
    assert {row.suite for row in ROWS.values()} == set(SUITES)
    assert {row.kind for row in ROWS.values()} == set(KINDS)
    assert {peer for row in ROWS.values() for peer in row.goals} <= set(PEERS)
    assert set(by_diffjax.MAKERS) == set(KINDS)
    on_a_card = [row.minutes for row in ROWS.values() if row.suite == "gpu"]
    assert all(on_a_card) and sum(on_a_card) < 25


def test_the_server_times_calls_when_asked(tmp_path, monkeypatch):
    row = {"kind": "matmul", "batch": 3, "steps": 0, "config": ""}
    (tmp_path / "row.json").write_text(json.dumps(row))
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "torch"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("run\nrun\ncheck\nquit\n"))
    out, calls = io.StringIO(), []
    monkeypatch.setattr(sys, "stdout", out)
    call = server.Call(lambda: calls.append(1), lambda: np.ones(2), {"flops": 7.0})
    server.serve(lambda work: call if work.batch == 3 else None, 0.0)
    first, one, two, check, last = map(json.loads, out.getvalue().splitlines())
    assert first["flops"] == 7.0 and len(calls) == 3
    assert one.keys() == two.keys() == {"seconds", "cpu_seconds"}
    assert np.array_equal(np.load(check["output"]), np.ones(2))
    assert 2**20 < last["peak_bytes"] <= last["process_peak_bytes"]


def test_errors_of_a_side_are_found():
    said = "Traceback\n  x\nKeyError: 'embedding'\n------\nFor simplicity, frames are removed\n"
    assert measure.find_error(said) == "KeyError: 'embedding'"
    assert measure.find_error("killed\n") == "killed"
    assert measure.find_error("") == "nothing was said"


def test_a_side_that_ends_is_reported(tmp_path):
    """Here for want of a package that no environment of the tests has."""
    setup = NO_FLAGS._replace(flax=Path(sys.prefix))
    with pytest.raises(measure.SideFailed, match=r"exit code 1: .*diffusers"):
        measure.Side("flax", tmp_path, setup)


def test_caches_of_sides_are_their_own(tmp_path):
    cold, again, warm = (
        measure.make_environment(name, tmp_path, NO_FLAGS)["JAX_COMPILATION_CACHE_DIR"]
        for name in (OURS, OURS, "diffjax_warm")
    )
    assert len({cold, again, warm}) == 3
    flags = measure.make_environment("diffjax_flags", tmp_path, NO_FLAGS._replace(flags="--a"))
    assert flags["XLA_FLAGS"] == "--a"


def make_row(**changes):
    """A row of figures as a run writes it, in which diffjax takes 1, 2 and 3 s, torch 4."""
    sides = {
        OURS: {"seconds": [1.0, 2.0, 3.0], "peak_bytes": 2**30, "first_call_seconds": 5.0},
        "torch": {"seconds": [4.0, 4.0, 4.0], "peak_bytes": 2**31},
    }
    return {
        "title": "a step", "sides": sides, "missing": {"flax": "not installed: make peers"},
        "errors": {"torch": 2e-6}, **measure.compute_ratios(sides), "goals": {"torch": 0.6},
        "load_average": [0.1, 0.2],
        "machine": {"processor": "P", "instructions": "avx2", "cores": 2}, **changes,
    }  # fmt: skip


def test_ratios_are_of_medians_with_the_quartiles_of_turns():
    row = make_row()
    assert row["ratios"] == {"torch": 0.5} and row["memory_ratios"] == {"torch": 0.5}
    assert row["spreads"]["torch"] == [0.375, 0.625]


def test_outputs_are_compared_with_ours(tmp_path):
    values = {OURS: [1.0, 2.0], "torch": [1.0, 2.5], "flax": [1.0]}
    for name, value in values.items():
        np.save(tmp_path / f"{name}.npy", value)
    sides = {name: {"output": str(tmp_path / f"{name}.npy")} for name in values}
    assert measure.compare_outputs(sides) == {"torch": pytest.approx(0.2)}
    assert not any("output" in side for side in sides.values())


@pytest.mark.parametrize("goal, verdict", [(0.6, "0.60: met"), (0.4, "0.40: not met")])
def test_the_page_says_what_is_met_and_what_was_not_measured(tmp_path, goal, verdict):
    found = {
        "suite": "cpu",
        "tiny": False,
        "rows": {"digits_step": make_row(goals={"torch": goal})},
    }
    (tmp_path / "speed-cpu.json").write_text(json.dumps(found))
    (tmp_path / "speed-gpu.json").write_text(json.dumps(found | {"suite": "gpu", "tiny": True}))
    page = speed_page.make_page(tmp_path)
    line = next(x for x in page.splitlines() if x.startswith("| a step | diffusers, torch eager"))
    assert f"0.50 (0.38 to 0.62) | {verdict} | 2 | 4 | 0.50 | 2e-06 |" in line
    assert "| a step | diffusers 0.34, Flax | not measured: not installed: make peers |" in page
    gpu = page[page.index("## GPU") : page.index("## TPU")]
    assert gpu.split("\n\n")[1].startswith("Not measured: product of two matrices; 1.5, 512 px")


@pytest.mark.parity
def test_training_steps_agree_with_torch():
    pytest.importorskip("diffusers")
    setup = NO_FLAGS._replace(torch=Path(sys.prefix), repeats=2)
    row = measure.measure_row(ROWS["digits_step"]._replace(goals={"torch": 1.0}), setup)
    assert row["agree"] and not row["missing"] and len(row["sides"]["torch"]["seconds"]) == 2
