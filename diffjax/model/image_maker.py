"""Images of a model in batches: compiled once for each solver, and spread over devices.

`ImageMaker` runs `model.sample` over any number of images; `draw` is the short form for a model
that was opened by hand, without a config (``diffjax.draw``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffjax import grids, samplers
from diffjax.model.model import Arrays, Model, decode_samples, film, sample
from diffjax.model.steering_options import PLAIN, Steering
from diffjax.train.sharding import make_batch_sharding, make_mesh, make_replicated_sharding, place
from diffjax.types import Array, ArrayLike, Cond, Rows, Sampler

# Compiled sampling of a batch, by what it depends on besides its arguments.
Compiled: TypeAlias = dict[tuple[object, ...], Callable[..., tuple[Array, Array | None]]]
SHORTEST = 64  # rows that a plan is padded to at least, so that few lengths are compiled
FRAMES, FILMED = 9, 2  # frames of a film, and the images that are in it

# Called with the frames of the first images, see `ImageMaker`.
OnFilm: TypeAlias = Callable[[np.ndarray], None]


class ImageInputs(NamedTuple):
    """What some images are made of, besides noise.

    Attributes:
        cond: raw condition of arrays (N, ...), see `diffjax.model.Condition`, or None.
        hints: (N, H, W, C) in [0, 1] for each control network.
    """

    cond: Cond = None
    hints: Sequence[np.ndarray] = ()


def make_keys(seed: int, index: np.ndarray) -> np.ndarray:
    """Make the key data of images number ``index`` (N,): functions of (seed, image) alone."""
    base = jax.random.key(seed)
    keys = jax.vmap(lambda k: jax.random.fold_in(base, k))(jnp.asarray(index))
    return np.asarray(jax.random.key_data(keys))


def pad_rows(rows: Rows) -> Rows:
    """Pad rows to a power of two, at least `SHORTEST`, so that similar plans share a program."""
    count = len(rows.level.t)
    return samplers.pad(rows, max(SHORTEST, 1 << (count - 1).bit_length()))


@dataclasses.dataclass(frozen=True)
class ImageMaker:
    """Draws images of a model in batches. Solvers with the same step are compiled once.

    Attributes:
        model: the model, with its parameters.
        mesh: the devices that share a batch.
        steering: see `diffjax.model.sample`.
        compiled: programs that were compiled for other parameters of the same model; new ones are
            added to it.
    """

    model: Model
    mesh: jax.sharding.Mesh
    steering: Steering = PLAIN
    compiled: Compiled = dataclasses.field(default_factory=dict)

    def __call__(
        self,
        inputs_of: Callable[[np.ndarray], ImageInputs],
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
        on_film: OnFilm | None = None,
    ) -> np.ndarray:
        """Draw images number ``first`` to ``first + num - 1``.

        Image k depends on ``(seed, k)`` and its inputs alone.

        Args:
            inputs_of: from numbers of images (B,) to their inputs, on the host.
            sampler, rows: a solver and its plan.
            num: number of images N.
            seed: of the noise.
            scale: guidance scale of each row of `pad_rows`, or None for no guidance.
            strengths: of the control networks, each by row of `pad_rows`.
            batch_size: images at a time; it is raised to a multiple of the number of devices.
            progress: title of the progress bar.
            on_film: called once with the way from noise to picture of the first images,
                (2, `FRAMES`, at most `FILMED`, H, W, C): what `diffjax.model.film` keeps, decoded.

        Returns:
            (N, H, W, C) float32 in [-1, 1].
        """
        size = min(batch_size, num)
        size += -size % self.mesh.size  # the devices share a batch equally
        padded, count = pad_rows(rows), len(rows.level.t)
        run, split = self._compile(sampler, on_film is not None), make_batch_sharding(self.mesh)
        at = np.rint(np.linspace(0, count, FRAMES)).astype(np.int32)
        n = count if on_film is None else at
        keys = make_keys(seed, first + np.arange(-(-num // size) * size))
        done = []
        for start in tqdm(range(0, num, size), desc=progress, unit="batch", leave=False):
            inputs = inputs_of(first + np.arange(start, start + size))
            own, cond, hints = place((keys[start : start + size], inputs.cond, inputs.hints), split)
            made, frames = run(self.model.arrays, own, cond, hints, padded, n, scale, strengths)
            done.append(np.asarray(made))
            if on_film is not None and frames is not None and start == 0:
                on_film(self._decode(frames[:, :, :num]))
        return np.concatenate(done)[:num]

    def _describe(self) -> Model:
        """Return the model without its arrays, which compiled programs get as arguments."""
        return self.model._replace(params=None, frozen=None, statistics=None, adapters=())

    def _decode(self, frames: Array) -> np.ndarray:
        """Decode the frames of a film; only the first batch has one that is shown."""
        described = self._describe()

        def decode(arrays: Arrays, x: Array) -> Array:
            return decode_samples(described.with_arrays(arrays), x)

        run = jax.jit(decode, out_shardings=make_replicated_sharding(self.mesh))
        images = np.asarray(run(self.model.arrays, frames.reshape(-1, *frames.shape[3:])))
        return images.reshape(*frames.shape[:3], *images.shape[1:])

    def _compile(self, sampler: Sampler, filmed: bool) -> Callable[..., tuple[Array, Array | None]]:
        """Compile the sampling of a batch with a solver, unless that has been done already."""
        key = (sampler.init, sampler.step, sampler.start, self.steering, filmed)
        if key not in self.compiled:
            described = self._describe()

            def draw(
                arrays: Arrays,
                keys: jax.Array,
                cond: Cond,
                hints: Sequence[Array],
                rows: Rows,
                n: Array | int,
                scale: Array | None,
                strengths: Sequence[Array],
            ) -> tuple[Array, Array | None]:
                # With a film, n holds the numbers of rows after which a frame is kept.
                run = (
                    functools.partial(film, at=jnp.asarray(n), shown=FILMED)
                    if filmed
                    else lambda *args, **options: (sample(*args, n=n, **options), None)
                )
                found: tuple[Array, Array | None] = run(
                    described.with_arrays(arrays),
                    cond,
                    sampler,
                    rows,
                    jax.random.wrap_key_data(keys),
                    scale=scale,
                    hints=hints,
                    strengths=strengths,
                    steering=self.steering,
                )
                return found

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
    """Draw images of a model; image k depends on ``(seed, k)`` and its condition alone.

    Args:
        num: number of images N.
        seed: of the noise.
        sampler: a name in `diffjax.samplers.SAMPLERS` with its default options, or a solver.
        steps: number of steps of the grid.
        grid: a name in `diffjax.grids.GRIDS`; evenly spaced in time (or log-SNR) if None.
        scale: of classifier-free guidance, ``s = 1 + w``; 1 for none.
        labels: classes, used in turn; all classes of the model in turn if None.
        cond: raw condition of arrays (N, ...), in place of labels.
        hints: (N, H, W, C) in [0, 1] for each control network of the model.
        clip: whether to bound the predicted x to [-1, 1]; if None, for models on pixels only.
        batch_size: images at a time.

    Returns:
        (N, H, W, C) float32 in [-1, 1].

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
    whole = ImageInputs(cond, list(hints))

    def pick(index: np.ndarray) -> ImageInputs:
        picked: ImageInputs = jax.tree.map(lambda leaf: np.asarray(leaf)[index % len(leaf)], whole)
        return picked

    guided = scale != 1 or (model.condition.guided and model.drop > 0)
    bounded = model.space.net is None if clip is None else clip
    scales = np.full(len(pad_rows(rows).level.t), scale, np.float32) if guided else None
    maker = ImageMaker(model, make_mesh(), Steering(clip=bounded))
    return maker(pick, solver, rows, num=num, seed=seed, scale=scales, batch_size=batch_size)
