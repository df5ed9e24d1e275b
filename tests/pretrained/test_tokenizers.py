"""Tokenizers from files, prompts with weights, and words that are added."""

import json

import numpy as np
import pytest

from diffjax.pretrained import tokenizers
from tests.pretrained import words

VOCABULARY = words.vocabulary()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return words.write(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizers.load_tokenizer(folder)


def _ids(*tokens):
    return [VOCABULARY[token] for token in tokens]


def test_words_are_merged_and_padded(tokenizer):
    start, end = _ids(*words.SPECIAL)
    tokens = tokenizer.plain("Red  CAT\n and")
    ids = [start, *_ids("red</w>", "cat</w>", "and</w>"), end]
    np.testing.assert_array_equal(tokens.ids, [[*ids, *[end] * (77 - len(ids))]])
    assert (tokens.weights == 1).all()


def test_the_padding_token_is_one_token_wherever_it_stands(folder, tmp_path):
    tokenizer = tokenizers.load_tokenizer(words.write(tmp_path, pad="!"))
    assert tokenizer.pad == 0
    assert tokenizer.ids("cat!") == [*_ids("cat</w>"), 0]
    assert tokenizers.load_tokenizer(folder).ids("cat!") == _ids("cat</w>", "!</w>")


def test_both_kinds_of_files_agree(folder, tokenizer, tmp_path):
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    config = (folder / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_text(config)
    other = tokenizers.load_tokenizer(tmp_path)
    for text in words.TEXTS:
        assert other.ids(text) == tokenizer.ids(text)


def test_older_files_keep_the_padding_token_elsewhere(tmp_path):
    words.write(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    assert tokenizers.load_tokenizer(tmp_path).pad == 0


def test_what_does_not_fit_is_cut_off_and_named(tokenizer):
    with pytest.warns(UserWarning, match=r"76 tokens, 75 fit; cut off: 'dog'"):
        tokens = tokenizer.plain("cat " * 75 + "dog")
    assert tokens.ids.shape == (1, 77)
    assert tokens.ids[0, -1] == tokenizer.end


def test_long_prompts_come_in_chunks(tokenizer):
    tokens = tokenizer.weighted("cat " * 75 + "(dog:2)")
    assert tokens.ids.shape == tokens.weights.shape == (2, 77)
    np.testing.assert_array_equal(tokens.ids[:, 0], tokenizer.start)
    assert tokens.ids[0, -1] == tokens.ids[1, 2] == tokenizer.end
    assert tokens.ids[1, 1] == VOCABULARY["dog</w>"]
    assert (tokens.weights != 1).sum() == 1 and tokens.weights[1, 1] == 2


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a cat", [("a cat", 1)]),
        ("", [("", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("((a)) [b]", [("a", 1.21), (" ", 1), ("b", 1 / 1.1)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        (r"\(a\) \[b\] \\", [(r"(a) [b] \ ".strip(), 1)]),
        ("a (b", [("a ", 1), ("b", 1.1)]),
        ("a) b] :2)", [("a) b] :2)", 1)]),
        ("ratio 3:4", [("ratio 3:4", 1)]),
        ("(a:-1)", [("a", -1)]),
        ("(a: b)", [("a: b", 1.1)]),
        ("[(a])", [("a]", 1)]),
    ],
)
def test_weights(text, parts):
    found = tokenizers.parse_weights(text)
    assert [part for part, _ in found] == [part for part, _ in parts]
    np.testing.assert_allclose([w for _, w in found], [w for _, w in parts])


def test_a_new_word_of_several_tokens(tokenizer):
    more, ids = tokenizers.with_concept(tokenizer, "<my-cat>", 2)
    size = len(VOCABULARY)
    assert ids == [size, size + 1]
    assert more.ids("a red <my-cat>!") == [*_ids("a</w>", "red</w>"), *ids, *_ids("!</w>")]
    assert size not in tokenizer.ids("<my-cat>")  # the other one is as it was
    with pytest.raises(ValueError, match="knows <my-cat>"):
        tokenizers.with_concept(more, "<my-cat>", 1)
    with pytest.raises(ValueError, match="a name and a token"):
        tokenizers.with_concept(more, " ", 1)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.json"):
        tokenizers.load_tokenizer(tmp_path)
    words.write(tmp_path, pad="<pad>")
    with pytest.raises(ValueError, match="lacks <pad>"):
        tokenizers.load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(ValueError, match="no pair"):
        tokenizers.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        tokenizers.load_tokenizer(tmp_path)


# ---- added words --------------------------------------------------------------------------------


def _with_words(tokenizer, **counts):
    out, ids = tokenizer, {}
    for name, count in counts.items():
        out, ids[name] = tokenizers.with_concept(out, name, count)
    return out, ids


WORDS = {"<cat>": 2, "<cat-toy>": 1, "cat": 2, "cat toy": 1, "Dog": 1, "ed": 1}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("<cat>", ["<cat>"]),
        ("<cat-toy>", ["<cat-toy>"]),
        ("a<cat>!", ["a</w>", "<cat>", "!</w>"]),
        ("<CAT><Cat-Toy>", ["<cat>", "<cat-toy>"]),
        ("cat", ["cat"]),
        ("a Cat, cat!", ["a</w>", "cat", ",</w>", "cat", "!</w>"]),
        ("cat toy", ["cat toy"]),
        ("cat \n TOY", ["cat toy"]),
        ("cat toys", ["cat", "t", "o", "y", "s</w>"]),
        ("dogs", ["do", "g", "s</w>"]),
        ("dog DOG", ["Dog", "Dog"]),
        ("red", ["red</w>"]),
        ("ed-d", ["ed", "-</w>", "d</w>"]),
    ],
)
def test_added_words_are_read_whole_and_the_longest_first(tokenizer, text, names):
    more, ids = _with_words(tokenizer, **WORDS)
    expected = []
    for name in names:
        expected += ids.get(name) or _ids(name)
    assert more.ids(text) == expected
    reversed_order, _ = _with_words(tokenizer, **dict(reversed(WORDS.items())))
    assert len(reversed_order.ids(text)) == len(expected)


@pytest.mark.parametrize("text", ["category", "concat", "my_cat", "cat_food", "bobcats", "cat2"])
def test_an_added_word_is_not_found_inside_others(tokenizer, text):
    more, _ = _with_words(tokenizer, cat=2)
    assert more.ids(text) == tokenizer.ids(text)
    assert more.ids(f"a {text} and") == tokenizer.ids(f"a {text} and")


def test_words_that_differ_by_case_alone_are_one(tokenizer):
    more, _ = _with_words(tokenizer, **{"<Cat>": 1})
    with pytest.raises(ValueError, match="knows <cat> already; choose another name"):
        tokenizers.with_concept(more, "<cat>", 1)


def test_added_words_keep_their_weights(tokenizer):
    more, ids = _with_words(tokenizer, **{"<my-cat>": 2})
    tokens = more.weighted("a (<my-cat>:1.5) dog")
    np.testing.assert_array_equal(tokens.ids[0, 2:4], ids["<my-cat>"])
    np.testing.assert_allclose(tokens.weights[0, :6], [1, 1, 1.5, 1.5, 1, 1])


def test_saved_words_are_loaded_whole(tokenizer, tmp_path):
    """A word of three tokens stays one word, and is not found inside others."""
    more, ids = _with_words(tokenizer, **{"<my-cat>": 3, "cat": 1, "Big Dog": 2})
    tokenizers.save_tokenizer(tmp_path, more)
    back = tokenizers.load_tokenizer(tmp_path)
    for text in ("a <my-cat>!", "<MY-CAT> cat category", "big dog and dog"):
        assert back.ids(text) == more.ids(text), text
    assert back.ids("<my-cat>") == ids["<my-cat>"]


def test_words_of_older_files(tokenizer, tmp_path):
    words.write(tmp_path)
    size = len(VOCABULARY)
    added = {"<cat>_1": size + 1, "<cat>": size, words.SPECIAL[1]: size - 1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    assert tokenizers.load_tokenizer(tmp_path).ids("a <cat>") == [*_ids("a</w>"), size, size + 1]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<cat>": size + 7}))
    with pytest.raises(
        ValueError, match=rf"'<cat>', has the id {size + 7}, but .* continues at {size}"
    ):
        tokenizers.load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    listed = {size: {"content": "<cat>"}, size - 1: {"content": words.SPECIAL[1], "special": True}}
    config["added_tokens_decoder"] = {str(i): one for i, one in listed.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizers.load_tokenizer(tmp_path).ids("a <cat>") == [*_ids("a</w>"), size]
