"""Every task trains alike on 1, 2, 4 and 8 devices, whatever the mesh."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

# Three steps of a config on meshes of some of the eight devices; losses and a digest of the state.
STEPS = """
    import json, sys
    from pathlib import Path
    import jax, numpy as np
    from diffjax.train import init_state, make_optimizer
    from diffjax.train.prepare import compile_step
    from diffjax.train.sharding import make_mesh, measure_sharded_fraction, make_tree_sharding
    from absl import flags
    from diffjax import runs
    from diffjax.config import load_config

    flags.FLAGS.mark_as_parsed()
    cfg = load_config(sys.argv[1])
    cfg.data.batch_size = 8
    cfg.optim.update(lr=1e-3, warmup=0, decay="constant")
    task, source = runs.build_task(cfg), runs.load_source(cfg)
    given = runs.load_fixed_parts(cfg, Path("nowhere"), fresh=True)
    optimizer = make_optimizer(cfg.optim, cfg.train.steps)
    rows = []
    for data, fsdp, tensor in json.loads(sys.argv[2]):
        count = data * fsdp * tensor
        sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
        mesh = make_mesh(sizes, jax.devices()[:count])
        batches = runs.start_batches(cfg, source)(
            0, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
        )
        example = jax.tree.map(lambda x: np.asarray(x)[:1], next(batches))
        init = lambda given: init_state(task, optimizer, jax.random.key(0), given, example)
        shapes = jax.eval_shape(init, given)
        placed, cold = (make_tree_sharding(t, mesh, min_size=64) for t in (shapes, given))
        there = jax.device_put(given, cold)
        state = jax.jit(init, in_shardings=(cold,), out_shardings=placed)(there)
        step = compile_step(task, optimizer, cfg, (placed, cold), mesh)
        losses = []
        for _ in range(3):
            state, metrics = step(state, there, next(batches))
            losses.append(float(metrics["loss"]))
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.params)]
        rows.append({
            "losses": losses,
            "sharded": measure_sharded_fraction((state.params, given), (placed.params, cold)),
            "sums": [[float(x.sum()), float((x * x).sum())] for x in leaves],
        })
    print(json.dumps(rows))
"""
MESHES = [(1, 1, 1), (1, 2, 1), (2, 1, 2), (2, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        "ddpm.py:digits",
        "improved_ddpm.py:digits_vlb",
        "cfg.py:fashion_mnist",
        "adm.py:digits_classifier",
        "autoencoder.py:shapes",
        "autoencoder.py:shapes_vq",
        "ldm.py:shapes",
        "controlnet.py:shapes_edges",
        "stable_diffusion.py:shapes",
        "stable_diffusion.py:shapes_lora",
    ],
)
def test_devices_agree(config):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": f"{flags} --xla_llvm_disable_expensive_passes=true"}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    given = (f"{ROOT}/configs/{config},smoke", json.dumps(MESHES))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STEPS), *given],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, *others = json.loads(done.stdout.splitlines()[-1])
    for mesh, row in zip(MESHES[1:], others, strict=True):
        np.testing.assert_allclose(row["losses"], one["losses"], rtol=2e-5, err_msg=str(mesh))
        np.testing.assert_allclose(row["sums"], one["sums"], rtol=2e-3, atol=2e-4)
        assert (row["sharded"] > 0.5) == (mesh[1] * mesh[2] > 1), mesh
