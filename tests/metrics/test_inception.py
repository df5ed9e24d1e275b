"""The Inception network against features recorded from torch-fidelity and pytorch-fid."""

from pathlib import Path

import jax
import numpy as np
import pytest

from diffjax import metrics
from diffjax.metrics.inception_features import _to_levels
from diffjax.nets.inception import SIZE, inception_input
from diffjax.pretrained import from_state_dict
from tests.parity import cases, inception_cases

GOLDEN = Path(__file__).parents[1] / "golden" / "inception.npz"


@pytest.fixture(scope="module")
def params():
    return from_state_dict(inception_cases.state(), inception_cases.like())


def test_parameters_are_those_of_the_published_file(params):
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 23_885_392
    assert set(inception_cases.state()) >= {
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_5b.branch5x5_2.bn.running_var",
        "Mixed_7c.branch3x3dbl_3b.bn.running_mean",
        "fc.bias",
    }
    assert inception_cases.state()["fc.weight"].shape == (1008, 2048)


def test_features_are_the_recorded_ones(params):
    network = metrics.inception_network(params, batch_size=2)
    found = metrics.extract(network, inception_cases.images(2))
    with np.load(GOLDEN) as file:
        golden = dict(file)
    assert golden["pool"].std(0).max() > 0.05  # the images are told apart
    assert cases.relative_error(found.features, golden["pool"]) < 1e-5
    assert cases.relative_error(found.spatial, golden["spatial"]) < 1e-5
    logits = golden["logits"].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found.probs, expected, rtol=1e-4)


@pytest.mark.slow
def test_the_other_resizing_is_pytorch_fid_s(params):
    network = metrics.inception_network(params, resize="pytorch_fid", batch_size=2)
    found = metrics.extract(network, inception_cases.images(2)).features
    with np.load(GOLDEN) as file:
        assert cases.relative_error(found, file["pytorch_fid"]) < 1e-5


def bilinear(image, at_y, at_x):
    """Interpolation at fractional places, one pixel at a time."""
    out = np.empty((len(at_y), len(at_x), image.shape[-1]))
    for i, y in enumerate(at_y):
        for j, x in enumerate(at_x):
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, len(image) - 1), min(x0 + 1, image.shape[1] - 1)
            rows = [image[r, x0] * (1 - x + x0) + image[r, x1] * (x - x0) for r in (y0, y1)]
            out[i, j] = rows[0] * (1 - y + y0) + rows[1] * (y - y0)
    return out


def test_resizing_by_hand():
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.float32)
    steps = np.append(np.arange(0, SIZE, 23), SIZE - 1)
    some = np.ix_(steps, steps)
    corners = bilinear(image, steps * 7 / SIZE, steps * 5 / SIZE)
    x = np.asarray(inception_input(image[None])[0])
    np.testing.assert_allclose(x[some], corners / 128 - 1, atol=2e-6)
    centres = [np.clip((steps + 0.5) * n / SIZE - 0.5, 0, None) for n in (7, 5)]
    x = np.asarray(inception_input(image[None], resize="pytorch_fid")[0])
    np.testing.assert_allclose(x[some], bilinear(image, *centres) / 127.5 - 1, atol=2e-6)


def test_images_of_the_right_size_are_only_scaled():
    levels = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 1)).astype(np.float32)
    x = inception_input(levels)
    assert x.shape == (1, SIZE, SIZE, 3)  # grey becomes RGB
    np.testing.assert_allclose(x, np.repeat((levels - 128) / 128, 3, -1), atol=1e-6)


def test_floats_are_rounded_to_8_bits():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(_to_levels(levels), levels)
    for shift in (-0.4, 0, 0.4):
        floats = (levels + np.float32(shift)) / 127.5 - 1
        np.testing.assert_array_equal(_to_levels(floats), levels)


def test_bad_input():
    with pytest.raises(ValueError, match="unknown resize 'area'; choose one of pytorch_fid, tens"):
        inception_input(np.zeros((1, 8, 8, 3)), resize="area")
    with pytest.raises(ValueError, match=r"1 or 3\), got \(1, 8, 8, 4\)"):
        inception_input(np.zeros((1, 8, 8, 4)))
