"""Counting FLOPs and collectives, the search for the largest batch, and plans of whole slices."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import ddpm
from diffjax.launch import mesh_search, program_costs, step_plan, topologies
from diffjax.types import ConfigError

ROOT = Path(__file__).parents[2]
A, B = jnp.zeros((8, 16)), jnp.zeros((16, 32))


def test_flops_of_products_in_closed_form():
    assert program_costs.count_flops(lambda a, b: jax.nn.relu(a @ b) + 1, A, B) == 2 * 8 * 16 * 32
    # The gradient of a product is two products.
    loss = lambda a, b: ((a @ b) ** 2).sum()  # noqa: E731
    assert program_costs.count_flops(jax.grad(loss, (0, 1)), A, B) == 3 * 2 * 8 * 16 * 32


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_of_convolutions_and_their_gradients(stride):
    x, w = jnp.zeros((2, 12, 12, 4)), jnp.zeros((3, 3, 4, 6))

    def conv(x, w):
        dims = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", dimension_numbers=dims)
        return (y**2).sum()

    once = 2 * (3 * 3 * 4) * (2 * (12 // stride) ** 2 * 6)
    assert program_costs.count_flops(conv, x, w) == once
    both = program_costs.count_flops(jax.grad(conv, (0, 1)), x, w)
    assert both == pytest.approx(3 * once, rel=0.05)  # borders and zeros between strides


def test_loops_count_as_often_as_they_run_and_remat_as_what_it_computes():
    w = jnp.zeros((5, 16, 16))

    def loss(w, checkpoint=lambda f: f):
        body = checkpoint(lambda h, w: (jnp.tanh(h @ w), None))
        return jax.lax.scan(body, A, w)[0].sum()

    once = 5 * 2 * 8 * 16 * 16
    assert program_costs.count_flops(loss, w) == once
    assert program_costs.count_flops(jax.grad(loss), w) == 3 * once
    again = program_costs.count_flops(jax.grad(lambda w: loss(w, jax.checkpoint)), w)
    assert again == 4 * once
    branches = lambda n, a: jax.lax.cond(n > 0, lambda a: a @ a.T, lambda a: a @ B @ B.T @ a.T, a)  # noqa: E731
    assert program_costs.count_flops(branches, 1, A) == 2 * 8 * 16 * 32 * 2 + 2 * 8 * 16 * 8


PROGRAM = """\
HloModule jit_step, num_partitions=8

%add.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %add.2 = f32[] add(%x, %y)
}

%body.1 (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %all-gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%p), dimensions={0}
  ROOT %t = (s32[], f32[8,128]) tuple(%i, %x)
}

%condition.1 (arg: (s32[], f32[8,128])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(10)
  ROOT %lt = pred[] compare(%i, %constant.3), direction=LT
}

%all-reduce-scatter.1 (input: bf16[64,128]) -> bf16[8,128] {
  %all-reduce.8 = bf16[64,128]{1,0} all-reduce(%input), to_apply=%add.1
  ROOT %slice.1 = bf16[8,128]{1,0} dynamic-slice(%all-reduce.8, %i, %zero)
}

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %while.1 = (s32[], f32[8,128]) while(%tuple), condition=%condition.1, body=%body.1
  %all-reduce.1 = (f32[8,128]{1,0}, f32[4]{0}) all-reduce(%a, %b), to_apply=%add.1
  %fusion.9 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %start = (f32[8]{0}, f32[64]{0}) all-gather-start(%c), dimensions={0}
  ROOT %done = f32[64]{0} all-gather-done(%start)
}
"""


def test_collectives_of_a_program():
    assert program_costs.count_collectives(PROGRAM) == {
        "all-gather": {"count": 11, "bytes": 10 * 64 * 128 * 2 + 64 * 4},
        "all-reduce": {"count": 1, "bytes": (8 * 128 + 4) * 4},
        # The compiler for TPUs writes it as a fusion of an all-reduce and a slice.
        "reduce-scatter": {"count": 1, "bytes": 8 * 128 * 2},
    }


@pytest.mark.parametrize("base, each", [(3.0, 0.7), (0.1, 0.013), (15.0, 0.5), (14.9, 2.0)])
def test_the_largest_batch_is_found_with_few_tries(base, each):
    tried = []

    def peak(batch):
        tried.append(batch)
        return base + each * batch + 0.05 * (batch % 3)  # nearly a line

    found = mesh_search.find_largest_batch(peak, 15.75)
    wanted = max(
        (b for b in range(1, 4097) if base + each * b + 0.05 * (b % 3) <= 15.75), default=0
    )
    assert found == wanted
    assert len(tried) == len(set(tried)) <= 14


def test_the_largest_batch_where_nobody_says_how_much_is_missing():
    assert mesh_search.find_largest_batch(lambda b: float(b) if b <= 37 else None, 100.0) == 37
    assert mesh_search.find_largest_batch(lambda b: None, 100.0) == 0


def test_meshes_from_all_sharded_to_none():
    assert list(mesh_search.list_meshes(8)) == [(1, 8), (4, 2), (8, 1)]
    assert list(mesh_search.list_meshes(256)) == [(1, 256), (4, 64), (16, 16), (64, 4), (256, 1)]
    assert list(mesh_search.list_meshes(1)) == [(1, 1)]


def test_fit_prefers_the_mesh_with_the_most_images_a_second(monkeypatch):
    cfg = ddpm.get_config("digits,smoke")
    chips = [None] * 8, topologies.Chip(10.0, 1.0)
    monkeypatch.setattr(topologies, "find_devices", lambda name: chips)

    def compile_plan(cfg, name, case):
        per_chip, fsdp = cfg.data.batch_size // 8, cfg.mesh.fsdp
        assert case == fsdp  # made of the changed config
        needed = 8 / fsdp + per_chip
        if needed > 10:
            raise step_plan.DoesNotFit(needed, {"state_bytes": 0})
        seconds = 1.0 + 0.1 * per_chip + 0.01 * fsdp
        figures = {"batch": cfg.data.batch_size, "mesh": cfg.mesh.to_dict()}
        figures |= {"batch_per_chip": per_chip, "peak_bytes": needed, "xla_seconds": seconds}
        return figures

    monkeypatch.setattr(step_plan, "compile_plan", compile_plan)
    rows = mesh_search.rank_meshes(cfg, "v5e:2x4", lambda changed: changed.mesh.fsdp)
    assert [(r["mesh"]["fsdp"], r["batch"] // 8) for r in rows] == [(8, 9), (2, 6), (1, 2)]
    assert mesh_search.format_rows(rows)[1] == {
        "data": "4", "fsdp": "2", "batch per chip": "6", "peak GiB": "0.00", "XLA ms": "1620",
        "images/s": "29.63",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text, needed",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 16.93G of 15.75G hbm.", 16.93),
        ("RESOURCE_EXHAUSTED: required for HLO temporaries (17.72G) exceeds (15.75G).", 17.72),
        ("RESOURCE_EXHAUSTED: no more", 0),
    ],
)
def test_what_does_not_fit_says_by_how_much(text, needed):
    def compile():
        raise jax.errors.JaxRuntimeError(text)

    with pytest.raises(step_plan.DoesNotFit, match=r"the state takes 2\.00 GiB") as caught:
        step_plan.compile_within_memory(compile, {"state_bytes": 2 * 2**30})
    assert caught.value.needed == pytest.approx(needed * 2**30)
    assert f"{needed:.2f} GiB" in str(caught.value) or not needed


def test_other_failures_of_the_compiler_are_not_taken_for_memory():
    def compile():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        step_plan.compile_within_memory(compile, {"state_bytes": 0})


def test_unknown_topologies_are_named():
    for name in ("v5e", "v9:2x2", "cpu:many", "v5e:2by4"):
        with pytest.raises(ConfigError, match=f"unknown topology '{name}'; choose one of v5e"):
            topologies.find_devices(name)


def test_a_search_needs_a_limit():
    with pytest.raises(ConfigError, match="a limit of memory, not cpu:1"):
        mesh_search.rank_meshes(ddpm.get_config("digits,smoke"), "cpu:1", lambda cfg: None)


def test_figures_are_cached_by_config_and_topology():
    cfg = ddpm.get_config("digits,smoke")
    key = step_plan._make_key(cfg, "v5e:2x4")
    cfg.sample.steps = 17
    assert step_plan._make_key(cfg, "v5e:2x4") == key
    assert step_plan._make_key(cfg, "v5e:4x4") != key
    cfg.data.batch_size = 8
    assert step_plan._make_key(cfg, "v5e:2x4") != key


def _plan(tmp_path, *arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DIFFJAX_CACHE": str(tmp_path)}
    env.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "experiments.plan", f"--json={tmp_path}/plan.json"]
    done = subprocess.run(
        [*command, f"--config={ROOT}/configs/ddpm.py:digits,smoke", *arguments],
        env=env, capture_output=True, text=True, timeout=900, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "plan.json").read_text())


@pytest.mark.slow
def test_a_plan_on_cpu_devices(tmp_path):
    options = "--topology=cpu:4", "--config.data.batch_size=8", "--config.mesh.fsdp=2"
    text, figures = _plan(tmp_path, *options)
    assert "data 2 x fsdp 2 x tensor 1" in text and "8: 2 per chip" in text
    assert figures["chips"] == 4 and figures["peak_bytes"] > figures["parameter_bytes"] > 0
    one = figures["xla_flops"]
    assert figures["flops"] == pytest.approx(one, rel=0.5) and figures["collectives"]
    begun = (tmp_path / "plan").stat().st_mtime_ns
    assert _plan(tmp_path, *options)[1] == figures  # from the cache
    assert (tmp_path / "plan").stat().st_mtime_ns == begun


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")
def test_a_plan_on_a_tpu_that_is_not_there(tmp_path):
    options = "--topology=v5e:2x4", "--config.data.batch_size=16", "--config.mesh.fsdp=8"
    text, figures = _plan(tmp_path, *options, "--config.mesh.data=1")
    assert figures["limit_bytes"] == 15.75 * 2**30 and figures["chips"] == 8
    assert "of 15.75 GiB" in text and figures["xla_seconds"] > 0
