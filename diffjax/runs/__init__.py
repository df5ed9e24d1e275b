"""Runs: what the data of a config are, and what a workdir keeps of its run.

    cfg = config.make({"data.name": "digits", "data.levels": 17})
    settle(cfg)  # sizes, channels and classes that the config leaves to its data
    source = load_source(cfg)
    batches = start_batches(cfg, source)  # for `diffjax.train.train`

A ``folder`` is the workdir of a run, or None: what a run there knows of its data holds.
"""

from diffjax.runs.batches import abstract_batch, read_image_shape, start_batches
from diffjax.runs.classes import find_class, keep_classes, read_classes, read_known_classes
from diffjax.runs.record import Record, is_trained
from diffjax.runs.settle import settle
from diffjax.runs.sources import load_source, load_test_source
from diffjax.runs.tokens import keep_tokenizers, make_tokenizers, tokenize
from diffjax.runs.training import (
    abstract_state,
    assemble_trained,
    build_model,
    build_task,
    choose_mesh,
    init_untrained,
    restore_state,
)

__all__ = [
    "Record",
    "abstract_batch",
    "abstract_state",
    "assemble_trained",
    "build_model",
    "build_task",
    "choose_mesh",
    "find_class",
    "init_untrained",
    "is_trained",
    "keep_classes",
    "keep_tokenizers",
    "load_source",
    "load_test_source",
    "make_tokenizers",
    "read_classes",
    "read_image_shape",
    "read_known_classes",
    "restore_state",
    "settle",
    "start_batches",
    "tokenize",
]
