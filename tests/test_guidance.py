"""Guidance against closed forms: Gaussians whose guided distribution is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, guidance, parameterization, samplers, schedules
from diffjax.types import Level, Prediction
from tests import oracle

MEAN, NULL_MEAN, STD = 0.5, 0.1, 0.25


def conditional(z, level, cond):
    """N(mean, STD^2) for the mean (B,) of each image."""
    means = cond["mean"][:, None]
    base = oracle.gaussian(0.0, STD)(z - jnp.asarray(level.alpha) * means, level)
    return Prediction(base.x + means, base.eps)


ONE = {"mean": jnp.ones(3)}


def pair(count):
    return {"mean": jnp.full(count, MEAN)}, {"mean": jnp.full(count, NULL_MEAN)}


Z = jax.random.normal(jax.random.key(0), (6, 4))
LEVEL = Level(jnp.float32(0.4), jnp.float32(0.8), jnp.float32(0.6), jnp.int32(2))


@pytest.mark.parametrize("w", [0.0, 0.5, 2.0])
def test_two_gaussians_of_equal_variance(w):
    count = 8000
    grid = grids.uniform_logsnr(schedules.log_snr(-12.0, 12.0), 200)
    rows, sampler = samplers.ddim(0.0).plan(grid), samplers.ddim(0.0)
    denoise = guidance.guide(conditional, *pair(count), 1 + w)

    @jax.jit
    def run(key):
        z = jax.random.normal(key, (count, 1))
        return samplers.sample(lambda i, k=0: jnp.zeros_like(z), denoise, sampler, z, rows)

    out = np.asarray(run(jax.random.key(1)))
    wanted = (1 + w) * MEAN - w * NULL_MEAN
    assert out.mean() == pytest.approx(wanted, abs=4 * STD / np.sqrt(count) + 0.01)
    assert out.std() == pytest.approx(STD, rel=4 / np.sqrt(2 * count) + 0.02)


@pytest.mark.parametrize("sequential", [False, True])
def test_the_ends_of_the_scale(sequential):
    cond, null = pair(6)

    @jax.jit
    def run(scale, cond, null):
        return guidance.guide(conditional, cond, null, scale, sequential=sequential)(Z, LEVEL)

    nothing = {"mean": jnp.full(6, jnp.nan)}
    at_one, at_zero = run(1.0, cond, nothing), run(0.0, cond, null)
    for out, condition, ulp in ((at_one, cond, 2), (at_zero, null, 16)):
        exact = conditional(Z, LEVEL, condition)  # compiled apart: the last digits may differ
        np.testing.assert_allclose(out.x, exact.x, rtol=ulp * 6e-8, atol=ulp * 6e-8)
        np.testing.assert_allclose(out.eps, exact.eps, rtol=ulp * 6e-8, atol=ulp * 6e-8)
    # Bit by bit under one compilation: nothing of the null condition is left at scale 1.
    other = run(1.0, cond, null)
    np.testing.assert_array_equal(at_one.x, other.x)
    np.testing.assert_array_equal(at_one.eps, other.eps)


def test_sequential_is_batched_and_levels_may_differ_by_image():
    cond, null = pair(6)
    level = Level(jnp.linspace(0.1, 0.9, 6), jnp.linspace(0.2, 0.9, 6), jnp.full(6, 0.5), 0)

    def per_image(z, level, cond):
        level = level._replace(alpha=level.alpha[:, None], sigma=level.sigma[:, None])
        return conditional(z, level, cond)

    outs = [
        guidance.guide(per_image, cond, null, 3.0, sequential=kind)(Z, level)
        for kind in (False, True)
    ]
    np.testing.assert_allclose(outs[0].x, outs[1].x, rtol=1e-6)
    np.testing.assert_allclose(outs[0].eps, outs[1].eps, rtol=1e-6)


def test_the_null_pass_runs_only_where_the_scale_is_not_one():
    ran = []

    def weak(z, level):
        jax.debug.callback(lambda i: ran.append(int(i)), level.i)
        return conditional(z, level, pair(6)[1])

    rows = samplers.ddim().plan(grids.leading(schedules.linear(), 8))
    ratio = rows.level.sigma / rows.level.alpha
    scale = guidance.schedule(rows, 3.0, low=float(ratio[5]), high=float(ratio[2]))

    def strong(z, level):
        return conditional(z, level, pair(6)[0])

    denoise = guidance.contrast(strong, weak, scale)
    zeros = jnp.zeros_like(Z)
    jax.jit(lambda z: samplers.sample(lambda i, k=0: zeros, denoise, samplers.ddim(), z, rows))(Z)
    jax.effects_barrier()
    assert ran == [2, 3, 4, 5]


def test_other_scales_do_not_recompile():
    traces = []

    @jax.jit
    def run(scale):
        traces.append(1)
        return guidance.guide(conditional, *pair(6), scale)(Z, LEVEL).x

    for scale in (1.0, 2.0, 7.5):
        run(scale)
    run(np.linspace(1, 6, 6, dtype=np.float32))  # a scale for every image
    assert len(traces) == 2


@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "velocity", "edm"])
def test_every_parameterization_is_guided_the_same(name):
    param = parameterization.make(name)
    cond, null = pair(6)
    c, u = (conditional(Z, LEVEL, k) for k in (cond, null))
    raws = [param.target(p.x, p.eps, LEVEL) for p in (c, u)]
    by_raw = param.decode(raws[1] + 3.0 * (raws[0] - raws[1]), Z, LEVEL)
    by_pair = guidance.cfg(c, u, 3.0, Z, LEVEL)
    np.testing.assert_allclose(by_raw.x, by_pair.x, atol=2e-5)
    np.testing.assert_allclose(by_raw.eps, by_pair.eps, atol=2e-5)


def test_scale_is_per_image_and_variance_is_conditional():
    cond, null = pair(6)
    c, u = (conditional(Z, LEVEL, k) for k in (cond, null))
    c, u = c._replace(var=jnp.full_like(Z, 0.2)), u._replace(var=jnp.full_like(Z, 0.9))
    scale = jnp.arange(6.0)
    out = guidance.cfg(c, u, scale, Z, LEVEL)
    for b in range(6):
        one = guidance.cfg(c, u, float(b), Z, LEVEL)
        np.testing.assert_allclose(out.x[b], one.x[b], rtol=1e-6)
    np.testing.assert_array_equal(out.var, c.var)


def test_rescale_restores_the_spread():
    cond, null = pair(6)
    for name in ("eps", "v"):
        param = parameterization.make(name)
        c, u = (conditional(Z, LEVEL, k) for k in (cond, null))
        out = guidance.rescale(param, 1.0)(c, u, 5.0, Z, LEVEL)
        raw, wanted = (np.asarray(param.target(p.x, p.eps, LEVEL)) for p in (out, c))
        np.testing.assert_allclose(raw.std(1), wanted.std(1), rtol=1e-4)
        none = guidance.rescale(param, 0.0)(c, u, 5.0, Z, LEVEL)
        np.testing.assert_allclose(none.x, guidance.cfg(c, u, 5.0, Z, LEVEL).x, atol=1e-5)


def test_projected_guidance_adds_nothing_parallel():
    cond, null = pair(6)
    c, u = (conditional(Z, LEVEL, k) for k in (cond, null))
    out = guidance.apg(eta=0.0)(c, u, 4.0, Z, LEVEL)
    parallel = ((out.x - c.x) * c.x).sum(1)
    assert np.abs(np.asarray(parallel)).max() < 1e-4
    np.testing.assert_allclose(LEVEL.alpha * out.x + LEVEL.sigma * out.eps, Z, atol=1e-5)
    plain = guidance.apg(eta=1.0)(c, u, 4.0, Z, LEVEL)
    np.testing.assert_allclose(plain.x, guidance.cfg(c, u, 4.0, Z, LEVEL).x, atol=1e-5)
    small = guidance.apg(eta=1.0, norm_limit=0.01)(c, u, 2.0, Z, LEVEL)
    np.testing.assert_allclose(np.linalg.norm(small.x - c.x, axis=1), 0.01, rtol=1e-3)


def test_cfg_plus_plus_renoises_with_the_unconditional_eps():
    c, u = (conditional(Z, LEVEL, k) for k in pair(6))
    out = guidance.cfg_plus_plus(c, u, 0.6, Z, LEVEL)
    np.testing.assert_array_equal(out.eps, u.eps)
    np.testing.assert_allclose(out.x, u.x + 0.6 * (c.x - u.x), rtol=1e-6)


def test_classifier_guidance_turns_one_gaussian_into_another():
    """The prior N(0, 1) times p(y|x) = N(y; x, r^2) is N(y/(1+r^2), r^2/(1+r^2))."""
    y, r = 0.8, 0.5

    def log_prob(z, level):  # p(y | z) for x | z Gaussian
        a, s = level.alpha, level.sigma
        var = s**2 / (a**2 + s**2)
        mean = a / (a**2 + s**2) * z
        return (-0.5 * (y - mean) ** 2 / (var + r**2)).sum(-1)

    guided = guidance.classifier(oracle.gaussian(0.0, 1.0), log_prob, 1.0)(Z, LEVEL)
    exact = oracle.gaussian(y / (1 + r**2), r / np.sqrt(1 + r**2))(Z, LEVEL)
    np.testing.assert_allclose(guided.x, exact.x, atol=1e-5)
    np.testing.assert_allclose(guided.eps, exact.eps, atol=1e-5)


def test_drop_takes_all_leaves_of_an_image_at_the_given_rate():
    count = 20_000
    cond = {"label": jnp.arange(count), "context": jnp.ones((count, 2, 3))}
    null = {"label": jnp.full(count, -1), "context": jnp.zeros((count, 2, 3))}
    out = guidance.drop(jax.random.key(0), cond, null, 0.2)
    gone = np.asarray(out["label"] == -1)
    np.testing.assert_array_equal(np.asarray(out["context"]).reshape(count, -1).all(1), ~gone)
    assert gone.mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / count))


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: guidance.drop(jax.random.key(0), ONE, ONE, -0.1), "drop rate"),
        (lambda: guidance.rescale(parameterization.eps(), 1.5), "rescale"),
        (lambda: guidance.guide(conditional, ONE, {"mean": jnp.ones(2)}, 2.0), "differ"),
        (lambda: guidance.guide(conditional, ONE, {}, 2.0), "differ"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_drop_of_none_and_of_all(rate):
    cond, null = {"label": jnp.arange(50)}, {"label": jnp.full(50, -1)}
    out = guidance.drop(jax.random.key(0), cond, null, rate)["label"]
    np.testing.assert_array_equal(out, (null if rate else cond)["label"])


@pytest.mark.parametrize("phi", [0.3, 0.8])
def test_rescale_mixes_the_spreads(phi):
    param = parameterization.make("v")
    c, u = (conditional(Z, LEVEL, k) for k in pair(6))
    raws = [
        np.asarray(param.target(p.x, p.eps, LEVEL))
        for p in (
            guidance.rescale(param, phi)(c, u, 5.0, Z, LEVEL),
            c,
            guidance.cfg(c, u, 5.0, Z, LEVEL),
        )
    ]
    found, wanted, guided = (raw.std(1) for raw in raws)
    np.testing.assert_allclose(found, phi * wanted + (1 - phi) * guided, rtol=1e-4)
    # A factor per image and nothing else.
    np.testing.assert_allclose(raws[0] / raws[2], np.tile((found / guided)[:, None], 4), rtol=1e-3)


def _pair(seed=0, shape=(2, 6, 5, 1)):
    """A noisy array, its level, and a conditional and an unconditional prediction of velocities."""
    rng = np.random.default_rng(seed)
    z, *raws = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3))
    level = Level(jnp.asarray(0.4), jnp.asarray(0.6), jnp.asarray(0.4), 0)
    param = parameterization.make("velocity")
    c, u = (param.decode(raw, z, level) for raw in raws)
    return param, z, level, raws, c, u


@pytest.mark.parametrize("name", guidance.RULES)
def test_every_rule_is_the_conditional_prediction_at_scale_1(name):
    param, z, level, _, c, u = _pair()
    found = guidance.make_rule(name, param)(c, u, 1.0, z, level)
    np.testing.assert_allclose(found.x, c.x, atol=1e-5)
    np.testing.assert_allclose(found.eps, c.eps, atol=1e-5)


@pytest.mark.parametrize("name, options", [
    ("apg", {"eta": 1.0}), ("fdg", {"low": 1.0}), ("cfg", {})
])  # fmt: skip
def test_rules_are_classifier_free_guidance_with_their_extra_off(name, options):
    param, z, level, _, c, u = _pair()
    found = guidance.make_rule(name, param, options)(c, u, 3.0, z, level)
    wanted = guidance.cfg(c, u, 3.0, z, level)
    np.testing.assert_allclose(found.x, wanted.x, atol=1e-4)


def test_the_optimised_scale_is_the_length_of_one_half_along_the_other():
    param, z, level, (said, silent), c, u = _pair()
    found = guidance.cfg_zero_star(parameterization=param)(c, u, 2.5, z, level)
    said, silent = np.asarray(said, np.float64), np.asarray(silent, np.float64)
    k = np.array([(a * b).sum() / (b * b).sum() for a, b in zip(said, silent, strict=True)])
    base = k[:, None, None, None] * silent
    wanted = base + 2.5 * (said - base)
    np.testing.assert_allclose(param.target(found.x, found.eps, level), wanted, atol=1e-5)
    # Halves that point the same way: guidance changes nothing, whatever their lengths.
    u = param.decode(jnp.asarray(0.3 * said, jnp.float32), z, level)
    same = guidance.cfg_zero_star(parameterization=param)(c, u, 5.0, z, level)
    np.testing.assert_allclose(same.x, c.x, atol=1e-4)


def test_a_flow_does_not_move_in_its_first_steps():
    param = parameterization.make("velocity")
    schedule = schedules.flow(t_min=0.0, t_max=1.0)
    sampler = samplers.make("euler")
    rows = sampler.plan(grids.uniform(schedule, 4, final="last"))

    def denoise(z, level):
        return param.decode(jnp.ones_like(z), z, level)

    z = jnp.full((1, 2, 2, 1), 5.0)
    noise = samplers.image_noise(jax.random.split(jax.random.key(0), 1), (2, 2, 1))
    for steps, wanted in ((0, 4.0), (1, 4.25), (4, 5.0)):
        quiet = guidance.zero_first(denoise, param, steps)
        found = samplers.sample(noise, quiet, sampler, z, rows)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_low_frequencies_get_their_own_share_of_guidance():
    flat = jnp.ones((1, 16, 16, 1))
    fine = jnp.asarray((-1.0) ** np.add.outer(np.arange(16), np.arange(16)))[None, :, :, None]
    np.testing.assert_allclose(guidance.pass_low(flat), flat, rtol=1e-6)
    assert np.abs(guidance.pass_low(fine)[:, 6:10, 6:10]).max() < 1e-6  # away from the sides
    param, level = parameterization.make("velocity"), Level(*map(jnp.asarray, (0.4, 0.6, 0.4)))
    z = jnp.zeros_like(flat)
    u = param.decode(z, z, level)._replace(x=z)
    for update, factor in ((flat, 1 + 2 * 0.25), (fine, 3.0)):
        c = u._replace(x=update)
        found = guidance.fdg(low=0.25)(c, u, 3.0, z, level).x[:, 6:10, 6:10]
        np.testing.assert_allclose(found, factor * update[:, 6:10, 6:10], rtol=1e-5)


def test_an_unknown_rule_and_option_are_named():
    param = parameterization.make("velocity")
    with pytest.raises(ValueError, match="Did you mean 'cfg_zero_star'"):
        guidance.make_rule("cfg_zero", param)
    with pytest.raises(ValueError, match="does not take the option 'low'"):
        guidance.make_rule("apg", param, {"low": 1.0})


def test_guidance_of_the_first_channels_leaves_the_others_conditional():
    param, z, level, _, c, u = _pair(shape=(2, 6, 5, 4))
    found = guidance.make_rule("cfg", param, {"channels": 2})(c, u, 3.0, z, level)
    whole = guidance.cfg(c, u, 3.0, z, level)
    for part, guided, plain in ((found.x, whole.x, c.x), (found.eps, whole.eps, c.eps)):
        np.testing.assert_allclose(part[..., :2], guided[..., :2], rtol=1e-6)
        np.testing.assert_allclose(part[..., 2:], plain[..., 2:], rtol=1e-5, atol=1e-6)
    assert guidance.make_rule("cfg", param) is guidance.cfg
