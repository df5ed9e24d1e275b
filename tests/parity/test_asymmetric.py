"""The autoencoder with a wider decoder, with and without an image that it keeps."""

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffjax.pretrained import load_model, save_model  # noqa: E402
from tests.parity import generate_record as record  # noqa: E402
from tests.pretrained.test_asymmetric import CONFIG, make_image, make_mask  # noqa: E402


def to_torch(array):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(array).transpose(0, 3, 1, 2)))


def test_latents_and_images_are_theirs_and_back(tmp_path):
    theirs = record.diffusers.AsymmetricAutoencoderKL(**CONFIG).eval()
    with torch.no_grad():
        for value in theirs.parameters():  # so that no layer is without effect
            value.normal_(0, 0.2)
        theirs.save_pretrained(tmp_path / "theirs")
        ours = load_model(tmp_path / "theirs")
        image, mask = make_image(), make_mask()

        def run(method, *arrays):
            apply = jax.jit(lambda *a: ours.net.apply({"params": ours.params}, *a, method=method))
            return jax.tree.map(np.asarray, apply(*arrays))

        wanted = theirs.encode(to_torch(image)).latent_dist
        found = run("encode", image)
        np.testing.assert_allclose(to_torch(found.mean), wanted.mean, rtol=0, atol=1e-4)
        z = np.asarray(wanted.mean).transpose(0, 2, 3, 1)
        size = float(theirs.decode(to_torch(z)).sample.abs().max())
        for kept in ((), (image, mask)):
            names = dict(zip(("image", "mask"), map(to_torch, kept), strict=False))
            decoded = theirs.decode(to_torch(z), **names).sample
            ours_decoded = to_torch(run("decode", z, *kept))
            np.testing.assert_allclose(ours_decoded, decoded, rtol=0, atol=1e-4 * max(size, 1))
        save_model(tmp_path / "ours", ours.net, ours.params)
        again = record.diffusers.AsymmetricAutoencoderKL.from_pretrained(tmp_path / "ours")
        for key, value in again.state_dict().items():
            np.testing.assert_array_equal(value, theirs.state_dict()[key])
