"""The cases of ae_cases.py as diffusers computes them; renews tests/golden/autoencoder.npz.

python -m tests.parity.ae_record
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.parity import ae_cases, sd_record

GOLDEN = Path(__file__).parents[1] / "golden" / "autoencoder.npz"


def _nhwc(value: torch.Tensor) -> np.ndarray:
    return value.permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def theirs(config: ae_cases.Config) -> dict[str, np.ndarray]:
    """What diffusers' network makes of the same."""
    net = sd_record.network(config)
    x, z = sd_record._nchw(ae_cases.images()), sd_record._nchw(ae_cases.latents(config))
    encoded, out = net.encode(x), {"decoded": _nhwc(net.decode(z).sample)}
    if config["_class_name"] == "AutoencoderKL":
        q = encoded.latent_dist
        return out | {"mean": _nhwc(q.mean), "logvar": _nhwc(q.logvar), "kl": q.kl().numpy()}
    quantized, _, (_, _, index) = net.quantize(encoded.latents)
    both = ((quantized - encoded.latents) ** 2).mean((1, 2, 3)).numpy()
    out |= {"encoded": _nhwc(encoded.latents), "codebook": both, "commitment": both}
    return out | {"index": index.numpy().reshape(len(x), *quantized.shape[2:])}


@torch.no_grad()
def theirs_tiled(
    config: ae_cases.Config, size: tuple[int, int] = (28, 12)
) -> dict[str, np.ndarray]:
    """Large images tile by tile."""
    net = sd_record.network({**config, "sample_size": ae_cases.TILE})
    net.enable_tiling()
    x = sd_record._nchw(ae_cases.images(size))
    z = sd_record._nchw(ae_cases.latents(config, (size[0] // 2, size[1] // 2)))
    return {
        "mean": _nhwc(net.encode(x).latent_dist.mean),
        "decoded": _nhwc(net.decode(z).sample),
    }


def _record() -> None:
    out = {
        f"{name}.{key}": value
        for name, config in ae_cases.AUTOENCODERS.items()
        for key, value in theirs(config).items()
    }
    tiled = theirs_tiled(ae_cases.AUTOENCODERS["kl"])
    np.savez_compressed(GOLDEN, **out, **{f"tiled.{k}": v for k, v in tiled.items()})


if __name__ == "__main__":
    _record()
