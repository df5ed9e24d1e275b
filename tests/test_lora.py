"""Low-rank adapters of single layers, of scanned ones, and of convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import lora

STACK, DENSE, CONV = (3, 6, 8), (6, 8), (3, 3, 6, 8)


def tree(seed=0):
    rng = np.random.default_rng(seed)

    def layer(*shape):
        return {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}

    blocks = {
        "attn1": {"to_q": layer(*STACK), "to_out.0": layer(*STACK)},
        "ff": {"net.2": layer(3, 4, 4)},
    }
    bias = {"bias": jnp.ones(8)}
    return {
        "down": {"transformer_blocks": blocks, "proj_in": {**layer(*DENSE), **bias}},
        "conv": {**layer(*CONV), **bias},
        "norm": {"scale": jnp.ones(8)},
    }


def adapted(params, **options):
    made = lora.init(jax.random.key(0), params, **options)
    leaves, structure = jax.tree.flatten(made)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(structure, [rng.normal(size=x.shape).astype("f4") for x in leaves])


def test_fresh_adapters_change_nothing():
    params = tree()
    made = lora.init(jax.random.key(0), params, rank=2, targets=("to_q", "to_out.0", "conv"))
    merged = lora.merge(params, made, 0.7)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    assert merged["norm"]["scale"] is params["norm"]["scale"]


def test_every_kind_of_layer_gets_the_product_of_its_factors():
    params = tree()
    made = adapted(params, rank=2, targets=("to_q", "proj_in", "conv"))
    merged = lora.merge(params, made, 0.5)
    a, b = (made["conv"][name]["kernel"] for name in (lora.DOWN, lora.UP))
    wanted = params["conv"]["kernel"] + 0.5 * np.einsum("hwir,ro->hwio", a, b[0, 0])
    np.testing.assert_allclose(merged["conv"]["kernel"], wanted, rtol=1e-5, atol=1e-6)
    a, b = (made["down"]["proj_in"][name]["kernel"] for name in (lora.DOWN, lora.UP))
    wanted = params["down"]["proj_in"]["kernel"] + 0.5 * a @ b
    np.testing.assert_allclose(merged["down"]["proj_in"]["kernel"], wanted, rtol=1e-5, atol=1e-6)
    at = ("down", "transformer_blocks", "attn1", "to_q")
    q, own, out = params, made, merged
    for name in at:
        q, own, out = q[name], own[name], out[name]
    a, b = (own[name]["kernel"] for name in (lora.DOWN, lora.UP))
    wanted = q["kernel"] + 0.5 * np.einsum("lir,lro->lio", a, b)
    np.testing.assert_allclose(out["kernel"], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(merged["conv"]["bias"], params["conv"]["bias"])


def test_a_folded_scale_adds_the_same():
    params = tree()
    made = adapted(params, rank=2, targets=("to_q", "conv"))
    one, other = lora.merge(params, made, 0.25), lora.merge(params, lora.fold(made, 0.25), 1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), one, other)


def test_targets_are_ends_of_dotted_names():
    params = tree()
    assert {path[-1] for path in lora.find(params, ("0",))} == {"to_out.0"}
    assert {path[-1] for path in lora.find(params, ("attn1.to_q", "ff.net.2"))} == {"to_q", "net.2"}
    with pytest.raises(
        ValueError, match=r"'q'; choose from conv, net\.2, proj_in, to_out\.0, to_q"
    ):
        lora.find(params, ("q", "conv"))
    with pytest.raises(ValueError, match="target none; choose from"):
        lora.find(params, ())


def test_a_rank_is_positive():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        lora.init(jax.random.key(0), tree(), rank=0, targets=("conv",))


def test_adapters_of_another_network_are_refused_with_shapes():
    made = adapted(tree(), rank=2, targets=("conv",))
    other = {"conv": {"kernel": jnp.zeros((3, 3, 6, 9))}}
    with pytest.raises(
        ValueError, match=r"conv has .*\(3, 3, 6, 9\).*\(3, 3, 6, 2\) and \(1, 1, 2, 8\)"
    ):
        lora.merge(other, made, 1.0)
    with pytest.raises(ValueError, match="no weights for conv"):
        lora.merge({"norm": other["conv"]}, made, 1.0)
