"""safetensors files that we write are read by diffusers, and the other way round."""

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax.nets.unet import UNet  # noqa: E402
from diffjax.pretrained import load_safetensors, save_safetensors, to_state_dict  # noqa: E402
from tests.parity import cases  # noqa: E402

CASE = cases.SMALL_UNETS["ddpm"]
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def saved(tmp_path):
    """A network of diffusers, and the folder that it is saved in."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(sample_size=CASE.size, **CASE.theirs)
    net.save_pretrained(tmp_path)
    return net, tmp_path


def _like():
    given = cases.unet_inputs(CASE)
    net = UNet(**CASE.ours)
    return jax.eval_shape(net.init, jax.random.key(0), given["z"], given["t"])["params"]


def test_we_read_what_diffusers_writes(saved):
    net, folder = saved
    state = to_state_dict(load_safetensors(folder / FILE, _like()))
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(state[key], value.numpy())


def test_diffusers_reads_what_we_write(saved):
    _, folder = saved
    params = jax.tree.map(
        lambda leaf: np.random.RandomState(0).standard_normal(leaf.shape).astype("f4"), _like()
    )
    save_safetensors(folder / FILE, params)
    net = diffusers.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    state = to_state_dict(params)
    assert set(state) == set(net.state_dict())
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[key])
