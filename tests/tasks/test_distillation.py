"""Training that starts from a base and may ask it, and what a run keeps of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import consistency, flow, mean_flow
from configs.base import smoke
from diffjax import runs
from diffjax.config import complete
from diffjax.tasks import assemble_model, find_task_kind

SHAPE = (2, 2, 1)


def small(module, variant, **sections):
    config = complete(smoke(module.VARIANTS[variant]()))
    config.data.image_size = 2
    config.network.update(multipliers=(1,), attention_levels=())
    for name, values in sections.items():
        config[name].update(values)
    return config


def start(config):
    task = runs.build_task(config)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.uniform(-1, 1, (4, *SHAPE)), jnp.float32),
        "label": jnp.zeros(4, jnp.int32),
    }
    base = None
    if find_task_kind(config).trains_beside:
        base = runs.load_fixed_parts(config, None, fresh=True)
    return task, base, batch, *jax.jit(task.init)(jax.random.key(0), base, batch)


def measure(task, *arrays):
    """The loss and the statistics after it, of (params, base, extra, key, step, batch)."""
    value, (extra, _) = jax.jit(task.loss)(*arrays)
    return float(value), extra


def test_what_is_trained_begins_as_a_copy_of_the_base_and_ends_as_a_whole_model():
    config = small(flow, "digits_reflow", loss={"teacher_steps": 1})
    task, base, batch, params, extra = start(config)
    jax.tree.map(np.testing.assert_array_equal, params, base["base"])
    value, _ = measure(task, params, base, extra, jax.random.key(1), jnp.asarray(0), batch)
    assert np.isfinite(value)
    model = assemble_model(config, SHAPE, params, base, extra)
    assert model.params is params and not model.frozen and not model.adapters
    assert runs.leave_out_base(config, {**base, "autoencoder": {}}) == {"autoencoder": {}}


def test_a_base_may_predict_something_else_than_the_student():
    config = small(consistency, "digits_distilled")
    task, base, batch, params, extra = start(config)
    arrays = (params, base, extra, jax.random.key(1), jnp.asarray(0), batch)
    one, _ = measure(task, *arrays)
    config.distil.parameterization = ""
    two, _ = measure(runs.build_task(config), *arrays)
    assert np.isfinite(one) and one != pytest.approx(two, rel=1e-4)
    config.distil.parameterization = "edn"
    with pytest.raises(ValueError, match="Did you mean 'edm'"):
        runs.build_task(config)


def test_the_average_for_targets_moves_once_a_step():
    config = small(mean_flow, "digits_shortcut", loss={"target_decay": 0.75})
    task, _, batch, params, extra = start(config)
    moved = jax.tree.map(lambda p: p + 1.0, params)

    loss = jax.jit(task.loss)

    def advance(params, extra, step):
        return loss(params, None, extra, jax.random.key(1), jnp.asarray(step), batch)[1][0]

    first = advance(moved, extra, 0)  # step 0 takes the parameters as they are
    jax.tree.map(np.testing.assert_array_equal, first["target"], moved)
    second = advance(params, first, 1)
    again = advance(params, second, 1)  # another part of the same batch
    for after in (second, again):
        wanted = jax.tree.map(lambda p: p + 0.75, params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after["target"], wanted
        )


def test_a_second_time_needs_a_network_that_has_one():
    config = small(mean_flow, "digits")
    config.network.added_dim = 4
    with pytest.raises(ValueError, match=r"set network\.added_dim=0"):
        runs.build_task(config)
