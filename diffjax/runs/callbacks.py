"""The callbacks of a training run: pictures of the model and measures of it, made as it trains.

The trainer calls them every ``train.sample_every`` and ``train.evaluate_every`` steps with the
state, the frozen parameters and the step. Both use the averaged parameters (EMA) and a few steps
of DDIM, so that they cost little beside the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
from ml_collections import ConfigDict

from diffjax import metrics
from diffjax.evaluation import measure_distance
from diffjax.evaluation.hint_fidelity import measure_control
from diffjax.evaluation.image_grids import save_png, tile
from diffjax.model.image_maker import Compiled
from diffjax.runs import control_examples, first_stage, real_images
from diffjax.runs.drawing import Drawer, replace_sample
from diffjax.runs.guides import read_guides
from diffjax.runs.states import assemble_trained, make_run_mesh
from diffjax.tasks import find_task_kind
from diffjax.train import Reporter, State, hosts
from diffjax.train.sharding import make_tree_sharding, place
from diffjax.train.training_loop import OnEvaluate, OnSample
from diffjax.types import ConfigError, Frozen

PREVIEW_STEPS = 50
MOST, MOST_CONTROLLED = 64, 16  # images of a preview


def choose_preview(cfg: ConfigDict, folder: Path) -> OnSample | None:
    """Choose the callback that writes a preview of what the averaged parameters draw.

    A diffusion model draws a grid of samples. A ControlNet draws samples below the hints of the
    test images that control them. An autoencoder shows test images above their reconstructions.

    Args:
        folder: workdir of the run; pictures are written to samples/STEP.png.

    Returns:
        The callback, or None if the task has nothing to show.
    """
    kind = find_task_kind(cfg)
    if kind.reconstructs:
        return first_stage.make_preview(cfg, folder)
    if kind.assemble is None:
        return None
    make_drawer = _make_quick_drawers(cfg, folder)
    num, columns, above = min(cfg.sample.num, MOST), None, []
    if kind.takes_hints:
        num = columns = min(cfg.sample.num, MOST_CONTROLLED)
        hints = control_examples.take_examples(cfg, num, folder)["hint"]
        above = [control_examples.draw_hints(hints, cfg.data.channels)]

    def write(state: State, frozen: Frozen | None, step: int, reporter: Reporter) -> None:
        drawer = make_drawer(state, frozen)
        images = drawer.draw(num=num, batch_size=num, progress=f"preview at step {step}")
        if not hosts.is_writer():
            return
        picture = tile(np.concatenate([*above, images]), columns=columns)
        save_png(picture, folder / "samples" / f"{step:08d}.png")
        reporter.image("samples", step, picture)

    return write


def choose_evaluation(cfg: ConfigDict, folder: Path) -> OnEvaluate | None:
    """Choose the callback that measures samples of the averaged parameters.

    Distances are Frechet distances in the features of the small classifier that comes with diffjax.
    All evaluations of a run draw with the same seeds, so that their values can be compared.

    Args:
        folder: workdir of the run.

    Returns:
        The callback, which returns numbers by name, or None if ``train.evaluate_every`` is 0.

    Raises:
        ConfigError: there is no classifier for this data set.
    """
    kind = find_task_kind(cfg)
    if not cfg.train.evaluate_every:
        return None
    if kind.reconstructs:
        return lambda state, frozen, step: _keep_numbers(
            first_stage.measure_first_stage(cfg, state, cfg.eval.loop_num)
        )
    if kind.takes_hints:
        return _measure_controlled(cfg, folder)
    if not cfg.eval.features:
        raise ConfigError("train.evaluate_every needs a classifier: config.eval.features")
    network, num = metrics.feature_network(cfg.eval.features), cfg.eval.loop_num
    real, _ = real_images.take_images(cfg, num)
    make_drawer = _make_quick_drawers(cfg, folder)

    def measure(state: State, frozen: Frozen | None, step: int) -> dict[str, float]:
        drawer = make_drawer(state, frozen)
        images = drawer.draw(num=num, progress=f"evaluation at step {step}")
        return _keep_numbers(measure_distance(network, images, real, drawer.model.num_classes))

    return measure


def _measure_controlled(cfg: ConfigDict, folder: Path) -> OnEvaluate:
    """Make the callback of a ControlNet: how well images follow the hints of test images.

    Each evaluation draws twice, with the prompt (or class) of the test image and without it.
    """
    batch = control_examples.take_examples(cfg, cfg.eval.loop_num, folder)
    hints, features = batch["hint"], cfg.eval.features
    network = metrics.feature_network(features) if features else None
    make_drawer = _make_quick_drawers(cfg, folder)

    def measure(state: State, frozen: Frozen | None, step: int) -> dict[str, float]:
        drawer = make_drawer(state, frozen)

        def draw(prompt: bool) -> np.ndarray:
            told = "own" if prompt else "none"
            inputs = control_examples.make_input_reader(drawer.model, batch, [hints], prompt=told)
            return drawer.draw(num=len(hints), inputs=inputs)

        def measure_hints(images: np.ndarray) -> dict[str, float]:
            return control_examples.measure_hints(cfg, hints, images)

        return measure_control(draw, measure_hints, network=network, real=batch["image"])

    return measure


def _make_quick_drawers(cfg: ConfigDict, folder: Path) -> Callable[[State, Frozen | None], Drawer]:
    """Make the function that draws with a state by at most `PREVIEW_STEPS` steps of DDIM.

    What guides sampling is read once, here, since a training has no such part.

    Raises:
        ConfigError: a network that guides is named which does not belong to the model.
    """
    steps = min(PREVIEW_STEPS, cfg.sample.steps)
    quick = replace_sample(cfg, sampler="ddim", eta=0.0, steps=steps)
    guides, compiled = read_guides(cfg), cast(Compiled, {})
    guides = place(guides, make_tree_sharding(guides, make_run_mesh(cfg)))

    def make(state: State, frozen: Frozen | None) -> Drawer:
        model = assemble_trained(cfg, state, {**(frozen or {}), **guides} or None)
        return Drawer(quick, model, folder, compiled=compiled)

    return make


def _keep_numbers(found: Mapping[str, object]) -> dict[str, float]:
    """Select the entries that are floats, which is what the log can hold."""
    return {k: v for k, v in found.items() if isinstance(v, float)}
