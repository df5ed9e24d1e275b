"""Reconstructions of autoencoders, and images under control, from functions that stand in."""

import jax
import numpy as np
import pytest

from diffjax import metrics
from diffjax.data import shapes, to_float
from diffjax.evaluation.hint_fidelity import measure_control, measure_fidelity
from diffjax.evaluation.reconstructions import (
    measure_reconstructions,
    reconstruct,
    warn_of_collapse,
)
from diffjax.model import make_autoencoder


def small_autoencoder(name, **options):
    section = {"name": name, "channels": 8, "multipliers": (1, 1), "blocks": 1, **options}
    return make_autoencoder(section, 1)


@pytest.mark.parametrize(("name", "codes"), [("kl", (0, 0)), ("vq", (4, 4))])
def test_images_are_reconstructed_in_batches(name, codes):
    options = {"codes": 16} if name == "vq" else {}
    net = small_autoencoder(name, norm_groups=4, latent_channels=2, **options)
    x = np.random.default_rng(0).uniform(-1, 1, (70, 8, 8, 1)).astype(np.float32)
    params = net.init(jax.random.key(0), x[:1])["params"]
    again, found = reconstruct(net, {**params, "discriminator": {}}, x)  # more than one batch
    assert again.shape == x.shape and found.shape == (70, *codes)
    assert np.abs(again).max() <= 1
    alone, _ = reconstruct(net, params, x[66:68])
    np.testing.assert_allclose(again[66:68], alone, atol=1e-5)


def test_measures_of_reconstructions():
    real = np.random.default_rng(0).uniform(-0.8, 0.8, (10, 4, 4, 1)).astype(np.float32)

    def again(images):
        assert len(images) == 6
        return images + 0.1, np.arange(6 * 4).reshape(6, 2, 2) % 2  # two codes in equal shares

    found = measure_reconstructions(again, real, 6, num_codes=8)
    assert found["images"] == 6
    assert found["l1"] == pytest.approx(0.1, rel=1e-4)
    assert found["psnr"] == pytest.approx(20 * np.log10(2 / 0.1), rel=1e-4)
    assert found["codes_used"] == 2 / 8 and found["perplexity"] == pytest.approx(2)
    assert "distance" not in found


def test_the_distance_of_reconstructions_has_a_floor(digits):
    network = metrics.feature_network("digits")
    real = to_float(digits[:600], 256)
    none = np.zeros((300, 0, 0), np.int32)
    found = measure_reconstructions(lambda images: (images, none), real, 300, network=network)
    assert found["distance"] == pytest.approx(0, abs=1e-3)
    assert found["floor"] == metrics.floor(network, real[:300], real[300:])
    assert found["floor_num"] == 300 and "codes_used" not in found


def test_a_collapsed_codebook_is_said(caplog):
    usage = np.zeros(64)
    usage[0] = 1
    with caplog.at_level("WARNING"):
        warn_of_collapse(np.full(64, 1 / 64))
        assert not caplog.records
        warn_of_collapse(usage)
    assert "collapsed: 1.6% of 64 codes are in use" in caplog.text


# ---- images under control -----------------------------------------------------------------------


@pytest.fixture
def square():
    image = np.full((1, 16, 16, 3), -0.8, np.float32)
    image[:, 4:12, 4:12] = np.array(shapes.COLOURS["red"]) / 127.5 - 1
    return image


@pytest.fixture
def outline():
    hint = np.zeros((1, 16, 16, 1), np.float32)
    hint[:, 4:12, 4:12] = 1
    hint[:, 5:11, 5:11] = 0
    return hint


CANNY = {"name": "canny", "low": 0.02, "high": 0.05, "sigma": 1.0}


def test_masks_are_found_in_pictures_of_shapes(square):
    one_hot = np.zeros((1, 16, 16, 2), np.float32)
    one_hot[:, 4:12, 4:12, 1] = 1
    one_hot[..., 0] = 1 - one_hot[..., 1]
    hint = {"name": "mask"}
    assert measure_fidelity(hint, one_hot, square, of_shapes=True) == {"mask_iou": 1.0}
    assert measure_fidelity(hint, one_hot, 0 * square, of_shapes=True)["mask_iou"] < 0.5
    assert measure_fidelity(hint, one_hot, square) == {}  # other masks cannot be found


@pytest.mark.parametrize("name", ["canny", "edges"])
def test_edges_are_found_in_pictures(square, outline, name):
    hint = {**CANNY, "name": name}
    assert measure_fidelity(hint, outline, square)["edge_f1"] > 0.95
    assert measure_fidelity(hint, np.roll(outline, 5, 2), square)["edge_f1"] < 0.6
    blind = {**hint, "low": 0.9, "high": 0.95}  # the options of the hint are those of the measure
    assert measure_fidelity(blind, outline, square)["edge_f1"] == 0


def test_control_is_measured_with_the_prompt_and_without(square, outline):
    asked = []

    def paint(prompt):
        asked.append(prompt)
        return square if prompt else np.roll(square, 5, 2)

    def fidelity(images):
        return measure_fidelity(CANNY, outline, images)

    found = measure_control(paint, fidelity)
    assert asked == [True, False]
    assert list(found) == ["edge_f1", "edge_f1_without_prompt"]
    assert found["edge_f1"] > 0.95 > 0.6 > found["edge_f1_without_prompt"]


def test_control_has_a_distance_where_there_is_a_network(digits):
    network, real = metrics.feature_network("digits"), to_float(digits[:200], 256)
    found = measure_control(lambda _: real, lambda _: {"edge_f1": 1.0}, network=network, real=real)
    assert found["distance"] == pytest.approx(0, abs=1e-3)
    assert all(isinstance(value, float) for value in found.values())
