"""Images of a run in training: by several processes, on other machines, of data without a test."""

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from configs import ddpm
from diffjax import data, grids, parameterization, runs, samplers, schedules
from diffjax.config import load_config
from diffjax.model import make_sampler
from diffjax.runs import drawing

SMALL = (
    *("train.steps=2", "train.sample_every=1", "train.evaluate_every=1", "train.log_every=1"),
    *("optim.warmup=0", "network.channels=8", "data.batch_size=4"),
    *("sample.num=3", "sample.steps=3", "eval.loop_num=16"),
)


@pytest.mark.slow
def test_two_processes_look_at_their_model_in_training(tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    command = (
        *(sys.executable, "-m", "experiments.train", "--config=configs/cfg.py:fashion_mnist"),
        *(f"--workdir={tmp_path / 'run'}", *(f"--config.{item}" for item in SMALL)),
        *(f"--coordinator=localhost:{port}", "--num_processes=2"),
    )
    both = [
        subprocess.Popen(
            [*command, f"--process_id={rank}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for rank in (0, 1)
    ]
    output = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], output[0] + output[1]
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2] and all(line["distance"] > 0 for line in log)
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2


def test_what_a_model_is_told_of_an_image_does_not_depend_on_its_batch():
    cfg = load_config("configs/ldm.py:inpainting,smoke")
    read = drawing._read_inputs(cfg, runs.build_model(cfg))
    four, two = (read(np.arange(first, 4)).cond["hole"] for first in (0, 2))
    assert 0 < four["hole"].mean() < 1 and (four["hole"][0] != four["hole"][1]).any()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:], b), four, two)


def test_a_mesh_of_another_machine_is_left_with_a_warning(caplog):
    cfg = load_config("configs/ddpm.py:digits,smoke")
    cfg.mesh.update(data=4, fsdp=2)
    assert runs.make_run_mesh(cfg).size == len(jax.devices())
    assert "does not match" in caplog.text


def test_without_test_images_training_images_are_looked_at(tmp_path, caplog):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    (tmp_path / "train").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "train" / f"{i}.png")
    cfg = load_config("configs/ddpm.py:digits,smoke")
    cfg.data.update(name="image_folder", dir=str(tmp_path), image_size=8, channels=3)
    cfg.data.update(levels=256, num_classes=0)
    found = runs.load_test_source(cfg)
    assert "training images take their place" in caplog.text
    np.testing.assert_array_equal(data.batch_of(found, [0])["image"], -np.ones((1, 8, 8, 3)))


def test_sampler_of_a_config():
    cfg = runs.replace_sample(ddpm.digits(), sampler="ddim", steps=7, eta=0.5)
    sampler, plan = make_sampler(
        cfg, SimpleNamespace(schedule=schedules.linear(), parameterization=parameterization.eps())
    )
    expected = samplers.ddim(0.5).plan(grids.leading(schedules.linear(), 7))
    assert np.array_equal(plan.coef, expected.coef)
    assert sampler.step is samplers.ddim().step
