"""pytorch-fid's and torch-fidelity's Inception with our random weights, and their golden record.

Renews tests/golden/inception.npz and tests/golden/{new,old}.pth:

    python -m tests.parity.fidelity
"""

from __future__ import annotations

import importlib
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from experiments.benchmarks import torch_operators  # noqa: F401
from tests.parity import cases, inception_cases
from tests.parity.layout import nchw

GOLDEN = Path(__file__).parents[1] / "golden"


def weights() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in inception_cases.state().items()}


def torch_fidelity() -> torch.nn.Module:
    """Their extractor of the features ``2048``, ``logits_unbiased`` and ``logits``."""
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    with mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: weights()):
        return module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased", "logits"]
        )


def pytorch_fid() -> torch.nn.Module:
    """Their network, which takes images in [0, 1]."""
    module = importlib.import_module("pytorch_fid.inception")
    with mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: weights()):
        return module.InceptionV3([3]).eval()


@torch.no_grad()
def features(images: np.ndarray) -> dict[str, np.ndarray]:
    """pool, logits without bias and spatial features of torch-fidelity."""
    net, seen = torch_fidelity(), []
    net.Mixed_6d.branch1x1.register_forward_hook(lambda *given: seen.append(given[-1]))
    pool, logits, _ = net(nchw(images))
    spatial = seen[0][:, :7].permute(0, 2, 3, 1).flatten(1)
    return {"pool": pool.numpy(), "logits": logits.numpy(), "spatial": spatial.numpy()}


@torch.no_grad()
def pytorch_fid_features(images: np.ndarray) -> np.ndarray:
    """(N, 2048) of pytorch-fid."""
    return pytorch_fid()(nchw(images).float() / 255)[0][..., 0, 0].numpy()


@torch.no_grad()
def clip_vision(x: np.ndarray) -> np.ndarray:
    """Embeddings of transformers' small image encoder with `cases.random_state`."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    net = CLIPVisionModelWithProjection(CLIPVisionConfig(**inception_cases.CLIP)).eval()
    state = {key: value for key, value in net.state_dict().items() if "position_ids" not in key}
    drawn = cases.random_state({key: tuple(value.shape) for key, value in state.items()})
    net.load_state_dict({k: torch.from_numpy(v) for k, v in drawn.items()}, strict=False)
    return net(nchw(x)).image_embeds.numpy()


def state_dict() -> dict[str, torch.Tensor]:
    """Tensors of several types, one of them a transposed view, one a slice, and a scalar."""
    module = torch.nn.BatchNorm1d(2)
    return {
        **module.state_dict(),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "slice": torch.arange(10)[3:7],
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([3.0], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(1, 2)),
    }


def _record() -> None:
    images = inception_cases.images(2)
    other = pytorch_fid_features(images)
    np.savez_compressed(GOLDEN / "inception.npz", **features(images), pytorch_fid=other)
    embeds = clip_vision(inception_cases.clip_images())
    np.savez_compressed(GOLDEN / "clip_vision.npz", image_embeds=embeds)
    torch.save(state_dict(), GOLDEN / "new.pth")
    torch.save(
        {"state_dict": state_dict()}, GOLDEN / "old.pth", _use_new_zipfile_serialization=False
    )
    rows = torch.arange(16.0).reshape(2, 8) / 10
    torch.save({"<cat>": rows}, GOLDEN / "learned_embeds.bin")
    web = {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "cat", "step": 9}
    torch.save(web, GOLDEN / "my-cat.pt")


if __name__ == "__main__":
    _record()
