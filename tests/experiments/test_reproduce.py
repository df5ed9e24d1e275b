"""Pieces of reproductions: run once, kept, resumed, and listed."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diffjax.config import load_config
from experiments import reproduce
from experiments.reproductions import PAPERS, enlarging, pieces
from experiments.reproductions import results as results_module
from experiments.reproductions.verdicts import CONTRADICTED, RULE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def commands(monkeypatch):
    """Commands that would run; each is handed to ``commands.act``."""

    class Commands(list):
        act = staticmethod(lambda line: 0)

    seen = Commands()

    def run(line, check, env):
        assert env["JAX_COMPILATION_CACHE_DIR"]
        seen.append(line)
        return subprocess.CompletedProcess(line, seen.act(line))

    monkeypatch.setattr(subprocess, "run", run)
    return seen


SWEEP = pieces.make_sweep("swept", "model", 1, {"steps": "5,10", "eta": "0,1"}, num=7, seeds=2)


def test_a_sweep_asks_for_every_cell_of_the_kept_model(tmp_path):
    (text,) = pieces.format_commands(SWEEP, tmp_path / "runs", tmp_path)
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
        pieces.run_piece(SWEEP, runs, results)
    assert not pieces.is_done(SWEEP, results)
    file.unlink()

    def finish(line):
        assert file.read_text() == rows(3)  # a fresh machine goes on from what was kept
        file.write_text(rows(8))
        return 0

    commands.act = finish
    assert pieces.run_piece(SWEEP, runs, results)
    assert pieces.is_done(SWEEP, results)


def test_a_training_is_kept_as_weights_and_summary(tmp_path, commands):
    piece = pieces.make_training("ddpm.py:digits", "small", 1, "--config.seed=1")
    runs, results = tmp_path / "runs", tmp_path / "results"
    (runs / "small").mkdir(parents=True)
    for name in ("weights.safetensors", "summary.json"):
        (runs / "small" / name).write_text(name)
    assert not pieces.is_done(piece, results)
    assert pieces.run_piece(piece, runs, results)
    assert pieces.is_done(piece, results)
    assert (results / "models" / "small.safetensors").read_text() == "weights.safetensors"
    assert [line[line.index("-m") + 1] for line in commands] == [
        "experiments.train",
        "experiments.export",
    ]
    assert "--config.seed=1" in commands[0]


def test_a_try_keeps_what_was_measured_but_no_weights(tmp_path, commands):
    piece = pieces.make_trial("ddpm.py:digits", "tried", 1, ("--config.seed=1",), "--seeds=3")
    runs = tmp_path / "runs"
    (runs / "tried").mkdir(parents=True)
    (runs / "tried" / "tried.json").write_text("{}")
    assert pieces.run_piece(piece, runs, tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["tried.json", "tried.json"]
    assert "--config.seed=1" in commands[0] and "--seeds=3" in commands[1]


def test_a_folder_is_kept_whole(tmp_path, commands):
    piece = pieces.Piece("made", (), {"made/folder": "models/made"}, 1)
    file = tmp_path / "runs" / "made" / "folder" / "unet" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert pieces.run_piece(piece, tmp_path / "runs", tmp_path / "results")
    assert (tmp_path / "results" / "models" / "made" / "unet" / "config.json").exists()
    assert pieces.is_done(piece, tmp_path / "results")


def test_prompts_stay_whole(tmp_path, commands):
    piece = pieces.Piece("drawn", (("sample", "--prompt=a red circle"),), {}, 1)
    assert pieces.run_piece(piece, tmp_path, tmp_path)
    assert commands[0][-1] == "--prompt=a red circle"
    (shown,) = pieces.format_commands(piece, tmp_path, tmp_path)
    assert shown == "python -m experiments.sample '--prompt=a red circle'"


def test_trainings_begin_from_models_that_earlier_pieces_leave():
    for paper in PAPERS.values():
        made = {saved for other in PAPERS.values() if other is not paper for saved in kept(other)}
        for piece in paper.PIECES:
            named = re.findall(r"{results}/(models/[\w-]+(?:\.safetensors)?)", str(piece.commands))
            assert set(named) <= made, piece.name
            made |= set(piece.keep.values())


def kept(paper):
    return [saved for piece in paper.PIECES for saved in piece.keep.values()]


def test_the_readme_has_the_table_of_the_results():
    text = (ROOT / "README.md").read_text()
    assert results_module.insert_table(text, ROOT / "docs/results") == text
    with pytest.raises(ValueError, match="must stand around the table"):
        results_module.insert_table("no table", ROOT / "docs/results")


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
    text = reproduce.describe_paper_scale("ddpm")
    assert "cifar10: 35,746,307 parameters, 102.4M images" in text
    assert "--config=configs/ddpm.py:cifar10 --workdir=runs/cifar10" in text
    assert "experiments.evaluate --workdir=runs/cifar10 --metrics=fid,is" in text
    assert "FID 3.17" in text


def test_ten_times_the_size_is_a_plan_without_an_accelerator(execute):
    out = execute("reproduce", "--paper=controlnet,cfg", "--scale=gpu")
    assert "no accelerator" in out and "--workdir=runs/gpu/cfg14-p10 " in out
    made = next(line for line in out.splitlines() if "train --config=configs/cfg.py" in line)
    steps = load_config("configs/cfg.py:fashion_mnist14").train.steps
    assert f"--config.train.steps={10 * steps} --config.train.minutes=0.0" in made
    assert "--name=cfg14-p10-guidance" in out and "--seeds=3 --num=25000" in out
    made = next(
        line for line in out.splitlines() if "--workdir=runs/gpu/control-edges-zero " in line
    )
    assert "--config.train.steps=4000" in made and "--config.train.evaluate_every=500" in made
    assert "runs/gpu/results/models/control-base.safetensors" in made


def test_enlarged_pieces_keep_the_previews_of_their_steps(tmp_path):
    for paper in PAPERS.values():
        for piece in paper.PIECES:
            large = enlarging.enlarge_piece(piece)
            assert list(large.keep.values()) == list(piece.keep.values())
            assert (large.name, large.rows) == (piece.name, piece.rows)
    piece = next(p for p in PAPERS["controlnet"].PIECES if p.name == "train-control-edges-zero")
    assert "control-edges-zero/samples/00001000.png" in enlarging.enlarge_piece(piece).keep
    drawn = PAPERS["pipelines"].PIECES
    enlarging.copy_inputs(drawn, ROOT / "docs" / "results", tmp_path)
    assert {f.name for f in (tmp_path / "data").iterdir()} == {
        "pipelines-mask.png", "pipelines-edges.png",
    }  # fmt: skip


def test_unknown_papers_and_pieces_list_the_choices(execute):
    out = execute("reproduce", "--paper=dpm", "--list", code=2)
    assert "choose from ['ddpm'" in out
    out = execute("reproduce", "--paper=ddim", "--only=dim", "--list", code=2)
    assert "choose from ['train-ddpm14', 'ddim', 'ddim-100'" in out
    assert "ddim: reconstruction (" in execute("reproduce", "--paper=ddim", "--list")


def test_a_reader_that_stops_early_sees_no_error():
    line = [sys.executable, "-m", "experiments.reproduce", "--paper=ddim", "--list"]
    with subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as listing:
        listing.stdout.close()
        message = listing.stderr.read()
    assert "rror" not in message and "Traceback" not in message


IMAGE_METRICS = {
    "distance": 10.0,
    "texture_distance": 10.0,
    "background_rms": 5.0,
    "inception_score": 5.0,
    "class_accuracy": 0.5,
    "precision": 0.5,
    "recall": 0.5,
    "density": 0.5,
    "coverage": 0.5,
    "features": "fake-v1",
    "num": 100,
    "num_reference": 100,
}
BITS = {
    "bits_images": 10, "bits_variance": "fixedsmall", "bits_per_dim": 3.0,
    "bits_per_dim_se": 0.1, "rate": 2.0, "distortion_bits": 1.0, "rate_in_last_tenth": 0.7,
    "rate_distortion": {"rate": [0.0, 1.0], "distortion": [80.0, 2.0]},
}  # fmt: skip
TRIED = {
    **IMAGE_METRICS, **BITS, "step": 2, "distance_by_seed": [9.0, 10.0, 11.0],
    "ode_bits_per_dim": 3.0, "sampler": {"steps": 20},
    "bits_by_steps": {steps: {"bits_per_dim": 5.0} for steps in ("50", "100", "250")},
}  # fmt: skip
FOLLOWED = {"edge_f1": 0.5, "mask_iou": 0.5}
SETTINGS = [{"scale": 1.0, "balance": "guess", "change": 0.0, "distance": 9.0, **FOLLOWED}] * 3
TOLD = [
    {**SETTINGS[0], "prompt": prompt, "seed": seed, "scale": scale}
    for prompt in ("own", "none", "other") for seed in (0, 1) for scale in (0.0, 1.0)
]  # fmt: skip
OBEYED = dict.fromkeys(("all", "colour", "shape", "size", "place"), 0.5)
LOG = [
    {"step": 50 * k, "steps_per_second": 2.0, **IMAGE_METRICS, **FOLLOWED,
     **{f"{key}_without_prompt": value for key, value in FOLLOWED.items()}}
    for k in range(1, 5)
]  # fmt: skip
PLANNED = {
    "remat": "none", "peak_bytes": 2**30, "state_bytes": 2**29, "parameter_bytes": 2**28,
    "flops": 1e12, "bytes_accessed": 2**30, "sharded": 1.0, "compile_seconds": 9.0,
    "collectives": {"all-gather": {"count": 2, "bytes": 2**20}},
}  # fmt: skip
# By the beginning of a file's name, then by its end.
BEGINNINGS = {
    "ablation-": TRIED,
    "improved-": TRIED,
    "reconstruction-": {"distance": 9.0, "psnr": 20.0, "l1": 0.1, "codes_used": 0.9},
    "own-": {**OBEYED, "pictures": 8},
    "control-cost": {
        "time_ratio": 0.9, "memory_ratio": 0.8,
        "turns": {"wall": {"controlnet": [0.9, 0.91], "fine_tuning": [1.0, 1.0]}},
    },
    **{f"scaling-{case}": dict.fromkeys(rows, PLANNED) for case, rows in {
        "sd15": ("sd15/v5e:2x4/fsdp8/batch4", "sd15/v5e:2x4/fsdp1/batch4"),
        "sdxl": ("sdxl/v5e:2x4/fsdp8/batch1",),
        "controlnet_sd15": ("controlnet_sd15/v5e:8x8/fsdp64/batch4",),
    }.items()},
    "control-prompts": {"settings": TOLD},
    **{f"control-{k}": {"settings": SETTINGS}
       for k in ("initial", "scales", "balances", "composed")},
}  # fmt: skip
MADE = {
    "summary": {
        "parameters": 10, "steps": 2, "images": 4, "wall_seconds": 60.0, "cpu_seconds": 50.0,
        "seed": 0, "machine": "none", "python": "3", "jax": "0", "torch": "0", "diffusers": "0",
        "batch": 2,
    },
    "evaluation": {
        **IMAGE_METRICS,
        "baselines": {"real_floor": 1.0, "real_floor_num": 50, "matched_gaussian": 90.0,
                      "untrained_network": 900.0},
        "sampler": {"steps": 20, "eta": 0.0},
    },
    "floor": {
        "baselines": {"real_floor": 1.0, "real_floor_num": 50, "matched_gaussian": 90.0,
                      "untrained_network": 900.0},
    },
    "bits": BITS,
    "reconstruction": {
        "reconstruction_mse": {"10": 0.1, "20": 0.05, "100": 0.01},
    },
    "guidance-cost": {
        "turns": {"wall": {
            "unguided": [1.0, 1.0], "guided": [1.9, 1.91], "guided_sequential": [2.1, 2.1],
        }},
        "time_ratio": {"guided": 1.9, "guided_sequential": 2.1},
        "memory_ratio": {"guided": 2.0, "guided_sequential": 1.0},
    },
}  # fmt: skip


def number(text):
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def sweep_rows(piece):
    """Rows of all cells of a sweep; distances fall with the steps and differ by seed."""
    axes = [part.removeprefix("--sweep=") for part in piece.commands[0] if "--sweep" in part]
    names = [axis.partition("=")[0] for axis in axes]
    values = [[number(v) for v in axis.partition("=")[2].split(",")] for axis in axes]
    seeds = next(int(p.partition("=")[2]) for p in piece.commands[0] if p.startswith("--seeds"))
    for seed, *cell in itertools.product(range(seeds), *values):
        row = dict(zip(names, cell, strict=True))
        steps = row.get("steps", 10)
        count = 2 * steps - 1 if row.get("sampler") in ("heun", "dpm2", "dpm2_ancestral") else steps
        shift = {"distance": 100 / steps + 0.01 * seed, "seed": seed, "evaluations": count}
        yield {**IMAGE_METRICS, **OBEYED, **row, **shift, "seconds": 1.0 + 0.01 * seed}


def content(piece, path):
    """Text of a .json or .jsonl file, made up."""
    if path.suffix == ".jsonl":
        rows = sweep_rows(piece) if piece.rows else LOG
        return "".join(json.dumps(row) + "\n" for row in rows)
    for beginning, value in BEGINNINGS.items():
        if path.stem.startswith(beginning) and not path.stem.endswith("summary"):
            return json.dumps(value)
    return json.dumps(MADE[next(kind for kind in MADE if path.stem.endswith(kind))])


def leave(piece, results):
    """The files of a piece, made up."""
    for saved in piece.keep.values():
        path = results / saved
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".json", ".jsonl"):
            path.write_text(content(piece, path))
        elif path.suffix == ".png":
            Image.new("RGB", (32, 32)).save(path)
        else:
            path.write_bytes(b"")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A folder of results whose pieces have all left something, and its pages."""
    results = tmp_path_factory.mktemp("results")
    for paper in PAPERS.values():
        for given in set(re.findall(r"{results}/(data/[\w-]+\.png)", str(paper.PIECES))):
            (results / "data").mkdir(exist_ok=True)
            shutil.copy(ROOT / "docs" / "results" / given, results / given)
        for piece in paper.PIECES:
            leave(piece, results)
            assert pieces.is_done(piece, results)
    reproduce.write_pages(results)
    return results


@pytest.mark.parametrize("name", list(PAPERS))
def test_every_page_is_written_once_its_pieces_are_done(name, made_up):
    page = (made_up / f"{name}.md").read_text()
    assert "| claim | verdict | effect [99 % interval] |" in page and RULE in page
    for picture in re.findall(r"!\[.*\]\((.*)\)", page):
        assert (made_up / picture).exists()
    assert f"## [{name}]({name}.md)" in (made_up / "README.md").read_text()


def test_the_pages_equal_the_data():
    folder = ROOT / "docs/results"
    for name, text in reproduce.format_pages(folder).items():
        assert (folder / name).read_text() == text, f"{name}: run experiments.reproduce --pages"


def test_every_contradicted_claim_is_discussed():
    for name in PAPERS:
        for claim in results_module.read_results(name, ROOT / "docs/results").claims:
            assert claim.verdict != CONTRADICTED or claim.why.count(". ") >= 1, claim.text
