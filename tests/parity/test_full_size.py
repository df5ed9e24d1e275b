"""The UNet of Stable Diffusion 1.5 at its real size, made, run and saved by diffusers."""

import gc

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax.pretrained import load_model  # noqa: E402
from tests.parity import cases  # noqa: E402
from tests.parity.layout import nchw, nhwc  # noqa: E402

CONFIG = dict(
    sample_size=64,
    cross_attention_dim=768,
    attention_head_dim=8,
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)


@torch.no_grad()
def test_one_evaluation(tmp_path):
    """Random weights through a folder in two shards; 512 x 512 pixels, 77 tokens."""
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(**CONFIG).eval()
    assert sum(value.numel() for value in net.parameters()) == 859_520_964
    rng = np.random.RandomState(0)
    z = rng.standard_normal((1, 64, 64, 4)).astype(np.float32)
    context = rng.standard_normal((1, 77, 768)).astype(np.float32)
    expected = nhwc(net(nchw(z), torch.tensor([501]), torch.from_numpy(context)).sample)
    net.save_pretrained(tmp_path, max_shard_size="2GB")
    del net
    gc.collect()
    model = load_model(tmp_path)
    run = jax.jit(model.net.apply)
    found = run({"params": model.params}, z, np.array([501]), {"context": context})
    assert cases.relative_error(np.asarray(found), expected) < 1e-4
