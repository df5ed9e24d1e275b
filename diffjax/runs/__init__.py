"""Runs: what a config and a workdir are together.

    cfg = config.make({"data.name": "digits", "data.levels": 17})
    fill_from_data(cfg)  # sizes, channels and classes that the config leaves to its data
    source = load_source(cfg)
    batches = start_batches(cfg, source)  # for `diffjax.train.train`

The modules load the data of a config, make its task, model and state, read what it does not train,
draw and measure images, and export what was trained. `experiments.train` and the commands of
`diffjax.cli` call them; they read no flags.

Throughout, ``cfg`` is a complete config (`diffjax.config`). A ``folder`` is the workdir of a run,
or None. If a run was trained there, the classes and words that it kept in the workdir are used in
place of those that the data have today.
"""

from diffjax.runs.batches import make_abstract_batch, read_image_shape, start_batches
from diffjax.runs.cards import gather_uploads, make_card
from diffjax.runs.classes import find_class, keep_classes, read_classes, read_known_classes
from diffjax.runs.data_settings import fill_from_data
from diffjax.runs.drawing import Drawer, Strength, replace_sample
from diffjax.runs.exported import write_export
from diffjax.runs.fixed_parts import leave_out_base, load_fixed_parts, make_abstract_fixed_parts
from diffjax.runs.open import TrainedRun, make_drawer, open_control, open_model, open_run
from diffjax.runs.publishing import is_publishable, publish
from diffjax.runs.record import Record, is_trained
from diffjax.runs.saving import save_model
from diffjax.runs.sources import load_source, load_test_source
from diffjax.runs.states import (
    assemble_trained,
    build_model,
    build_task,
    init_untrained,
    make_abstract_state,
    make_run_mesh,
    read_state,
)
from diffjax.runs.tokens import keep_tokenizers, make_tokenizers, tokenize

__all__ = [
    "Drawer",
    "Record",
    "Strength",
    "TrainedRun",
    "assemble_trained",
    "build_model",
    "build_task",
    "fill_from_data",
    "find_class",
    "gather_uploads",
    "init_untrained",
    "is_publishable",
    "is_trained",
    "keep_classes",
    "keep_tokenizers",
    "leave_out_base",
    "load_fixed_parts",
    "load_source",
    "load_test_source",
    "make_abstract_batch",
    "make_abstract_fixed_parts",
    "make_abstract_state",
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
    "replace_sample",
    "save_model",
    "start_batches",
    "tokenize",
    "write_export",
]
