"""Which files of a repository of the Hugging Face Hub belong to what is asked for.

Repositories hold the same weights several times: as pickles, for other frameworks, in other
variants, as single files beside the folders. What is chosen here is what the readers of
`diffjax.pretrained` open, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from diffjax.pretrained.files import (
    LORA_FILE,
    PEFT_CONFIG,
    PEFT_FILE,
    PICKLE_SUFFIXES,
    WEIGHTS,
)
from diffjax.types import ConfigError, suggest
from diffjax.untrusted import name_some

MANIFEST = "model_index.json"
CONFIG = "config.json"
# The parts of a pipeline that are read; others come when they are asked for.
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
_CONFIGS = (
    *("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
_SCHEDULER = "scheduler_config.json"
# Files that are weights of their own, the ones looked for first; the last is of textual inversion.
_ALONE = (PEFT_FILE, LORA_FILE, "learned_embeds.safetensors")


class Chosen(NamedTuple):
    """What is downloaded.

    Attributes:
        files: names in the repository.
        root: the file, or the folder, that is handed to a reader; empty for the whole repository.
    """

    files: tuple[str, ...]
    root: str


class Wanted(NamedTuple):
    """What a reader asks for.

    Attributes:
        path: file or folder in the repository; empty for all of it.
        parts: folders of a pipeline that are needed, with their weights; None for all that are
            read. The configs of the others come too.
        variant: part of the names of weights, such as ``fp16``.
        fall_back: take the weights without variant where there are none of it.
        pickles: allow a file that is a pickle, if it is named.
    """

    path: str = ""
    parts: Collection[str] | None = None
    variant: str | None = None
    fall_back: bool = False
    pickles: bool = False


def choose_files(
    names: Collection[str], manifest: Mapping[str, Any] | None, wanted: Wanted, where: str
) -> Chosen:
    """Choose the files of a repository by their names.

    Args:
        names: of all files of the repository.
        manifest: model_index.json of the repository or folder, if there is one.
        where: the repository, for messages.

    Raises:
        ConfigError: there are none; the message says what is there.
    """
    if wanted.path in names:
        return _choose_file(names, wanted, where)
    prefix = f"{wanted.path}/" if wanted.path else ""
    here = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not here:
        raise ConfigError(
            f"{where} has no file or folder {wanted.path!r}"
            f"{suggest(wanted.path, _list_places(names))}; it has {name_some(sorted(names))}"
        )
    if MANIFEST in here:
        found = _choose_parts(here, manifest or {}, wanted, where)
    elif CONFIG in here:
        weights = _choose_weights(here, wanted, where)
        found = [CONFIG, *weights, *(name for name in _CONFIGS if name in here)]
    elif "tokenizer.json" in here or "vocab.json" in here:
        found = [name for name in _CONFIGS if name in here]
    else:
        return _choose_alone(here, prefix, wanted, where)
    return Chosen(tuple(prefix + name for name in found), wanted.path)


def _list_places(names: Collection[str]) -> list[str]:
    """Files and folders of a repository."""
    folders = {name.rpartition("/")[0] for name in names}
    return sorted({*names, *folders} - {""})


def _choose_file(names: Collection[str], wanted: Wanted, where: str) -> Chosen:
    path = wanted.path
    if path.endswith(PICKLE_SUFFIXES) and not wanted.pickles:
        near = [name for name in names if name.endswith(".safetensors")]
        raise ConfigError(
            f"{path} of {where} is a pickle, which can run code when it is read, and is not "
            f"downloaded; as .safetensors there is {name_some(sorted(near)) or 'nothing'}"
        )
    folder, _, name = path.rpartition("/")
    # An adapter's scale and an autoencoder's config are beside the file.
    beside = [f"{folder}/{one}".lstrip("/") for one in (PEFT_CONFIG, CONFIG)]
    kept = [one for one in beside if one in names and name.endswith(".safetensors")]
    return Chosen((path, *kept), path)


def _choose_alone(here: Collection[str], prefix: str, wanted: Wanted, where: str) -> Chosen:
    """Choose the one file of weights of a folder without configs."""
    top = sorted(name for name in here if "/" not in name and name.endswith(".safetensors"))
    named = [name for name in _ALONE if name in top][:1] or top
    if len(named) == 1:
        more = [PEFT_CONFIG] if named[0] == PEFT_FILE and PEFT_CONFIG in here else []
        return Chosen(tuple(prefix + name for name in (*named, *more)), prefix + named[0])
    if top:
        raise ConfigError(
            f"{where} holds {len(top)} files of weights, {name_some(top)}; say which one, as "
            f"{where}/{prefix}{top[0]}"
        )
    inside = sorted({name.rpartition("/")[0] for name in here if name.endswith((MANIFEST, CONFIG))})
    if inside:
        raise ConfigError(
            f"{where} is no model by itself, but has the folders {name_some(inside)}; give one, as "
            f"{where}/{prefix}{inside[0]}"
        )
    raise ConfigError(f"{where} {_describe_absence(here)}")


def _describe_absence(here: Collection[str]) -> str:
    """Describe files among which there are no weights that can be read."""
    if pickles := sorted(name for name in here if name.endswith(PICKLE_SUFFIXES)):
        return (
            f"has its weights as {name_some(pickles)} only: pickles can run code when they are "
            "read, and are not downloaded; look for a copy as .safetensors"
        )
    return f"has no .safetensors weights; it has {name_some(sorted(here))}"


# ---- pipelines --------------------------------------------------------------------------------


def _choose_parts(
    here: Collection[str], manifest: Mapping[str, Any], wanted: Wanted, where: str
) -> list[str]:
    """Choose the files of a whole model: what it says that it has, and what of that is wanted."""
    known = (*NETWORKS, *TOKENIZERS, "scheduler")
    asked = known if wanted.parts is None else wanted.parts
    listed = [name for name, entry in manifest.items() if _is_part(entry)]
    out = [MANIFEST]
    networks: dict[str, list[str]] = {}
    for part in listed:
        inside = [name.removeprefix(f"{part}/") for name in here if name.startswith(f"{part}/")]
        if part in known or part in asked:
            configs = (CONFIG, _SCHEDULER, *(_CONFIGS if part in asked else ()))
            out += [f"{part}/{name}" for name in configs if name in inside]
        if part in asked and CONFIG in inside:
            networks[part] = inside
    have = [p for p, inside in networks.items() if list_weights(inside, wanted.variant)]
    if wanted.variant and networks and not have and not wanted.fall_back:
        merged = [name for inside in networks.values() for name in inside]
        raise _explain_variant(merged, wanted.variant, where)
    for part, inside in networks.items():
        one = wanted._replace(fall_back=wanted.fall_back or part not in have)
        weights = _choose_weights(inside, one, f"the {part} of {where}")
        out += [f"{part}/{name}" for name in weights]
    return out


def _is_part(entry: object) -> bool:
    return isinstance(entry, Sequence) and len(entry) == 2 and isinstance(entry[1], str)


def _choose_weights(names: Collection[str], wanted: Wanted, where: str) -> list[str]:
    """Choose the weights of one network.

    Raises:
        ConfigError: there are none of the variant.
    """
    found = list_weights(names, wanted.variant)
    if not found and wanted.fall_back and wanted.variant:
        found = list_weights(names, None)
    if not found:
        raise _explain_variant(names, wanted.variant, where)
    return found


def list_weights(names: Collection[str], variant: str | None) -> list[str]:
    """Names of the files of a network's weights: one file, or an index with its shards.

    Args:
        names: in the network's folder.
        variant: part of the names, or None for the weights without one.
    """
    dot = f".{variant}" if variant else ""
    for base in WEIGHTS:
        if (whole := f"{base}{dot}.safetensors") in names:
            return [whole]
        if (index := f"{base}.safetensors.index{dot}.json") in names:
            # Shards of variants were numbered before the variant once, and are after it now.
            shard = re.compile(
                rf"{base}(?:{re.escape(dot)}-\d+-of-\d+|-\d+-of-\d+{re.escape(dot)})\.safetensors"
            )
            return [index, *sorted(name for name in names if shard.fullmatch(name))]
    return []


def list_variants(names: Collection[str]) -> list[str | None]:
    """The variants that a folder has weights of; None for weights without one, which comes last."""
    marks = {mark for name in names for mark in re.split(r"[.-]", name)[1:-1]}
    named: list[str | None] = sorted(mark for mark in marks if list_weights(names, mark))
    return [*named, *([None] if list_weights(names, None) else [])]


def _explain_variant(names: Collection[str], variant: str | None, where: str) -> ConfigError:
    """Return the error for weights that a network does not have in the variant."""
    there = list_variants(names)
    if not there:
        return ConfigError(f"{where} {_describe_absence(names)}")
    said = ", ".join("the one without a name" if one is None else repr(one) for one in there)
    step = "leave variant out" if there[-1] is None else f"give variant={there[0]!r}"
    what = f"variant {variant!r}" if variant else "no variant"
    return ConfigError(f"{where} has no weights of {what}; it has {said}: {step}")
