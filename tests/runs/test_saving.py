"""`diffjax.save` and `diffjax.open`: whatever a task trains draws the same after both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax
from configs import consistency, mean_flow, progressive
from configs.base import smoke
from diffjax.runs.fixed_parts import make_abstract_fixed_parts
from diffjax.runs.saving import Source
from diffjax.runs.states import assemble_trained, make_abstract_state
from diffjax.tasks.task_table import TASKS
from diffjax.train import State
from diffjax.types import ConfigError, Level
from tests.tasks.test_lora import small as small_text

CASES = {
    "mean_flow": smoke(mean_flow.digits()),
    "shortcut": smoke(mean_flow.digits_shortcut()),
    "consistency_trained": smoke(consistency.digits()),
    "consistency_tuned": smoke(consistency.digits_tuned()),
    "consistency_distilled": smoke(consistency.digits_distilled()),
    "progressive": smoke(progressive.VARIANTS["digits_4"]()),
    "lora": small_text("shapes_lora"),
    "lcm": small_text("shapes_lora"),
    "ip_adapter": small_text("shapes_ip_adapter"),
}
CASES["lcm"].task = "consistency"
CASES["lcm"].consistency = diffjax.config.make_section("consistency")
# What trains no whole model, and the command that writes it.
REFUSED = ("controlnet", "concept")


def make_random(shapes, seed):
    """A tree of these shapes, of positive numbers: some are scales."""
    rng = np.random.default_rng(seed)

    def make(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.uniform(0.05, 0.3, leaf.shape), leaf.dtype)

    return jax.tree.map(make, shapes)


def make_trained(config):
    """A model as a run of a config leaves it."""
    like = make_abstract_state(config)
    average, extra = make_random(like.ema, 1), make_random(like.extra, 2)
    state = State(jnp.asarray(7, jnp.int32), average, average, None, extra)
    frozen = make_random(make_abstract_fixed_parts(config), 3)
    return assemble_trained(config, state, frozen)._replace(source=Source(config, 7))


def predict(model):
    """What a model says of some noise, with a condition that says something."""
    z = jax.random.normal(jax.random.key(0), (2, *model.space.shape))
    level = Level(*(jnp.full(2, v, jnp.float32) for v in (0.7, *model.schedule.at(0.7))))
    batch = {"image": jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)}
    batch |= {"text": jnp.arange(36).reshape(2, 18) % 7, "label": jnp.arange(2)}
    cond = diffjax.model.encode(model, model.condition.take(batch, jax.random.key(1)))
    return diffjax.denoiser(model, cond)(z, level).x


def test_every_kind_of_task_is_here():
    kinds = {config.task for config in CASES.values()} | set(REFUSED)
    assert kinds == {name for name, kind in TASKS.items() if kind.assemble is not None}


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_says_the_same(name, tmp_path):
    model = make_trained(CASES[name])
    diffjax.save(model, tmp_path / "kept")
    again = diffjax.open(tmp_path / "kept")
    np.testing.assert_array_equal(predict(again), predict(model))
    assert again.source.step == 7
    assert set(again.frozen or {}) == set(model.frozen or {})
    if not CASES[name].cond.context:
        options = dict(num=2, seed=3, steps=2, grid="uniform")
        drawn, before = (diffjax.draw(one, **options) for one in (again, model))
        np.testing.assert_array_equal(drawn, before)
    diffjax.save(again, tmp_path / "twice")  # a model that was opened can be kept again
    np.testing.assert_array_equal(predict(diffjax.open(tmp_path / "twice")), predict(model))


def test_other_tasks_name_the_command(tmp_path):
    config = small_text("shapes_word")
    config.concept.word = "<thing>"
    with pytest.raises(ConfigError, match="is written by diffjax export"):
        diffjax.save(make_trained(config), tmp_path / "kept")
