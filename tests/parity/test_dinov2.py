"""DINOv2 beside transformers, and the interpolation of images beside torch."""

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from diffjax.nets.dinov2 import MEAN, STD, dinov2_input  # noqa: E402
from diffjax.pretrained import load_model, save_model  # noqa: E402
from tests.parity import cases, dinov2_cases, sd_cases  # noqa: E402
from tests.parity import dinov2_record as record  # noqa: E402
from tests.parity.layout import nchw, nhwc  # noqa: E402


@pytest.mark.parametrize("name", dinov2_cases.CONFIGS)
@pytest.mark.parametrize("size", dinov2_cases.SIZES)
def test_features_are_theirs(name, size):
    found, wanted = dinov2_cases.ours(name, size), record.theirs(name, size)
    assert cases.relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize("name", dinov2_cases.CONFIGS)
def test_a_folder_that_they_wrote_is_read(name, tmp_path):
    record.network(name).save_pretrained(tmp_path)
    found = load_model(tmp_path)
    net, params = sd_cases.random_params(dinov2_cases.CONFIGS[name])
    assert found.net == net
    save_model(tmp_path / "again", net, params)
    again = load_model(tmp_path / "again")
    assert again.net == net
    for one, other in zip(*map(jax.tree.leaves, (found.params, params)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sides", [(14, 14), (28, 42), (5, 9)])
def test_images_are_resized_as_the_release_of_repa_does(sides):
    """train.py:29 of sihyun-yu/REPA: levels to [0, 1], normalised, then interpolated."""
    levels = np.random.RandomState(0).randint(0, 256, (2, 16, 20, 3)).astype(np.float32)
    x = (nchw(levels) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    wanted = nhwc(torch.nn.functional.interpolate(x, sides, mode="bicubic"))
    found = np.asarray(dinov2_input(levels / 127.5 - 1, sides))
    np.testing.assert_allclose(found, wanted, atol=2e-5)
