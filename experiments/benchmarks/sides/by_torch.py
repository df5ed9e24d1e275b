"""The rows of the speed suites by torch and diffusers, as their users would write them.

Started by `speed`, in the environment that `make peers` makes. It imports nothing of diffjax.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import contextlib  # noqa: E402
import platform  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from experiments.benchmarks import torch_operators  # noqa: E402, F401
from experiments.benchmarks.sides.server import Call, Work, serve  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Run = Callable[[], Any]


def _load(work: Work, name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Load a network that `by_diffjax` described and drew weights for."""
    import diffusers

    config = work.read_config(name)
    net = getattr(diffusers, config.pop("_class_name")).from_config(config)
    net.load_state_dict(load_file(work.folder / f"{name}.safetensors"))
    return net.to(DEVICE, dtype)


def _to_tensor(value: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Move an array to the device; (B, H, W, C) becomes (B, C, H, W)."""
    tensor = torch.from_numpy(value).to(DEVICE)
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    """Move an output back, with channels last."""
    array = tensor.float().cpu().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def _finish() -> None:
    """Wait until the device has done what it was told to."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


class _UNet:
    """A UNet with the inputs of a row."""

    def __init__(self, work: Work):
        self.half = work.options["dtype"] == "bfloat16"
        self.inputs = {k: _to_tensor(v) for k, v in work.read_inputs().items()}
        self.conditional = "context" in self.inputs
        self.trains = work.kind == "train"
        # Training keeps float32 parameters; generation has them in the type of the computation.
        dtype = torch.bfloat16 if self.half and not self.trains else torch.float32
        self.dtype = dtype
        self.net = _load(work, "unet", dtype)
        self.net.train(self.trains)
        self.compiled = work.side == "torch_compile"
        self.call: Any = torch.compile(self.net) if self.compiled else self.net

    def condition(self, count: int | None = None) -> dict[str, Any]:
        """Return the keyword arguments of the condition, of ``count`` images."""
        if not self.conditional:
            return {}
        cond: dict[str, Any] = {"encoder_hidden_states": self.inputs["context"][:count]}
        if "time_ids" in self.inputs:
            names = ("text_embeds", "time_ids")
            cond["added_cond_kwargs"] = {k: self.inputs[k][:count].to(self.dtype) for k in names}
        cond["encoder_hidden_states"] = cond["encoder_hidden_states"].to(self.dtype)
        return cond

    @torch.no_grad()
    def check(self) -> np.ndarray:
        """Evaluate the network on the first two images, without dropout."""
        self.net.eval()
        z, t = self.inputs["z"][:2], self.inputs["t"][:2]
        out = self.net(z.to(self.dtype), t, **self.condition(2)).sample
        self.net.train(self.trains)
        return _to_array(out)


def _make_evaluation(work: Work) -> tuple[Run, Run]:
    """Make the call of one evaluation of a UNet."""
    unet = _UNet(work)
    z, cond = unet.inputs["z"].to(unet.dtype), unet.condition()

    @torch.inference_mode()
    def run() -> None:
        """Evaluate it."""
        unet.call(z, unet.inputs["t"], **cond)
        _finish()

    return run, unet.check


def _make_step(work: Work) -> tuple[Run, Run]:
    """Make the call of one training step: noise, loss, gradient, clipping, Adam and average."""
    unet, o = _UNet(work), work.options
    parameters = list(unet.net.parameters())
    average = [p.detach().clone() for p in parameters]
    kind = torch.optim.AdamW if o["optimizer"] == "adamw" else torch.optim.Adam
    optimizer = kind(parameters, lr=o["lr"], fused=True)
    abar = torch.linspace(0.9999, 0.01, 1000, device=DEVICE)
    x, cond = unet.inputs["z"], unet.condition()
    half = torch.autocast(DEVICE.type, torch.bfloat16) if unet.half else contextlib.nullcontext()

    def run() -> None:
        """Train on the batch, and read the loss."""
        noise, t = torch.randn_like(x), torch.randint(0, 1000, x.shape[:1], device=DEVICE)
        a = abar[t].view(-1, 1, 1, 1)
        with half:
            out = unet.call(a.sqrt() * x + (1 - a).sqrt() * noise, t, **cond).sample
            loss = torch.nn.functional.mse_loss(out.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        if o["clip"]:
            torch.nn.utils.clip_grad_norm_(parameters, o["clip"])
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-4)
        loss.item()

    first = unet.check()  # before the parameters change
    return run, lambda: first


def _make_sampling(work: Work) -> tuple[Run, Run]:
    """Make the call of diffusers' DDIM pipeline, from noise to images in memory."""
    from diffusers import DDIMPipeline, DDIMScheduler

    unet = _UNet(work)
    pipe = DDIMPipeline(unet.net, DDIMScheduler(1000))
    if unet.compiled:
        pipe.unet.compile()
    pipe.set_progress_bar_config(disable=True)

    def run() -> None:
        """Draw the images."""
        generator = torch.Generator(DEVICE).manual_seed(0)
        pipe(work.batch, generator, num_inference_steps=work.steps, output_type="np")

    return run, unet.check


def _make_autoencoder(work: Work) -> tuple[Run, Run]:
    """Make the call that encodes or decodes by the autoencoder."""
    net = _load(work, "vae").eval()
    inputs = work.read_inputs()
    x = _to_tensor(inputs["image" if work.kind == "encode" else "z"])

    @torch.inference_mode()
    def compute() -> torch.Tensor:
        """Return the moments, or the image."""
        return (
            net.encode(x).latent_dist.parameters if work.kind == "encode" else net.decode(x).sample
        )

    return compute, lambda: _to_array(compute())


def _make_generation(work: Work) -> tuple[Run, Run]:
    """Make the call that draws guided latents by DDIM, and decodes them."""
    from diffusers import DDIMScheduler

    unet = _UNet(work)
    vae = _load(work, "vae", unet.dtype).eval()
    scheduler = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False)
    cond = unet.condition()
    twice = {
        k: {n: torch.cat([e, e]) for n, e in v.items()}
        if isinstance(v, dict)
        else torch.cat([v, v])
        for k, v in cond.items()
    }

    @torch.inference_mode()
    def run() -> None:
        """Draw the images."""
        scheduler.set_timesteps(work.steps)
        z = torch.randn_like(unet.inputs["z"]).to(unet.dtype)
        for t in scheduler.timesteps:
            empty, full = unet.call(torch.cat([z, z]), t, **twice).sample.chunk(2)
            z = scheduler.step(empty + 7.5 * (full - empty), t, z).prev_sample
        _to_array(vae.decode(z / vae.config.scaling_factor).sample)

    return run, unet.check


def _make_features(work: Work) -> tuple[Run, Run]:
    """Make the call of torch-fidelity's Inception."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        torch.save(load_file(work.folder / "inception.safetensors"), path)
        net = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(path)
        ).to(DEVICE)
    images = _to_tensor(work.read_inputs()["image"])

    @torch.inference_mode()
    def compute() -> torch.Tensor:
        """Return the features (B, 2048)."""
        return net(images)[0]

    return compute, lambda: _to_array(compute())


def _make_product(work: Work) -> tuple[Run, Run]:
    """Make the call of a product of two matrices, which gives the machine's peak."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    a, b = (_to_tensor(work.read_inputs()[name], dtype) for name in "ab")

    def run() -> None:
        """Multiply."""
        torch.mm(a, b)
        _finish()

    return run, lambda: _to_array(torch.mm(a, b)[:64, :64])


MAKERS = {
    "matmul": _make_product,
    "evaluate": _make_evaluation,
    "train": _make_step,
    "sample": _make_sampling,
    "encode": _make_autoencoder,
    "decode": _make_autoencoder,
    "generate": _make_generation,
    "features": _make_features,
}


def make_call(work: Work) -> Call:
    """Make the call of a row's kind."""
    run, check = MAKERS[work.kind](work)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if work.kind not in ("matmul", "features"):
        import diffusers

        versions["diffusers"] = diffusers.__version__
    peak = torch.cuda.max_memory_allocated if DEVICE.type == "cuda" else lambda: None
    return Call(run, check, {"versions": versions, "threads": torch.get_num_threads()}, peak)


if __name__ == "__main__":
    torch.manual_seed(0)
    serve(make_call, STARTED)
