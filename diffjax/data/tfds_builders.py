"""TensorFlow Datasets without TensorFlow: read array_record data, and write it for two data sets.

The stock builders of fashion_mnist and cifar10 parse and encode with TensorFlow. The ones here
parse with NumPy and encode with Pillow; what they write is read back by `tfds.data_source` under
the stock name. TFDS itself is slow to import, so it is imported only inside the functions.
"""

from __future__ import annotations

import os
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.data import formats

FASHION_FILES = {
    split: {"images": f"{stem}-images-idx3-ubyte", "labels": f"{stem}-labels-idx1-ubyte"}
    for split, stem in (("train", "train"), ("test", "t10k"))
}
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
PREPARABLE = ("cifar10", "fashion_mnist")
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/"

Arrays = tuple[np.ndarray, np.ndarray]


def find_default_dir() -> Path:
    """Return the folder of TFDS: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find_prepared(name: str, data_dir: str | Path) -> Path | None:
    """Return the newest prepared version of a data set in a TFDS folder, or None.

    It does not import TFDS.

    Args:
      name: TFDS name with its config, as in `lsun/bedroom`.
      data_dir: the folder above it.
    """
    infos = (Path(data_dir) / name).glob("*.*.*/dataset_info.json")
    versions = [p.parent for p in infos if p.parent.name.replace(".", "").isdigit()]
    return max(versions, key=lambda p: tuple(map(int, p.name.split("."))), default=None)


def open_prepared(
    folder: str | Path, split: str
) -> tuple[Callable[[Sequence[int]], list[dict[str, Any]]], int, Any]:
    """Open a prepared TFDS folder for random access.

    Returns:
      (fetch, length, features): `fetch(indices)` lists rows, each a dictionary with a decoded
      `image` uint8 (H, W, C); `features` describes them.

    Raises:
      ValueError: unknown split, or a format without random access (tfrecord).
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    splits = [*builder.info.splits, "all"]
    if split not in splits:
        raise ValueError(f"unknown split {split!r} of {folder}: choose from {splits}")
    try:
        rows = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise ValueError(
            f"{folder} is stored without random access ({error}): prepare it again with "
            "`tfds build --file_format=array_record`"
        ) from error
    # Many rows in one call are read three times as fast as one by one.
    return rows.__getitems__, len(rows), builder.info.features


def _make_examples(images: np.ndarray, labels: np.ndarray, prefix: str | None) -> Iterator:
    """Yield the rows of a data set as TFDS's builders do, with images encoded as PNG."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        row = {"image": formats.encode_png(image), "label": int(label)}
        yield i, row if prefix is None else row | {"id": f"{prefix}_{i:05d}"}


def _download_fashion(download: Callable[[Any], Any]) -> Callable[[str], Arrays]:
    urls = {s: {k: f"{_FASHION_URL}{v}.gz" for k, v in f.items()} for s, f in FASHION_FILES.items()}
    paths = download(urls)
    return lambda split: read_fashion_mnist(paths[split]["images"], paths[split]["labels"])


def _download_cifar10(download: Callable[[Any], Any]) -> Callable[[str], Arrays]:
    path = download(_CIFAR10_URL + CIFAR10_ARCHIVE)
    return lambda split: formats.read_cifar10(path, split)


def read_fashion_mnist(images: str | Path, labels: str | Path, *, hint: str = "") -> Arrays:
    """Read and cross-check a pair of idx files: images uint8 (N, H, W, 1), labels int32 (N,).

    Raises:
      FileNotFoundError, ValueError: as `formats.read_idx`; also if the counts of the two files
        differ or a label is above 9.
    """
    x = formats.read_idx(images, ndim=3, hint=hint)
    y = formats.read_idx(labels, ndim=1, hint=hint)
    if len(x) != len(y):
        raise ValueError(f"{images} has {len(x)} images but {labels} {len(y)} labels. {hint}")
    if y.max(initial=0) > 9:
        raise ValueError(f"{labels} has label {y.max()}, expected 0 to 9. {hint}")
    return x[..., None], y.astype(np.int32)


def _make_builder_class(name: str, read: Callable[[str], Arrays] | None) -> Any:
    """Make a builder of TFDS that writes a data set without TensorFlow.

    Args:
      name: one of `PREPARABLE`.
      read: split -> (images, labels); None downloads the files.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    stock = tfds.builder_cls(name)
    files = {"fashion_mnist": _download_fashion, "cifar10": _download_cifar10}[name]

    def _split_generators(self: Any, dl_manager: Any) -> dict[str, Iterator]:
        load = files(dl_manager.download) if read is None else read
        with_id = "id" in self.info.features
        return {s: _make_examples(*load(s), s if with_id else None) for s in ("train", "test")}

    body = {
        "name": name,
        "VERSION": stock.VERSION,
        "__module__": stock.__module__,
        "_checksums_path": tfds.core.tfds_path(f"url_checksums/{name}.txt"),
        "_split_generators": _split_generators,
    }
    with registered.skip_registration():
        return types.new_class(stock.__name__, (stock,), {}, lambda ns: ns.update(body))


def _check_reachable(url: str) -> None:
    """Raise a FileNotFoundError within seconds where TFDS would retry for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
    except urllib.error.HTTPError:
        pass  # any answer shows that the host can be reached
    except OSError as error:
        raise FileNotFoundError(f"could not download: {url} cannot be reached ({error})") from error


def prepare(
    name: str, data_dir: str | Path, *, read: Callable[[str], Arrays] | None = None
) -> Path:
    """Write a data set as TFDS array_record, without TensorFlow.

    Args:
      name: one of `PREPARABLE`.
      data_dir: TFDS folder to write to; the data set goes to data_dir/name/version.
      read: split -> (images, labels), for files that are already here; None downloads the original
        files and checks them against TFDS's SHA-256 sums.

    Returns:
      The prepared folder. Its rows are in TFDS's own shuffled order.

    Raises:
      ValueError: unknown name, or the files that were read are damaged.
      FileNotFoundError: downloading, or writing what was downloaded, failed.
    """
    if name not in PREPARABLE:
        raise ValueError(f"cannot prepare {name!r} without TensorFlow: choose from {PREPARABLE}")
    from tensorflow_datasets.core import download

    if read is None:
        _check_reachable({"fashion_mnist": _FASHION_URL, "cifar10": _CIFAR10_URL}[name])
    builder = _make_builder_class(name, read)(data_dir=str(data_dir), file_format="array_record")
    config = download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    except (OSError, download.util.DownloadError) as error:
        if read is not None:  # nothing was downloaded, and the error has its own reason
            raise
        raise FileNotFoundError(
            f"could not download {name} and write it to {data_dir}: {error}"
        ) from error
    return Path(builder.data_dir)
