"""Configs of runs and exported files, of this version and of older ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import autoencoder, controlnet, ddpm, ldm
from diffjax.config import make, read_config, resolve
from diffjax.config.ranges import flatten
from diffjax.config.store import NOTE, get_config
from diffjax.data import sides
from diffjax.model import make_model
from diffjax.pretrained.files import open_safetensors
from diffjax.train.resume import check_resume, find_differences, to_json_tree

MODELS = sorted((Path(__file__).parents[2] / "docs/results/models").glob("*.safetensors"))
# Keys that came after the first configs were stored.
LATER = ("data.threads", "data.background", "cond.context", "cond.given", "sample.guidance_low",
         "train.evaluate_every", "train.nonfinite", "eval.best", "network.patch", "loss.distance",
         "ema.half_life", "loss.noise_offset", "loss.input_perturbation")  # fmt: skip


def _store(config, path):
    path.write_text(config.to_json_best_effort())
    return path


def _old(config):
    for key in LATER:
        section, _, name = key.partition(".")
        if name in config[section]:
            del config[section][name]
    for key, value in [*flatten(config.to_dict())]:
        if value is None:
            section, _, name = key.rpartition(".")
            del config[section][name]
    return config


def test_a_config_comes_back_whole(tmp_path):
    for config in (ddpm.digits(), ldm.shapes(), autoencoder.vq_f4(), controlnet.shapes_mask()):
        path = _store(config, tmp_path / "config.json")
        for found in (read_config(path), read_config(tmp_path), get_config(str(path))):
            assert found.to_json(sort_keys=True) == config.to_json(sort_keys=True)
            found.sample.eta = 0.5  # open options have their types
            found.data.image_size = (8, 16)
            with pytest.raises(TypeError):
                found.sample.eta = "x"


def test_a_config_that_lacks_keys_is_that_of_the_same_run(tmp_path):
    stored = _old(ddpm.digits())
    path = _store(stored, tmp_path / "config.json")
    assert "threads" not in json.loads(path.read_text())["data"]
    found = read_config(path)
    assert found.eval.best == "" and found.data.threads == 2 and found.sample.eta is None
    assert found.schedule.beta_start is None
    found.eval.best = "distance"
    assert found.to_dict() == ddpm.digits().to_dict()
    wanted = make_model(ddpm.digits(), (8, 8, 1), 17, 10)
    assert make_model(found, (8, 8, 1), 17, 10).network == wanted.network
    # A run that goes on is the one that was begun, from either side.
    before, now = resolve(json.loads(path.read_text())), resolve(to_json_tree(found))
    assert find_differences(before, now) == [] and find_differences(now, before) == []
    for earlier, goes_on in ((json.loads(path.read_text()), found), (to_json_tree(found), stored)):
        check_resume({"config": earlier}, goes_on, "", resolve=resolve)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_exported_files_of_older_versions_are_complete_and_the_same(path):
    found = read_config(path)
    stored = json.loads(open_safetensors(path).metadata[NOTE])
    assert find_differences(resolve(stored), resolve(to_json_tree(found))) == []
    whole = make(task="autoencoder") if found.task == "autoencoder" else make()
    for section, values in whole.items():
        if section not in ("network", "loss") and hasattr(values, "items"):
            assert set(values) <= set(found[section]), section
    if found.task in ("diffusion", "controlnet"):
        shape = (*sides(found.data.image_size), found.data.channels)
        make_model(found, shape, found.data.levels, found.data.num_classes)


def test_files_that_hold_no_config_are_named(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        read_config(tmp_path)
    for text, message in (
        ("{", "is not JSON"), ("{}", "is no config of a run: it lacks task, seed, data.name"),
        ("[1]", "holds no JSON object"),
        (make({"optim.lr": 1e30}).to_json(), r"config\.optim\.lr must be at most 10995"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json.* {message}"):
            read_config(path)
    save_file({"x": np.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors holds no config; experiments.export"):
        read_config(tmp_path / "x.safetensors")
