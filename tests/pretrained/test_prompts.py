"""Words of textual inversion, and which token the pooled embedding is of."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.pretrained import Component
from diffjax.pretrained.prompts import TextEncoder, add_concept, encode
from diffjax.pretrained.tokenizers import load_tokenizer
from tests.parity import sd_cases
from tests.pretrained import words

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE = len(words.vocabulary())
EMBEDDING = "text_model.embeddings.token_embedding"
WIDTHS = (8, 12)


def _encoder(tokenizer, width, end):
    config = {
        **sd_cases.TEXTS["openclip"],
        **dict(vocab_size=SIZE, hidden_size=width, max_position_embeddings=77, eos_token_id=end),
    }
    return TextEncoder(tokenizer, Component(*sd_cases.random_params(config), config))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(words.write(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def encoders(tokenizer):
    return tuple(_encoder(tokenizer, width, SIZE - 1) for width in WIDTHS)


def _rows(count, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def _saved(path, **tensors):
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("end", [2, 7, SIZE - 1])
@pytest.mark.parametrize("added", [0, 2])
def test_pooled_at_the_end_token_whatever_the_config_says(tokenizer, tmp_path, end, added):
    encoder = _encoder(tokenizer, 8, end)
    if added:
        path = _saved(tmp_path / "a.safetensors", **{"<cat>": _rows(added, 8)})
        (encoder,) = add_concept((encoder,), path)
        assert encoder.model.config["eos_token_id"] == encoder.model.net.end == SIZE - 1
    prompt = "a <cat> and red dog"
    net, params = encoder.model.net, encoder.model.params
    ids = encoder.tokenizer.plain(prompt).ids
    last = net.apply({"params": params}, ids).last
    place = list(ids[0]).index(encoder.tokenizer.end)
    expected = last[:, place] @ params["text_projection"]["kernel"]
    found = encode((encoder,), prompt).pooled
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_every_word_of_a_file_is_added(tokenizer, tmp_path):
    encoder = _encoder(tokenizer, 8, SIZE - 1)
    rows = {"<cat>": _rows(1, 8)[0], "<dog>": _rows(3, 8, 1), "<red>": _rows(1, 8, 2)}
    (found,) = add_concept((encoder,), _saved(tmp_path / "words.safetensors", **rows))
    table = found.model.params[EMBEDDING]["embedding"]
    for word, value in rows.items():
        ids = found.tokenizer.ids(word)
        assert len(ids) == len(np.atleast_2d(value))
        np.testing.assert_array_equal(table[np.array(ids)], np.atleast_2d(value))
    assert len(table) == SIZE + 5
    with pytest.raises(ValueError, match=r"holds 3 words .*so leave out '<mine>'"):
        add_concept((encoder,), tmp_path / "words.safetensors", name="<mine>")


@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
@pytest.mark.parametrize("name", [None, "<mine>"])
def test_a_pair_of_xl(encoders, tmp_path, keys, name):
    rows = [_rows(2, width) for width in WIDTHS]
    path = _saved(tmp_path / "my-cat.safetensors", **dict(zip(keys, rows, strict=True)))
    found = add_concept(encoders, path, name=name)
    for encoder, value in zip(found, rows, strict=True):
        ids = encoder.tokenizer.ids(name or "my-cat")
        np.testing.assert_array_equal(
            encoder.model.params[EMBEDDING]["embedding"][np.array(ids)], value
        )


def test_a_pair_of_xl_is_for_xl(encoders, tmp_path):
    path = _saved(tmp_path / "my-cat.safetensors", clip_l=_rows(1, 8), clip_g=_rows(1, 12))
    with pytest.raises(
        ValueError, match=r"another model: of .my-cat. no text .* takes clip_g \(1, 12\)"
    ):
        add_concept(encoders[:1], path)
    (refiner,) = add_concept(encoders[1:], path)
    assert len(refiner.tokenizer.ids("my-cat")) == 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"<cat>": np.full((1, 8), np.nan, np.float32)}, r"<cat> in .*\.safetensors .* not finite"),
        ({"<cat>": np.full(8, np.inf, np.float32)}, "not finite"),
        ({"<cat>": _rows(1, 9)}, r"width 8; there are <cat> \(1, 9\) in .*for another model"),
        (
            {"conv.weight": np.ones((2, 2, 3, 3), np.float32)},
            "no textual inversion: conv.weight",
        ),
        ({"<|endoftext|>": _rows(1, 8)}, r"a\.safetensors: the tokenizer knows <\|endoftext\|>"),
        ({}, "holds no word"),
        ({"lora_te_x.lora_down.weight": _rows(2, 8)}, "no textual inversion, but an adapter"),
        ({"model.diffusion_model.input_blocks.0": _rows(2, 8)}, "but a UNet without the other"),
    ],
)
def test_files_that_are_no_words_are_refused(encoders, tmp_path, tensors, message):
    path = _saved(tmp_path / "a.safetensors", **tensors)
    with pytest.raises(ValueError, match=message):
        add_concept(encoders[:1], path)


def test_a_tokenizer_of_another_model_is_refused(encoders, tmp_path):
    more = add_concept(encoders[:1], _saved(tmp_path / "a.safetensors", **{"<cat>": _rows(1, 8)}))
    mixed = TextEncoder(more[0].tokenizer, encoders[0].model)
    encode((mixed,), "a dog")
    with pytest.raises(ValueError, match=rf"'<cat>' the id {SIZE}, but the .* has {SIZE} tokens"):
        encode((mixed,), "a <cat>")


@pytest.mark.parametrize(
    ("file", "word"), [("my-cat.pt", "my-cat"), ("learned_embeds.bin", "<cat>")]
)
def test_pickles_of_words_need_permission(encoders, file, word):
    with pytest.raises(ValueError, match=r"is a pickle, .*or allow_legacy_pickle=True"):
        add_concept(encoders[:1], GOLDEN / file)
    (found,) = add_concept(encoders[:1], GOLDEN / file, allow_legacy_pickle=True)
    table = found.model.params[EMBEDDING]["embedding"]
    rows = np.arange(16, dtype=np.float32).reshape(2, 8) / 10
    np.testing.assert_array_equal(table[np.array(found.tokenizer.ids(word))], rows)
