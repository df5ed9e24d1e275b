"""Data sets by name, and batches that are a function of (seed, step)."""

from diffjax.data.captions import Buckets
from diffjax.data.conditions import HINTS, Hints, make_hints
from diffjax.data.datasets import load, names
from diffjax.data.folder_loaders import FOLDERS
from diffjax.data.formats import sides
from diffjax.data.pairs import load_pairs
from diffjax.data.pipeline import (
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
from diffjax.data.source import Source, from_arrays

__all__ = [
    "FOLDERS",
    "HINTS",
    "Buckets",
    "Hints",
    "RandomCrop",
    "Source",
    "batch_at",
    "batch_of",
    "batches",
    "dataset",
    "device_prefetch",
    "from_arrays",
    "load",
    "load_pairs",
    "make_crop",
    "make_hints",
    "names",
    "sides",
    "to_float",
    "to_levels",
]
