"""Prompts as they are given: texts, pairs of texts for XL, or embeddings."""

from __future__ import annotations

import numpy as np

from diffjax.generate.checks import RequestError, read_floats, read_text, refuse, show
from diffjax.pretrained.prompts import Embedding, Prompt

Prompts = tuple[str | Prompt, ...]


def read_prompts(name: str, value: object) -> Prompts | Embedding:
    """Read prompts as a tuple of texts, or as an embedding.

    Args:
        name: the argument, for messages.
        value: a text, a `Prompt`, a list, tuple or array of them, or an `Embedding`.

    Raises:
        RequestError: the list is empty, or has an entry that is not a text.
    """
    if isinstance(value, Embedding):
        return _read_embedding(name, value)
    if isinstance(value, str | Prompt):
        return (_read_prompt(name, value),)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "UO":
        value = value.tolist()
    if not isinstance(value, list | tuple) or hasattr(value, "_fields"):
        known = "a text, a list of texts, or an Embedding"
        hint = ": wrap it, Embedding(array)" if hasattr(value, "dtype") else ""
        raise refuse(name, f"must be {known}, got {show(value)}{hint}")
    if not value:
        raise RequestError(name, f"there is no prompt: {name} is an empty list")
    return tuple(_read_prompt(f"{name}[{k}]", one) for k, one in enumerate(value))


def _read_prompt(name: str, value: object) -> str | Prompt:
    """Read one prompt, which may have a text for each of XL's encoders.

    Raises:
        RequestError: it is not a text, or is an embedding among texts.
    """
    if isinstance(value, Prompt):
        first, second = value
        return Prompt(read_text(f"{name}.first", first), read_text(f"{name}.second", second))
    if isinstance(value, Embedding):
        raise refuse(name, "is an Embedding among texts: embed all prompts, pipe.embed([...])")
    return read_text(name, value)


def _read_embedding(name: str, value: Embedding) -> Embedding:
    """Read an embedding with context (B, M, D) and pooled (B, P) or None, of finite floats.

    Raises:
        RequestError: an array has another shape or type, or they differ in their number of rows.
    """
    context = read_floats(f"{name}.context", value.context, "(B, M, D)")
    if value.pooled is None:
        return Embedding(context)
    pooled = read_floats(f"{name}.pooled", value.pooled, "(B, P)")
    if len(pooled) != len(context):
        raise refuse(f"{name}.pooled", f"has {len(pooled)} rows, but context {len(context)}")
    return Embedding(context, pooled)
