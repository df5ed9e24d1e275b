"""How networks begin, by the spread of what is drawn."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nets.initialisation import (
    INITIALISATIONS,
    describe_network,
    init_network,
    initialise,
)
from diffjax.nets.unet import UNet
from tests.filled import fill

NET = UNet(
    channels=32, multipliers=(1, 2), blocks=1, attention_levels=(1,), norm_groups=8, num_classes=10
)


@functools.cache
def draw(net):
    """The compiled initialisation of a network."""
    return jax.jit(net.init)


def begin(name, net=NET, cond=None):
    cond = {"label": jnp.zeros(1, int), **(cond or {})}
    inputs = (jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), cond)
    if name in ("torch", "adm"):  # which draw every kernel and bias anew
        params = fill(net, *inputs)
    else:
        params = draw(net)(jax.random.key(0), *inputs)["params"]
    return params, initialise(params, name, jax.random.key(1))


def largest(leaf):
    return float(jnp.abs(leaf).max())


def test_ddpm_is_what_layers_do_by_themselves():
    before, after = begin("ddpm")
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))


@pytest.mark.parametrize("name", ["torch", "adm"])
def test_pytorchs_default_is_one_over_the_root_of_the_inputs(name):
    _, params = begin(name)
    conv, dense = params["conv_in"], params["time_embedding"]["linear_1"]
    for layer, inputs in ((conv, 27), (dense, 32)):
        for leaf in layer.values():
            assert 0.8 * inputs**-0.5 < largest(leaf) <= inputs**-0.5
    assert abs(float(params["class_embedding"]["embedding"].std()) - 1) < 0.05
    last = (
        params["conv_out"],
        params["mid_block.resnets.0"]["conv2"],
        params["mid_block.attentions.0"]["to_out.0"],
    )
    for layer in last:
        assert all((largest(leaf) == 0) == (name == "adm") for leaf in layer.values())


def test_projections_of_attention_are_smaller_in_score_sde():
    _, params = begin("score_sde")
    attention = params["mid_block.attentions.0"]
    limit = (6 / 128) ** 0.5
    assert 0.9 * limit * 0.1**0.5 < largest(attention["to_q"]["kernel"]) <= limit * 0.1**0.5
    assert largest(attention["to_out.0"]["kernel"]) < 1.01e-5 * limit
    assert largest(attention["to_q"]["bias"]) == 0


def test_of_transformer_blocks_only_the_last_projection_is_zero():
    net = UNet(
        channels=32, multipliers=(1,), blocks=1, attention_levels=(0,), norm_groups=8,
        context_dim=16, depth=2,
    )  # fmt: skip
    _, params = begin("adm", net, {"context": jnp.zeros((1, 2, 16))})
    attention = params["mid_block.attentions.0"]
    assert largest(attention["proj_out"]["kernel"]) == 0
    blocks = attention["transformer_blocks"]
    assert 0.9 * 16**-0.5 < largest(blocks["attn2"]["to_k"]["kernel"]) <= 16**-0.5
    assert largest(blocks["attn1"]["to_out.0"]["kernel"]) > 0


def test_layers_differ_and_the_key_decides():
    params, one = begin("torch")
    other = initialise(params, "torch", jax.random.key(2))
    blocks = [one[f"mid_block.resnets.{k}"]["conv1"]["kernel"] for k in (0, 1)]
    assert not np.array_equal(*blocks)
    assert not np.array_equal(one["conv_in"]["kernel"], other["conv_in"]["kernel"])


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="adm, ddpm, score_sde, torch"):
        begin("adam")
    assert set(INITIALISATIONS) == {"adm", "ddpm", "score_sde", "torch"}


def test_the_class_may_come_before_the_layers_of_the_time():
    # Karras et al. 2022: a dense layer of the classes, scaled by the root of their number.
    net = NET.clone(class_embedding="before")
    params, _ = begin("ddpm", net)
    assert params["class_embedding"]["kernel"].shape == (10, 32)
    z, t = jax.random.normal(jax.random.key(3), (2, 8, 8, 3)), jnp.ones(2)
    params = initialise(params, "torch", jax.random.key(0))
    run = jax.jit(net.apply)
    out = run({"params": params}, z, t, {"label": jnp.array([1, 10])})
    params["class_embedding"]["kernel"] = jnp.zeros((10, 32))
    none = run({"params": params}, z, t, {"label": jnp.array([1, 10])})
    assert not np.allclose(out[0], none[0])
    assert np.allclose(out[1], none[1])  # a label beyond the classes is none of them


TRACED: list[int] = []


class Counted(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        TRACED.append(x.shape[-1])
        for width in self.widths:
            x = nn.Dense(width)(x)
        return x


def test_equal_networks_are_traced_once_for_each_shape():
    TRACED.clear()
    key, x = jax.random.key(0), jnp.ones((1, 3))
    first, again = (init_network(Counted((2, 4)), key, x) for _ in range(2))
    shapes = describe_network(Counted((2, 4)), x)
    assert TRACED == [3]
    assert jax.tree.map(jnp.shape, first["params"]) == jax.tree.map(jnp.shape, shapes)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = init_network(Counted((2, 4)), jax.random.key(1), x)
    assert not np.array_equal(*(p["params"]["Dense_0"]["kernel"] for p in (first, other)))
    describe_network(Counted((2, 4)), jnp.ones((1, 5)))
    describe_network(Counted((2, 5)), x)
    assert TRACED == [3, 5, 3]
    wanted = jax.jit(Counted((2, 4)).init)(key, x)
    jax.tree.map(np.testing.assert_array_equal, first, wanted)


def test_a_network_without_a_hash_is_initialised_too():
    listed = Counted([2])
    with pytest.raises(TypeError):
        hash(listed)
    assert describe_network(listed, jnp.ones((1, 3)))["Dense_0"]["kernel"].shape == (3, 2)
