"""Data sets by name, and batches that are a function of (seed, step)."""

from diffjax.data.captions import Buckets
from diffjax.data.conditions import HINTS, Hints, make_hints, paired
from diffjax.data.datasets import FOLDERS, Source, from_arrays, load, names
from diffjax.data.formats import sides
from diffjax.data.pipeline import (
    batch_at,
    batch_of,
    batches,
    dataset,
    device_prefetch,
    to_float,
    to_levels,
)

__all__ = [
    "FOLDERS",
    "HINTS",
    "Buckets",
    "Hints",
    "Source",
    "batch_at",
    "batch_of",
    "batches",
    "dataset",
    "device_prefetch",
    "from_arrays",
    "load",
    "make_hints",
    "names",
    "paired",
    "sides",
    "to_float",
    "to_levels",
]
