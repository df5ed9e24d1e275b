"""All metrics together, on real digits."""

import json

import numpy as np
import pytest

from diffjax import data, metrics

KEYS = {
    *("distance", "inception_score", "inception_score_std", "precision", "recall", "density"),
    *("coverage", "num", "num_reference", "features"),
}


@pytest.fixture(scope="module")
def network():
    return metrics.feature_network("digits")


@pytest.fixture(scope="module")
def images():
    shuffled = np.random.default_rng(0).permutation(1500)
    return data.load("digits").images[shuffled]


def test_a_set_against_itself(network, images):
    result = metrics.evaluate_images(network, images[:300], images[:300])
    assert set(result) == KEYS
    assert result["distance"] == pytest.approx(0, abs=1e-8)
    assert (result["precision"], result["recall"], result["coverage"]) == (1, 1, 1)
    assert (result["num"], result["num_reference"]) == (300, 300)
    assert result["features"] == network.id


def test_the_result_is_plain_numbers(network, images):
    result = metrics.evaluate_images(network, images[:50], images[50:120], k=2, splits=5)
    assert json.loads(json.dumps(result)) == result
    assert all(type(v) in (float, int, str) for v in result.values())
    assert (result["num"], result["num_reference"]) == (50, 70)


def test_worse_images_score_worse(network, images):
    half, other = images[:750], images[750:]
    rng = np.random.default_rng(0)
    as_float = half / 8.0 - 1
    slightly = np.clip(as_float + 0.3 * rng.normal(size=half.shape), -1, 1)
    noise = np.clip(rng.normal(size=half.shape), -1, 1)
    real, worse, worst = (
        metrics.evaluate_images(network, x, other) for x in (half, slightly, noise)
    )
    floor = metrics.floor(network, half, other)
    assert real["distance"] == pytest.approx(floor, rel=1e-9)
    assert 1.5 * floor < worse["distance"] < 0.5 * worst["distance"]
    assert real["precision"] > 0.8 > worst["precision"]
    assert real["recall"] > 0.8 > worst["recall"]
    assert real["inception_score"] > worst["inception_score"] >= 1


def test_missing_classes_lower_recall_and_not_precision(network):
    source = data.load("digits")
    fives = source.images[source.labels < 5]
    result = metrics.evaluate_images(network, fives, source.images)
    assert result["precision"] == 1
    assert result["recall"] < 0.75
    assert result["inception_score"] < 5.001


def test_few_images_warn(network, images, caplog):
    with caplog.at_level("WARNING"):
        metrics.evaluate_images(network, images[:20], images[20:70])
    assert "20 images do not determine" in caplog.text


def test_the_floor_needs_equal_sizes(network, images):
    with pytest.raises(ValueError, match="equal size, got 10 and 20"):
        metrics.floor(network, images[:10], images[10:30])
