import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, samplers, schedules
from diffjax.types import Level, Prediction
from tests import oracle

GRID = grids.leading(schedules.linear(), 10)


def test_images_do_not_depend_on_their_batch():
    keys = jax.random.split(jax.random.key(0), 4)
    four = samplers.image_noise(keys, (3,))(5, 1)
    one = samplers.image_noise(keys[2:3], (3,))(5, 1)
    assert np.array_equal(four[2], one[0])
    assert not np.array_equal(four[2], samplers.image_noise(keys, (3,))(6, 1)[2])
    assert not np.array_equal(four[2], samplers.image_noise(keys, (3,))(5, 0)[2])


def test_padded_rows_share_one_compilation():
    traces = []

    @jax.jit
    def run(z, rows, n):
        traces.append(1)
        noise = samplers.image_noise(jax.random.split(jax.random.key(1), 2), (3,))
        return samplers.sample(noise, oracle.gaussian(0.1, 0.5), samplers.ddim(), z, rows, n=n)

    z = jax.random.normal(jax.random.key(0), (2, 3))
    for steps, sampler in (
        (5, samplers.ddim(0.0)),
        (10, samplers.ddim(0.7)),
        (20, samplers.ancestral("fixedlarge")),
    ):
        rows = sampler.plan(grids.leading(schedules.linear(), steps))
        noise = samplers.image_noise(jax.random.split(jax.random.key(1), 2), (3,))
        plain = samplers.sample(noise, oracle.gaussian(0.1, 0.5), sampler, z, rows)
        assert np.asarray(run(z, samplers.pad(rows, 32), steps)) == pytest.approx(
            np.asarray(plain), rel=1e-5
        )
    assert len(traces) == 1


def test_pad_refuses_to_cut():
    with pytest.raises(ValueError, match="cannot pad 10 rows to 4"):
        samplers.pad(samplers.ddim().plan(GRID), 4)


def level():
    return Level(0.0, jnp.asarray(0.6), jnp.asarray(0.8))


def test_clip_keeps_z_consistent():
    z = jnp.array([[2.0, -0.1]])

    def denoise(z, lv):
        return Prediction(jnp.array([[3.0, 0.2]]), jnp.array([[0.25, -0.275]]))

    p = samplers.clip(denoise)(z, level())
    assert p.x.tolist() == [[1.0, pytest.approx(0.2)]]
    assert np.asarray(0.6 * p.x + 0.8 * p.eps) == pytest.approx(np.asarray(z))
    kept = samplers.clip(denoise, rederive_eps=False)(z, level())
    assert kept.eps[0, 0] == 0.25


def test_dynamic_threshold_scales_by_the_quantile():
    x = jnp.concatenate([jnp.full((1, 90), 0.5), jnp.full((1, 10), 3.0)], axis=1)

    def denoise(z, lv):
        return Prediction(x, x)

    out = samplers.dynamic_threshold(denoise, quantile=0.95, maximum=2.0)(x, level()).x
    assert float(out.max()) == 1.0
    assert np.asarray(out)[0, 0] == pytest.approx(0.25)  # s = 3 is clamped to 2
    small = samplers.dynamic_threshold(denoise, quantile=0.5, maximum=2.0)(x, level()).x
    assert np.asarray(small)[0, 0] == pytest.approx(0.5)  # s = 0.5 is clamped to 1


def test_dynamic_threshold_refuses_bad_options():
    with pytest.raises(ValueError, match="quantile"):
        samplers.dynamic_threshold(lambda z, lv: None, quantile=0.0)


def setting(steps=8, eta=0.7):
    """Sampler, plan, start, noise and denoiser of a small stochastic run."""
    sampler = samplers.ddim(eta)
    rows = sampler.plan(grids.leading(schedules.linear(), steps))
    z = jax.random.normal(jax.random.key(0), (2, 3))
    noise = samplers.image_noise(jax.random.split(jax.random.key(1), 2), (3,))
    return sampler, rows, z, noise, oracle.gaussian(0.1, 0.5)


def compiled(sampler, noise, denoise):
    traces = []

    @jax.jit
    def go(run, rows, first, last):
        traces.append(1)
        return samplers.advance(noise, denoise, sampler, run, rows, first, last)

    return go, traces


def test_steps_are_the_loop_bit_for_bit_and_one_program():
    sampler, rows, z, noise, denoise = setting()
    go, traces = compiled(sampler, noise, denoise)
    run = samplers.begin(sampler, z, rows, watch=True)
    seen = list(samplers.steps(go, run, rows))
    whole = go(run, jax.tree.map(jnp.asarray, rows), 0, 8)
    assert np.array_equal(seen[-1].run.z, whole.z)
    assert np.array_equal(seen[-1].run.x, whole.x)
    assert (seen[-1].i, seen[-1].count, len(seen), len(traces)) == (7, 8, 8, 1)
    plain = jax.jit(lambda z: samplers.sample(noise, denoise, sampler, z, rows))(z)
    assert np.asarray(plain) == pytest.approx(np.asarray(whole.z), rel=1e-6)


def test_an_edit_changes_the_rest_and_leaving_stops():
    sampler, rows, z, noise, denoise = setting(eta=0.0)
    go, _ = compiled(sampler, noise, denoise)
    done = 0
    for step in samplers.steps(go, samplers.begin(sampler, z, rows), rows):
        done += 1
        if step.i == 3:
            step.edit(jnp.ones_like(z))
        if step.i == 5:
            break
    rest = jax.tree.map(lambda leaf: leaf[4:6], rows)
    expected = samplers.sample(noise, denoise, sampler, jnp.ones_like(z), rest)
    assert done == 6
    assert np.asarray(step.run.z) == pytest.approx(np.asarray(expected), rel=1e-6)


def test_a_traced_edit_equals_an_edit_by_the_host():
    sampler, rows, z, noise, denoise = setting()

    def on_step(z, row):  # keep the first value where it would be without noise
        return z.at[:, 0].set(row.next.alpha * 0.5)

    inside = samplers.sample(noise, denoise, sampler, z, rows, on_step=on_step)
    go, _ = compiled(sampler, noise, denoise)
    for step in samplers.steps(go, samplers.begin(sampler, z, rows), rows):
        step.edit(on_step(step.run.z, jax.tree.map(lambda leaf, k=step.i: leaf[k], rows)))
    assert np.asarray(inside) == pytest.approx(np.asarray(step.run.z), rel=1e-6)
    assert inside[:, 0].tolist() == [0.5, 0.5]


def test_trajectory_holds_states_and_predictions():
    sampler, rows, z, noise, denoise = setting()
    states, predictions = jax.jit(
        lambda z, rows, n: samplers.trajectory(noise, denoise, sampler, z, rows, n=n)
    )(z, samplers.pad(rows, 10), 8)
    assert states.shape == predictions.shape == (10, 2, 3)
    assert not states[8:].any()
    end = samplers.sample(noise, denoise, sampler, z, rows)
    assert np.asarray(states[7]) == pytest.approx(np.asarray(end), rel=1e-6)
    before = jnp.concatenate([z[None], states[:7]])
    for k in range(8):
        level = jax.tree.map(lambda leaf, k=k: jnp.asarray(leaf[k]), rows.level)
        assert np.asarray(predictions[k]) == pytest.approx(
            np.asarray(denoise(before[k], level).x), rel=1e-5
        )


def test_a_trajectory_can_keep_some_states():
    sampler, rows, z, noise, denoise = setting()
    states, predictions = samplers.trajectory(noise, denoise, sampler, z, rows)
    some, seen = jax.jit(
        lambda z, rows, at: samplers.trajectory(noise, denoise, sampler, z, rows, at=at)
    )(z, rows, jnp.asarray([0, 3, 3, 8]))
    assert np.array_equal(some[0], z) and not seen[0].any()
    for k, row in ((1, 3), (2, 3), (3, 8)):
        assert np.asarray(some[k]) == pytest.approx(np.asarray(states[row - 1]), rel=1e-6)
        assert np.asarray(seen[k]) == pytest.approx(np.asarray(predictions[row - 1]), rel=1e-5)


def test_given_noise_replaces_the_keys():
    sampler, rows, z, noise, denoise = setting()
    draws = jnp.stack([noise(i) for i in range(8)])
    given = samplers.sample(samplers.replay_noise(draws), denoise, sampler, z, rows)
    drawn = samplers.sample(noise, denoise, sampler, z, rows)
    assert np.asarray(given) == pytest.approx(np.asarray(drawn), rel=1e-6)
    assert np.array_equal(samplers.replay_noise(draws, 2 * draws)(3, 1), 2 * draws[3])
    with pytest.raises(ValueError, match="a row asks for draw 1"):
        samplers.replay_noise(draws)(0, 1)


def test_progress_is_reported_in_order_and_costs_nothing_unused():
    sampler, rows, z, noise, denoise = setting()
    seen = []
    run = jax.jit(
        lambda z: samplers.sample(
            noise, denoise, sampler, z, rows, progress=lambda k: seen.append(int(k))
        )
    )
    run(z).block_until_ready()
    jax.effects_barrier()
    assert seen == list(range(8))
    plain = jax.jit(lambda z: samplers.sample(noise, denoise, sampler, z, rows))
    assert "callback" in run.lower(z).as_text()
    assert "callback" not in plain.lower(z).as_text()


def test_dynamic_threshold_clips_at_one_unless_told_otherwise():
    x = jnp.linspace(-3, 3, 400)[None]
    out = samplers.dynamic_threshold(lambda z, lv: Prediction(x, x))(x, level())
    assert np.asarray(out.x) == pytest.approx(np.clip(np.asarray(x), -1, 1))
    kept = samplers.dynamic_threshold(lambda z, lv: Prediction(x, 2 * x), rederive_eps=False)
    assert np.array_equal(kept(x, level()).eps, 2 * x)
    assert np.asarray(0.6 * out.x + 0.8 * out.eps) == pytest.approx(np.asarray(x), abs=1e-5)


@pytest.mark.parametrize(
    ("schedule", "std"),
    [
        (schedules.ve(0.001, 0.015), 0.015),  # alpha^2 + sigma^2 is barely more than 1
        (schedules.ve(0.01, 50.0), 50.0),
        (schedules.vp_sde(), 1.0),
        (schedules.sub_vp(), 1.0),
        (schedules.flow(), 1.0),
    ],
)
def test_the_prior_has_the_spread_of_the_first_level(schedule, std):
    grid = grids.uniform_logsnr(schedule, 4)
    z = samplers.prior(lambda i, k: 100.0 * k + i + jnp.ones(3), samplers.ddim().plan(grid))
    assert np.asarray(z) == pytest.approx(np.full(3, 101 * std), rel=1e-6)
    assert grid.init_std == pytest.approx(std)
