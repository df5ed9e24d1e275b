"""Every schedule x parameterization x sampler against the exact denoiser of a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, parameterization, samplers, schedules
from diffjax.samplers.ancestral import reverse_rows
from diffjax.types import Prediction
from tests import oracle

NAMES = ["eps", "x0", "mean", "v", "score", "velocity", "edm"]
SAMPLERS = {
    "ddim(0)": samplers.ddim(0.0),
    "ddim(0.5)": samplers.ddim(0.5),
    "fixedsmall": samplers.ancestral("fixedsmall"),
    "fixedlarge": samplers.ancestral("fixedlarge"),
    "learned": samplers.ancestral("learned"),
}
MEANS, STD = np.array([-0.7, 0.1, 0.8]), 0.1
STEPS, BATCH = 12, 64
EXACT = oracle.mixture(MEANS, STD)


def denoiser(params):
    """Row 0 of z: the exact denoiser; row 1 + k: the same through parameterization k and back."""

    def denoise(z, level):
        direct = EXACT(z, level)
        parts = [jax.tree.map(lambda leaf: leaf[0], direct._replace(var=None))]
        for k, param in enumerate(params, start=1):
            x, eps = direct.x[k], direct.eps[k]
            parts.append(param.decode(param.target(x, eps, level), z[k], level))
        x, eps = (jnp.stack([getattr(p, name) for p in parts]) for name in ("x", "eps"))
        return Prediction(x, eps, jnp.full_like(z, 0.4))

    return denoise


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_every_parameterization_and_sampler(schedule):
    s = schedules.make(schedule)
    g = grids.leading(s, STEPS) if s.steps else grids.uniform_logsnr(s, STEPS)
    names = [n for n in NAMES if n != "mean" or s.steps]
    full = grids.full(s) if s.steps else None
    denoise = denoiser([parameterization.make(n, grid=full) for n in names])
    drawn = np.random.default_rng(0).standard_normal((STEPS + 1, 1, BATCH, 1))
    noises = np.broadcast_to(drawn, (STEPS + 1, len(names) + 1, BATCH, 1))
    with jax.enable_x64(True):  # rounding is not what is tested here
        compiled = {}
        for sampler_name, sampler in SAMPLERS.items():
            rows = sampler.plan(g)

            def run(noises, rows, sampler=sampler):
                def noise(i, k=0):
                    return noises[i]

                z = samplers.prior(lambda i, k: noises[-1], rows)
                return samplers.sample(noise, denoise, sampler, z, rows)

            call = compiled.setdefault(sampler.step, jax.jit(run))
            out = np.asarray(call(jnp.asarray(noises), rows))
            oracle.check_mixture(out[0], MEANS, 0.35)
            for k, name in enumerate(names, start=1):
                tolerance = 2e-2 if name == "mean" else 2e-3
                assert out[k] == pytest.approx(out[0], abs=tolerance), (sampler_name, name)
        assert len(compiled) == 2  # all affine samplers share one executable


def test_reverse_rows_agree_with_the_affine_plan():
    g = grids.leading(schedules.linear(), STEPS)
    rows, affine = reverse_rows(g), samplers.ancestral("fixedsmall").plan(g).coef[:, 0]
    assert np.asarray(rows.coef["x"]) == pytest.approx(affine[:, 1])
    assert np.asarray(rows.coef["eps"]) == pytest.approx(affine[:, 2])
