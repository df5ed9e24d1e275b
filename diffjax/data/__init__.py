"""Data sets by name, and batches that are a function of (seed, step)::

    source = data.load("cifar10", split="train")
    for batch in data.batches(source, batch_size=128, seed=0):
        batch["image"], batch["label"]  # (128, 32, 32, 3) in [-1, 1], (128,)

A `Source` gives rows by index, from memory, files or TFDS. `batches` shuffles them,
`device_prefetch` puts them on the devices, and `make_hints` computes the hints of ControlNets from
them.
"""

from diffjax.data.batching import (
    RandomCrop,
    batch_at,
    batch_of,
    batches,
    dataset,
    device_prefetch,
    make_crop,
    to_float,
    to_levels,
)
from diffjax.data.captions import Buckets
from diffjax.data.datasets import load, names
from diffjax.data.degradation import Degradation, make_degradation
from diffjax.data.folder_loaders import FOLDERS
from diffjax.data.formats import sides
from diffjax.data.framing import Framing, make_framing
from diffjax.data.hint_makers import HINTS, Hints, make_hints
from diffjax.data.pairs import load_pairs
from diffjax.data.source import Source, from_arrays, join_alternating

__all__ = [
    "FOLDERS",
    "HINTS",
    "Buckets",
    "Degradation",
    "Framing",
    "Hints",
    "RandomCrop",
    "Source",
    "batch_at",
    "batch_of",
    "batches",
    "dataset",
    "device_prefetch",
    "from_arrays",
    "join_alternating",
    "load",
    "load_pairs",
    "make_crop",
    "make_degradation",
    "make_framing",
    "make_hints",
    "names",
    "sides",
    "to_float",
    "to_levels",
]
