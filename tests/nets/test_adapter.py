"""T2I-Adapter: sizes of the published networks, and where a UNet adds its features."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nets.adapter import T2IAdapter
from diffjax.nets.unet import UNet
from diffjax.types import ConfigError
from tests.filled import fill
from tests.parity import adapter_cases, cases, control_cases

GOLDEN = Path(__file__).parents[1] / "golden" / "adapter.npz"
PUBLISHED = {
    "full": (T2IAdapter(), 77_369_280),
    "full_xl": (T2IAdapter(kind="full_xl", hint_factor=16), 79_028_160),
    "light": (T2IAdapter(kind="light", blocks=4), 18_689_200),
}
Z, T = jnp.ones((2, 8, 8, 1)), jnp.zeros(2)
NET = UNet(channels=4, multipliers=(1, 2, 2), attention_levels=(), norm_groups=2, out_channels=1)
RUN = jax.jit(NET.apply)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_parameters_of_the_published_networks(kind):
    net, count = PUBLISHED[kind]
    side = 8 * net.hint_factor
    found = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(found)) == count
    sides = (8, 4, 2, 1) if kind != "full_xl" else (8, 8, 4, 4)
    features = jax.eval_shape(net.apply, {"params": found}, jnp.zeros((1, side, side, 3)))
    assert [f.shape for f in features] == [
        (1, s, s, width) for s, width in zip(sides, (320, 640, 1280, 1280), strict=True)
    ]


@pytest.mark.parametrize("kind", adapter_cases.KINDS)
def test_recorded_features_of_diffusers(kind):
    with np.load(GOLDEN) as recorded:
        ours = control_cases.digest(adapter_cases.ours(kind))
        assert cases.relative_error(ours, recorded[kind]) < 1e-5


@pytest.mark.parametrize("name", adapter_cases.UNETS)
def test_recorded_unets_of_diffusers_with_features(name):
    with np.load(GOLDEN) as recorded:
        ours = adapter_cases.our_unet(name)
        assert cases.relative_error(ours, recorded[f"unet-{name}"]) < 1e-5


@pytest.fixture(scope="module")
def params():
    return fill(NET, Z, T, spread=0.2)


def run(params, features):
    return np.asarray(RUN({"params": params}, Z, T, {"adapter": features}))


def zeros(*shapes):
    return [jnp.zeros((2, side, side, width)) for side, width in shapes]


def test_features_of_nothing_are_no_control_and_any_level_takes_some(params):
    plain = np.asarray(RUN({"params": params}, Z, T))
    levels = zeros((8, 4), (4, 8), (2, 8))  # where each of the levels ends
    np.testing.assert_array_equal(run(params, levels), plain)
    for k in range(len(levels)):
        changed = [f + (i == k) for i, f in enumerate(levels)]
        assert np.abs(run(params, changed) - plain).max() > 1e-3
    # After halving, as those of XL, and in the middle: different places, and all of them used.
    halved = zeros((4, 4), (2, 8), (2, 8), (2, 8))
    np.testing.assert_array_equal(run(params, halved), plain)
    places = [run(params, [f + (i == k) for i, f in enumerate(halved)]) for k in range(4)]
    assert all(np.abs(a - b).max() > 1e-3 for a in places for b in [plain, *places] if a is not b)


def test_features_of_another_base_or_size_are_refused(params):
    for wrong in (zeros((8, 5)), zeros((16, 4)), zeros((8, 4), (8, 4))):
        with pytest.raises(ValueError, match="fit no level of this network"):
            run(params, wrong)


def begin(net, shape=(1, 8, 8, 3)):
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))


def test_hints_that_do_not_fit_are_refused():
    net = T2IAdapter(widths=(4,), hint_factor=4)
    for shape in ((1, 8, 8, 1), (1, 10, 8, 3), (8, 8, 3)):
        with pytest.raises(ValueError, match=r"hints \(B, H, W, 3\) with H and W multiples of 4"):
            begin(net, shape)
    for name, value in (
        ("hint_factor", 0),
        ("blocks", -1),
        ("hint_channels", 0),
        ("widths", ()),
        ("widths", (4, 0)),
    ):
        with pytest.raises(ConfigError, match=f"^{name} must be .* got"):
            begin(net.clone(**{name: value}))
    with pytest.raises(ConfigError, match=r"^widths must be .* numbers of at least 4"):
        begin(net.clone(kind="light", widths=(3,)))
    with pytest.raises(ValueError, match="choose one of full, full_xl, light"):
        begin(T2IAdapter(kind="heavy"))
