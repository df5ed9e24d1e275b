"""Images of a model in batches: compiled once per solver, spread over devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffjax import grids, samplers
from diffjax.model.model import PLAIN, Arrays, Model, Steering, sample
from diffjax.train.sharding import make_batch_sharding, make_mesh, make_replicated_sharding, place
from diffjax.types import Array, ArrayLike, Cond, Rows, Sampler

SHORTEST = 64  # rows that a plan is padded to at least, so that few lengths are compiled


class Inputs(NamedTuple):
    """What some images are made of, besides noise.

    Attributes:
        cond: raw condition of (N, ...) arrays, see `diffjax.model.Condition`, or None.
        hints: (N, H, W, C) in [0, 1] for each control network.
    """

    cond: Cond = None
    hints: Sequence[np.ndarray] = ()


def make_keys(seed: int, index: np.ndarray) -> np.ndarray:
    """Key data of images number ``index`` (N,): functions of (seed, image) alone."""
    base = jax.random.key(seed)
    keys = jax.vmap(lambda k: jax.random.fold_in(base, k))(jnp.asarray(index))
    return np.asarray(jax.random.key_data(keys))


def pad_rows(rows: Rows) -> Rows:
    """Rows padded to a power of two, so that plans of similar length share a program."""
    count = len(rows.level.t)
    return samplers.pad(rows, max(SHORTEST, 1 << (count - 1).bit_length()))


@dataclasses.dataclass(frozen=True)
class ImageMaker:
    """Draws images of a model; solvers of equal memory compile once.

    Attributes:
        model: with its parameters.
        mesh: of the devices that share a batch.
        steering: see `diffjax.model.sample`.
        compiled: what was compiled for other parameters of the same model; added to.
    """

    model: Model
    mesh: jax.sharding.Mesh
    steering: Steering = PLAIN
    compiled: dict[Any, Callable[..., Array]] = dataclasses.field(default_factory=dict)

    def __call__(
        self,
        inputs_of: Callable[[np.ndarray], Inputs],
        sampler: Sampler,
        rows: Rows,
        *,
        num: int,
        first: int = 0,
        seed: int = 0,
        scale: np.ndarray | None = None,
        strengths: Sequence[ArrayLike] = (),
        batch_size: int = 64,
        progress: str = "sampling",
    ) -> np.ndarray:
        """Images ``first`` to ``first + num``, (num, H, W, C) float32 in [-1, 1].

        Image k depends on (seed, k) and its inputs only.

        Args:
            inputs_of: numbers of images (N,) to what they are made of, on the host.
            rows: the sampler's plan.
            scale: guidance by row of `pad_rows`, or None for none.
            strengths: of the control networks, by row of `pad_rows`.
            progress: name of the progress bar.
        """
        size = min(batch_size, num)
        size += -size % self.mesh.size  # the devices share a batch equally
        padded, count = pad_rows(rows), len(rows.level.t)
        run, split = self._compile(sampler), make_batch_sharding(self.mesh)
        keys = make_keys(seed, first + np.arange(-(-num // size) * size))
        done = []
        for start in tqdm(range(0, num, size), desc=progress, unit="batch", leave=False):
            inputs = inputs_of(first + np.arange(start, start + size))
            own, cond, hints = place((keys[start : start + size], inputs.cond, inputs.hints), split)
            made = run(self.model.arrays, own, cond, hints, padded, count, scale, strengths)
            done.append(np.asarray(made))
        return np.concatenate(done)[:num]

    def _compile(self, sampler: Sampler) -> Callable[..., Array]:
        key = (sampler.init, sampler.step, sampler.start, self.steering)
        if key not in self.compiled:
            described = self.model._replace(params=None, frozen=None, statistics=None, adapters=())

            def draw(
                arrays: Arrays,
                keys: jax.Array,
                cond: Cond,
                hints: Sequence[Array],
                rows: Rows,
                n: Any,
                scale: Array | None,
                strengths: Sequence[Array],
            ) -> Array:
                return sample(
                    described.with_arrays(arrays),
                    cond,
                    sampler,
                    rows,
                    jax.random.wrap_key_data(keys),
                    n=n,
                    scale=scale,
                    hints=hints,
                    strengths=strengths,
                    steering=self.steering,
                )

            # Whole images come out, so that every process has them.
            self.compiled[key] = jax.jit(draw, out_shardings=make_replicated_sharding(self.mesh))
        return self.compiled[key]


def draw(
    model: Model,
    num: int = 16,
    *,
    seed: int = 0,
    sampler: str | Sampler = "ddim",
    steps: int = 50,
    grid: str | None = None,
    scale: float = 1.0,
    labels: Sequence[int] | np.ndarray | None = None,
    cond: Cond = None,
    hints: Sequence[np.ndarray] = (),
    clip: bool | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Draw images (num, H, W, C) float32 in [-1, 1] of a model; image k depends on (seed, k) only.

    Args:
        sampler: a name in `diffjax.samplers.SAMPLERS` with its default options, or a solver.
        steps: of the grid.
        grid: a name in `diffjax.grids.GRIDS`; evenly spaced in time (or log-SNR) if None.
        scale: of classifier-free guidance, 1 for none.
        labels: classes, used in turn; all of the model's in turn if None.
        cond: raw condition of (num, ...) arrays in place of labels.
        hints: (num, H, W, C) in [0, 1], for each control network of the model.
        clip: bound the predicted x to [-1, 1]; if None, of models on pixels only.

    Raises:
        ValueError: a name or a number is wrong, or the model needs a condition that is not given.
    """
    solver = samplers.make(sampler) if isinstance(sampler, str) else sampler
    name = grid or ("leading" if model.schedule.steps is not None else "logsnr")
    rows = solver.plan(grids.make(name, model.schedule, steps))
    if cond is None and model.condition.names:
        if model.condition.names != ("label",):
            needed = ", ".join(model.condition.names)
            raise ValueError(f"this model needs a condition: give cond, with the entries {needed}")
        chosen = np.arange(model.num_classes) if labels is None else np.asarray(labels, np.int32)
        cond = {"label": np.resize(chosen, num).astype(np.int32)}
    elif labels is not None:
        raise ValueError("labels are for models that are given classes; this one is not")
    whole = Inputs(cond, list(hints))

    def pick(index: np.ndarray) -> Inputs:
        picked: Inputs = jax.tree.map(lambda leaf: np.asarray(leaf)[index % len(leaf)], whole)
        return picked

    guided = scale != 1 or (model.condition.guided and model.drop > 0)
    bounded = model.space.net is None if clip is None else clip
    scales = np.full(len(pad_rows(rows).level.t), scale, np.float32) if guided else None
    maker = ImageMaker(model, make_mesh(), Steering(clip=bounded))
    return maker(pick, solver, rows, num=num, seed=seed, scale=scales, batch_size=batch_size)
