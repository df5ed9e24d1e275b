"""The parts of the UNet that came with score-SDE and EDM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import convolve2d

from diffjax.nets import resampling
from diffjax.nets.unet import UNet
from tests.filled import fill

TAPS = np.array([1.0, 3.0, 3.0, 1.0]) / 8
KERNEL = np.outer(TAPS, TAPS)
SMALL = dict(channels=8, multipliers=(1, 1), blocks=1, attention_levels=(1,), norm_groups=2)
NCSNPP = dict(
    **SMALL,
    resblock_updown=True,
    project=True,
    rescale=True,
    fir=True,
    progressive_input=True,
    fourier_scale=16.0,
    decoder_attention="last",
)
X = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))


def test_fir_resampling_is_the_direct_convolution():
    image = np.asarray(X[0, ..., 1], np.float64)
    down = convolve2d(np.pad(image, 1), KERNEL, "valid")[::2, ::2]
    assert np.asarray(resampling.fir_downsample2(X))[0, ..., 1] == pytest.approx(down, abs=1e-6)
    spread = np.zeros((16, 16))
    spread[::2, ::2] = image
    up = convolve2d(np.pad(spread, ((2, 1), (2, 1))), 4 * KERNEL, "valid")
    assert np.asarray(resampling.fir_upsample2(X))[0, ..., 1] == pytest.approx(up, abs=1e-6)


def test_fir_keeps_constants_away_from_the_border():
    flat = jnp.ones((1, 8, 8, 2))
    for move in (resampling.fir_downsample2, resampling.fir_upsample2):
        np.testing.assert_allclose(move(flat)[:, 1:-1, 1:-1], 1.0, rtol=1e-6)


def network(**options):
    net = UNet(**{**SMALL, **options})
    return net, fill(net, X, jnp.zeros(2))


@pytest.mark.parametrize("option", ["fir", "rescale", "progressive_input"])
def test_every_option_changes_the_function(option):
    net, params = network(**NCSNPP)
    other = UNet(**{**NCSNPP, option: False})
    used = {k: v for k, v in params.items() if "input_downsamplers" not in k or net is None}
    if option != "progressive_input":
        used = params
    a, b = (
        jax.jit(n.apply)({"params": p}, X, jnp.ones(2)) for n, p in ((net, params), (other, used))
    )
    assert a.shape == X.shape and np.abs(np.asarray(a - b)).max() > 1e-4


def test_names_and_the_frozen_features():
    net, params = network(**NCSNPP)
    assert "down_blocks.0.input_downsamplers.0" in params
    assert "up_blocks.0.attentions.1" in params and "up_blocks.0.attentions.0" not in params
    assert params["down_blocks.0.downsamplers.0"]["conv_shortcut"]["kernel"].shape[:2] == (1, 1)

    def loss(p):
        return (net.apply({"params": p}, X, jnp.ones(2)) ** 2).sum()

    grads = jax.jit(jax.grad(loss))(params)
    assert np.abs(np.asarray(grads["time_proj"]["weight"])).max() == 0
    assert np.abs(np.asarray(grads["time_embedding"]["linear_1"]["kernel"])).max() > 0


def test_an_absent_augmentation_label_is_zero():
    net, params = network(augment_dim=9)
    run = jax.jit(net.apply)
    absent = run({"params": params}, X, jnp.ones(2))
    zero = run({"params": params}, X, jnp.ones(2), {"augment": jnp.zeros((2, 9))})
    other = run({"params": params}, X, jnp.ones(2), {"augment": jnp.ones((2, 9))})
    np.testing.assert_array_equal(absent, zero)
    assert np.abs(np.asarray(other - zero)).max() > 1e-4


def test_unknown_decoder_attention():
    with pytest.raises(ValueError, match="unknown decoder_attention 'first'"):
        jax.eval_shape(
            UNet(**SMALL, decoder_attention="first").init, jax.random.key(0), X, jnp.zeros(2)
        )
