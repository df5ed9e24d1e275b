"""AppliedControl on linear denoisers, whose controlled predictions are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import control, grids, guidance, samplers, schedules
from diffjax.control import BALANCES, AppliedControl
from diffjax.types import Level, Prediction

SIDES = (8, 4, 2)  # the last is the middle's
Z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
LEVEL = Level(jnp.float32(5), jnp.float32(0.8), jnp.float32(0.6), jnp.int32(1))
COND, NULL = {"mean": jnp.array([1.0, 2.0])}, {"mean": jnp.zeros(2)}
HINT = jnp.stack([jnp.full((8, 8, 1), 3.0), jnp.full((8, 8, 1), 5.0)])
ONE = float(sum(side**2 for side in SIDES))  # what a net that answers with ones adds to x


def denoise(z, level, cond):
    """x is the mean plus every pixel of every residual."""
    skips, middle = cond.get("control", ([], jnp.zeros((1, 1, 1, 1))))
    added = sum(r.sum((1, 2, 3)) for r in (*skips, middle))
    x = jnp.zeros_like(z) + (cond["mean"] + added)[:, None, None, None]
    return Prediction(x, (z - level.alpha * x) / level.sigma)


def net(factor=1.0):
    """Residuals of ``factor`` times the hint's mean, whatever z and the condition."""

    def residuals(z, level, cond):
        value = factor * cond["hint"].mean((1, 2, 3))[:, None, None, None]
        *skips, middle = (jnp.zeros((z.shape[0], s, s, 1)) + value for s in SIDES)
        return skips, middle

    return residuals


def means(prediction):
    return np.asarray(prediction.x[:, 0, 0, 0])


def _total(controls):
    return control.sum_residuals(controls, Z, LEVEL, COND)["control"]


def run(controls, scale=None, **options):
    if scale is None:
        return means(control.control(denoise, controls)(Z, LEVEL, COND))
    return means(control.guide(denoise, controls, COND, NULL, scale, **options)(Z, LEVEL))


def test_residuals_are_scaled_and_added():
    one = AppliedControl(net(), HINT, 0.5)
    two = AppliedControl(net(2.0), HINT[:1], jnp.array([1.0, 0.25]))
    assert run([]) == pytest.approx([1, 2])
    assert run([one]) == pytest.approx([1 + 1.5 * ONE, 2 + 2.5 * ONE])
    assert run([one, two]) == pytest.approx([1 + 7.5 * ONE, 2 + 4 * ONE])


def hand_on(z, level, cond):
    return cond["hint"]


def test_features_of_an_adapter_are_handed_on_beside_residuals():
    features = [jnp.ones((2, 8, 8, 1)), 3 * jnp.ones((1, 4, 4, 1))]
    adapter = AppliedControl(hand_on, features, 0.5, entry="adapter")
    found = control.sum_residuals([adapter, AppliedControl(net(), HINT), adapter], Z, LEVEL, COND)
    assert set(found) == {"adapter", "control"}
    assert [f.shape for f in found["adapter"]] == [(2, 8, 8, 1), (2, 4, 4, 1)]
    assert [float(f.mean()) for f in found["adapter"]] == [1, 3]

    def seen(z, level, cond):
        return Prediction(z, jnp.stack([sum(f.sum() for f in cond["adapter"])] * len(z)))

    given = {**COND, "adapter": [jnp.ones((2, 8, 8, 1)), jnp.zeros((2, 4, 4, 1))]}
    assert float(control.control(seen, [adapter])(Z, LEVEL, given).eps[0]) == 128 + 64 + 48
    alone = AppliedControl(hand_on, features, 1.0, BALANCES["control"], "adapter")
    both = control.guide(seen, [alone], COND, NULL, 2.0, sequential=True)(Z, LEVEL)
    # The null half sees none: guidance of 2 doubles what the other sees.
    assert float(both.eps[0]) == 2 * (128 + 96)


def test_two_networks_are_their_sum_and_scale_zero_is_no_control_bit_by_bit():
    @jax.jit
    def compare(a, b):
        controls = [AppliedControl(net(1.0), HINT, a), AppliedControl(net(3.0), HINT, b)]
        parts = [_total([one]) for one in controls]
        both = _total(controls)
        controlled = control.control(denoise, [AppliedControl(net(), HINT, a)])(Z, LEVEL, COND)
        return jax.tree.map(jnp.add, *parts), both, controlled, denoise(Z, LEVEL, COND)

    apart, together, _, _ = compare(0.7, 1.3)
    jax.tree.map(np.testing.assert_array_equal, apart, together)
    _, _, controlled, plain = compare(0.0, 1.0)
    np.testing.assert_array_equal(controlled.x, plain.x)
    np.testing.assert_array_equal(controlled.eps, plain.eps)


def test_other_scales_do_not_recompile():
    traces = []

    @jax.jit
    def once(scale):
        traces.append(1)
        return control.control(denoise, [AppliedControl(net(), HINT, scale)])(Z, LEVEL, COND).x

    assert np.abs(once(0.5) - once(0.25)).max() > 1
    assert len(traces) == 1


@pytest.mark.parametrize("sequential", [False, True])
def test_guided_control_acts_on_both_halves(sequential):
    out = run([AppliedControl(net(), HINT)], 3.0, sequential=sequential)
    assert out == pytest.approx([3 + 3 * ONE, 6 + 5 * ONE])


@pytest.mark.parametrize("sequential", [False, True])
def test_control_of_the_conditional_half_is_amplified_by_guidance(sequential):
    out = run([AppliedControl(net(), HINT, 1.0, BALANCES["control"])], 3.0, sequential=sequential)
    assert out == pytest.approx([3 + 9 * ONE, 6 + 15 * ONE])


def test_balances_of_one_run_may_differ():
    controls = [AppliedControl(net(), HINT), AppliedControl(net(), HINT, 1.0, BALANCES["control"])]
    assert run(controls, 3.0) == pytest.approx([3 + 12 * ONE, 6 + 20 * ONE])


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("prompt", [0.825**2, 0.825, 1]),
        ("guess", [0.1, 10**-0.5, 1]),
        ("resolution", [1, 2, 4]),
    ],
)
def test_layers_are_weighted(name, weights):
    skips, middle = _total([AppliedControl(net(), HINT, 2.0, BALANCES[name])])
    found = [float(r[0, 0, 0, 0]) for r in (*skips, middle)]
    assert found == pytest.approx([6 * w for w in weights], rel=1e-6)


def test_weights_of_stable_diffusion_at_512_pixels():
    sides = np.array([64, 64, 64, 32, 32, 32, 16, 16, 16, 8, 8, 8, 8.0])
    np.testing.assert_array_equal(control.resolution(sides), 64 / sides)
    ratio = control.logspace(sides) / control.decay(sides)
    assert np.abs(ratio - 1).max() < 0.0061


def test_pooled_residuals_keep_their_weight_and_the_middle_may_be_alone():
    def pooled(z, level, cond):
        return [jnp.ones((z.shape[0], 1, 1, 1))] * 2, jnp.ones((z.shape[0], 1, 1, 1))

    skips, _ = _total([AppliedControl(pooled, HINT, 1.0, BALANCES["guess"])])
    assert float(skips[0][0, 0, 0, 0]) == 1

    def middle_only(z, level, cond):
        return None, jnp.ones((z.shape[0], 2, 2, 1))

    nothing, middle = _total([AppliedControl(middle_only, HINT, 3.0)])
    assert nothing is None and float(middle[0, 0, 0, 0]) == 3


def test_networks_see_their_own_condition_only():
    seen = []

    def spy(z, level, cond):
        seen.append(set(cond))
        return net()(z, level, cond)

    cond = {**COND, "concat": Z, "context": Z}
    control.sum_residuals([AppliedControl(spy, HINT)], Z, LEVEL, cond)
    assert all(names == {"mean", "context", "hint"} for names in seen)


# ---- windows ------------------------------------------------------------------------------------


def test_windows():
    assert control.window(5, 0.0, 1.0).tolist() == [1, 1, 1, 1, 1]
    assert control.window(5, 0.2, 0.8).tolist() == [0, 1, 1, 1, 0]
    assert control.window(4, 0.3, 0.7).tolist() == [0, 0, 0, 0]
    # No border is lost to rounding, as it would be in float32.
    for n in (10, 20, 50, 999):
        for k in range(1, n):
            assert control.window(n, 0.0, k / n).sum() == k
            assert control.window(n, k / n, 1.0).sum() == n - k


def test_outside_its_window_a_network_does_not_run():
    ran = []

    def spy(z, level, cond):
        jax.debug.callback(lambda i: ran.append(int(i)), level.i)
        return net()(z, level, cond)

    controls = control.make_controls([spy], [HINT], 8, scale=2.0, start=0.25, end=0.5)

    @jax.jit
    def at(i):
        return control.control(denoise, controls)(Z, LEVEL._replace(i=i), COND).x[0, 0, 0, 0]

    out = [float(at(i)) for i in range(8)]
    jax.effects_barrier()
    assert ran == [2, 3]
    assert out == pytest.approx([1 + (6 * ONE if i in (2, 3) else 0) for i in range(8)])


def test_lists_go_with_the_networks():
    controls = control.make_controls(
        [net(), net()], [HINT, HINT], 4, scale=[1.0, 3.0], start=[0.0, 0.5], end=1.0
    )
    level = LEVEL._replace(i=jnp.int32(0))
    early = means(control.control(denoise, controls)(Z, level, COND))
    assert early == pytest.approx([1 + 3 * ONE, 2 + 5 * ONE])
    late = means(control.control(denoise, controls)(Z, LEVEL._replace(i=jnp.int32(2)), COND))
    assert late == pytest.approx([1 + 12 * ONE, 2 + 20 * ONE])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": [1.0]}, "1 values of scale for 2 networks"),
        ({"start": [0.0, 0.1, 0.2]}, "3 values of start for 2 networks"),
        ({"start": 0.6, "end": 0.4}, "0 <= start < end <= 1, got 0.6 to 0.4"),
        ({"end": 1.5}, "got 0.0 to 1.5"),
        ({"balance": "both"}, "unknown balance 'both'; choose one of balanced, control, guess"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        control.make_controls([net(), net()], [HINT, HINT], 4, **options)


def test_wrong_networks_and_hints_are_named():
    with pytest.raises(ValueError, match="1 values of hint for 2 networks"):
        control.make_controls([net(), net()], [HINT], 4)

    def other(z, level, cond):
        skips, middle = net()(z, level, cond)
        return skips[:1], middle

    with pytest.raises(ValueError, match="for different bases"):
        _total([AppliedControl(net(), HINT), AppliedControl(other, HINT)])
    with pytest.raises(ValueError, match="3 hints or strengths for a batch of 2"):
        _total([AppliedControl(net(), jnp.zeros((3, 8, 8, 1)))])


def test_in_the_sampling_loop_the_index_is_that_of_the_evaluation():
    """Euler with a denoiser that believes in its mean: the last evaluation decides."""
    grid = grids.leading(schedules.linear(), 6)
    sampler = samplers.ddim()
    rows = sampler.plan(grid)
    zeros = jnp.zeros_like(Z)

    def last(start, end):
        controls = control.make_controls([net()], [HINT], 6, start=start, end=end)
        steered = guidance.guide(control.control(denoise, controls), COND, NULL, 1.0)
        return samplers.sample(lambda i, k=0: zeros, steered, sampler, Z, rows)[0, 0, 0, 0]

    assert float(last(0.0, 5 / 6)) == pytest.approx(1, abs=1e-4)
    assert float(last(5 / 6, 1.0)) == pytest.approx(1 + 3 * ONE, rel=1e-4)


def test_at_scale_one_nothing_of_the_null_condition_is_left():
    nothing = {"mean": jnp.full(2, jnp.nan)}
    guided = control.guide(denoise, [AppliedControl(net(), HINT)], COND, nothing, 1.0)
    assert means(guided(Z, LEVEL)) == pytest.approx([1 + 3 * ONE, 2 + 5 * ONE])
    always = control.guide(denoise, [AppliedControl(net(), HINT)], COND, nothing, 1.0, always=True)
    assert np.isnan(means(always(Z, LEVEL))).all()
