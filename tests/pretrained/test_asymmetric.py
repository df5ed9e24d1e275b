"""The autoencoder with a wider decoder: its config, and what a pipeline gives it to keep."""

import jax
import numpy as np
import pytest

from diffjax import generate
from diffjax.generate import program, scene
from diffjax.nets.asymmetric_autoencoder import AsymmetricAutoencoderKL
from diffjax.pretrained import configs
from diffjax.pretrained.models import Component
from tests.parity import generate_cases as g

SIDE = 16
CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    down_block_out_channels=[2, 4, 4, 4],
    up_block_out_channels=[4, 8, 8, 8],
    layers_per_down_block=1,
    layers_per_up_block=1,
    latent_channels=4,
    norm_num_groups=2,
    scaling_factor=0.3,
)


def make_image():
    return np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype("f4")


def make_mask():
    mask = np.zeros((2, SIDE, SIDE, 1), "f4")
    mask[:, 4:11, 3:9] = 1
    return mask


@pytest.fixture(scope="module")
def vae():
    config = {"_class_name": "AsymmetricAutoencoderKL", **CONFIG}
    net = configs.build(config)
    rng = np.random.default_rng(0)
    like = configs.shapes(net, config)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype("f4"), like)
    return Component(net, params, config)


def test_the_config_goes_both_ways(vae):
    assert isinstance(vae.net, AsymmetricAutoencoderKL) and vae.net.factor == 8
    described = configs.describe(vae.net)
    assert {key: described[key] for key in CONFIG} == CONFIG
    assert configs.build(described) == vae.net


def test_pixels_outside_of_the_mask_reach_the_decoder(vae):
    pipe = generate.Pipeline(g.components("sd1")._replace(vae=vae))
    picture = generate.Image(g.picture()[:SIDE, :SIDE], mask=make_mask()[0, ..., 0])
    request = generate.Request("a red cat", image=picture, size=SIDE).read()
    layout = scene.lay_out(pipe, request)
    kept = scene.find_kept(pipe, layout)
    assert kept[0].shape == (1, SIDE, SIDE, 3) and kept[0].min() < 0
    np.testing.assert_array_equal(kept[1][0], make_mask()[0])
    z = np.random.default_rng(1).normal(size=(1, 2, 2, 4)).astype("f4")
    with_image, without = pipe._decode(z, "np", kept=kept), pipe.decode(z, "np")
    assert np.abs(with_image - without).max() > 1e-3
    wanted = program.decode(vae.net, vae.params, z / np.float32(0.3), *kept)
    np.testing.assert_allclose(with_image, np.clip((wanted + 1) / 2, 0, 1), atol=1e-5)
    everything = pipe._decode(z, "np", kept=(kept[0], np.ones_like(kept[1])))
    np.testing.assert_allclose(everything, without, atol=1e-5)
    plain = generate.Request("a red cat", size=SIDE).read()
    assert scene.find_kept(pipe, scene.lay_out(pipe, plain)) == ()


def test_a_decoder_of_other_levels_takes_no_image(vae):
    net = vae.net.clone(decoder_multipliers=(1, 2), multipliers=(1, 2))
    with pytest.raises(ValueError, match="only decoders of 4 levels take an image, not of 2"):
        jax.eval_shape(
            lambda: net.init(jax.random.key(0), np.zeros((1, 2, 2, 4)), make_image(), make_mask(),
                             method="decode")
        )  # fmt: skip
