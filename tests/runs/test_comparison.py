"""Runs beside each other: what differs, their numbers, the best one, and how far each is."""

import json
from pathlib import Path

import pytest

from diffjax.cli.tables import LiveTable, format_html_table, format_table
from diffjax.launch.manifest import SweepRun
from diffjax.runs import comparison
from diffjax.types import ConfigError


def _write_runs(folder: Path, **losses: float) -> list[Path]:
    for i, (name, loss) in enumerate(losses.items()):
        run = folder / name
        run.mkdir(parents=True)
        config = {"seed": 0, "optim": {"lr": 0.1 * i}, "train": {"steps": 8}}
        (run / "config.json").write_text(json.dumps(config))
        line = json.dumps({"step": 8, "loss": loss, "steps_per_second": 2.0})
        (run / "metrics.jsonl").write_text(f"{line}\n" + '{"step": 9, "lo')  # being written
    return [folder / name for name in losses]


def test_runs_are_compared_by_what_differs(tmp_path):
    runs = _write_runs(tmp_path, a=3.0, b=1.0, c=float("nan"))
    measured = {"precision": 0.5, "note": "text", "inception": {"fid": 7.5, "precision": 0.6}}
    (runs[0] / "evaluation.json").write_text(json.dumps(measured))
    rows = comparison.collect_rows(runs)
    numbers = ["precision", "fid", "inception.precision"]
    assert list(rows[0]) == ["run", "optim.lr", "step", "loss", "steps_per_second", *numbers]
    assert comparison.find_best(rows, "loss", "min")["run"] == "b"
    assert comparison.find_best(rows, "loss", "max")["run"] == "a"
    assert comparison.find_best(rows, "fid", "min")["run"] == "a"
    assert comparison.find_best(rows, "kid", "min") is None
    table = format_table(rows).splitlines()
    assert table[0].split() == list(rows[0]) and len({len(t.split()) for t in table[2:]}) == 1
    assert "<b>b</b>" in format_html_table(rows, rows[1])
    with pytest.raises(ConfigError, match=r"has no config.json"):
        comparison.collect_rows([tmp_path])


def test_progress_shows_every_run(tmp_path, capsys):
    _write_runs(tmp_path, a=3.0, b=1.0)
    runs = [SweepRun("a", {}, "running", tries=1), SweepRun("b", {}, "done"), SweepRun("new", {})]
    table = LiveTable(lambda: comparison.list_progress(tmp_path, runs))
    table.show()
    table.show()  # too early for another
    lines = capsys.readouterr().out.split("\n")
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["a", "running", "8/8"],
        ["b", "done", "8/8"],
        ["new", "waiting", "0/?"],
    ]
    assert len(lines) == 6
    table.show(last=True)
    assert "running" in capsys.readouterr().out


def test_curves_are_a_picture(tmp_path):
    runs = _write_runs(tmp_path, a=3.0, b=1.0)
    assert comparison.plot_curves(runs, "loss").startswith(b"\x89PNG")
    assert comparison.read_measure(runs[1], "loss") == 1.0
    assert comparison.read_measure(runs[1], "fid") is None
