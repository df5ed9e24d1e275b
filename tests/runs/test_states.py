"""Task, model, mesh and state of a config."""

import inspect

import jax
import numpy as np
import pytest

from configs import autoencoder, ddpm
from configs.base import smoke
from diffjax import runs
from diffjax.tasks import diffusion_task
from diffjax.train import Checkpoints
from diffjax.types import ConfigError


@pytest.fixture(scope="module")
def config():
    return smoke(ddpm.digits())


def test_shapes_are_those_of_the_state(config):
    shapes, state = runs.make_abstract_state(config), runs.init_untrained(config)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    assert any(np.any(leaf) for leaf in jax.tree.leaves(state.params))


def test_a_config_goes_straight_to_its_task(config, monkeypatch):
    passed = []

    def make_objective(*arguments, original=diffusion_task.make_objective):
        names = [frame.function for frame in inspect.stack()]
        passed.extend(names[: names.index("test_a_config_goes_straight_to_its_task")][::-1])
        return original(*arguments)

    monkeypatch.setattr(diffusion_task, "make_objective", make_objective)
    runs.build_task(config)
    assert passed == ["build_task", "make_task", "make_objective"]


def test_a_state_comes_back_without_the_optimisers(config, tmp_path):
    state = runs.init_untrained(config)
    with pytest.raises(ConfigError, match=r"no checkpoint in .*; train first"):
        runs.read_state(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.wait()
    found = runs.read_state(config, tmp_path)
    assert found.opt is None
    jax.tree.map(np.testing.assert_array_equal, found.ema, state.ema)


def test_a_first_stage_has_a_task_and_no_diffusion_model():
    config = smoke(autoencoder.shapes())
    assert runs.build_task(config).loss
    with pytest.raises(ConfigError, match="but the task is 'autoencoder'"):
        runs.build_model(config)


def test_a_trained_model_has_the_averaged_parameters(config):
    state = runs.init_untrained(config)
    model = runs.assemble_trained(config, state, None)
    assert model.params is state.ema
    assert runs.build_model(config).network == model.network


def test_a_mesh_of_other_devices_becomes_one_of_these(config, caplog):
    other = config.copy_and_resolve_references()
    other.mesh.update(data=40, fsdp=2)
    assert runs.make_run_mesh(other).size == len(jax.devices())
    assert "the batch is split over all of them instead" in caplog.text
