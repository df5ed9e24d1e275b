"""One way from captions to tokens, whatever the tokenizer."""

import numpy as np
import pytest

from configs import autoencoder, ddpm, ldm, own, stable_diffusion
from diffjax import data, runs
from diffjax.data import shapes
from diffjax.pretrained.tokenizers import load_tokenizer, train_tokenizer
from diffjax.runs.tokens import (
    ShapeWords,
    add_tokens,
    check_captions,
    find_model_path,
    learn_words,
)
from diffjax.types import ConfigError

PROMPT = "a large red circle at the left"


def captioned(texts, **more):
    pixels = np.zeros((len(texts), 8, 8, 3), np.uint8)
    source = data.from_arrays(pixels, np.zeros(len(texts), np.int32), num_classes=0, levels=256)
    return source.__class__(
        **{**vars(source), "captions": lambda indices: [texts[i] for i in indices], **more}
    )


def test_the_words_of_shapes_are_read_as_its_data_has_them():
    config = ldm.shapes()
    tokenizers = runs.make_tokenizers(config)
    assert tokenizers == {"text": ShapeWords()}
    ids = runs.tokenize(config, tokenizers, [PROMPT, ""])
    np.testing.assert_array_equal(ids, shapes.tokenize([PROMPT, ""]))
    assert ids.shape == (2, config.cond.text.positions)
    with pytest.raises(ValueError, match=r"unknown words \['blob'\]"):
        runs.tokenize(config, tokenizers, ["a blob"])
    source = captioned(["x"])
    assert add_tokens(source, tokenizers, (8, 8, 3)) is source  # they come with the data


@pytest.mark.parametrize("config", [ddpm.digits(), autoencoder.shapes()], ids=["ddpm", "ae"])
def test_a_model_without_captions_has_no_tokenizer(config):
    assert runs.make_tokenizers(config) == {} and find_model_path(config) == ""
    with pytest.raises(ConfigError, match="was not trained on captions"):
        runs.tokenize(config, {}, ["x"])


def test_tokenizers_of_a_model_are_made_for_each_encoder():
    config = stable_diffusion.shapes_xl()
    config.model.path = "random"
    tokenizers = runs.make_tokenizers(config)
    assert list(tokenizers) == ["text", "text_2"]
    with pytest.raises(ConfigError, match="prompts are for models of one text encoder"):
        runs.tokenize(config, tokenizers, [PROMPT])
    source = add_tokens(captioned([PROMPT, "a"]), tokenizers, (8, 16, 3))
    batch = source.take([1, 0])
    assert batch["text"].shape == batch["text_2"].shape == (2, 20)
    np.testing.assert_array_equal(batch["text"][1], tokenizers["text"].plain(PROMPT).ids[0])
    np.testing.assert_array_equal(batch["time_ids"], np.tile([8, 16, 0, 0, 8, 16], (2, 1)))


def test_sizes_that_data_say_count_more_and_one_encoder_is_not_told_them():
    sizes = np.ones((2, 6), np.float32)
    source = captioned(["a", "b"], more=lambda indices: {"time_ids": sizes, "other": sizes})
    one = train_tokenizer(["a", "b"], length=4)
    both = add_tokens(source, {"text": one, "text_2": one}, (8, 8, 3)).take([0, 1])
    np.testing.assert_array_equal(both["time_ids"], sizes)
    single = add_tokens(source, {"text": one}, (8, 8, 3)).take([0, 1])
    assert "time_ids" not in single and "other" in single


def test_a_model_without_a_place_is_asked_for():
    config = stable_diffusion.sd15()
    for find in (find_model_path, runs.make_tokenizers):
        with pytest.raises(ConfigError, match=r"^config\.model\.path is needed"):
            find(config)


def test_what_a_run_kept_is_read_once_it_was_trained(tmp_path, monkeypatch):
    config = stable_diffusion.shapes()
    config.model.path = "random"
    runs.keep_tokenizers(config, tmp_path)
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()
    config.model.tokenizer = "nowhere"
    with pytest.raises((ValueError, OSError), match="nowhere"):
        runs.make_tokenizers(config, tmp_path)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    kept = runs.make_tokenizers(config, tmp_path)["text"]
    assert kept.plain(PROMPT).ids.shape == (1, 20)


def test_noise_and_shapes_keep_nothing(tmp_path):
    config = own.captions()
    config.data.name = "noise"
    runs.keep_tokenizers(config, tmp_path)
    runs.keep_tokenizers(ldm.shapes(), tmp_path)
    assert not any(tmp_path.iterdir())


def test_rare_words_are_spelled_and_long_captions_cut():
    many = [f"{a}{b}{c}" for a in "abcdefghijklm" for b in "nopqrstuvwxyz" for c in "abcdefghijklm"]
    found = learn_words([" ".join(many[k : k + 100]) for k in range(0, len(many), 100)])
    assert found.length == 77
    assert sum(len(found.ids(word)) == 1 for word in many) == 2000
    with pytest.raises(ValueError, match="data without captions"):
        plain = captioned(["x"])
        add_tokens(plain.__class__(**{**vars(plain), "captions": None}), {"text": found}, (8, 8, 3))


def test_a_word_that_is_learned_has_the_ids_after_the_vocabulary(tmp_path):
    config = stable_diffusion.shapes_word()
    config.model.path = "random"
    config.concept.update(word="<thing>", vectors=2)
    one = runs.make_tokenizers(config)["text"]
    size = config.cond.text.vocabulary
    assert one.ids("a <thing>")[1:] == [size, size + 1]
    check_captions(config, captioned(["a circle", "a <THING> at the left"]))
    with pytest.raises(ConfigError, match=r"no caption has the word '<thing>'.*'a circle'"):
        check_captions(config, captioned(["a circle"]))
    runs.keep_tokenizers(config, tmp_path)  # without the word, which comes from the config
    kept = load_tokenizer(tmp_path / "tokenizer")
    assert kept.backend.get_vocab_size() == size
    for word, message in (("", "word is needed"), ("<|startoftext|>", "knows .* already")):
        config.concept.word = word
        with pytest.raises(ConfigError, match=message):
            runs.make_tokenizers(config)
