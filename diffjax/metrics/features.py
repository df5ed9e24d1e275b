"""Frozen feature networks: one small classifier per data set, shipped with the package."""

from __future__ import annotations

import functools
import importlib.resources
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from diffjax.nets.classifier import Classifier
from diffjax.types import Array, Params
from diffjax.untrusted import parse_json
from diffjax.writing import write_atomically

# The version of the weights that is used for each data set.
VERSIONS = {"fashion_mnist": "v1", "fashion_mnist14": "v1", "digits": "v1"}
FORMAT = "diffjax-classifier"


class Features(NamedTuple):
    """What a frozen network computes from N images.

    Attributes:
        features: (N, F).
        probs: class probabilities (N, K).
        spatial: features (N, S) that keep positions, for spatial FID; None if there are none.
    """

    features: Array
    probs: Array
    spatial: Array | None = None


class FeatureNetwork(NamedTuple):
    """A frozen classifier, whose features metrics compare.

    Attributes:
        name: data set it was trained on.
        version: of the weights; distances under different versions cannot be compared.
        dim: number of features ``F``.
        apply: images (B, H, W, C), uint8 levels or float in [-1, 1], -> `Features`, jitted. It does
            not check its input; `extract` does.
        shape: ``(H, W, C)`` of one image; None for any size, grey or RGB.
        accuracy: on the test split, in [0, 1], as measured after training; None if unknown.
        levels: grey levels ``L`` of the data; uint8 ``u`` means ``2 u / (L - 1) - 1``.
        batch_size: images at a time.
        params: of the classifier, if it is one of ours.
    """

    name: str
    version: str
    dim: int
    apply: Callable[[Array], Features]
    shape: tuple[int, int, int] | None
    accuracy: float | None
    levels: int
    batch_size: int = 500
    params: Params | None = None

    @property
    def id(self) -> str:
        """The text ``name-version``, to be written beside every number."""
        return f"{self.name}-{self.version}"


@functools.cache
def feature_network(name: str) -> FeatureNetwork:
    """Return the feature network of a data set: the current version of the weights in this package.

    Raises:
        ValueError: no network for ``name``, or its weights are missing or damaged.
    """
    if name not in VERSIONS:
        raise ValueError(f"no feature network for {name!r}; choose one of {sorted(VERSIONS)}")
    weights = importlib.resources.files("diffjax.metrics") / "weights"
    with importlib.resources.as_file(weights / f"{name}-{VERSIONS[name]}.safetensors") as path:
        return load_network(path)


def load_network(path: str | os.PathLike[str]) -> FeatureNetwork:
    """Load the network in a file that `save_network` wrote.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            meta = file.metadata() or {}
        flat = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read the feature network {path}: {error}") from error
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path} is not a feature network: its format is {meta.get('format')!r}")
    try:
        config = parse_json(meta["config"], path)
        model = Classifier(**config["model"])
        shape, levels = tuple(config["shape"]), int(config["levels"])
        accuracy = float(meta["accuracy"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the metadata of the feature network {path} are damaged: {error}"
        ) from error
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    wanted = {key: leaf.shape for key, leaf in flatten_dict(expected, sep=".").items()}
    found = {key: leaf.shape for key, leaf in flat.items()}
    if wanted != found:
        raise ValueError(f"the weights in {path} do not fit its config: {wanted} != {found}")
    params = jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="."))
    return FeatureNetwork(
        name=meta["dataset"],
        version=meta["version"],
        dim=model.features,
        apply=functools.partial(_apply, model, levels, params),
        shape=shape,
        accuracy=accuracy,
        levels=levels,
        params=params,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(model: Classifier, levels: int, params: Params, images: jax.Array) -> Features:
    """Compute features and probabilities of images, which are scaled to [-1, 1] first."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) * (2 / (levels - 1)) - 1
    output: Any = model.apply({"params": params}, images.astype(jnp.float32))
    features, logits = output
    return Features(features, jax.nn.softmax(logits))


def save_network(
    path: str | os.PathLike[str],
    params: Params,
    model: Classifier,
    *,
    dataset: str,
    version: str,
    shape: tuple[int, ...],
    levels: int,
    accuracy: float,
    recipe: Mapping[str, object],
) -> None:
    """Write parameters and everything needed to use them as one safetensors file.

    Args:
        path: of the file; folders on the way are made.
        model: the classifier.
        params: its parameters.
        dataset, version, shape, levels, accuracy: see `FeatureNetwork`.
        recipe: free text about the training, kept for the record; JSON has to hold it.
    """
    size = {"num_classes": model.num_classes, "width": model.width, "features": model.features}
    meta = {
        "format": FORMAT,
        "dataset": dataset,
        "version": version,
        "accuracy": f"{accuracy:.6f}",
        "config": json.dumps({"model": size, "shape": list(shape), "levels": levels}),
        "recipe": json.dumps(recipe),
    }
    flat = {key: np.asarray(leaf) for key, leaf in flatten_dict(params, sep=".").items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, safetensors.numpy.save(flat, metadata=meta))


def extract(
    network: FeatureNetwork,
    images: Array,
    *,
    batch_size: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Features:
    """Extract a network's features of images as NumPy arrays in float32.

    The last batch is padded, so that one shape is compiled whatever ``N``; the devices share every
    batch.

    Args:
        network: the feature network.
        images: (N, H, W, C), uint8 levels or float in [-1, 1].
        batch_size: images at a time; None is that of the network.
        progress: called after every batch with the number of its images.

    Raises:
        ValueError: no images, wrong shape, or values outside the range of `FeatureNetwork.apply`.
    """
    images = _check_images(network, images)
    size = network.batch_size if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    place = _make_batch_sharding()
    size += -size % len(place.device_set)
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padding = [(0, size - len(part))] + [(0, 0)] * 3
        found = network.apply(jax.device_put(np.pad(part, padding), place))
        parts.append(jax.device_get(found))
        progress(len(part))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(images)], *parts)


def _make_batch_sharding() -> jax.sharding.NamedSharding:
    """Return the sharding that splits a batch over the devices of this process."""
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), ("batch",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))


def _check_images(network: FeatureNetwork, images: Array) -> np.ndarray:
    """Return ``images`` as uint8 or float32, after checking shape and range.

    Raises:
        ValueError: they do not fit the network.
    """
    images = np.asarray(images)
    fits = images.ndim == 4 and len(images) > 0
    if network.shape is None:
        fits, wanted = fits and images.shape[-1] in (1, 3), "H, W, 1 or 3"
    else:
        fits, wanted = (
            fits and images.shape[1:] == network.shape,
            ", ".join(map(str, network.shape)),
        )
    if not fits:
        raise ValueError(f"{network.id} takes images (N, {wanted}), got {images.shape}")
    is_levels = images.dtype == np.uint8
    if not is_levels:
        images = images.astype(np.float32)
    low, high = (0, network.levels - 1) if is_levels else (-1 - 1e-4, 1 + 1e-4)
    if not (images.min() >= low and images.max() <= high):  # also catches NaN
        kind = f"uint8 images must be levels 0 .. {high}" if is_levels else "must lie in [-1, 1]"
        raise ValueError(f"{network.id}: images {kind}, got {images.min()} .. {images.max()}")
    return images
