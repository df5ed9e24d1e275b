"""Shapes of batches, and random ones: what every config says of them."""

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from PIL import Image

from configs import autoencoder, cfg, controlnet, ddpm, ldm, stable_diffusion
from configs.base import smoke
from diffjax import data, runs
from diffjax.config import make
from diffjax.types import ConfigError

VARIANTS = [
    (autoencoder, "fashion_mnist"), (cfg, "digits"), (controlnet, "shapes_mask"),
    (controlnet, "sd15_canny"), (ldm, "text2img"), (ldm, "inpainting"),
    (stable_diffusion, "sdxl"), (stable_diffusion, "shapes_lora"),
]  # fmt: skip


@pytest.mark.parametrize("module, name", VARIANTS, ids=lambda v: getattr(v, "__name__", v))
def test_batches_have_the_shapes_that_are_said(module, name):
    config = smoke(module.VARIANTS[name]())
    config.data.threads = 0
    said = runs.make_abstract_batch(config, config.data.batch_size)
    start = runs.start_batches(config, runs.load_source(config))
    stream = start(3, SingleDeviceSharding(jax.devices()[0]))
    batch = next(stream)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in said.items()
    }
    stream.close()
    again = start(3, SingleDeviceSharding(jax.devices()[0]))
    jax.tree.map(np.testing.assert_array_equal, batch, next(again))
    again.close()


def test_given_embeddings_have_shapes_too():
    config = make({"cond.context": "given", "network.context_dim": 6, "cond.given.tokens": 5})
    assert runs.make_abstract_batch(config, 2)["context"].shape == (2, 5, 6)
    config.network.update(added_dim=10 + 3 * 4, added_time_dim=4)
    config.cond.given.pooled = 10
    assert runs.make_abstract_batch(config, 2)["text_embeds"].shape == (2, 10)
    assert runs.make_abstract_batch(config, 2)["time_ids"].shape == (2, 3)


def test_augmented_images_are_not_flipped_beforehand():
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    source = data.from_arrays(pixels, np.zeros(1, np.int32), num_classes=0, levels=64)
    seen = {}
    for augment in (0.0, 0.5):
        config = make({"data.flip": True, "data.augment": augment, "data.batch_size": 32})
        start = runs.start_batches(config, source)
        stream = start(0, SingleDeviceSharding(jax.devices()[0]))
        seen[augment] = {np.asarray(row).tobytes() for row in next(stream)["image"]}
        stream.close()
    assert (len(seen[0.0]), len(seen[0.5])) == (2, 1)


@pytest.mark.parametrize("size", [(8, 0), (8, 8, 8), "8", 0])
def test_a_wrong_size_is_named(size):
    config = ddpm.digits()
    config.data = config.data.to_dict() | {"image_size": size}
    with pytest.raises(ConfigError, match=r"config\.data\.image_size"):
        runs.read_image_shape(config)


@pytest.mark.parametrize("values, message", [
    ({"data.channels": 3}, r"are \(8, 8, 1\), but the config says \(8, 8, 3\); set config\.data"),
    ({"data.levels": 256}, "digits has 17 grey levels, not 256"),
    ({"network.conditional": True, "data.num_classes": 3},
     r"digits has 10 classes.*, but config\.data\.num_classes=3"),
])  # fmt: skip
def test_data_that_are_not_those_of_the_config_are_refused(values, message):
    config = make({"data.levels": 17, **values})
    with pytest.raises(ConfigError, match=message):
        runs.load_source(config)


def test_what_prior_preservation_needs_is_named(tmp_path):
    config = stable_diffusion.shapes_dreambooth()
    config.model.path = "random"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "0.png")
    config.data.update(dir=str(tmp_path), captions=("a sks dog",), batch_size=4, threads=0)
    with pytest.raises(ConfigError, match=r"prior\.dir and config\.prior\.prompt are needed"):
        runs.load_source(config)
    config.prior.update(dir=str(tmp_path), prompt="a dog", weight=0.5)
    source = runs.load_source(config)
    assert source.captions is None or len(source) == 2
    tokenizer = runs.make_tokenizers(config)["text"]
    batch = data.batch_at(source, 0, batch_size=4, seed=0)
    np.testing.assert_array_equal(batch["weight"], [2, 1, 2, 1])
    texts = [tokenizer.plain(text).ids[0] for text in ("a sks dog", "a dog") * 2]
    np.testing.assert_array_equal(batch["text"], texts)
    assert len(runs.load_source(config, "test")) == 1  # for previews
    config.data.bucket_step = 4
    with pytest.raises(ConfigError, match=r"config\.data\.bucket_step=0, got .* and 4"):
        runs.load_source(config)
    config.prior.weight = 0.0
    assert "weight" not in runs.make_abstract_batch(config, 4)
