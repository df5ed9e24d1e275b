import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ddpm, improved_ddpm
from configs.base import smoke
from diffjax import likelihood, losses, samplers
from diffjax.model import denoiser, make_model, make_sampler, make_steering, sample
from diffjax.tasks import make_task
from diffjax.tasks.diffusion_task import dequantize
from diffjax.tasks.objectives import measure_simple
from diffjax.types import Level, Prediction
from tests.filled import draw_like

SHAPE = (8, 8, 1)


def config(module=ddpm, variant="digits", **sections):
    cfg = smoke(module.VARIANTS[variant]())
    for name, values in sections.items():
        cfg[name].update(values)
    return cfg


def start(cfg, classes=10):
    task = make_task(cfg, SHAPE, cfg.data.levels, classes)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.uniform(-1, 1, (4, *SHAPE)), jnp.float32),
        "label": jnp.asarray([0, 1, 2, 3]),
    }
    init = functools.partial(task.init, jax.random.key(0), None)
    shapes, _ = jax.eval_shape(init, batch)
    extra = jax.jit(lambda b: init(b)[1])(batch)
    return task, draw_like(shapes, spread=0.1), extra, batch


def loss(task, params, extra, batch, step=0):
    def call(params, extra, batch):
        return task.loss(params, None, extra, jax.random.key(5), jnp.asarray(step), batch)

    return jax.jit(call)(params, extra, batch)


def test_simple_loss_is_the_mean_squared_error_of_the_noise():
    cfg = config()
    task, params, extra, batch = start(cfg)
    value, (_, metrics) = loss(task, params, extra, batch)
    model = make_model(cfg, SHAPE, 17, 10)
    t_key, noise_key, _ = jax.random.split(jax.random.key(5), 3)
    t = jnp.floor(jax.random.uniform(t_key, (4,)) * 1000)
    a, s = (v[:, None, None, None] for v in model.schedule.at(t))
    eps = jax.random.normal(noise_key, batch["image"].shape)
    out = jax.jit(model.network.apply)({"params": params}, a * batch["image"] + s * eps, t)
    assert float(value) == pytest.approx(float(((out - eps) ** 2).mean()), rel=1e-5)
    assert float(metrics["loss"]) == float(value)


@pytest.mark.parametrize(("reduction", "factor"), [("sum", 64.0), ("half_sum", 32.0)])
def test_a_sum_over_the_numbers_of_an_image(reduction, factor):
    model = make_model(config(), SHAPE, 17, 10)
    weight = losses.make_weight("simple", {})
    raw, eps = jnp.full((2, *SHAPE), 0.5), jnp.ones((2, *SHAPE))
    level = Level(jnp.zeros(2), *model.schedule.at(jnp.array([5.0, 900.0])))
    measure = measure_simple(model, weight, losses.ERRORS["l2"], reduction)
    found, _ = measure(raw, Prediction(raw, raw), raw, eps, level)
    np.testing.assert_allclose(found, 0.25 * factor, rtol=1e-6)


def test_grey_levels_are_spread_over_their_intervals():
    """Level u of 256 becomes 2 (u + drawn) / 256 - 1 (Song & Ermon 2019, released code)."""
    levels = np.array([0.0, 100.0, 255.0])
    images = jnp.asarray(levels / 255 * 2 - 1, jnp.float32)
    for drawn in (0.0, 0.5):
        found = dequantize(images, jnp.full(3, drawn), 256)
        np.testing.assert_allclose(found, 2 * (levels + drawn) / 256 - 1, atol=1e-6)


def test_grey_levels_are_spread_if_the_config_says_so():
    def count_draws(on):
        task = make_task(config(data={"dequantize": on}), SHAPE, 17, 10)
        batch = {"image": jnp.zeros((4, *SHAPE))}
        params, extra = jax.eval_shape(task.init, jax.random.key(0), None, batch)
        step = jax.make_jaxpr(lambda p, e: task.loss(p, None, e, jax.random.key(0), 0, batch)[0])
        return str(step(params, extra)).count("random_bits")

    assert count_draws(True) == count_draws(False) + 1


def test_a_learned_variance_weighs_the_loss_of_each_level():
    cfg = config(loss={"uncertainty": True, "reduction": "sum"})
    task, params, extra, batch = start(cfg)
    plain, *_ = start(config(loss={"reduction": "sum"}))
    rest = {k: v for k, v in params.items() if k != "uncertainty"}
    value, (_, metrics) = loss(task, params, extra, batch)
    mse, _ = loss(plain, rest, extra, batch)
    assert float(metrics["mse"]) == pytest.approx(float(mse), rel=1e-5)
    # A kernel of 0 is the log-variance 0; else each image has that of its level.
    kernel = params["uncertainty"]["linear"]["kernel"]
    zero = {**params["uncertainty"], "linear": {"kernel": 0 * kernel}}
    off, _ = loss(task, {**params, "uncertainty": zero}, extra, batch)
    assert float(off) == pytest.approx(float(mse), rel=1e-5)

    model = make_model(cfg, SHAPE, 17, 10)
    t = jnp.floor(jax.random.uniform(jax.random.split(jax.random.key(5), 3)[0], (4,)) * 1000)
    alpha, sigma = model.schedule.at(t)
    fourier = params["uncertainty"]["fourier"]
    turns = jnp.outer(jnp.log(sigma / alpha) / 4, fourier["freqs"]) + fourier["phases"]
    weight = kernel[:, 0] / (1e-4 + jnp.sqrt(jnp.mean(kernel**2))) / 128**0.5
    u = 2**0.5 * jnp.cos(2 * jnp.pi * turns) @ weight
    assert float(metrics["logvar"]) == pytest.approx(float(u.mean()), rel=1e-3)

    def one(k):
        """The squared error of image k, by the loss with weights that leave the others out."""
        weights = {**batch, "weight": jnp.eye(4)[k]}
        return 4 * float(loss(plain, rest, extra, weights)[0])

    wanted = np.mean([one(k) * np.exp(-u[k]) + 64 * u[k] for k in range(4)])
    assert float(value) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"loss": {"name": "vlb"}}, {"task": "controlnet"}])
def test_a_learned_variance_is_refused_where_it_has_no_meaning(wrong):
    cfg = config(loss={"uncertainty": True, **wrong.get("loss", {})})
    cfg.task = wrong.get("task", cfg.task)
    with pytest.raises(ValueError, match=r"loss.uncertainty=True weighs the simple loss"):
        make_task(cfg, SHAPE, 17, 10)


def test_offset_and_perturbed_noise_enter_the_loss():
    # z gets the perturbed noise, and the target is the noise without the perturbation.
    cfg = config(loss={"noise_offset": 0.3, "input_perturbation": 0.2})
    task, params, extra, batch = start(cfg)
    value, _ = loss(task, params, extra, batch)
    model = make_model(cfg, SHAPE, 17, 10)
    t_key, key, _ = jax.random.split(jax.random.key(5), 3)
    t = jnp.floor(jax.random.uniform(t_key, (4,)) * 1000)
    a, s = (v[:, None, None, None] for v in model.schedule.at(t))
    eps = jax.random.normal(key, (4, *SHAPE))
    eps += 0.3 * jax.random.normal(jax.random.fold_in(key, 1), (4, 1, 1, 1))
    added = eps + 0.2 * jax.random.normal(jax.random.fold_in(key, 2), (4, *SHAPE))
    out = jax.jit(model.network.apply)({"params": params}, a * batch["image"] + s * added, t)
    assert float(value) == pytest.approx(float(((out - eps) ** 2).mean()), rel=1e-5)


@pytest.mark.parametrize("name", ["vlb", "hybrid"])
def test_the_bound_is_of_standard_noise(name):
    cfg = config(improved_ddpm, loss={"name": name, "noise_offset": 0.1})
    with pytest.raises(ValueError, match=r"N\(0, I\) alone: set loss\.noise_offset=0, or"):
        make_task(cfg, SHAPE, 17, 10)


def gradients(cfg):
    task, params, extra, batch = start(cfg)
    gradient = jax.jit(jax.grad(lambda p: loss(task, p, extra, batch)[0]))
    return gradient(params)["conv_out"]["kernel"]


def test_hybrid_trains_the_mean_by_the_simple_loss_only():
    hybrid = gradients(config(improved_ddpm))
    plain = gradients(config(improved_ddpm, loss={"name": "simple", "variance": "fixedsmall"}))
    mean, var = np.asarray(hybrid[..., :1]), np.asarray(hybrid[..., 1:])
    assert mean == pytest.approx(np.asarray(plain[..., :1]), rel=1e-4, abs=1e-7)
    assert np.abs(var).max() > 0
    assert np.abs(np.asarray(plain[..., 1:])).max() == 0


def test_vlb_trains_both():
    grad = np.asarray(gradients(config(improved_ddpm, loss={"name": "vlb"})))
    assert np.abs(grad[..., 0]).max() > 0
    assert np.abs(grad[..., 1]).max() > 0


@pytest.mark.parametrize("learned", [False, True])
def test_vlb_loss_averages_to_the_whole_bound(learned):
    # A uniform timestep makes the expected loss the sum of all terms but the prior's.
    cfg = config(
        improved_ddpm if learned else ddpm,
        schedule={"name": "linear", "steps": 4, "beta_start": 0.05, "beta_end": 0.6},
        loss={"name": "vlb"},
        times={"name": "low_discrepancy"},
    )
    task, params, extra, batch = start(cfg)
    model = make_model(cfg, SHAPE, 17, 10)
    value = jax.jit(lambda key: task.loss(params, None, extra, key, jnp.asarray(0), batch)[0])
    mean = np.mean([float(value(jax.random.key(k))) for k in range(300)])
    variance = "learned" if learned else "fixedsmall"

    @jax.jit
    def bound(key):
        noise = samplers.image_noise(jax.random.split(key, 4), SHAPE)
        out = likelihood.vlb_bits(
            denoiser(model._replace(params=params)),
            batch["image"],
            noise,
            model.grid,
            variance=variance,
            levels=17,
        )
        return out["terms"].sum(0).mean()

    whole = np.mean([float(bound(jax.random.key(k))) for k in range(40)])
    assert mean == pytest.approx(whole, rel=0.03)


def test_labels_reach_a_conditional_network():
    cfg = config(network={"conditional": True})
    task, params, extra, batch = start(cfg)
    other = {**batch, "label": batch["label"][::-1]}
    assert float(loss(task, params, extra, batch)[0]) != float(loss(task, params, extra, other)[0])
    unconditional = start(config())
    same = [float(loss(*unconditional[:3], b)[0]) for b in (batch, other)]
    assert same[0] == same[1]


def test_importance_sampler_keeps_its_history_in_extra():
    cfg = config(improved_ddpm, "digits_vlb")
    task, params, extra, batch = start(cfg)
    _, (after, _) = loss(task, params, extra, batch)
    assert int(after["times"]["counts"].sum()) == 4
    assert float(jnp.abs(after["times"]["losses"]).sum()) > 0


RECIPES = {
    "edm": {
        "schedule": {"name": "edm"},
        "parameterization": {"name": "edm"},
        "loss": {"weight": "edm"},
        "times": {"name": "log_normal"},
        "sample": {"grid": "karras", "steps": 3},
    },
    "flow": {
        "schedule": {"name": "flow"},
        "parameterization": {"name": "velocity"},
        "times": {"name": "logit_normal"},
        "sample": {"grid": "uniform", "steps": 3},
    },
    "vp_sde v min_snr": {
        "schedule": {"name": "vp_sde"},
        "parameterization": {"name": "v"},
        "loss": {"weight": "min_snr"},
        "sample": {"grid": "logsnr", "steps": 3},
    },
    "mean": {"parameterization": {"name": "mean"}, "sample": {"steps": 3}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_other_papers_are_rows_of_choices(name):
    cfg = config(**RECIPES[name])
    task, params, extra, batch = start(cfg)
    value, _ = loss(task, params, extra, batch)
    model = make_model(cfg, SHAPE, 17, 10)
    sampler, rows = make_sampler(cfg, model)
    keys, steering = jax.random.split(jax.random.key(0), 2), make_steering(cfg)

    @jax.jit
    def draw(params, rows):
        own = model._replace(params=params)
        return sample(own, None, sampler, rows, keys, steering=steering)

    images = draw(params, rows)
    assert np.isfinite(float(value))
    assert images.shape == (2, *SHAPE)
    assert np.isfinite(np.asarray(images)).all()
    assert float(jnp.abs(images).max()) <= 1


def test_bf16_networks_keep_scheduler_arithmetic_in_float32():
    cfg = config(network={"dtype": "bfloat16"})
    _, params, *_ = start(cfg)
    model = make_model(cfg, SHAPE, 17, 10)
    z = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    level = Level(jnp.asarray(500.0), *model.schedule.at(jnp.asarray(500.0)))
    p = jax.jit(lambda p: denoiser(model._replace(params=p))(z, level))(params)
    assert p.x.dtype == p.eps.dtype == jnp.float32
    assert np.asarray(level.alpha * p.x + level.sigma * p.eps) == pytest.approx(
        np.asarray(z), abs=1e-4
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"loss": {"name": "elbo"}}, "unknown loss 'elbo'; choose one of consistency, hybrid"),
        ({"loss": {"weight": "snrs"}}, "unknown loss weight 'snrs'"),
        (
            {"network": {"name": "vit"}},
            "unknown network 'vit'; choose one of dit, edm2, refinenet, unet",
        ),
        ({"times": {"name": "gauss"}}, "unknown time sampler 'gauss'"),
        (
            {"loss": {"name": "vlb"}, "schedule": {"name": "vp_sde"}},
            "vlb loss needs a discrete schedule",
        ),
        ({"parameterization": {"name": "noise"}}, "unknown parameterization 'noise'"),
    ],
)
def test_bad_config(sections, message):
    with pytest.raises(ValueError, match=message):
        make_task(config(**sections), SHAPE, 17, 10)


def test_wrong_image_shape():
    task, *_ = start(config())
    with pytest.raises(ValueError, match=r"\(8, 8, 1\) expected, got \(16, 16, 1\)"):
        task.init(jax.random.key(0), None, {"image": jnp.zeros((1, 16, 16, 1))})
