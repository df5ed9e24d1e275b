"""The UNet of the latent upscaler: its configs, its inputs, and what it is made of.

Its numbers are compared with diffusers in tests/parity and tests/test_golden_generate.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import convolve2d

from diffjax.nets import resampling
from diffjax.parameterization import k_diffusion
from diffjax.pretrained import configs, load_model, save_model
from diffjax.pretrained.config_specs import NETWORK
from diffjax.pretrained.k_unet_configs import K_UNET
from diffjax.types import Level
from tests.parity import sd_cases

TAPS = np.array([1.0, 3.0, 3.0, 1.0]) / 8
KERNEL = np.outer(TAPS, TAPS)
CONFIG = sd_cases.K_UNET


def test_reflected_resampling_is_the_direct_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    image = np.pad(np.asarray(x[1, ..., 2], np.float64), 1, "reflect")
    down = convolve2d(image, KERNEL, "valid")[::2, ::2]
    ours = resampling.fir_downsample2(x, reflect=True)
    assert np.asarray(ours)[1, ..., 2] == pytest.approx(down, abs=1e-6)
    spread = np.zeros((15, 19))
    spread[::2, ::2] = image
    up = convolve2d(spread, 4 * KERNEL, "valid")
    ours = resampling.fir_upsample2(x, reflect=True)
    assert np.asarray(ours)[1, ..., 2] == pytest.approx(up, abs=1e-6)


def test_it_is_read_and_written(tmp_path):
    net, params = sd_cases.random_params(CONFIG)
    described = configs.describe(net, in_channels=8)
    assert configs.build(described) == net
    assert not K_UNET.defaults.keys() - NETWORK.keys()
    save_model(tmp_path, net, params, in_channels=8)
    model = load_model(tmp_path, dtype=jnp.bfloat16)
    assert model.net.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.bfloat16)}
    cond = {"context": jnp.ones((2, 3, 12)), "vector": jnp.ones((2, 134))}
    z = jnp.ones((2, 8, 8, 8))
    out = model.net.apply({"params": model.params}, z, 0.5, cond)
    assert out.shape == (2, 8, 8, 5) and out.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (dict(act_fn="silu"), "act_fn='silu' (only 'gelu')"),
        (dict(norm_num_groups=32), "norm_num_groups=32 (only None)"),
        (dict(time_embedding_type="positional"), "time_embedding_type='positional'"),
        (dict(block_out_channels=[32, 32, 64]), "must be twice the first"),
        (dict(block_out_channels=[32, 64, 96]), "must be twice the first"),
        (dict(block_out_channels=[48, 96, 96]), "must be multiples of 32"),
        (dict(up_block_types=["KUpBlock2D"] * 3), "is not supported: there must be one of"),
        (dict(time_cond_proj_dim=None), "time_cond_proj_dim must be whole numbers"),
    ],
)
def test_what_is_not_supported_is_named(change, part):
    with pytest.raises(ValueError) as caught:
        configs.build({**CONFIG, **change})
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("side", "vector", "part"),
    [
        (6, 134, "multiples of 4"),
        (8, 133, r"cond\['vector'\] \(B, 134\), got \(1, 133\)"),
        (8, None, r"cond\['vector'\] \(B, 134\), got None"),
    ],
)
def test_inputs_of_wrong_shapes_are_named(side, vector, part):
    net = configs.build(CONFIG)
    cond = {"context": jnp.ones((1, 3, 12))}
    if vector:
        cond["vector"] = jnp.ones((1, vector))
    with pytest.raises(ValueError, match=part):
        net.init(jax.random.key(0), jnp.ones((1, side, side, 8)), 0.5, cond)


def test_its_output_is_preconditioned_and_its_variance_dropped():
    """``x = z / (s^2 + 1) + s / sqrt(s^2 + 1) raw`` with alpha 1 (Karras et al. 2022, table 1)."""
    keys = jax.random.split(jax.random.key(0))
    raw, z = jax.random.normal(keys[0], (1, 2, 2, 5)), jax.random.normal(keys[1], (1, 2, 2, 4))
    level = Level(jnp.float32(0.0), jnp.float32(1.0), jnp.float32(3.0))
    made = k_diffusion()
    wanted = z / 10 + 3 / 10**0.5 * raw[..., :4]
    np.testing.assert_allclose(made.decode(raw, z, level).x, wanted, rtol=1e-5)
    assert made.time(level) == pytest.approx(np.log(3) / 4)
    assert made.scale_in(level) == pytest.approx(10**-0.5)
