"""Meshes and placement; four devices in a process of their own."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from diffjax.nets.text import CLIPText
from diffjax.nets.unet import UNet
from diffjax.train import train
from diffjax.train.sharding import (
    make_batch_sharding,
    make_mesh,
    make_replicated_sharding,
    make_tree_sharding,
    measure_sharded_fraction,
)
from tests.train.tiny import assert_same, batches, make_config, make_task

ROOT = Path(__file__).parents[2]


def test_one_device_is_a_mesh():
    mesh = make_mesh()
    assert mesh.shape == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}
    assert make_batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert make_replicated_sharding(mesh).spec == PartitionSpec()


@pytest.mark.parametrize(
    "section, reason",
    [
        ({"data": 3}, "'data': 3, .* does not match 1 devices"),
        ({"data": -1, "fsdp": 2}, "'fsdp': 2, .* does not match 1 devices"),
        ({"data": -1, "fsdp": -1}, "one may be -1"),
        ({"data": -1, "fsdp": 0}, "'fsdp': 0, .* sizes are positive"),
        ({"data": -2}, "'data': -2, .* sizes are positive"),
    ],
)
def test_wrong_mesh_sizes(section, reason):
    with pytest.raises(ValueError, match=reason):
        make_mesh(section)


def test_large_leaves_are_cut_along_their_largest_dimension():
    mesh = AbstractMesh((2, 4, 1), ("data", "fsdp", "tensor"))
    shapes = {
        "conv": (3, 3, 64, 128),
        "odd": (257, 512),
        "small": (16, 16),
        "indivisible": (257, 259),
        "scalar": (),
    }
    tree = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in shapes.items()}
    specs = {k: place.spec for k, place in make_tree_sharding(tree, mesh).items()}
    assert specs["conv"] == PartitionSpec(None, None, None, "fsdp")
    assert specs["odd"] == PartitionSpec(None, "fsdp")
    assert specs["small"] == specs["indivisible"] == specs["scalar"] == PartitionSpec()


FOUR = """
    import json, sys
    from pathlib import Path
    import jax
    from diffjax.train import prepare, sharding, train
    from tests.train.tiny import batches, make_config, make_task

    # The model is tiny: call its leaves large, so that they are sharded.
    whole = sharding.make_tree_sharding
    prepare.make_tree_sharding = lambda tree, mesh: whole(tree, mesh, min_size=8)
    config = make_config()
    config.mesh.update(data=2, fsdp=2)
    state = train(make_task(), config, Path(sys.argv[1]), batches)
    w = state.params["net"]["w"]
    local = [shard.data.shape for shard in w.addressable_shards]
    moment = [leaf for leaf in jax.tree.leaves(state.opt) if leaf.shape == w.shape][0]
    try:
        sharding.make_mesh({"data": 3, "fsdp": 1})
    except ValueError as error:
        refused = str(error)
    values = [x.tolist() for x in jax.tree.leaves(jax.device_get(state))]
    spec = lambda leaf: str(list(leaf.sharding.spec))
    print(json.dumps({
        "local": local, "specs": [spec(w), spec(state.ema["net"]["w"]), spec(moment)],
        "refused": refused, "values": values,
    }))
"""


def test_four_devices_train_as_one_and_one_goes_on(tmp_path):
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FOUR), str(tmp_path / "four")],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    four = json.loads(done.stdout.splitlines()[-1])
    assert four["local"] == [[2, 3]] * 4  # of (4, 3)
    assert four["specs"] == ["['fsdp', None]"] * 3  # parameters, average, optimiser
    assert "does not match 4 devices" in four["refused"]

    train(make_task(), make_config(), tmp_path / "one", batches)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").open()]
        for run in ("one", "four")
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, atol=1e-5)

    # Four devices wrote it, one reads it: bit-equal, without a step of training.
    state = train(make_task(), make_config(), tmp_path / "four", batches)
    values = [np.asarray(v, leaf.dtype) for v, leaf in zip(
        four["values"], jax.tree.leaves(state), strict=True)]  # fmt: skip
    assert_same(values, [np.asarray(leaf) for leaf in jax.tree.leaves(state)])


EIGHT = """
    import sys
    from pathlib import Path
    import jax, numpy as np
    from diffjax.train import Checkpoints
    from diffjax.train.sharding import make_mesh, make_tree_sharding, with_sharding

    rng = np.random.default_rng(0)
    host = {"conv1": {"kernel": rng.normal(size=(3, 3, 64, 128)).astype(np.float32)},
            "norm": {"scale": rng.normal(size=128).astype(np.float32)}}
    shapes = jax.eval_shape(lambda: host)
    for step, (data, fsdp, tensor) in enumerate([(1, 8, 1), (2, 2, 1), (1, 1, 1), (1, 2, 4)]):
        sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
        mesh = make_mesh(sizes, jax.devices()[: data * fsdp * tensor])
        placed = make_tree_sharding(shapes, mesh)
        with Checkpoints(Path(sys.argv[1])) as checkpoints:
            if step:
                found, state = checkpoints.restore(with_sharding(shapes, placed))
                assert found == step - 1
            else:
                state = jax.device_put(host, placed)
            kernel = state["conv1"]["kernel"]
            assert len(kernel.addressable_shards) == data * fsdp * tensor
            assert kernel.addressable_shards[0].data.size == kernel.size // (fsdp * tensor)
            for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(state), strict=True):
                np.testing.assert_array_equal(a, np.asarray(b))
            checkpoints.save(step, state)
"""


def test_checkpoints_go_from_eight_devices_to_four_to_one_to_eight(tmp_path):
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EIGHT), str(tmp_path)],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_tensor_axis_follows_the_paths():
    mesh = AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    shapes = {
        "down_blocks.0.attentions.0/attn1/to_q/kernel": (1, 640, 640),
        "attn1/to_out.0/kernel": (1, 640, 640),
        "ff/net.0.proj/kernel": (640, 5120),
        "ff/net.0.proj/bias": (5120,),
        "text_model.encoder.layers/mlp.fc2/kernel": (12, 3072, 768),
        "resnets.0/conv1/kernel": (3, 3, 320, 640),
        "conv_in/kernel": (3, 3, 320, 320),
        "attn1/to_q/odd/kernel": (641, 641),
        "transformer_blocks/norm1.linear/kernel": (12, 384, 2304),
    }
    tree: dict = {}
    for name, shape in shapes.items():
        *folders, leaf = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = jax.ShapeDtypeStruct(shape, jnp.float32)
    placed = make_tree_sharding({"opt": {"mu": tree}}, mesh)["opt"]["mu"]  # as in optimiser state

    def spec(name):
        place = placed
        for folder in name.split("/"):
            place = place[folder]
        return tuple(place.spec)

    assert [spec(name) for name in shapes] == [
        (None, "fsdp", "tensor"),
        (None, "tensor", "fsdp"),
        ("fsdp", "tensor"),
        ("tensor",),
        (None, "tensor", "fsdp"),
        (None, None, "fsdp", "tensor"),
        (None, None, "fsdp", None),
        (),
        (None, "fsdp", "tensor"),
    ]


def test_nearly_all_of_stable_diffusion_is_sharded():
    # And of its text encoder, which is frozen. 256 chips train as 4 x 64.
    unet = UNet(
        channels=320, multipliers=(1, 2, 4, 4), attention_levels=(0, 1, 2), heads=8,
        out_channels=4, context_dim=768,
    )  # fmt: skip
    z, context = jnp.zeros((1, 64, 64, 4)), {"context": jnp.zeros((1, 77, 768))}
    key = jax.random.key(0)
    for init in (
        lambda: unet.init(key, z, jnp.zeros(1), context),
        lambda: CLIPText().init(key, jnp.zeros((1, 77), jnp.int32)),
    ):
        shapes = jax.eval_shape(init)["params"]
        for fsdp in (8, 64):
            mesh = AbstractMesh((1, fsdp, 1), ("data", "fsdp", "tensor"))
            assert measure_sharded_fraction(shapes, make_tree_sharding(shapes, mesh)) > 0.998
