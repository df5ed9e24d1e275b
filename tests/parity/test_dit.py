"""Our DiT and diffusers' DiTTransformer2DModel with the same random weights."""

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.models.embeddings import get_2d_sincos_pos_embed  # noqa: E402

from diffjax.nets.dit import position_embedding  # noqa: E402
from diffjax.pretrained import load_model  # noqa: E402
from tests.parity import cases, dit_cases, dit_record, sd_cases  # noqa: E402


def test_outputs_agree():
    assert cases.relative_error(dit_cases.ours(), dit_record.theirs()) < 1e-5


def test_position_embeddings_agree():
    theirs = get_2d_sincos_pos_embed(32, 5, base_size=5, output_type="pt")
    np.testing.assert_allclose(position_embedding(5, 5, 32), theirs.numpy(), atol=1e-6)


def test_a_folder_of_diffusers_loads(tmp_path):
    dit_record.network().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    net, params = sd_cases.random_params(dit_cases.CONFIG)
    assert model.net == net
    jax.tree.map(np.testing.assert_array_equal, model.params, params)


def test_blocks_with_embeddings_of_their_own_are_refused(tmp_path):
    net = dit_record.network()
    with torch.no_grad():
        net.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias += 1
    net.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"blocks\.1\.norm1.* differs from that of another block"):
        load_model(tmp_path)
