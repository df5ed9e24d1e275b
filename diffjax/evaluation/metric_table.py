"""The table of metrics, and `evaluate`, which measures any of them.

A metric is one function and one entry. The function's arguments name what it needs: those without a
default have to be passed to `evaluate`, the others are options. `INPUTS` describes the arguments of
the metrics here; a metric of yours can have arguments of its own::

    def measure_brightness(images):
        return {"brightness": float(to_uint8(images.read_all()).mean())}

    METRICS["brightness"] = Metric(measure_brightness)
    evaluate("samples.npz", metrics=["brightness"])
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffjax.evaluation.feature_distance import (
    measure_baselines,
    measure_distance,
    measure_texture,
)
from diffjax.evaluation.feature_store import FeatureStore, load_inception
from diffjax.evaluation.image_sets import ImageSet, StrPath, from_any
from diffjax.evaluation.inception_scores import (
    check_reference,
    check_spatial,
    measure_fid,
    measure_inception_score,
    measure_kid,
    measure_precision_recall,
    measure_rfid,
    measure_sfid,
)
from diffjax.evaluation.likelihood_bits import (
    PixelModel,
    measure_bits,
    measure_bits_by_steps,
    measure_inversion,
    measure_ode_bits,
)
from diffjax.evaluation.pair_scores import (
    check_originals,
    measure_diversity,
    measure_psnr,
    measure_ssim,
)
from diffjax.evaluation.references import Reference, reference_from_any, require_images
from diffjax.evaluation.text_scores import measure_captions, measure_clip_score
from diffjax.metrics import FeatureNetwork, Statistics, feature_network
from diffjax.types import ConfigError, T, suggest

INVERTED = 64  # images that `reconstruction` encodes and decodes

INPUTS = {
    "images": "the images that are measured",
    "reference": "real images, or statistics of Inception's features",
    "originals": "the images of which these are reconstructions, in the same order",
    "network": "a feature network of diffjax.metrics.feature_network, or its name",
    "classes": "if not 0, image k was made as class k % classes",
    "inception": "Inception of diffjax.evaluation.load_inception, or a FeatureStore of it",
    "clip": "CLIP of diffjax.evaluation.load_text_scorer",
    "prompts": "texts; text k belongs to image k",
    "lpips": "LPIPS of diffjax.evaluation.load_lpips_distance",
    "pairs": "random pairs that are compared",
    "scenes": "the shapes that the caption of each image asks for",
    "pool": "real images, twice as many as are made",
    "num": "images that each baseline makes",
    "untrained": "num -> images of the model before training",
    "model": "a diffjax.evaluation.PixelModel",
    "test_images": "test images (N, H, W, C) in [-1, 1]",
    "test_labels": "labels (N,) of the test images, for a model of classes",
    "bits_images": "how many of the test images are coded; None for all",
    "bits_steps": "numbers of steps for which the bound is measured too",
}


class Metric(NamedTuple):
    """One entry of the table.

    Attributes:
        measure: the function, called with the inputs that its arguments name; returns names and
            values that JSON can hold.
        check: called with the inputs that its arguments name, before anything is computed; raises a
            ConfigError for those that cannot be measured.
        section: key under which the results stand; "" for none.
        spatial: whether it needs the spatial features of Inception.
    """

    measure: Callable[..., Mapping[str, object]]
    check: Callable[..., object] | None = None
    section: str = ""
    spatial: bool = False

    @property
    def needs(self) -> list[str]:
        """The inputs without which the metric cannot be measured."""
        parameters = inspect.signature(self.measure).parameters.values()
        return [p.name for p in parameters if p.default is inspect.Parameter.empty]

    @property
    def inputs(self) -> list[str]:
        """All inputs, with the options."""
        return list(inspect.signature(self.measure).parameters)


def _measure_distance(
    images: ImageSet, reference: Reference, network: FeatureNetwork, classes: int = 0
) -> Mapping[str, object]:
    real = require_images(reference)
    return measure_distance(network, images.read_all(), real.read_all(), classes)


def _measure_texture(images: ImageSet, reference: Reference) -> Mapping[str, object]:
    return measure_texture(images.read_all(), require_images(reference).read_all())


def _measure_bits(
    model: PixelModel,
    test_images: np.ndarray,
    test_labels: np.ndarray | None = None,
    bits_images: int | None = None,
    bits_steps: Sequence[int] = (),
) -> Mapping[str, object]:
    """Measure the bound of the test images, and on shorter grids if ``bits_steps`` names some."""
    images, labels = _take_first(test_images, test_labels, bits_images)
    found = measure_bits(model, images, labels)
    by_steps = measure_bits_by_steps(model, images, labels, bits_steps)
    return {**found, "bits_by_steps": by_steps} if by_steps else found


def _measure_ode_bits(
    model: PixelModel,
    test_images: np.ndarray,
    test_labels: np.ndarray | None = None,
    bits_images: int | None = None,
) -> Mapping[str, object]:
    return measure_ode_bits(model, *_take_first(test_images, test_labels, bits_images))


def _take_first(
    images: np.ndarray, labels: np.ndarray | None, num: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    return images[:num], None if labels is None else labels[:num]


def _measure_inversion(model: PixelModel, test_images: np.ndarray) -> Mapping[str, object]:
    return measure_inversion(model, test_images[:INVERTED])


METRICS: dict[str, Metric] = {
    "distance": Metric(_measure_distance, require_images),
    "texture": Metric(_measure_texture, require_images),
    "baselines": Metric(measure_baselines, section="baselines"),
    "bits": Metric(_measure_bits),
    "ode_bits": Metric(_measure_ode_bits),
    "reconstruction": Metric(_measure_inversion),
    "captions": Metric(measure_captions, section="captions"),
    "fid": Metric(measure_fid, check_reference, "inception"),
    "sfid": Metric(measure_sfid, check_spatial, "inception", spatial=True),
    "is": Metric(measure_inception_score, section="inception"),
    "kid": Metric(measure_kid, require_images, "inception"),
    "prdc": Metric(measure_precision_recall, require_images, "inception"),
    "rfid": Metric(measure_rfid, check_reference, "inception"),
    "psnr": Metric(measure_psnr, check_originals),
    "ssim": Metric(measure_ssim, check_originals),
    "clip": Metric(measure_clip_score),
    "diversity": Metric(measure_diversity),
}


def check_names(names: Iterable[str]) -> None:
    """Check names of metrics.

    Raises:
        ConfigError: a name is not in the table; the message suggests the closest.
    """
    for name in names:
        if name not in METRICS:
            known = ", ".join(METRICS)
            raise ConfigError(
                f"unknown metric {name!r}; choose from {known}{suggest(name, METRICS)}"
            )


def find_metrics_of(inputs: Iterable[str]) -> list[str]:
    """Return the names of the metrics that take one of the inputs, in the order of the table."""
    wanted = set(inputs)
    return [name for name, metric in METRICS.items() if wanted & set(metric.inputs)]


def evaluate(
    images: ImageSet | np.ndarray | StrPath | None = None,
    reference: Reference | Statistics | ImageSet | np.ndarray | StrPath | None = None,
    metrics: Iterable[str] = ("distance",),
    *,
    originals: Reference | ImageSet | np.ndarray | StrPath | None = None,
    network: FeatureNetwork | str | None = None,
    inception: FeatureNetwork | FeatureStore | StrPath | None = None,
    **others: object,
) -> dict[str, object]:
    """Measure images, or a model, by metrics of the table::

        real = diffjax.evaluation.from_source(diffjax.data.load("digits"), "digits")
        evaluate(images, real, metrics=["distance"], network="digits")

        inception = load_inception("pt_inception.pth", allow_legacy_pickle=True)
        evaluate("samples.npz", "statistics.npz", metrics=["fid", "is"], inception=inception)

    Everything that can be refused is, before anything is measured.

    Args:
        images: (N, H, W, C), uint8 levels 0..255 or float in [-1, 1]: a set, an array, or the path
            of an npz file or a folder. Not needed for metrics of a model.
        reference: what they are compared with; published statistics will do for FID.
        metrics: names in `METRICS`.
        originals: of which the images are reconstructions, in the same order; default: reference.
        network: of ``distance`` and ``baselines``: one of `diffjax.metrics.feature_network`, or its
            name.
        inception: of the metrics of papers, or the path of its weights; a store keeps features, so
            that an interrupted evaluation goes on where it stopped.
        others: inputs of the metrics by name, see `INPUTS`.

    Returns:
        Names and values, as JSON can hold them. Metrics of Inception stand under ``inception``,
        baselines and captions likewise: see `Metric.section`.

    Raises:
        ConfigError: a name is unknown, an input is missing or does not do, or is no input of any
            metric.
        ValueError: images of a shape or range that a network does not take, or too few of them.
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    check_names(names)
    inputs = dict(others)
    if images is not None:
        inputs["images"] = from_any(images)
    real = originals if reference is None else reference
    if real is not None:
        inputs["reference"] = reference_from_any(real)
        inputs["originals"] = reference_from_any(real if originals is None else originals)
    if network is not None:
        inputs["network"] = feature_network(network) if isinstance(network, str) else network
    if inception is not None:
        inputs["inception"] = _open_store(inception, names)
    check_inputs(names, inputs)
    return _measure(names, inputs)


def _measure(names: Sequence[str], inputs: Mapping[str, object]) -> dict[str, object]:
    """Return the results of all metrics, each in its section."""
    result: dict[str, object] = {}
    sections: dict[str, dict[str, object]] = {}
    for name in names:
        metric = METRICS[name]
        target = sections.setdefault(metric.section, {}) if metric.section else result
        target.update(_call(metric.measure, inputs))
    return {**result, **sections}


def check_inputs(names: Sequence[str], inputs: Mapping[str, object]) -> None:
    """Refuse what metrics cannot be measured with, without measuring anything.

    Args:
        names: of the metrics.
        inputs: by name.

    Raises:
        ConfigError: a metric lacks an input or refuses one, or no metric takes an input.
    """
    known = {taken for metric in METRICS.values() for taken in metric.inputs}
    for key in inputs:
        if key not in known | {"reference", "originals"}:
            raise ConfigError(f"no metric takes the input {key!r}{suggest(key, known)}")
    for name in names:
        metric = METRICS[name]
        for key in metric.needs:
            if key not in inputs:
                about = f": {INPUTS[key]}" if key in INPUTS else ""
                raise ConfigError(f"the metric {name!r} needs {key}{about}")
        if metric.check is not None:
            with _naming(name):
                _call(metric.check, inputs)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of a metric before the message of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"the metric {name!r}: {error}") from error


def _open_store(
    inception: FeatureNetwork | FeatureStore | StrPath, names: Sequence[str]
) -> FeatureStore:
    if isinstance(inception, FeatureStore):
        return inception
    if isinstance(inception, str | os.PathLike):
        inception = load_inception(inception)
    return FeatureStore(inception, spatial=needs_spatial(names))


def needs_spatial(names: Iterable[str]) -> bool:
    """Return whether one of the metrics needs Inception's spatial features."""
    return any(METRICS[name].spatial for name in names)


def _call(function: Callable[..., T], inputs: Mapping[str, object]) -> T:
    """Call a function with those of the inputs that its arguments name."""
    taken = inspect.signature(function).parameters
    return function(**{key: value for key, value in inputs.items() if key in taken})
