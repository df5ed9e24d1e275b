"""A vocabulary in small, in the files of transformers."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import pre_tokenizers

MERGES = [
    *(("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("r", "e"), ("re", "d</w>")),
    *(("'", "s</w>"), ("a", "n"), ("an", "d</w>"), ("!", "!</w>"), ("!!</w>", "!!</w>")),
]
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def vocabulary() -> dict[str, int]:
    """Every byte, alone and at the end of a word, the merges, and the special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters.insert(0, letters.pop(letters.index("!")))  # its id is 0, as in CLIP
    merged = dict.fromkeys(a + b for a, b in MERGES)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged, *SPECIAL]
    return {token: i for i, token in enumerate(tokens)}


def write(folder: Path, *, pad: str = SPECIAL[1], length: int = 77) -> Path:
    """vocab.json, merges.txt and tokenizer_config.json in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    config = dict(
        tokenizer_class="CLIPTokenizer",
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        unk_token=SPECIAL[1],
        pad_token=pad,
        model_max_length=length,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


TEXTS = [
    "",
    "a Red cat and the dog's bone!!!! 12 345",
    "  Crème brûlée\n\n\t日本語 🐈 x²  ",
    "it'S we'RE can't 'd 'x",
    "<|endoftext|> inside <|startoftext|>!",
    "snow_white (best:1.2), [low] quality -- ok...",
    "e\u0301 \u212b \u00a0 nbsp İstanbul ẞ",
]
