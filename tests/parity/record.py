"""The cases as diffusers computes them; run as a script, it renews tests/golden/.

    python -m tests.parity.record

The goldens hold a few of the cases, so that `make test` can compare without torch.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_ddpm

from tests.parity import cases
from tests.parity.layout import nchw, nhwc

GOLDEN = Path(__file__).parents[1] / "golden"


def unet(case: cases.UNetCase) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output, and the gradients of <output, cotangent> as a state dict."""
    net = diffusers.UNet2DModel(sample_size=case.size, **case.theirs).eval()
    state = cases.random_state({key: tuple(v.shape) for key, v in net.state_dict().items()})
    net.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    given = cases.unet_inputs(case)
    labels = torch.from_numpy(given["label"]) if case.classes else None
    out = net(nchw(given["z"]), torch.from_numpy(given["t"]), class_labels=labels).sample
    (out * nchw(given["cotangent"])).sum().backward()
    return nhwc(out), {key: value.grad.numpy() for key, value in net.named_parameters()}


def scheduler(case: cases.SamplerCase) -> diffusers.SchedulerMixin:
    """The scheduler of a case, ready to step."""
    shared = dict(
        clip_sample=case.clip,
        timestep_spacing=case.spacing,
        steps_offset=case.offset,
        prediction_type=case.prediction,
        thresholding=case.threshold,
        dynamic_thresholding_ratio=cases.THRESHOLD["quantile"],
        sample_max_value=cases.THRESHOLD["maximum"],
    )
    if case.kind == "ddpm":
        made = diffusers.DDPMScheduler(variance_type=case.variance, **shared)
    else:
        made = diffusers.DDIMScheduler(set_alpha_to_one=case.clean, **shared)
    made.set_timesteps(case.steps)
    return made


def abar() -> np.ndarray:
    """diffusers' alphas_cumprod (T,) of linear betas, which it forms in float32."""
    return diffusers.DDPMScheduler().alphas_cumprod.numpy()


def sample(case: cases.SamplerCase, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Where a case ends; in float64, the float32 abar are kept and the arithmetic is exact."""
    made = scheduler(case)
    made.alphas_cumprod = made.alphas_cumprod.to(dtype)
    z = nchw(cases.start()).to(dtype)
    drawn = [nchw(noise).to(dtype) for noise in cases.noises(case.steps)]
    for noise, t in zip(drawn, made.timesteps, strict=True):
        raw = cases.model(torch, z, t.to(dtype))
        if case.kind == "ddim":
            given = {"eta": case.eta, "variance_noise": noise if case.eta else None}
        else:
            given = {}
            if case.variance == "learned_range":
                raw = torch.cat([raw, cases.variance_model(torch, z, t.to(dtype))], dim=1)
        with mock.patch.object(scheduling_ddpm, "randn_tensor", lambda *_, _n=noise, **__: _n):
            z = made.step(raw, t, z, **given).prev_sample
    return nhwc(z)


def _record() -> None:
    GOLDEN.mkdir(exist_ok=True)
    outputs = {name: unet(case)[0] for name, case in cases.SMALL_UNETS.items()}
    np.savez_compressed(GOLDEN / "unet.npz", **outputs)
    kept = [case for case in cases.SAMPLER_CASES if case.steps <= 50]
    ends = np.stack([sample(case) for case in kept])
    np.savez_compressed(
        GOLDEN / "samplers.npz", names=[case.name for case in kept], ends=ends, abar=abar()
    )


if __name__ == "__main__":
    _record()
