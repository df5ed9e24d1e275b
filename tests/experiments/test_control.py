"""experiments.control on a ControlNet that was trained for two steps."""

import json

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from diffjax import runs
from diffjax.config import load_config
from diffjax.runs.control_examples import exchange_conditions, measure_hints
from tests.cheap import SGD

CONFIG = "configs/controlnet.py:fashion_mnist_edges,smoke"
BASE = "configs/controlnet.py:fashion_mnist_base,smoke"


def test_settings_side_by_side(execute, tmp_path):
    execute("train", f"--config={CONFIG}", f"--workdir={tmp_path}", *SGD)
    options = ("--num=3", "--scales=0,1", "--guidance=2", "--prompts=own,other", "--seeds=2")
    execute("control", f"--workdir={tmp_path}", *options)
    settings = json.loads((tmp_path / "control/control.json").read_text())["settings"]
    found = [(s["prompt"], s["seed"], s["scale"]) for s in settings]
    assert found == [(p, s, k) for p in ("own", "other") for s in (0, 1) for k in (0, 0, 1)]
    assert settings[0] == settings[1]  # no control, twice
    out = execute("control", f"--workdir={tmp_path}", "--prompts=own,wrong", code=2)
    assert "unknown ['wrong']; choose from own, none, other" in out
    execute("evaluate", f"--workdir={tmp_path}", "--num=2")  # leaves out what needs no net
    # Hints, for either prompt no control and two settings, and the test images.
    width, height = Image.open(tmp_path / "control/control.png").size
    assert width / height == pytest.approx(3 / 8, rel=0.1)


def test_images_are_told_what_the_next_one_with_another_condition_is():
    found = exchange_conditions({"label": np.array([5, 5, 7, 5]), "said": np.ones(4)})
    assert found["label"].tolist() == [7, 7, 5, 7]
    with pytest.raises(ValueError, match="all 2 images have the same condition"):
        exchange_conditions({"label": np.array([3, 3])})


@pytest.mark.slow
def test_an_exported_net_reads_its_base_from_where_its_config_says(execute, tmp_path):
    base, run, file = tmp_path / "base", tmp_path / "run", tmp_path / "net.safetensors"
    execute("train", f"--config={BASE}", f"--workdir={base}")
    execute("export", f"--workdir={base}", f"--out={tmp_path / 'base.safetensors'}")
    given = f"--config.control.base={tmp_path / 'base.safetensors'}"
    tried = ("--config.train.evaluate_every=1", "--config.eval.best=", "--config.eval.loop_num=4")
    hint = "--config.control.hint.name=canny"  # whose fidelity is known
    execute("train", f"--config={CONFIG}", f"--workdir={run}", given, hint, *tried)
    line, _ = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["edge_f1_without_prompt"] >= 0
    execute("export", f"--workdir={run}", f"--out={file}")
    assert file.stat().st_size < (tmp_path / "base.safetensors").stat().st_size
    away = tmp_path / "away"
    execute("control", f"--workdir={run}", "--num=3", "--prompts=none")
    execute("control", f"--weights={file}", f"--workdir={away}", "--num=3", "--prompts=none")
    ours, theirs = ((f / "control/control.json").read_text() for f in (run, away))
    assert ours == theirs
    assert json.loads(ours)["settings"][1]["change"] > 0
    execute("control", f"--weights={file}", f"--workdir={away}", "--num=3", f"--also={file}")


def test_an_untrained_net_starts_from_its_base(tmp_path):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    cfg = load_config(CONFIG)
    state = runs.init_untrained(cfg, runs.load_fixed_parts(cfg, tmp_path))
    assert int(state.step) == 0


def test_a_base_is_needed(execute, tmp_path):
    config = f"--config={CONFIG}"
    out = execute("train", config, f"--workdir={tmp_path}", "--config.control.base=", code=2)
    assert "--config.control.base is needed" in out
    out = execute(
        "train", config, f"--workdir={tmp_path}", "--config.control.base=/nowhere", code=2
    )
    assert "there is no /nowhere" in out


def test_fidelity_of_drawn_images():
    square = np.full((1, 16, 16, 3), -0.8, np.float32)
    square[:, 4:12, 4:12] = np.array([230, 40, 40]) / 127.5 - 1
    one_hot = np.zeros((1, 16, 16, 2), np.float32)
    one_hot[:, 4:12, 4:12, 1] = 1
    one_hot[..., 0] = 1 - one_hot[..., 1]
    cfg = ConfigDict({"control": {"hint": {"name": "mask"}}, "data": {"name": "shapes"}})
    assert measure_hints(cfg, one_hot, square) == {"mask_iou": 1.0}
    assert measure_hints(cfg, one_hot, 0 * square)["mask_iou"] < 0.5
    options = {"name": "canny", "low": 0.02, "high": 0.05, "sigma": 1.0}
    cfg = ConfigDict({"control": {"hint": options}, "data": {"name": "fashion_mnist"}})
    outline = np.zeros((1, 16, 16, 1), np.float32)
    outline[:, 4:12, 4:12] = 1
    outline[:, 5:11, 5:11] = 0
    assert measure_hints(cfg, outline, square)["edge_f1"] > 0.95
    assert measure_hints(cfg, np.roll(outline, 5, 2), square)["edge_f1"] < 0.6


@pytest.mark.slow
def test_a_net_of_latents_is_measured_while_it_trains(execute, tmp_path):
    options = ("--config.train.evaluate_every=1", "--config.eval.best=", "--config.eval.loop_num=4")
    config = "--config=configs/controlnet.py:shapes_edges,smoke"
    execute("train", config, f"--workdir={tmp_path}", *options)  # twice: the state is given away
