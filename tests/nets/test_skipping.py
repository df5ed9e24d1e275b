"""A transformer without some of its blocks, as skip-layer guidance uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.model.skipping import limit_scale, skip_blocks
from diffjax.nets.dit import DiT
from diffjax.types import ConfigError, Level
from tests.filled import fill

NET = DiT(channels=8, blocks=2, heads=2, patch=2, out_channels=1, context_dim=4)
Z, T = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 1)), jnp.float32), jnp.ones(1)
COND = {"context": jnp.ones((1, 3, 4))}


def test_a_network_without_a_block_is_the_smaller_network():
    params, run = fill(NET, Z, T, COND, spread=0.5), jax.jit(NET.apply)
    run_small = jax.jit(NET.clone(blocks=1).apply)
    for skipped, kept in ((0, 1), (1, 0)):
        one = jax.tree.map(lambda p, kept=kept: p[kept : kept + 1], params["transformer_blocks"])
        wanted = run_small({"params": {**params, "transformer_blocks": one}}, Z, T, COND)
        found = run({"params": skip_blocks(params, [skipped])}, Z, T, COND)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert np.abs(found - run({"params": params}, Z, T, COND)).max() > 1e-3


def test_the_scale_is_0_outside_of_its_range():
    scale = limit_scale(2.5, (0.5, 4.0))
    found = [
        float(scale(Level(jnp.zeros(()), jnp.asarray(0.5), jnp.asarray(s)))) for s in (0.1, 1.0, 3)
    ]
    assert found == [0.0, 2.5, 0.0]


@pytest.mark.parametrize("params, blocks, message", [
    ({"conv_in": {}}, (0,), "blocks of a transformer"),
    ({"transformer_blocks": {"norm1.linear": {"bias": np.zeros((3, 6))}}}, (3,), r"in 0 \.\. 2"),
])  # fmt: skip
def test_blocks_that_are_not_there_are_refused(params, blocks, message):
    with pytest.raises(ConfigError, match=message):
        skip_blocks(params, blocks)
