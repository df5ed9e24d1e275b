"""Inception's features of sets of images, computed once and kept until they are cleared."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from pathlib import Path

import jax
import numpy as np

from diffjax import metrics
from diffjax.evaluation.image_sets import CHUNK, ImageSet, StrPath
from diffjax.pretrained import from_state_dict
from diffjax.pretrained.pickles import open_weights

_KEPT = re.compile(r"[0-9a-f]{12}")  # names of the folders that hold the features of a set


def load_inception(
    path: StrPath, *, allow_legacy_pickle: bool = False, resize: str = "tensorflow"
) -> metrics.FeatureNetwork:
    """Load the Inception network of FID, with the weights in a file.

    Args:
        path: .safetensors or .pth; `diffjax.metrics.INCEPTION_SOURCE` says where to get it.
        allow_legacy_pickle: read a pickle (.pth), without running its code.
        resize: how images are brought to 299 pixels: ``tensorflow`` as in the original FID, or
            ``pytorch_fid``. Statistics made with one do not compare with the other.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is a pickle that was not allowed, or is not Inception.
    """
    weights = open_weights(path, allow_legacy_pickle=allow_legacy_pickle)
    shapes = metrics.inception_shapes()
    params = jax.tree.map(np.asarray, from_state_dict(weights, shapes))
    return metrics.inception_network(params, resize=resize)


class FeatureStore:
    """Features of sets of images by one network, each computed once.

    With a folder, features are stored in files there, and an evaluation that was interrupted
    resumes where it stopped.

    Attributes:
        network: the feature network.
        spatial: whether spatial features are kept too, which sFID needs.
    """

    def __init__(
        self,
        network: metrics.FeatureNetwork,
        folder: Path | None = None,
        *,
        spatial: bool = False,
    ):
        self.network, self.spatial = network, spatial
        self._folder = folder
        self._features: dict[str, metrics.Features] = {}
        self._statistics: dict[str, metrics.Statistics] = {}

    def collect(self, images: ImageSet) -> metrics.Features:
        """Return features (N, F), class probabilities (N, K) and spatial features of a set.

        Raises:
            ValueError: the network does not take these images.
        """
        key = self._key(images)
        if key not in self._features:
            self._features[key] = metrics.collect(
                self.network,
                images.read,
                images.num,
                folder=self._folder / key if self._folder else None,
                source=images.name,
                chunk=CHUNK,
                spatial=self.spatial,
            )
        return self._features[key]

    def summarize(self, images: ImageSet) -> metrics.Statistics:
        """Return mean and covariance of the features of a set, in float64.

        Raises:
            ValueError: as `collect`.
        """
        key = self._key(images)
        if key not in self._statistics:
            self._statistics[key] = metrics.compute_statistics(self.collect(images))
        return self._statistics[key]

    def _key(self, images: ImageSet) -> str:
        what = f"{images.name} {images.num} {self.network.id} {self.spatial}"
        return hashlib.sha256(what.encode()).hexdigest()[:12]

    def clear(self) -> None:
        """Forget all features, and remove the folder unless it holds other files, too."""
        self._features.clear()
        self._statistics.clear()
        if self._folder is None or not self._folder.is_dir():
            return
        for kept in self._folder.iterdir():
            if _KEPT.fullmatch(kept.name):
                shutil.rmtree(kept, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()
