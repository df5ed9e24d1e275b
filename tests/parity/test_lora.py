"""Adapters that we write, as diffusers and peft read them."""

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("peft")  # without which diffusers loads no adapters

from diffjax import lora  # noqa: E402
from diffjax.pretrained import save_lora  # noqa: E402
from diffjax.pretrained.lora_files import LORA_FILE  # noqa: E402
from tests.parity import generate_cases as g  # noqa: E402
from tests.parity import generate_record as record  # noqa: E402


@pytest.mark.parametrize("family", ["sd1", "sd2", "xl"])
def test_diffusers_loads_what_we_save(family, tmp_path):
    ours = g.pipeline(family).parts.unet
    targets = (*lora.ATTENTION, "ff.net.2", "proj_in", "conv1")
    fresh = lora.init(jax.random.key(0), ours.params, rank=2, targets=targets)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), fresh)
    save_lora(tmp_path / LORA_FILE, adapters, scale=0.5)
    g.pipeline(family).save(tmp_path / "model")
    theirs = record.diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")
    theirs.load_lora_weights(tmp_path)

    rng = np.random.default_rng(1)
    z, width = rng.normal(size=(1, 4, 8, 8)).astype("f4"), ours.net.context_dim
    context = rng.normal(size=(1, 5, width)).astype("f4")
    cond, added = {"context": context}, None
    if ours.net.added_dim:
        vectors = {"text_embeds": rng.normal(size=(1, 6)), "time_ids": np.ones((1, 6))}
        vectors = {key: value.astype("f4") for key, value in vectors.items()}
        cond["added"] = vectors
        added = {key: torch.from_numpy(value) for key, value in vectors.items()}
    merged = lora.merge(ours.params, adapters, 0.5)
    wanted = ours.net.apply({"params": merged}, z.transpose(0, 2, 3, 1), 7, cond)
    plain = ours.net.apply({"params": ours.params}, z.transpose(0, 2, 3, 1), 7, cond)
    with torch.no_grad():
        found = theirs.unet(*map(torch.from_numpy, (z, np.array(7), context)),
                            added_cond_kwargs=added).sample.numpy()  # fmt: skip
    found = found.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(found - plain).max() > 1e-2
