"""DINOv2 beside a record of transformers, its input, and its sizes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nets.dinov2 import MEAN, STD, DINOv2, dinov2_input
from diffjax.types import ConfigError
from tests.parity import cases, dinov2_cases

GOLDEN = Path(__file__).parents[1] / "golden" / "dinov2.npz"


@pytest.mark.parametrize("name", dinov2_cases.CONFIGS)
@pytest.mark.parametrize("size", dinov2_cases.SIZES)
def test_features_are_the_recorded_ones(name, size):
    with np.load(GOLDEN) as file:
        wanted = file[f"{name}-{size[0]}x{size[1]}"]
    assert cases.relative_error(dinov2_cases.ours(name, size), wanted) < 1e-5


# Parameters of the released models, with the position embeddings of 518 pixels and a mask token.
@pytest.mark.parametrize(
    ("options", "count"),
    [
        (dict(features=384, heads=6), 22_056_576),
        (dict(), 86_580_480),
        (dict(features=1024, heads=16, layers=24), 304_368_640),
    ],
)
def test_sizes_are_those_of_the_released_models(options, count):
    net = DINOv2(**options)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_the_input_is_normalised_and_a_grey_channel_is_repeated():
    found = np.asarray(dinov2_input(jnp.full((1, 3, 4, 1), 0.5), (6, 2)))
    assert found.shape == (1, 6, 2, 3)
    wanted = (0.75 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), rtol=1e-5)


def test_wrong_sizes_are_refused():
    net = DINOv2(size=8, patch=4, features=8, layers=1, heads=2)
    for shape in ((1, 6, 8, 3), (1, 8, 8, 1)):
        with pytest.raises(ValueError, match=r"images must be \(B, H, W, 3\)"):
            net.init(jax.random.key(0), jnp.zeros(shape))
    with pytest.raises(ConfigError, match="3 heads do not divide the width 8"):
        net.clone(heads=3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
