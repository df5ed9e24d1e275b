"""Speed of Inception's features beside torch-fidelity's, on the same images and weights.

    python -m experiments.benchmarks.inception_speed --num=256 --repeats=3 \\
        --json=docs/results/data/inception.json

Weights are random: speed does not depend on them. Both read uint8 images from memory, resize them
to 299 pixels and form the 2048 features. They take turns, so that a machine which slows down does
so for both; the figure is the ratio of medians. Without torch-fidelity, ours is timed alone.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from diffjax import metrics
from diffjax.cli import run_flags
from diffjax.pretrained import from_state_dict
from diffjax.pretrained.state_dict import list_state_shapes
from diffjax.types import JsonObject
from diffjax.writing import write_json

NUM = flags.DEFINE_integer("num", 256, "Number of images per measurement.", 1)
PIXELS = flags.DEFINE_integer("pixels", 32, "Width and height of the images.", 2)
BATCH = flags.DEFINE_integer("batch", 32, "Images at a time, for ours and theirs.", 1)
REPEATS = flags.DEFINE_integer("repeats", 3, "Number of measurements of each.", 1)
JSON = flags.DEFINE_string("json", None, "File that the figures are also written to.")


def draw_weights() -> dict[str, np.ndarray]:
    """Draw Inception's state dict, with kernels that keep the size of activations.

    He et al. (2015): the variance of a kernel is 2 over its number of inputs.
    """
    rng = np.random.default_rng(0)

    def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
        """Draw one array: ones for scales and variances, zeros for biases and means."""
        if len(shape) == 1:
            return np.full(shape, key.endswith(("weight", "running_var")), np.float32)
        scale = np.float32((2 / np.prod(shape[1:])) ** 0.5)
        return rng.standard_normal(shape, np.float32) * scale

    return {
        key: draw(key, shape)
        for key, shape in list_state_shapes(metrics.inception_shapes()).items()
    }


def make_own_call(weights: dict[str, np.ndarray], images: np.ndarray) -> Callable[[], np.ndarray]:
    """Make a call that computes the features of all images by diffjax.

    Args:
        weights: state dict of Inception.
        images: (N, H, W, 3) uint8.
    """
    params = from_state_dict(weights, metrics.inception_shapes())
    network = metrics.inception_network(params, batch_size=BATCH.value)
    return lambda: metrics.extract(network, images).features


def make_reference_call(
    weights: dict[str, np.ndarray], images: np.ndarray
) -> Callable[[], np.ndarray]:
    """Make a call that computes the features of all images by torch-fidelity.

    Args:
        weights: state dict of Inception, which is written to a file that torch-fidelity reads.
        images: (N, H, W, 3) uint8.
    """
    import torch

    from experiments.benchmarks import torch_operators  # noqa: F401

    # isort: split
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save({key: torch.from_numpy(value) for key, value in weights.items()}, file.name)
        net = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=file.name
        )
    batches = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().split(BATCH.value)

    def run() -> np.ndarray:
        """Compute the features (N, 2048) of all images."""
        with torch.inference_mode():
            return torch.cat([net(batch)[0] for batch in batches]).numpy()

    return run


def time_calls(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time calls by turns; the caller has warmed them up.

    Args:
        calls: functions by name, each of which does the same work.
        repeats: number of turns.

    Returns:
        Seconds of each repeat, by the name of the call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(repeats), desc="repeats"):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Time both implementations, compare their features, and print the figures.

    The features of the same weights must agree; the largest difference, over the largest feature,
    is reported beside the speeds.
    """
    shape = (NUM.value, PIXELS.value, PIXELS.value, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    weights = draw_weights()
    calls = {"diffjax": make_own_call(weights, images)}
    if find_spec("torch_fidelity"):
        calls["torch_fidelity"] = make_reference_call(weights, images)
    # This compiles and warms up, and gives the features to compare.
    features = {name: call() for name, call in calls.items()}
    seconds = time_calls(calls, REPEATS.value)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    result: JsonObject = {
        "images": NUM.value,
        "pixels": PIXELS.value,
        "batch": BATCH.value,
        "seconds": seconds,
        "images_per_second": {name: NUM.value / value for name, value in medians.items()},
        "devices": [device.device_kind for device in jax.devices()],
        "cpu_cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "machine": platform.machine(),
        "jax": jax.__version__,
    }
    if "torch_fidelity" in calls:
        a, b = features["diffjax"], features["torch_fidelity"]
        result["speed_ratio"] = medians["torch_fidelity"] / medians["diffjax"]
        result["relative_error"] = float(np.abs(a - b).max() / np.abs(b).max())
        result["versions"] = {name: version(name) for name in ("torch", "torch_fidelity")}
    for key, value in result.items():
        print(f"{key:>20}: {value}")
    if JSON.value:
        write_json(Path(JSON.value), result)


if __name__ == "__main__":
    run_flags.run(main)
