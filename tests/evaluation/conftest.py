import jax
import numpy as np
import pytest

from diffjax import data, metrics
from diffjax.evaluation.image_grids import to_uint8
from diffjax.evaluation.image_sets import ImageSet


@pytest.fixture(scope="session")
def network():
    """Features and spatial features, of the classifier with the digits' levels spread to 256."""
    net = metrics.feature_network("digits")

    def apply(images):
        found = net.apply(images / np.float32(127.5) - 1)
        spatial = images[:, ::4, :, 0].reshape(len(images), -1) / np.float32(255)
        return found._replace(spatial=jax.numpy.asarray(spatial))

    return net._replace(apply=apply, levels=256, batch_size=100)


@pytest.fixture(scope="session")
def digits():
    """The digits (N, 8, 8, 1), uint8 levels 0..255."""
    return to_uint8(data.to_float(data.load("digits").images, 17))


@pytest.fixture(scope="session")
def image_set():
    def make(images, name="set"):
        return ImageSet(name, len(images), lambda a, b: images[a:b])

    return make
