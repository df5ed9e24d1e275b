"""What steers sampling besides the scale, through `model.sample`, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, parameterization, samplers, schedules
from diffjax.config import make
from diffjax.model import Model, Steering, make_steering, sample
from diffjax.model.condition import UNCONDITIONAL, make_label_condition
from diffjax.model.space import make_pixel_space
from diffjax.types import ConfigError

SHAPE, FLOW = (2, 2, 1), schedules.flow(t_min=0.0, t_max=1.0)
FLOW_TARGET = parameterization.velocity()


class Gates:
    """A network whose velocity is the sum of its blocks' gates, twice that for a known class."""

    def apply(self, variables, z, t, cond, **options):
        gates = variables["params"]["transformer_blocks"]["norm1.linear"]["bias"][:, 2].sum()
        known = 1 if cond is None else 1 + (cond["label"] < 3)[:, None, None, None]
        return 0.01 * gates * known * jnp.ones_like(z)


def move(condition=UNCONDITIONAL, scale=None, **steering):
    """The mean velocity of one step of Euler's method, in hundredths."""
    bias = jnp.ones((2, 6)) * jnp.array([[1.0], [4.0]])
    params = {"transformer_blocks": {"norm1.linear": {"bias": bias}}}
    model = Model(FLOW, FLOW_TARGET, Gates(), make_pixel_space(SHAPE), condition, params)._replace(
        frozen={"guide": 2.0}
    )
    sampler = samplers.make("euler")
    rows = sampler.plan(grids.uniform(FLOW, 1, final="last"))
    keys = jax.random.split(jax.random.key(3), 2)
    cond = {"label": jnp.zeros(2, jnp.int32)} if condition.names and scale is not None else None
    scales = None if scale is None else np.full(1, scale, np.float32)
    z = samplers.prior(samplers.image_noise(keys, SHAPE), rows)
    out = sample(model, cond, sampler, rows, keys, scale=scales, steering=Steering(**steering))
    inside = np.abs(out) < 1  # samples are clipped
    assert inside.any()
    return float(100 * np.asarray(z - out)[inside].mean())


@pytest.mark.parametrize("condition", [UNCONDITIONAL, make_label_condition(3)])
def test_autoguidance_goes_away_from_the_weak_model(condition):
    """``weak + s (strong - weak)``, with the condition in both and no null condition."""

    def make_weak(parts, cond, spans):
        assert parts["guide"] == 2.0 and spans.shape == (1,)

        def denoise(z, level):
            return FLOW_TARGET.decode(0.01 * parts["guide"] * jnp.ones_like(z), z, level)

        return denoise

    strong = 5 if condition is UNCONDITIONAL else 10
    found = move(condition, 3.0, guide=make_weak)
    assert found == pytest.approx(2 + 3 * (strong - 2), abs=2e-3)


def test_skipping_adds_the_difference_to_the_network_without_a_block():
    assert move() == pytest.approx(5, abs=1e-3)
    assert move(skip=(0,), skip_scale=2.0) == pytest.approx(5 + 2 * (5 - 4), abs=1e-3)
    assert move(skip=(1,), skip_scale=2.0) == pytest.approx(5 + 2 * (5 - 1), abs=1e-3)


@pytest.mark.parametrize("scale, wanted", [(3.0, 5 + 3 * 5 + 2 * 8), (1.0, 10 + 2 * 8)])
def test_skipping_comes_on_top_of_guidance(scale, wanted):
    # The conditional velocity is 10, the unconditional 5, and 2 is the conditional one without 1.
    found = move(make_label_condition(3), scale, skip=(1,), skip_scale=2.0)
    assert found == pytest.approx(wanted, abs=2e-3)


def test_a_rule_and_first_steps_without_a_movement():
    condition = make_label_condition(3)
    assert move(condition, 3.0) == pytest.approx(20, abs=2e-3)
    # Both halves point the same way, so that the optimised scale makes them equal.
    assert move(condition, 3.0, rule="cfg_zero_star") == pytest.approx(10, abs=2e-3)
    options = {"rule": "fdg", "rule_options": (("low", 0.5),)}
    assert move(condition, 3.0, **options) == pytest.approx(15, abs=2e-3)  # it is all low
    assert move(condition, 3.0, zero_steps=1) == pytest.approx(0, abs=2e-3)


def test_a_config_says_how_sampling_is_steered():
    values = {"guidance_rule": "apg", "apg_eta": 0.5, "skip_blocks": (1,), "skip_scale": 2.0}
    config = make({f"sample.{k}": v for k, v in values.items()} | {"sample.zero_steps": 2})
    found = make_steering(config)
    assert (found.rule, found.rule_options) == ("apg", (("eta", 0.5),))
    assert (found.skip, found.skip_scale, found.zero_steps) == ((1,), 2.0, 2)
    assert make_steering(config) == found  # equal steering shares a program
    some = make_steering(make({"sample.guidance_channels": 3}))
    assert some.rule_options == (("channels", 3),)
    with pytest.raises(ConfigError, match="Did you mean 'apg'"):
        make_steering(make({"sample.guidance_rule": "apq"}))
