"""Token ids of transformers' CLIPTokenizer."""

import pytest

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")

from diffjax.pretrained import tokenizers  # noqa: E402
from tests.pretrained import words  # noqa: E402


@pytest.mark.parametrize("files", ["vocab.json", "tokenizer.json"])
@pytest.mark.parametrize("pad", [words.SPECIAL[1], "!"])
def test_ids_are_the_same(tmp_path, files, pad):
    folder = words.write(tmp_path / "ours", pad=pad)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    if files == "tokenizer.json":
        folder = tmp_path / "theirs"
        theirs.save_pretrained(folder)
    assert (folder / files).exists()
    ours = tokenizers.load_tokenizer(folder)
    assert ours.length == theirs.model_max_length
    for text in words.TEXTS:
        wanted = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert ours.plain(text).ids[0].tolist() == wanted, text


def test_added_words_have_the_same_ids(tmp_path):
    folder = words.write(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    ours, ids = tokenizers.with_concept(tokenizers.load_tokenizer(folder), "<Concept>", 1)
    theirs.add_tokens("<Concept>")
    for text in ("a <Concept> cat", "a<concept>cat"):
        assert ours.ids(text) == theirs(text, add_special_tokens=False).input_ids, text
    assert ids == [len(theirs) - 1]
