"""How well images follow the hints that control them: edges and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from diffjax import data, metrics
from diffjax.data import shapes
from diffjax.evaluation.feature_distance import measure_distance
from diffjax.evaluation.image_grids import to_uint8
from diffjax.types import select_options


def measure_edges(
    hints: np.ndarray, images: np.ndarray, options: Mapping[str, object] | None = None
) -> dict[str, float]:
    """Return the mean ``edge_f1`` between hints and the edges that Canny's method finds in images.

    Args:
        hints: edges (N, H, W, 1) in [0, 1].
        images: (N, H, W, C) in [-1, 1].
        options: a section with those of the hint ``canny``; others in it are left out.
    """
    chosen = select_options("hint", "canny", data.HINTS, options or {})
    found = data.make_hints("canny", chosen)({"image": images})[..., 0]
    return {"edge_f1": float(metrics.edge_f1(found, hints[..., 0]).mean())}


def measure_shape_masks(hints: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Return the mean ``mask_iou`` between masks of `diffjax.data.shapes` and the shapes in images.

    Args:
        hints: one-hot classes (N, H, W, K), 0 the background.
        images: (N, H, W, 3) in [-1, 1]; a pixel with any colour of the shapes belongs to one.
    """
    found = np.stack([shapes.name_colours(image) >= 0 for image in to_uint8(images)])
    wanted = hints.argmax(-1) > 0
    iou = metrics.mask_iou(found.astype(int), wanted.astype(int), 2)
    return {"mask_iou": float(iou.mean())}


def measure_fidelity(
    hint: Mapping[str, object], hints: np.ndarray, images: np.ndarray, *, of_shapes: bool = False
) -> dict[str, float]:
    """Measure edge F1 or mask IoU between hints and images, whichever belongs to the kind of hint.

    Args:
        hint: a config section with the ``name`` of the kind of hint, and its options.
        hints: (N, H, W, C) as `diffjax.data.make_hints` makes them.
        images: (N, H, W, C) in [-1, 1].
        of_shapes: whether the data are `diffjax.data.shapes`, whose masks can be measured.

    Returns:
        The result of `measure_edges` or `measure_shape_masks`; {} for other hints.
    """
    if hint["name"] in ("canny", "edges"):
        return measure_edges(hints, images, hint)
    if hint["name"] == "mask" and of_shapes:
        return measure_shape_masks(hints, images)
    return {}


def measure_control(
    paint: Callable[[bool], np.ndarray],
    fidelity: Callable[[np.ndarray], Mapping[str, float]],
    *,
    network: metrics.FeatureNetwork | None = None,
    real: np.ndarray | None = None,
) -> dict[str, float]:
    """Measure how images follow their hints with the prompt and without it, and their distance.

    Args:
        paint: ``prompt ->`` images (N, H, W, C) in [-1, 1], with the prompt or without it.
        fidelity: ``images ->`` measures such as those of `measure_fidelity`.
        network: measures the distance of the images with the prompt to ``real`` ones; None for no
            distance.
        real: (M, H, W, C) in [-1, 1].

    Returns:
        The measures; those of images without the prompt end in ``_without_prompt``.
    """
    with_prompt = paint(True)
    scores = dict(fidelity(with_prompt))
    if network is not None and real is not None:
        found = measure_distance(network, with_prompt, real)
        scores |= {k: v for k, v in found.items() if isinstance(v, float)}
    without = fidelity(paint(False))
    return scores | {f"{name}_without_prompt": value for name, value in without.items()}
