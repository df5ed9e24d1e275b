"""Pieces of reproductions: run once, kept, resumed, and listed."""

import json
import subprocess

import pytest

from experiments import reproduce
from experiments.reproductions import PAPERS, pieces


@pytest.fixture
def commands(monkeypatch):
    """Commands that would run; each is handed to ``commands.act``."""

    class Commands(list):
        act = staticmethod(lambda line: 0)

    seen = Commands()

    def run(line, check):
        seen.append(line)
        return subprocess.CompletedProcess(line, seen.act(line))

    monkeypatch.setattr(subprocess, "run", run)
    return seen


SWEEP = pieces.sweeping("swept", "model", 1, {"steps": "5,10", "eta": "0,1"}, num=7, seeds=2)


def test_a_sweep_asks_for_every_cell_of_the_kept_model(tmp_path):
    (text,) = pieces.shown(SWEEP, tmp_path / "runs", tmp_path)
    assert f"--weights={tmp_path}/models/model.safetensors" in text
    assert "--sweep=steps=5,10 --sweep=eta=0,1 --seeds=2 --num=7" in text
    assert SWEEP.rows == 8


def test_what_a_failed_sweep_measured_is_kept_and_given_back(tmp_path, commands):
    runs, results = tmp_path / "runs", tmp_path / "results"
    file = runs / "model" / "sweeps" / "swept.jsonl"
    file.parent.mkdir(parents=True)

    def rows(count):
        return "".join(json.dumps({"distance": k}) + "\n" for k in range(count))

    def cut(line):
        file.write_text(rows(3))
        return 1

    commands.act = cut
    with pytest.raises(RuntimeError, match=r"swept: python -m experiments.evaluate .* exit code 1"):
        pieces.run(SWEEP, runs, results)
    assert not pieces.done(SWEEP, results)
    file.unlink()

    def finish(line):
        assert file.read_text() == rows(3)  # a fresh machine goes on from what was kept
        file.write_text(rows(8))
        return 0

    commands.act = finish
    assert pieces.run(SWEEP, runs, results)
    assert pieces.done(SWEEP, results)


def test_a_training_is_kept_as_weights_and_summary(tmp_path, commands):
    piece = pieces.training("ddpm.py:digits", "small", 1, "--config.seed=1")
    runs, results = tmp_path / "runs", tmp_path / "results"
    (runs / "small").mkdir(parents=True)
    for name in ("weights.safetensors", "summary.json"):
        (runs / "small" / name).write_text(name)
    assert not pieces.done(piece, results)
    assert pieces.run(piece, runs, results)
    assert pieces.done(piece, results)
    assert (results / "models" / "small.safetensors").read_text() == "weights.safetensors"
    assert [line[line.index("-m") + 1] for line in commands] == [
        "experiments.train",
        "experiments.export",
    ]
    assert "--config.seed=1" in commands[0]


def test_pieces_have_names_of_their_own_and_files_of_their_own():
    every = [piece for paper in PAPERS.values() for piece in paper.PIECES]
    names = [piece.name for piece in every]
    kept = [saved for piece in every for saved in piece.keep.values()]
    assert len(set(names)) == len(names)
    assert len(set(kept)) == len(kept)
    assert all(0 < piece.minutes <= 60 for piece in every)


def test_pages_say_what_was_not_run(tmp_path):
    reproduce.write_pages(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Not run: train-fashion_mnist-ddpm, train-diffusers" in text


def test_papers_at_their_own_scale_are_commands(tmp_path):
    text = reproduce.paper_scale("ddpm")
    assert "cifar10: 35,746,307 parameters, 102.4M images" in text
    assert "--config=configs/ddpm.py:cifar10 --workdir=runs/cifar10" in text
    assert "FID 3.17" in text


def test_unknown_papers_and_pieces_list_the_choices(execute):
    out = execute("reproduce", "--paper=dpm", "--list", code=1)
    assert "choose from ['ddpm'" in out
    out = execute("reproduce", "--paper=ddim", "--only=dim", "--list", code=1)
    assert "choose from ['ddim', 'reconstruction'" in out
    assert "ddim: reconstruction (" in execute("reproduce", "--paper=ddim", "--list")
