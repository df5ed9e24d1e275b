"""Properties that hold for all inputs, on examples that hypothesis chooses."""

import dataclasses
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax import data, grids, likelihood, lora, parameterization, samplers, schedules
from diffjax.pretrained import (
    from_state_dict,
    load_safetensors,
    load_scheduler,
    save_safetensors,
    to_state_dict,
)
from diffjax.pretrained.scheduler_kinds import KINDS
from diffjax.pretrained.schedulers import to_config
from diffjax.samplers.ancestral import mean_eps, variances
from diffjax.types import Level
from tests import oracle

few = settings(max_examples=20, deadline=None, derandomize=True)
fewer = settings(max_examples=6, deadline=None, derandomize=True)  # where JAX compiles by shape
positive = st.floats(0.05, 20.0)
seeds = st.integers(0, 2**32 - 1)
TABLE = grids.full(schedules.linear())

SCHEDULES = {
    "linear": dict(beta_start=st.floats(1e-5, 1e-3), beta_end=st.floats(2e-3, 0.05)),
    "scaled_linear": dict(beta_start=st.floats(1e-5, 1e-3), beta_end=st.floats(2e-3, 0.05)),
    "cosine": dict(s=st.floats(1e-3, 0.1)),
    "sigmoid": dict(start=st.floats(-5, -1), end=st.floats(1, 5), tau=st.floats(0.3, 2)),
    "vp_sde": dict(beta_min=st.floats(0.01, 1), beta_max=st.floats(2, 25)),
    "sub_vp": dict(beta_min=st.floats(0.01, 1), beta_max=st.floats(2, 25)),
    "ve": dict(sigma_min=st.floats(1e-3, 0.5), sigma_max=st.floats(1, 100)),
    "ve_discrete": dict(sigma_min=st.floats(1e-3, 0.5), sigma_max=st.floats(1, 100)),
    "edm": dict(sigma_min=st.floats(1e-3, 0.5), sigma_max=st.floats(1, 100)),
    "log_snr": dict(logsnr_min=st.floats(-20, -5), logsnr_max=st.floats(5, 20)),
    "flow": dict(shift=st.floats(0.2, 8)),
}


def draw_schedule(draw, name=None, least=12):
    """A named schedule with random options."""
    name = name or draw(st.sampled_from(sorted(SCHEDULES)))
    options = {key: draw(values) for key, values in SCHEDULES[name].items()}
    if schedules.make(name).steps:
        options["steps"] = draw(st.integers(least, 400))
    return schedules.make(name, options)


def draw_grid(draw):
    """A grid of any kind, on a schedule that has it; ends at the data or not."""
    schedule = draw_schedule(draw)
    steps = draw(st.integers(1, 12))
    if schedule.steps and draw(st.booleans()):
        return grids.make(
            draw(st.sampled_from(["leading", "trailing", "linspace"])), schedule, steps
        )
    return grids.uniform_logsnr(schedule, steps, final=draw(st.sampled_from(["clean", "last"])))


SOLVERS = sorted(set(samplers.SAMPLERS) - {"langevin", "pc", "consistency", "lcm", "ddim_inverse"})


# ---- maths ----------------------------------------------------------------------------------


@few
@given(drawn=st.data())
@pytest.mark.parametrize("name", SCHEDULES)
def test_t_of_inverts_at_and_noise_grows(name, drawn):
    schedule = draw_schedule(drawn.draw, name)
    low, high = schedule.span
    shares = st.lists(st.floats(0, 1), min_size=2, max_size=9, unique=True)
    t = np.sort(np.array(drawn.draw(shares)))
    t = low + (high - low) * t
    t = np.unique(np.round(t)) if schedule.steps else t
    alpha, sigma = schedule.at(t)
    lam = schedules.logsnr(alpha, sigma)
    assert schedule.t_of(lam) == pytest.approx(t, rel=1e-5, abs=1e-5 * (high - low))
    far = np.diff(t) > 1e-6 * (high - low)
    assert (np.diff(lam)[far] < 0).all()
    if name in ("ve", "ve_discrete", "edm"):
        assert (alpha == 1).all()
    elif name == "flow":
        assert alpha + sigma == pytest.approx(np.ones(len(t)))
    elif name == "sub_vp":
        assert alpha**2 + sigma == pytest.approx(np.ones(len(t)))
    else:
        assert alpha**2 + sigma**2 == pytest.approx(np.ones(len(t)))


@few
@given(drawn=st.data())
def test_levels_of_a_log_snr_are_found_between_timesteps_too(drawn):
    schedule = draw_schedule(drawn.draw)
    clean, noisy = (float(schedules.logsnr(*schedule.at(np.float64(t)))) for t in schedule.span)
    lam = noisy + drawn.draw(st.floats(0.01, 0.99)) * (clean - noisy)
    found = schedules.logsnr(*schedule.at(np.asarray(schedule.t_of(lam))))
    assert found == pytest.approx(lam, rel=1e-5, abs=1e-5)


@few
@given(alpha=positive, sigma=positive, data=positive, seed=seeds)
@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "velocity", "edm", "mean"])
def test_decode_inverts_target_and_gain_is_its_slope(name, alpha, sigma, data, seed):
    rng = np.random.default_rng(seed)
    t = rng.integers(0, 1000, 3)
    level = Level(t, np.full(3, alpha), np.full(3, sigma))
    if name == "mean":
        level = Level(t, *schedules.linear().at(t))
    x, eps, shift = rng.standard_normal((3, 3, 4))
    z = level.alpha[:, None] * x + level.sigma[:, None] * eps
    p = parameterization.make(name, {"sigma_data": data} if name == "edm" else None, grid=TABLE)
    with jax.enable_x64(True):
        raw = np.asarray(p.target(x, eps, level), np.float64)
        pairs = p.decode(raw, z, level)[:2], p.decode(raw + shift, z, level)[:2]
        (x_hat, _), (x_moved, eps_moved) = (map(np.asarray, pair) for pair in pairs)
        slope = np.broadcast_to(np.asarray(p.gain(level)), 3)[:, None]
    bound = 1e-3 if name == "mean" else 1e-6  # mean keeps its table in float32
    assert x_hat == pytest.approx(x, rel=bound, abs=bound)
    assert x_moved - x_hat == pytest.approx(slope * shift, rel=bound, abs=bound)
    # The pair stays consistent with z, whatever the network says.
    back = level.alpha[:, None] * x_moved + level.sigma[:, None] * eps_moved
    assert back == pytest.approx(z, rel=1e-6, abs=1e-6)


@few
@given(drawn=st.data())
def test_grids_fall_and_their_parts_join(drawn):
    grid = draw_grid(drawn.draw)
    alpha, sigma = grid.levels.alpha, grid.levels.sigma
    assert len(grid.levels.t) == grid.steps + 1 and grid.first == 0
    # Of t_of, the last digits are rounding.
    assert (np.diff(grid.levels.t) < 1e-9).all() and (np.diff(sigma / alpha) < 0).all()
    cut = drawn.draw(st.integers(0, grid.steps - 1))
    part = grids.skip(grid, cut)
    assert np.array_equal(part.levels.t, grid.levels.t[cut:])
    assert [part.remaining(i) for i in range(grid.steps - cut)] == [*range(grid.steps - cut, 0, -1)]
    again = grids.truncate(grid, strength=(grid.steps - cut + 0.5) / (grid.steps + 0.5))
    assert again.first + len(again.levels.t) == grid.steps + 1


@few
@given(drawn=st.data())
def test_reverse_steps_keep_the_marginals(drawn):
    grid = draw_grid(drawn.draw)
    beta, post = variances(grid)
    alpha, sigma = grid.levels.alpha, grid.levels.sigma
    scale = (alpha[:-1] / alpha[1:]) ** 2
    assert beta == pytest.approx(sigma[:-1] ** 2 - scale * sigma[1:] ** 2, rel=1e-4, abs=1e-9)
    assert (post >= 0).all() and (beta > 0).all()
    # The posterior is the product of N(z_s; alpha_s x, sigma_s^2) and the forward step.
    assert mean_eps(grid) ** 2 + post == pytest.approx(sigma[1:] ** 2, rel=1e-4, abs=1e-9)
    eta = drawn.draw(st.floats(0, 1))
    coef = samplers.ddim(eta).plan(grid).coef[:, 0].astype(np.float64)
    assert coef[:, 2] ** 2 + coef[:, 3] ** 2 == pytest.approx(sigma[1:] ** 2, rel=1e-4, abs=1e-9)
    assert coef[:, 3] ** 2 == pytest.approx(eta**2 * post, rel=1e-4, abs=1e-9)


@few
@given(drawn=st.data())
@pytest.mark.parametrize(
    "name",
    sorted(
        set(samplers.SAMPLERS)
        - {"langevin", "pc", "consistency", "lcm", "ddim_inverse", "euler_maruyama", "rk45"}
    ),
)
def test_a_perfect_network_of_one_image_is_followed(name, drawn):
    """If the data are one image, every deterministic solver follows the line to it exactly."""
    grid = draw_grid(drawn.draw)
    with mock.patch.object(sys.modules["diffjax.samplers.affine"], "ROW_DTYPE", np.float64):
        rows, image = samplers.make(name).plan(grid), 0.3
    stack = np.zeros((rows.coef.shape[1], 3))
    start, rng = np.array([-1.0, 0.2, 1.5]), np.random.default_rng(0)
    stack[0] = grid.levels.alpha[0] * image + grid.levels.sigma[0] * start
    for coef, alpha, sigma in zip(rows.coef, rows.level.alpha, rows.level.sigma, strict=True):
        eps = (stack[0] - alpha * image) / sigma
        x = np.full(3, image)
        stack = coef @ np.vstack([stack, x, eps, rng.standard_normal(3)])
    wanted = grid.levels.alpha[-1] * image
    spread = grid.levels.sigma[-1]
    if (rows.coef[..., -1] == 0).all():  # no noise: eps is kept
        size = max(1.0, float(grid.levels.sigma[0]))
        assert stack[0] == pytest.approx(
            wanted + spread * start, rel=2e-3, abs=2e-5 * size + 1e-3 * spread
        )
    else:
        assert (np.abs(stack[0] - wanted) <= 6 * spread + 1e-3).all()


@fewer
@given(
    seed=seeds,
    levels=st.sampled_from([2, 17, 256]),
    mean=st.floats(-1.5, 1.5),
    log=st.floats(-4, 1),
)
def test_likelihoods_are_probabilities(seed, levels, mean, log):
    x = jnp.linspace(-1, 1, levels)
    total = jnp.exp(likelihood.discretized_gaussian(x, mean, jnp.asarray(log), levels=levels)).sum()
    assert float(total) == pytest.approx(1, abs=1e-4)
    a, b, c, d = np.random.default_rng(seed).standard_normal(4)
    kl = float(likelihood.normal_kl(a, c, b, d))
    exact = (d - c) / 2 + (np.exp(c) + (a - b) ** 2) / (2 * np.exp(d)) - 0.5
    assert kl == pytest.approx(exact, rel=1e-4, abs=1e-6) and kl >= 0


# ---- trees ----------------------------------------------------------------------------------

_LAYERS = {
    "linear": lambda a, b: {"kernel": (a, b), "bias": (b,)},
    "convolution": lambda a, b: {"kernel": (3, 2, a, b), "bias": (b,)},
    "norm": lambda a, b: {"scale": (a,), "bias": (a,)},
    "embedding": lambda a, b: {"embedding": (a, b)},
}


def draw_tree(draw, kinds=tuple(_LAYERS)):
    """Parameters of random layers at random dotted paths."""
    rng, tree = np.random.default_rng(draw(seeds)), {}
    for i in range(draw(st.integers(1, 4))):
        sizes = draw(st.sampled_from([(1, 4), (3, 2)]))
        shapes = _LAYERS[draw(st.sampled_from(kinds))](*sizes)
        layer = {key: rng.standard_normal(s).astype(np.float32) for key, s in shapes.items()}
        block = draw(st.sampled_from(["mid", "blocks.0", "blocks.1"]))
        tree.setdefault(block, {})[f"layer.{i}"] = layer
    return tree


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@fewer
@given(drawn=st.data())
def test_state_dicts_round_trip(tmp_path_factory, drawn):
    tree = draw_tree(drawn.draw)
    state = to_state_dict(tree)
    assert len(state) == len(jax.tree.leaves(tree))
    assert_equal(from_state_dict(state, tree), tree)
    path = tmp_path_factory.mktemp("state") / "a.safetensors"
    save_safetensors(path, tree)
    assert_equal(load_safetensors(path, tree), tree)


@fewer
@given(drawn=st.data())
def test_adapters_add_the_product_of_their_factors_and_fold(drawn):
    tree = draw_tree(drawn.draw, ("linear", "convolution"))
    targets = sorted({name for block in tree.values() for name in block})
    rank = drawn.draw(st.sampled_from([1, 3]))
    made = lora.init(jax.random.key(0), tree, rank=rank, targets=targets)
    assert_equal(lora.merge(tree, made, 3.0), tree)  # B is 0
    rng = np.random.default_rng(1)
    made = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), made)
    scale = drawn.draw(st.floats(0.25, 4))
    merged, folded = lora.merge(tree, made, scale), lora.merge(tree, lora.fold(made, scale), 1.0)
    for block, layers in tree.items():
        for name, layer in layers.items():
            down, up = (made[block][name][key]["kernel"] for key in (lora.DOWN, lora.UP))
            wanted = layer["kernel"] + scale * down @ up
            np.testing.assert_allclose(merged[block][name]["kernel"], wanted, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(folded[block][name]["kernel"], wanted, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(merged[block][name]["bias"], layer["bias"])


# ---- data -----------------------------------------------------------------------------------


def numbered(count, groups=None):
    """A source whose images are their numbers."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return dataclasses.replace(data.from_arrays(images), groups=groups)


def numbers(batch):
    return np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)


@few
@given(
    groups=st.lists(st.integers(0, 3), min_size=1, max_size=24),
    size=st.integers(1, 5),
    seed=seeds,
)
def test_buckets_cover_all_images_in_proportion(groups, size, seed):
    groups = np.array(groups)
    source = numbered(len(groups), groups)
    batches = data.dataset(source, batch_size=size, seed=seed)
    drawn = [numbers(batches[step]) for step in range(len(groups))]
    assert all(len(set(groups[rows])) == 1 for rows in drawn)  # a batch is of one bucket
    counts = np.bincount(np.concatenate(drawn), minlength=len(groups))
    # In N steps, every image comes as often as there are rows in a batch.
    assert (counts == size).all()


@few
@given(
    count=st.integers(1, 24),
    size=st.integers(1, 5),
    seed=seeds,
    step=st.integers(0, 30),
    bucketed=st.booleans(),
)
def test_batches_resume_at_any_step(count, size, seed, step, bucketed):
    source = numbered(count, np.arange(count) % 3 if bucketed else None)
    options = dict(batch_size=size, seed=seed, num_threads=0)
    whole, resumed = data.batches(source, **options), data.batches(source, step=step, **options)
    for _ in range(step):
        next(whole)
    for _ in range(3):
        assert_equal(next(whole), next(resumed))


@few
@given(count=st.integers(1, 24), size=st.integers(1, 5), seed=seeds)
def test_an_epoch_holds_every_image_once(count, size, seed):
    batches = data.dataset(numbered(count), batch_size=size, seed=seed)
    order = np.concatenate([numbers(batches[step]) for step in range(count)])  # size epochs
    epochs = order.reshape(size, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()


# ---- schedulers of diffusers -----------------------------------------------------------------

MEANS, STD = np.array([-0.7, 0.1, 0.8]), 0.1
DISTILLED = {"LCMScheduler", "TCDScheduler"}


def exact(z, level):
    """The pair of a mixture's exact denoiser, in NumPy."""
    a, s = (np.asarray(v, np.float64) for v in (level.alpha, level.sigma))
    var, gap = a**2 * STD**2 + s**2, z[:, None] - a * MEANS
    logits = -(gap**2) / (2 * var)
    weight = np.exp(logits - logits.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    return (weight * (MEANS + a * STD**2 / var * gap)).sum(1), (weight * gap).sum(1) * s / var


@pytest.mark.parametrize("name", sorted(set(KINDS) - DISTILLED))
def test_one_denoiser_serves_every_scheduler_class(name):
    """What the network is asked and answers differs by class; the samples are of the same data."""
    scheduler = load_scheduler({"_class_name": name})
    target, grid = scheduler.parameterization, scheduler.grid(30)
    rows, rng = scheduler.rows(grid), np.random.default_rng(0)

    def denoise(z, level):
        x, eps = exact(z, level)
        return target.decode(target.target(x, eps, level), z, level)

    bounded = scheduler.bound(denoise)
    stack = np.zeros((rows.coef.shape[1], 512))
    stack[0] = grid.init_std * rng.standard_normal(512)
    for k, coef in enumerate(rows.coef):
        level = Level(*(leaf[k] for leaf in rows.level))
        x, eps, _ = (None if v is None else np.asarray(v) for v in bounded(stack[0], level))
        stack = coef @ np.vstack([stack, x, eps, rng.standard_normal(512)])
    oracle.check_mixture(stack[0] / grid.levels.alpha[-1], MEANS, 0.15)
    assert load_scheduler(to_config(scheduler)).config.items() >= scheduler.config.items()
