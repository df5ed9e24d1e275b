"""The shipped networks, what they accept, and how a damaged file is reported."""

import importlib.resources
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from diffjax import data
from diffjax.data.datasets import DEBIAN_FASHION
from diffjax.metrics import extract, feature_network, load_network, save_network
from diffjax.metrics.features import VERSIONS
from diffjax.nets.classifier import Classifier


def weights(name):
    folder = importlib.resources.files("diffjax.metrics") / "weights"
    return folder / f"{name}-{VERSIONS[name]}.safetensors"


def digits(n=20):
    return data.load("digits", split="test").images[:n]


@pytest.fixture(scope="module")
def toy():
    """A small untrained network and its parameters."""
    model = Classifier(num_classes=3, width=4, features=5)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 6, 6, 2)))["params"]


@pytest.fixture
def saved(tmp_path, toy):
    """Path of that network's file."""
    model, params = toy
    path = tmp_path / "new" / "toy-v7.safetensors"
    save_network(
        *(path, params, model),
        **dict(dataset="toy", version="v7", shape=(6, 6, 2), levels=4, accuracy=0.25, recipe={}),
    )
    return path


@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1)])
def test_classifier_shapes(shape):
    model = Classifier(num_classes=10)
    images = jnp.zeros((3, *shape))
    features, logits = jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0]
    assert features.shape == (3, 64)
    assert logits.shape == (3, 10)


@pytest.mark.parametrize("name", sorted(VERSIONS))
def test_shipped_weights_reach_their_stated_accuracy(name):
    network = feature_network(name)
    assert (network.name, network.version, network.dim) == (name, VERSIONS[name], 64)
    assert network.id == f"{name}-{VERSIONS[name]}"
    assert len(weights(name).read_bytes()) < 1.5e6
    assert (
        network.accuracy >= {"fashion_mnist": 0.91, "fashion_mnist14": 0.89, "digits": 0.95}[name]
    )
    folder = DEBIAN_FASHION if name.startswith("fashion_mnist") else None
    if folder is not None and not folder.is_dir():  # never download in a test
        pytest.skip("dataset-fashion-mnist is not installed")
    source = data.load(name, split="test", data_dir=folder and str(folder))
    probs = extract(network, source.images).probs
    # Rounding on another machine may move an image or two across a boundary.
    accuracy = np.mean(probs.argmax(axis=1) == source.labels)
    assert accuracy == pytest.approx(network.accuracy, abs=2 / len(source.images))


def test_uint8_levels_and_floats_are_the_same_images():
    images = digits()
    from_levels = extract(feature_network("digits"), images)
    from_floats = extract(feature_network("digits"), images / 8.0 - 1)
    for a, b in zip(from_levels[:2], from_floats[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 6, 20, 64])
def test_padding_does_not_change_the_features(batch_size):
    network, images = feature_network("digits"), digits()
    features, probs, _ = extract(network, images, batch_size=batch_size)
    direct_features, direct_probs, _ = network.apply(images)
    assert features.dtype == probs.dtype == np.float32
    np.testing.assert_allclose(features, direct_features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(probs, direct_probs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)


def test_any_number_of_images_compiles_once():
    network, shapes = feature_network("digits"), []

    def apply(images):
        shapes.append(images.shape)
        return network.apply(images)

    for n in (3, 8, 20):
        extract(network._replace(apply=apply), digits(n), batch_size=8)
    assert set(shapes) == {(8, 8, 8, 1)}


def test_features_are_full_rank_with_a_thousand_samples():
    features = extract(feature_network("digits"), data.load("digits").images[:1000]).features
    assert np.linalg.matrix_rank(np.cov(features.T.astype(np.float64))) == 64


def test_a_saved_network_comes_back(saved, toy):
    network, (model, params) = load_network(saved), toy
    assert (network.id, network.dim, network.shape, network.levels) == ("toy-v7", 5, (6, 6, 2), 4)
    assert network.accuracy == 0.25
    images = np.random.default_rng(0).integers(0, 4, (2, 6, 6, 2)).astype(np.uint8)
    features, logits = jax.jit(model.apply)({"params": params}, images * (2 / 3) - 1)
    np.testing.assert_allclose(extract(network, images)[0], features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        extract(network, images)[1], jax.nn.softmax(logits), rtol=1e-4, atol=1e-5
    )


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"'mnist'; choose one of \['digits', 'fashion_mnist'"):
        feature_network("mnist")


@pytest.mark.parametrize("shape", [(4, 28, 28, 1), (4, 8, 8, 3), (8, 8, 1), (0, 8, 8, 1)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"digits-v\d+ takes images \(N, 8, 8, 1\), got") as error:
        extract(feature_network("digits"), np.zeros(shape, np.float32))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (2.0, np.float32, r"must lie in \[-1, 1\]"),
        (np.nan, np.float32, r"must lie in \[-1, 1\]"),
        (16, np.int32, r"must lie in \[-1, 1\]"),
        (200, np.uint8, r"uint8 images must be levels 0 .. 16, got 0 .. 200"),
    ],
)
def test_wrong_range(value, dtype, message):
    images = np.zeros((2, 8, 8, 1), dtype)
    images[1, 0, 0, 0] = value
    with pytest.raises(ValueError, match=message):
        extract(feature_network("digits"), images)


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        extract(feature_network("digits"), digits(), batch_size=0)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights(tmp_path, keep):
    path = tmp_path / "digits-v1.safetensors"
    path.write_bytes(weights("digits").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cannot read the feature network .*digits-v1"):
        load_network(path)


def test_missing_weights(tmp_path):
    with pytest.raises(ValueError, match="cannot read the feature network"):
        load_network(tmp_path / "none.safetensors")


def test_weights_that_are_something_else(saved):
    safetensors.numpy.save_file({"x": np.ones(3)}, saved)
    with pytest.raises(ValueError, match="is not a feature network"):
        load_network(saved)


def test_weights_that_do_not_fit_their_config(saved):
    with safetensors.safe_open(saved, "numpy") as file:
        meta = file.metadata()
    config = json.loads(meta["config"])
    config["model"]["width"] = 8
    safetensors.numpy.save_file(
        safetensors.numpy.load_file(saved), saved, metadata={**meta, "config": json.dumps(config)}
    )
    with pytest.raises(ValueError, match="do not fit its config"):
        load_network(saved)
