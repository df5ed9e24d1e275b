"""CLIP from a folder: the same embeddings as its two halves give."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.nets.text import CLIPText
from diffjax.nets.vision import CLIPVision, clip_input
from diffjax.pretrained import from_state_dict
from diffjax.pretrained.clip import load_clip
from diffjax.pretrained.state_dict import list_state_shapes
from tests.parity import cases, inception_cases

SMALL = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
CONFIG = {
    "model_type": "clip",
    "projection_dim": 10,
    "text_config": {**SMALL, "vocab_size": 20, "max_position_embeddings": 7, "eos_token_id": 19},
    "vision_config": {**SMALL, "image_size": 12, "patch_size": 4},
}
HALF = dict(features=16, width=24, layers=2, heads=2, projection=10)
TEXT = CLIPText(vocabulary=20, positions=7, end=19, **HALF)
VISION = CLIPVision(size=12, patch=4, **HALF)
IDS = np.array([[1, 5, 19, 0], [1, 2, 3, 19]], np.int32)


def shapes(net, example):
    return jax.eval_shape(net.init, jax.random.key(0), example)["params"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    state = {"logit_scale": np.zeros((), np.float32)}
    for net, example in ((TEXT, IDS), (VISION, np.zeros((1, 12, 12, 3)))):
        state |= cases.random_state(list_state_shapes(shapes(net, example)))
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path, state


def test_embeddings_are_those_of_the_halves(folder):
    path, state = folder
    clip = load_clip(path)
    images = inception_cases.images(2, height=15, width=20) / np.float32(127.5) - 1
    for net, given, found in (
        (TEXT, IDS, clip.texts(IDS)),
        (VISION, clip_input(images, 12), clip.images(images)),
    ):
        like = shapes(net, given)
        mine = {k: v for k, v in state.items() if k in list_state_shapes(like)}
        expected = net.apply({"params": from_state_dict(mine, like)}, given)
        expected = expected.pooled if net is TEXT else expected
        assert found.shape == (2, 10)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_other_folders_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="is not CLIP"):
        load_clip(tmp_path)
    _, state = folder
    lacking = {k: v for k, v in state.items() if k != "visual_projection.weight"}
    save_file(lacking, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ValueError, match=r"1 keys are missing: visual_projection\.weight"):
        load_clip(tmp_path)
