"""Bits of a model whose denoiser is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, likelihood, parameterization, samplers, schedules
from diffjax.evaluation import PixelModel, evaluate
from diffjax.evaluation.likelihood_bits import (
    measure_bits,
    measure_bits_by_steps,
    measure_inversion,
    measure_ode_bits,
)
from diffjax.types import Prediction
from tests import oracle

LEVELS = 17


def denoiser(params, cond):
    """Exact for data N(0, params^2), or of mean 0.1 label."""

    def denoise(z, level):
        mean = 0.0 if cond is None else 0.1 * cond["label"][:, None, None, None]
        return oracle.gaussian(mean, params)(z, level)

    return denoise


def model(**options):
    schedule = schedules.linear(steps=50, beta_start=0.002, beta_end=0.4)
    return PixelModel(
        **{
            "denoiser": denoiser,
            "params": jnp.float32(0.5),
            "schedule": schedule,
            "parameterization": parameterization.eps(),
            "levels": LEVELS,
            "grid": grids.full(schedule),
            "batch_size": 5,
            **options,
        }
    )


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    levels = np.clip(np.rint(rng.normal(0, 0.5, (12, 4, 4, 1)) * 8) / 8, -1, 1)
    return levels.astype(np.float32)


def test_bits_are_those_of_the_bound_and_do_not_depend_on_batches(images):
    found = measure_bits(model(), images)
    assert (found["bits_images"], found["bits_variance"]) == (12, "fixedsmall")
    keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(2), k))(jnp.arange(12))
    noise = samplers.image_noise(keys, (4, 4, 1))
    bound = likelihood.vlb_bits(denoiser(0.5, None), images, noise, model().grid, levels=LEVELS)
    assert found["bits_per_dim"] == pytest.approx(float(bound["total"].mean()), rel=1e-5)
    error = np.asarray(bound["total"]).std(ddof=1) / np.sqrt(12)
    assert found["bits_per_dim_se"] == pytest.approx(error, rel=1e-4)
    assert found["rate"] + found["distortion_bits"] == pytest.approx(found["bits_per_dim"])
    whole = measure_bits(model(batch_size=100), images)
    for key in ("bits_per_dim", "bits_per_dim_se", "rate", "rate_in_last_tenth"):
        assert whole[key] == pytest.approx(found[key], rel=1e-5)
    assert (
        found["bits_per_dim"]
        < measure_bits(model(params=jnp.float32(0.05)), images)["bits_per_dim"]
    )
    curve = found["rate_distortion"]
    assert len(curve["rate"]) == 50 and curve["rate"] == sorted(curve["rate"])


def test_clipping_variance_and_labels_reach_the_bound(images):
    plain = measure_bits(model(), images)
    assert measure_bits(model(variance="fixedlarge"), images)["bits_variance"] == "fixedlarge"
    wide = model(denoiser=lambda params, cond: lambda z, level: Prediction(1.5 + 0 * z, z))
    clipped = measure_bits(wide._replace(clip=True), images)
    assert clipped["bits_clip"] and not plain["bits_clip"]
    assert clipped["bits_per_dim"] < measure_bits(wide, images)["bits_per_dim"]
    right = measure_bits(model(), images, np.zeros(12, np.int32))
    assert right["bits_per_dim"] == pytest.approx(plain["bits_per_dim"], rel=1e-5)
    assert measure_bits(model(), images, np.full(12, 9))["bits_per_dim"] > plain["bits_per_dim"]


def test_learned_variance_is_used_where_it_is_predicted():
    learned = parameterization.make("eps", learned_variance=True)
    assert model(parameterization=learned).bound_variance == "learned"
    assert model(variance="fixedlarge").bound_variance == "fixedlarge"


def test_the_bound_needs_a_grid(images):
    with pytest.raises(ValueError, match="needs a discrete schedule"):
        measure_bits(model(grid=None), images)
    found = measure_bits_by_steps(model(grid=None), images, None, [10, 25])
    assert list(found) == ["10", "25"]
    assert found["10"]["bits_per_dim"] > found["25"]["bits_per_dim"]


def test_ode_bits_are_those_of_the_flow(images):
    found = measure_ode_bits(model(batch_size=4), images)
    whole = measure_ode_bits(model(batch_size=12), images)
    assert found["ode_bits_images"] == 12
    assert found["ode_bits_per_dim"] == pytest.approx(whole["ode_bits_per_dim"], rel=1e-4)
    entropy = np.log2(8 * 0.5 * np.sqrt(2 * np.pi * np.e))
    assert entropy - 0.3 < found["ode_bits_per_dim"] < entropy + 0.3


def test_errors_of_there_and_back_again_fall_with_steps(images):
    found = measure_inversion(model(), images)  # of a schedule with 50 steps
    errors = found["reconstruction_mse"]
    assert list(errors) == ["10", "20", "50"]
    assert errors["10"] > errors["20"] > errors["50"] > 0
    slope = np.polyfit(np.log([10, 20, 50]), np.log([*errors.values()]), 1)[0]
    assert found["reconstruction_slope"] == pytest.approx(slope) and slope < -1
    # One step there and one back by hand, for the scale: images in [0, 1].
    schedule = model().schedule
    up, down = samplers.make("ddim_inverse"), samplers.make("ddim", {"eta": 0.0})
    grid = grids.make("leading", schedule, 10)
    x = jnp.asarray(images)

    def still(i, k=0):
        return jnp.zeros_like(x)

    denoise = denoiser(0.5, None)
    z = samplers.sample(still, denoise, up, x, up.plan(grid))
    again = samplers.sample(still, denoise, down, z, down.plan(grid))
    expected = float(jnp.square((again - x) / 2).mean())
    assert found["reconstruction_mse"]["10"] == pytest.approx(expected, rel=1e-4)


def test_the_table_measures_a_model(images):
    found = evaluate(
        metrics=["bits", "ode_bits", "reconstruction"],
        model=model(),
        test_images=images,
        bits_images=6,
        bits_steps=[10],
    )
    assert found["bits_images"] == found["ode_bits_images"] == 6
    assert found["bits_per_dim"] == measure_bits(model(), images[:6])["bits_per_dim"]
    assert set(found["bits_by_steps"]) == {"10"}
    curve = likelihood.rate_distortion  # the key of the result has its name
    assert curve.__name__ in found and "reconstruction_slope" in found
