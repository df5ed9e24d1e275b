"""Fused attention: what is chosen for which device and shapes, and that the kernels agree."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from diffjax.launch.program_costs import count_flops
from diffjax.nets import fused_attention
from diffjax.nets.attention import attend, plain

ROOT = Path(__file__).parents[2]


def _draw(n, m, heads=2, d=40, dtype=jnp.float32, batch=1):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((batch, n, heads, d), (batch, m, heads, d), (batch, m, heads, d))
    return tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))


def _mesh(platform, fsdp=8):
    device = AbstractDevice(device_kind=platform, num_cores=1, platform=platform)
    return AbstractMesh((1, fsdp, 1), ("data", "fsdp", "tensor"), abstract_device=device)


@pytest.mark.parametrize(
    "n, m, batch, mask, wanted",
    [
        (4096, 4096, 8, None, "splash"),
        (1024, 1024, 8, None, "splash"),
        (256, 256, 8, None, None),  # few scores
        (4096, 77, 8, None, None),  # keys of a text
        (4096, 4096, 4, None, None),  # fewer images than devices
        (4096 + 64, 4096, 8, None, None),  # no block divides the queries
        (4096, 4096, 8, "masked", None),
    ],
)
def test_the_kernel_of_a_tpu_is_chosen_by_shape(n, m, batch, mask, wanted):
    q, k = (jax.ShapeDtypeStruct((batch, x, 2, 40), jnp.bfloat16) for x in (n, m))
    with jax.sharding.use_abstract_mesh(_mesh("tpu")):
        assert fused_attention.choose_fused(q, k, mask) == wanted
    with jax.sharding.use_abstract_mesh(_mesh("cpu")):
        assert fused_attention.choose_fused(q, k, mask) is None


@pytest.mark.parametrize(
    "d, dtype, capability, wanted",
    [
        (40, jnp.bfloat16, "8.0", "cudnn"),
        (160, jnp.float16, "9.0", "cudnn"),
        (160, jnp.float16, "8.0", None),  # heads above 128 came with Hopper
        (40, jnp.float32, "9.0", None),
        (42, jnp.bfloat16, "9.0", None),
        (40, jnp.bfloat16, "7.5", None),
    ],
)
def test_cudnn_is_chosen_by_card_type_and_head(monkeypatch, d, dtype, capability, wanted):
    card = type("Card", (), {"compute_capability": capability})()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [card])
    q = jax.ShapeDtypeStruct((1, 64, 2, d), dtype)
    assert fused_attention.choose_fused(q, q, None) == wanted
    assert fused_attention.choose_fused(q, q, "masked") == wanted
    text = jax.ShapeDtypeStruct((1, 77, 2, d), dtype)
    assert fused_attention.choose_fused(q, text, None) == wanted
    assert fused_attention.choose_fused(q, text, "masked") is None  # odd, with a mask


def test_auto_on_a_cpu_is_xla_to_the_last_bit():
    q, k, v = _draw(48, 16)
    mask = jnp.arange(16)[None, None, None] < 9
    for kept in (None, mask):
        found, wanted = (attend(q, k, v, mask=kept, kind=kind) for kind in ("auto", "xla"))
        assert np.array_equal(found, wanted)


@pytest.mark.slow
def test_the_kernel_of_tpus_and_its_gradient_agree_with_plain_attention():
    given = _draw(256, 128)

    def loss(f):
        return lambda q, k, v: (f(q, k, v) ** 2).sum()

    kernel = lambda q, k, v: fused_attention.splash(q, k, v, interpret=True)  # noqa: E731
    assert np.asarray(kernel(*given)) == pytest.approx(np.asarray(plain(*given)), abs=1e-4)
    found, wanted = (jax.grad(loss(f), (0, 1, 2))(*given) for f in (kernel, plain))
    for a, b in zip(found, wanted, strict=True):
        assert np.asarray(a) == pytest.approx(np.asarray(b), abs=1e-3)


def test_the_kernel_names_what_it_does_not_take():
    with pytest.raises(ValueError, match=r"attention=splash takes no mask.*got 100 and 128"):
        attend(*_draw(100, 128), kind="splash")


def test_products_of_a_kernel_count_as_often_as_its_blocks_and_devices():
    shape = jax.ShapeDtypeStruct((16, 1024, 2, 40), jnp.bfloat16)
    once = 2 * 16 * 2 * 1024 * 1024 * 40  # one product of queries, keys and all heads

    def loss(q, k, v):
        with jax.sharding.use_abstract_mesh(_mesh("tpu")):
            return attend(q, k, v, kind="splash").astype(jnp.float32).sum()

    assert count_flops(loss, shape, shape, shape) == 2 * once
    # The gradient computes the scores again, and multiplies four times: dV, dP, dK and dQ. The sums
    # of outputs times their gradients are one product more, of N times d numbers.
    found = count_flops(jax.grad(loss, (0, 1, 2)), shape, shape, shape)
    assert found == pytest.approx(7 * once, rel=1e-3)


# Compiles attention and its gradient for absent chips, 2 images on each, and prints what it needs.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from diffjax.launch import topologies
from diffjax.launch.program_costs import count_collectives, count_flops
from diffjax.nets.attention import attend
from diffjax.train.sharding import make_mesh

topologies.configure_jax(sys.argv[1])
mesh = make_mesh({"data": 1, "fsdp": -1}, topologies.find_devices(sys.argv[1])[0])
rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
shape = jax.ShapeDtypeStruct((2 * mesh.size, 1024, 8, 40), jnp.bfloat16, sharding=rows)
for kind in ("auto", "xla"):
    def loss(q, k, v):
        return (attend(q, k, v, kind=kind).astype(jnp.float32) ** 2).sum()
    def gradient(*given):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.grad(loss, (0, 1, 2))(*given)
    jitted = jax.jit(gradient, out_shardings=(rows,) * 3)
    program = jitted.lower(shape, shape, shape).compile()
    text = program.as_text()
    print(json.dumps({
        "peak": program.memory_analysis().peak_memory_in_bytes,
        "flops": count_flops(gradient, shape, shape, shape),
        "kernels": text.count("tpu_custom_call"),
        "collectives": count_collectives(text),
    }))
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")
@pytest.mark.parametrize("where", ["v5e:2x4", "v6e:2x4"])
def test_the_kernel_compiles_for_chips_that_are_not_there(where):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, where],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fused, written = map(json.loads, done.stdout.splitlines())
    assert fused["kernels"] and not written["kernels"]
    assert fused["peak"] < 0.5 * written["peak"]  # the scores are never in memory
    assert fused["flops"] / written["flops"] == pytest.approx(7 / 6, rel=0.01)
    assert not fused["collectives"]  # every chip works on its own images
