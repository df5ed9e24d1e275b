"""Runs: what the data of a config are, and what a workdir keeps of its run.

    cfg = config.make({"data.name": "digits", "data.levels": 17})
    settle(cfg)  # sizes, channels and classes that the config leaves to its data
    source = load_source(cfg)
    batches = start_batches(cfg, source)  # for `diffjax.train.train`

A ``folder`` is the workdir of a run, or None: what a run there knows of its data holds.
"""

from diffjax.runs.batches import abstract_batch, read_image_shape, start_batches
from diffjax.runs.cards import gather_uploads, make_card
from diffjax.runs.classes import find_class, keep_classes, read_classes, read_known_classes
from diffjax.runs.drawing import Drawer, Strength, with_sample
from diffjax.runs.exported import write_export
from diffjax.runs.fixed_parts import abstract_fixed_parts, load_fixed_parts
from diffjax.runs.open import TrainedRun, make_drawer, open_control, open_model, open_run
from diffjax.runs.publishing import is_publishable, publish
from diffjax.runs.record import Record, is_trained
from diffjax.runs.settle import settle
from diffjax.runs.sources import load_source, load_test_source
from diffjax.runs.states import (
    abstract_state,
    assemble,
    build_model,
    build_task,
    init_untrained,
    make_run_mesh,
    read_state,
)
from diffjax.runs.tokens import keep_tokenizers, make_tokenizers, tokenize

__all__ = [
    "Drawer",
    "Record",
    "Strength",
    "TrainedRun",
    "abstract_batch",
    "abstract_fixed_parts",
    "abstract_state",
    "assemble",
    "build_model",
    "build_task",
    "find_class",
    "gather_uploads",
    "init_untrained",
    "is_publishable",
    "is_trained",
    "keep_classes",
    "keep_tokenizers",
    "load_fixed_parts",
    "load_source",
    "load_test_source",
    "make_card",
    "make_drawer",
    "make_run_mesh",
    "make_tokenizers",
    "open_control",
    "open_model",
    "open_run",
    "publish",
    "read_classes",
    "read_image_shape",
    "read_known_classes",
    "read_state",
    "settle",
    "start_batches",
    "tokenize",
    "with_sample",
    "write_export",
]
