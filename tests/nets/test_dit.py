"""DiT: what its layers compute, how it begins, and outputs recorded from diffusers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nets.dit import DiT, DiTBlock, position_embedding
from diffjax.nets.resampling import depth_to_space
from diffjax.nets.unet import require_unet
from diffjax.types import ConfigError
from tests.filled import fill
from tests.parity import cases, dit_cases

GOLDEN = Path(__file__).parents[1] / "golden" / "dit.npz"
NET = DiT(channels=16, blocks=2, heads=2, patch=2, out_channels=3, num_classes=4)
Z, T = jax.random.normal(jax.random.key(1), (3, 4, 6, 3)), jnp.array([0.0, 400.0, 999.0])
LABEL = {"label": jnp.array([0, 3, 1])}
RUN = jax.jit(NET.apply)


@pytest.fixture(scope="module")
def params():
    return fill(NET, Z, T, LABEL)


def test_recorded_output_of_diffusers():
    with np.load(GOLDEN) as recorded:
        assert cases.relative_error(dit_cases.ours(), recorded["output"]) < 1e-5


def test_the_output_is_zero_at_initialisation():
    out, _ = jax.jit(NET.init_with_output)(jax.random.key(0), Z, T, LABEL)
    assert out.shape == Z.shape
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("context", [None, jnp.ones((2, 3, 8))])
def test_a_block_is_the_identity_at_initialisation(context):
    block = DiTBlock(heads=2)
    x, c = jax.random.normal(jax.random.key(0), (2, 5, 16)), jnp.ones((2, 16))
    given = (x, c) if context is None else (x, c, context)
    fresh, run = jax.jit(block.init)(jax.random.key(1), *given), jax.jit(block.apply)
    # The projection of the attention to a context begins at 1e-5 of its usual size.
    np.testing.assert_allclose(run(fresh, *given)[0], x, atol=0 if context is None else 1e-3)
    filled = {"params": fill(block, *given)}
    assert np.abs(run(filled, *given)[0] - x).max() > 0.1


def test_a_gate_of_zero_closes_its_branch():
    """Of ``norm1.linear``, which gives b1, s1, g1, b2, s2, g2 in this order."""
    block = DiTBlock(heads=2)
    x, c = jax.random.normal(jax.random.key(0), (2, 5, 16)), jnp.ones((2, 16))
    params = fill(block, x, c)
    dense = params["norm1.linear"]
    keep = np.ones(96)
    keep[32:48] = keep[80:] = 0
    closed = {"kernel": dense["kernel"] * keep, "bias": dense["bias"] * keep}
    out, _ = jax.jit(block.apply)({"params": {**params, "norm1.linear": closed}}, x, c)
    np.testing.assert_array_equal(out, x)


def test_patches_are_cut_and_joined_in_the_same_order():
    """With kernels that copy, the way from z to tokens and back to an image is the identity."""
    patch, channels = 2, 3
    width = patch**2 * channels
    kernel = np.eye(width, dtype=np.float32).reshape(patch, patch, channels, width)
    tokens = jax.lax.conv_general_dilated(
        Z, kernel, (patch, patch), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_array_equal(depth_to_space(tokens, patch), Z)


def test_the_network_puts_patches_back_where_they_were(params):
    """Without position embedding, attention and conditions, a patch's output is a function of it.

    So moving patches of z moves those of the output: here rows and columns of patches.
    """
    closed = jax.tree.map(jnp.zeros_like, params["transformer_blocks"])
    still = {**params, "transformer_blocks": closed}
    still["pos_embed.proj"] = jax.tree.map(lambda x: 1e6 * x, params["pos_embed.proj"])

    def run(z):
        return RUN({"params": still}, z, jnp.zeros(3), {"label": jnp.zeros(3, jnp.int32)})

    moved = jnp.roll(Z, (2, 4), (1, 2))
    assert cases.relative_error(run(moved), jnp.roll(run(Z), (2, 4), (1, 2))) < 1e-4
    assert np.abs(run(moved) - run(Z)).max() > 0.1


def test_position_embeddings():
    table = position_embedding(2, 3, 8)
    assert table.shape == (6, 8)
    for y in range(2):
        for x in range(3):
            expected = [
                *(np.sin(x), np.sin(x / 100), np.cos(x), np.cos(x / 100)),
                *(np.sin(y), np.sin(y / 100), np.cos(y), np.cos(y / 100)),
            ]
            np.testing.assert_allclose(table[3 * y + x], expected, atol=1e-7)
    with pytest.raises(ConfigError, match=r"network.channels .* multiple of 4, got 6"):
        position_embedding(2, 2, 6)


def test_labels_and_times_matter_and_a_larger_label_means_none(params):
    def run(t, label):
        return RUN({"params": params}, Z[:1], jnp.array([t]), {"label": jnp.array([label])})

    outs = [run(0.0, 0), run(0.0, 1), run(500.0, 0), run(0.0, 4)]
    for i, a in enumerate(outs):
        for b in outs[i + 1 :]:
            assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(run(0.0, 4), run(0.0, 9))


def test_a_network_can_be_told_the_share_of_data(params):
    turned = NET.clone(time_scale=-1.0, time_shift=1.0)
    t = jnp.array([0.0, 0.3, 1.0])
    wanted = NET.apply({"params": params}, Z, 1 - t, LABEL)
    np.testing.assert_allclose(turned.apply({"params": params}, Z, t, LABEL), wanted, atol=1e-5)
    assert np.abs(wanted - NET.apply({"params": params}, Z, t, LABEL)).max() > 1e-3


def test_a_second_time_is_embedded_as_the_first_one():
    """With equal parameters of both embeddings only the sum of two equal waves is left."""
    net = NET.clone(added_dim=256)

    def tell(span):
        ids = jnp.full((3, 1), span, jnp.float32)
        return {**LABEL, "added": {"text_embeds": jnp.zeros((3, 0)), "time_ids": ids}}

    params = fill(net, Z, T, tell(1.0))
    params["added_embedder"] = params["timestep_embedder"]

    def run(time, span):
        return net.apply({"params": params}, Z, jnp.full(3, time), tell(span))

    np.testing.assert_allclose(run(100.0, 7.0), run(7.0, 100.0), rtol=1e-4, atol=1e-4)
    assert np.abs(run(100.0, 7.0) - run(100.0, 8.0)).max() > 1e-3
    blind = {k: v for k, v in params.items() if k != "added_embedder"}
    assert np.abs(run(100.0, 7.0) - NET.apply({"params": blind}, Z, 100.0, LABEL)).max() > 1e-3


def test_tokens_of_the_context_that_are_masked_do_not_matter():
    net = DiT(channels=16, blocks=1, heads=2, context_dim=8)
    context = jax.random.normal(jax.random.key(3), (3, 5, 8))
    mask = jnp.arange(5)[None] < jnp.array([[5], [2], [3]])
    cond = {"context": context, "mask": mask}
    params, run = fill(net, Z, T, cond), jax.jit(net.apply)
    out = run({"params": params}, Z, T, cond)
    other = {"context": jnp.where(mask[..., None], context, 7.0), "mask": mask}
    np.testing.assert_allclose(run({"params": params}, Z, T, other), out, atol=1e-6)
    unmasked = run({"params": params}, Z, T, {"context": other["context"]})
    assert np.abs(unmasked - out).max() > 1e-3


@pytest.mark.parametrize("remat", ["blocks", "products"])
def test_rematerialising_changes_no_gradient(params, remat):
    def gradient(net):
        return jax.jit(jax.grad(lambda p: (net.apply({"params": p}, Z, T, LABEL) ** 2).mean()))(
            params
        )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        gradient(NET.clone(remat=remat)),
        gradient(NET),
    )


def test_half_precision_computes_nearly_the_same_and_returns_float32(params):
    out = jax.jit(NET.clone(dtype=jnp.bfloat16).apply)({"params": params}, Z, T, LABEL)
    assert out.dtype == jnp.float32
    assert 0 < cases.relative_error(out, RUN({"params": params}, Z, T, LABEL)) < 0.05


def test_what_copies_the_encoder_of_a_unet_refuses_a_transformer():
    message = r"a ControlNet copies the encoder of a UNet, but this network is a DiT; set network"
    with pytest.raises(ConfigError, match=message):
        require_unet(NET, "a ControlNet")


@pytest.mark.parametrize(
    ("net", "z", "cond", "message"),
    [
        (NET, Z[:, :3], LABEL, r"H and W multiples of 2, got \(3, 3, 6, 3\)"),
        (NET, Z, {}, r"needs cond\['label'\] in 0 .. 3"),
        (NET, Z, {**LABEL, "control": ()}, r"network.name=dit\) does not read cond\['control'\]"),
        (NET.clone(added_dim=256), Z, LABEL, r"needs cond\['added'\] with 'text_embeds'"),
        (NET, Z, {**LABEL, "added": {}}, r"does not read cond\['added'\]"),
        (NET.clone(context_dim=8), Z, LABEL, r"needs cond\['context'\] \(B, M, 8\), got None"),
        (NET.clone(heads=3), Z, LABEL, "network.heads=3 does not divide network.channels=16"),
        (NET.clone(head_channels=5), Z, LABEL, "network.head_channels=5 does not divide"),
        (NET.clone(heads=(1, 2)), Z, LABEL, r"network.heads=\(1, 2\) does not divide"),
    ],
)
def test_what_does_not_fit_is_refused(net, z, cond, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), z, T, cond)
