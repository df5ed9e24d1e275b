"""The cases of ae_cases.py as diffusers computes them; renews tests/golden/autoencoder.npz.

python -m tests.parity.ae_record
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.parity import ae_cases, cases, sd_record
from tests.parity.layout import nchw, nhwc

GOLDEN = Path(__file__).parents[1] / "golden" / "autoencoder.npz"


@torch.no_grad()
def theirs(config: ae_cases.Config) -> dict[str, np.ndarray]:
    """What diffusers' network makes of the same."""
    net = sd_record.network(config)
    x, z = nchw(ae_cases.images()), nchw(ae_cases.latents(config))
    encoded, out = net.encode(x), {"decoded": nhwc(net.decode(z).sample)}
    if config["_class_name"] == "AutoencoderKL":
        q = encoded.latent_dist
        return out | {"mean": nhwc(q.mean), "logvar": nhwc(q.logvar), "kl": q.kl().numpy()}
    if config["_class_name"] == "AutoencoderTiny":
        return out | {"encoded": nhwc(encoded.latents)}
    quantized, _, (_, _, index) = net.quantize(encoded.latents)
    both = ((quantized - encoded.latents) ** 2).mean((1, 2, 3)).numpy()
    out |= {"encoded": nhwc(encoded.latents), "codebook": both, "commitment": both}
    return out | {"index": index.numpy().reshape(len(x), *quantized.shape[2:])}


@torch.no_grad()
def theirs_tiled(
    config: ae_cases.Config, size: tuple[int, int] = (28, 12)
) -> dict[str, np.ndarray]:
    """Large images tile by tile."""
    net = sd_record.network({**config, "sample_size": ae_cases.TILE})
    net.enable_tiling()
    x = nchw(ae_cases.images(size))
    z = nchw(ae_cases.latents(config, (size[0] // 2, size[1] // 2)))
    return {
        "mean": nhwc(net.encode(x).latent_dist.mean),
        "decoded": nhwc(net.decode(z).sample),
    }


def patches() -> dict[str, np.ndarray]:
    """PatchGAN of pix2pix, written with torch's layers."""
    width, layers = ae_cases.PATCHES["channels"], ae_cases.PATCHES["layers"]
    main: list[torch.nn.Module] = [torch.nn.Conv2d(3, width, 4, 2, 1), torch.nn.LeakyReLU(0.2)]
    for i in range(1, layers + 1):
        into, out = (width * min(2**k, 8) for k in (i - 1, i))
        stride = 2 if i < layers else 1
        main += [torch.nn.Conv2d(into, out, 4, stride, 1, bias=False), torch.nn.BatchNorm2d(out)]
        main.append(torch.nn.LeakyReLU(0.2))
    main.append(torch.nn.Conv2d(out, 1, 4, 1, 1))
    net = torch.nn.Module()
    net.main = torch.nn.Sequential(*main)
    names = [k for k, _ in net.named_parameters()]
    state = cases.random_state({k: tuple(net.state_dict()[k].shape) for k in names})
    stats = {k: torch.full_like(v, 0.5) for k, v in net.state_dict().items() if "running" in k}
    given = {**stats, **{k: torch.from_numpy(v) for k, v in state.items()}}
    net.load_state_dict(given, strict=False)
    x = nchw(ae_cases.pair()[0]).requires_grad_()
    with torch.no_grad():
        rest = net.eval().main(x)
    out = net.train().main(x)
    (out**2).sum().backward()
    return {
        "train": nhwc(out.detach()),
        "gradient": nhwc(x.grad),
        "mean": net.state_dict()["main.3.running_mean"].numpy(),
        "rest": nhwc(rest),
    }


def lpips(widths: tuple[int, ...] = ae_cases.WIDTHS) -> dict[str, np.ndarray]:
    """LPIPS written with torch's functions; tests/parity has the package itself."""
    state = {k: torch.from_numpy(v) for k, v in ae_cases.lpips_state(widths).items()}
    x, y = (nchw(value) for value in ae_cases.pair())
    y.requires_grad_()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = ((v - shift[:, None, None]) / scale[:, None, None] for v in (x, y))
    index, total = 0, torch.zeros(len(x))
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        if stage:
            a, b = (torch.nn.functional.max_pool2d(v, 2) for v in (a, b))
            index += 1
        for _ in range(count):
            key = f"net.slice{stage + 1}.{index}"
            w, bias = state[f"{key}.weight"], state[f"{key}.bias"]
            a, b = (torch.relu(torch.nn.functional.conv2d(v, w, bias, padding=1)) for v in (a, b))
            index += 2
        norms = [v / ((v**2).sum(1, keepdim=True).sqrt() + 1e-10) for v in (a, b)]
        square = (norms[0] - norms[1]) ** 2
        weighted = torch.nn.functional.conv2d(square, state[f"lin{stage}.model.1.weight"])
        total = total + weighted.mean((1, 2, 3))
    total.sum().backward()
    return {"value": total.detach().numpy(), "gradient": nhwc(y.grad)}


def _record() -> None:
    out = {
        f"{name}.{key}": value
        for name, config in ae_cases.AUTOENCODERS.items()
        for key, value in theirs(config).items()
    }
    tiled = theirs_tiled(ae_cases.AUTOENCODERS["kl"])
    out |= {f"tiled.{k}": v for k, v in tiled.items()}
    out |= {f"patches.{k}": v for k, v in patches().items()}
    np.savez_compressed(GOLDEN, **out, **{f"lpips.{k}": v for k, v in lpips().items()})


if __name__ == "__main__":
    _record()
