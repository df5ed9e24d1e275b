"""IP-Adapters from files: what fits, what does not, and what is recognised by name."""

import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax import generate
from diffjax.generate import RequestError
from diffjax.pretrained.image_adapters import list_attentions
from diffjax.types import ConfigError
from tests.parity import generate_cases as g
from tests.pretrained.image_adapters import write_adapter


@pytest.fixture(scope="module")
def pipe():
    return g.pipeline("sd1")


@pytest.fixture
def file(pipe, tmp_path):
    return write_adapter(tmp_path, pipe.parts.unet, "base")


def test_attentions_are_in_the_order_of_the_files(pipe):
    names = list_attentions(pipe.parts.unet.params)
    kinds = [name.split("_")[0] for name in names]
    assert kinds == sorted(kinds, key=["down", "up", "mid"].index) and "mid" in kinds
    tree = {f"up_blocks.1.attentions.{k}": pipe.parts.unet.params[names[0].partition(".trans")[0]]
            for k in (10, 2)}  # fmt: skip
    found = [re.search(r"attentions\.(\d+)", name)[1] for name in list_attentions(tree)]
    assert found == sorted(found, key=int)


def test_a_picture_changes_the_images_and_no_scale_does_not(pipe, file):
    adapter = pipe.load_image_adapter(file)
    options = dict(key=3, sampler=generate.Sampling("ddim", 2), size=16, output="np")

    def run(scale, image=None):
        prompt = generate.ImagePrompt(adapter, g.picture() if image is None else image, scale)
        return pipe("a red cat", image_prompt=prompt, **options)

    plain, seen = pipe("a red cat", **options), run(1.0)
    np.testing.assert_allclose(run(0.0), plain, atol=1e-6)
    assert np.abs(seen - plain).max() > 1e-3
    assert np.abs(seen - run(1.0, g.picture()[::-1, ::-1])).max() > 1e-4


@pytest.mark.parametrize("change, message", [
    (lambda state: {"x.weight": np.zeros(2, "f4")}, "it is no IP-Adapter, but"),
    (lambda state: {**state, "image_proj.proj.0.weight": np.zeros((2, 2), "f4")},
     "FaceID, which reads embeddings of faces"),
    (lambda state: {**state, "ip_adapter.99.to_k_ip.weight": np.zeros((2, 2), "f4")},
     r"for another UNet: it has \d+ layers, such as 99\.to_k_ip\.weight"),
    (lambda state: {k: v for k, v in state.items() if not k.startswith("ip_adapter.1.")},
     "for another UNet: the weights do not fit.* 2 keys are missing"),
    (lambda state: {**state, "image_proj.proj.weight": np.zeros((25, 6), "f4")},
     "no tokens of width 6"),
    (lambda state: {k.replace("image_proj.proj.", "image_proj.p."): v for k, v in state.items()},
     "of none of the kinds that are known: base, plus, full"),
])  # fmt: skip
def test_what_does_not_fit_is_named(pipe, file, change, message):
    save_file(change(load_file(file)), file)
    with pytest.raises(ValueError, match=message) as error:
        pipe.load_image_adapter(file)
    assert str(file) in str(error.value)


def test_files_and_encoders_that_are_not_there(pipe, file, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        pipe.load_image_adapter(tmp_path / "no.safetensors")
    file.with_name("b.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match=r"2 files, b\.safetensors, base\.safetensors: name one"):
        pipe.load_image_adapter(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    file.rename(alone / file.name)
    with pytest.raises(
        FileNotFoundError, match=r"no folder image_encoder beside base\.safetensors"
    ):
        pipe.load_image_adapter(alone)
    found = pipe.load_image_adapter(alone, encoder=tmp_path / "image_encoder")
    assert found.projection.tokens == 4


def test_wrong_image_prompts_are_refused_by_name(pipe, file):
    adapter = pipe.load_image_adapter(file)
    good = generate.ImagePrompt(adapter, g.picture())
    other = good._replace(adapter=adapter._replace(layers={}))
    for value, name in (
        (good._replace(image=None), "image_prompt[0].image"),
        (good._replace(adapter={}), "image_prompt[0].adapter"),
        (good._replace(scale=np.nan), "image_prompt[0].scale"),
        (good._replace(image=np.zeros((3, 8, 8, 3), "f4")), "image_prompt[0].image"),
        ("a picture", "image_prompt"),
        (other, "image_prompt[0].adapter"),
    ):
        with pytest.raises(RequestError) as error:
            pipe("a red cat", image_prompt=value, size=16)
        assert error.value.argument == name and name in str(error.value)


@pytest.mark.parity
def test_a_pickle_of_two_parts_is_read_if_it_is_allowed(pipe, file):
    torch = pytest.importorskip("torch")
    parts = {"image_proj": {}, "ip_adapter": {}}
    for key, value in load_file(file).items():
        part, _, name = key.partition(".")
        parts[part][name] = torch.from_numpy(value)
    pickle = file.with_suffix(".bin")
    torch.save(parts, pickle)
    with pytest.raises(ValueError, match="allow_legacy_pickle=True"):
        pipe.load_image_adapter(pickle)
    found = pipe.load_image_adapter(pickle, allow_legacy_pickle=True)
    jax.tree.map(np.testing.assert_array_equal, found.params, pipe.load_image_adapter(file).params)
