"""Our UNet and diffusers' UNet2DModel with the same random weights."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.models.embeddings import get_timestep_embedding  # noqa: E402

from diffjax.nets.layers import timestep_embedding  # noqa: E402
from tests.parity import cases, record  # noqa: E402


@pytest.mark.parametrize("name", cases.UNETS)
def test_outputs_and_gradients_agree(name):
    ours, gradients = cases.our_unet_with_gradients(cases.UNETS[name])
    theirs, expected = record.unet(cases.UNETS[name])
    assert cases.relative_error(ours, theirs) < 1e-5
    assert set(gradients) == set(expected)
    # The gradients of key biases are zero but for rounding, hence the floor.
    floor = 1e-3 * max(np.abs(value).max() for value in expected.values())
    for key, value in expected.items():
        assert cases.relative_error(gradients[key], value, floor) < 1e-4, key


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dim", [32, 33])
def test_timestep_embeddings_agree(flip, shift, dim):
    t = np.array([0.0, 1.0, 41.5, 999.0], np.float32)
    theirs = get_timestep_embedding(
        torch.from_numpy(t), dim, flip_sin_to_cos=flip, downscale_freq_shift=shift
    )
    ours = timestep_embedding(t, dim, flip_sin_to_cos=flip, freq_shift=shift)
    # At t = 999 the rounding of a frequency to float32 moves the angle by 999 * 6e-8.
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)


def test_the_flipped_order_is_cosines_first():
    theirs = get_timestep_embedding(torch.zeros(1), 4, flip_sin_to_cos=True)
    ours = timestep_embedding(np.zeros(1, np.float32), 4, flip_sin_to_cos=True)
    np.testing.assert_array_equal(theirs.numpy(), [[1, 1, 0, 0]])
    np.testing.assert_array_equal(ours, [[1, 1, 0, 0]])
