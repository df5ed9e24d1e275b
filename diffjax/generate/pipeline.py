"""The composition: a request to stages of the one sampling loop, and their results to images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import guidance as guiding
from diffjax.generate import conditions, images, program, scene
from diffjax.generate.options import (
    Control,
    Guidance,
    Image,
    Lora,
    Refiner,
    Request,
    Sampling,
    Size,
    Texts,
    make_scheduler,
)
from diffjax.generate.program import Program
from diffjax.parameterization import check_levels
from diffjax.pretrained.files import StrPath
from diffjax.pretrained.lora import load_lora, merge_lora
from diffjax.pretrained.models import Sharding
from diffjax.pretrained.pipelines import Components, load_components, save_components
from diffjax.pretrained.prompts import Embedding, Prompt, add_concept, count_chunks, encode
from diffjax.samplers import loop
from diffjax.types import Array, PyTree, Rows

ROWS = 1024  # plans are padded to multiples of it, so that their length is no part of a program
CACHED = 256  # embeddings and encoded images that a pipeline keeps
REFINER = 2**31 - 1  # folded into the keys of a refiner


def load(
    path: StrPath,
    *,
    dtype: Any = jnp.float32,
    variant: str | None = None,
    tokenizer: StrPath | None = None,
    prediction: str | None = None,
    sharding: Sharding | None = None,
) -> Pipeline:
    """A pipeline from a diffusers folder or a single .safetensors file.

    Compiled programs are kept on disk, in ``JAX_COMPILATION_CACHE_DIR`` or the user's cache.

    Args:
        dtype: of weights and computation, such as ``jnp.bfloat16``.
        variant, tokenizer, prediction, sharding: see `load_components`.

    Raises:
        FileNotFoundError, ValueError: see `load_components`.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "diffjax"))
    parts = load_components(
        path,
        dtype=dtype,
        variant=variant,
        tokenizer=tokenizer,
        prediction=prediction,
        sharding=sharding,
    )
    return Pipeline(parts)


class Stage(NamedTuple):
    """One run of the loop.

    Attributes:
        program: what is compiled.
        inputs: its arrays.
        rows: padded plan.
        length: rows to run.
        z: where to begin, unless another stage went before.
    """

    program: Program
    inputs: PyTree
    rows: Rows
    length: int
    z: Array

    def begin(self, before: Array | None) -> loop.Run:
        """The start, from z or from what ``z / alpha`` was at the end of the stage before."""
        z = self.z if before is None else before * self.rows.level.alpha[0]
        return loop.begin(self.program.sampler, z, self.rows, watch=True)

    def advance(self, run: loop.Run, rows: Rows, first: Any, last: Any) -> loop.Run:
        """Rows ``first`` to ``last - 1``."""
        return program.advance(self.program, self.inputs, run, rows, first, last)

    def end(self, run: loop.Run) -> Array:
        """What the next stage begins from: a state and its noise over the scale of the signal."""
        return run.z / self.rows.next.alpha[self.length - 1]


@dataclasses.dataclass
class Progress:
    """What `Pipeline.steps` yields after every evaluation of the network.

    Attributes:
        i: number of those that are done, less one.
        count: how many there will be.
        step: of the loop; its ``run`` holds the state z and the prediction x.
        pipe: the pipeline that is at work.
    """

    i: int
    count: int
    step: loop.Step
    pipe: Pipeline

    def edit(self, z: Array) -> None:
        """Go on from other latents."""
        self.step.edit(z)

    def images(self, output: str = "pil") -> Any:
        """What the model takes the images to be at this point."""
        run = self.step.run
        return self.pipe.decode(run.z if run.x is None else run.x, output)


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A text-to-image model, ready to be called.

    Attributes:
        parts: networks, tokenizers and configs.
    """

    parts: Components
    _kept: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __call__(
        self,
        prompt: Texts | Embedding,
        *,
        key: Any = 0,
        sampler: Sampling | str | int | None = None,
        guidance: Guidance | float | None = None,
        image: Image | None = None,
        control: Sequence[Control] = (),
        lora: Sequence[Lora] = (),
        refiner: Refiner | None = None,
        size: Size | tuple[int, int] | int | None = None,
        num: int = 1,
        latents: Array | None = None,
        clip_skip: int = 0,
        weighted: bool = False,
        output: str = "pil",
        callback: Callable[[Progress], Any] | None = None,
    ) -> Any:
        """Images of prompts.

        Args:
            prompt, ...: see `Request`.
            output: ``pil`` for a list, ``np`` for (B, H, W, 3) in [0, 1], ``latent`` for
                (B, h, w, 4).
            callback: called after every evaluation of the network; may edit; if it returns True
                the run ends there.

        Raises:
            ValueError: what is asked for does not exist or does not fit; the choices are named.
        """
        request = Request(
            prompt,
            key=key,
            sampler=sampler,
            guidance=guidance,
            image=image,
            control=control,
            lora=lora,
            refiner=refiner,
            size=size,
            num=num,
            latents=latents,
            clip_skip=clip_skip,
            weighted=weighted,
        )
        images.check_output(output)
        if callback is None:
            return self.decode(self._run(request), output)
        for progress in self.steps(request):
            if callback(progress):
                break
        return self.decode(progress.step.run.z, output)

    def _run(self, request: Request) -> Array:
        before = None
        for _, stage in self._stages(request):
            run = stage.advance(stage.begin(before), stage.rows, 0, stage.length)
            z, before = run.z, stage.end(run)
        return z

    def steps(self, request: Request) -> Iterator[Progress]:
        """Run evaluation by evaluation; edit in between, or leave the loop to stop.

        The same compiled program as of a call, and the same bits.

        Raises:
            ValueError: see `__call__`.
        """
        stages = self._stages(request)
        total, done, before = sum(stage.length for _, stage in stages), 0, None
        for pipe, stage in stages:
            run = stage.begin(before)
            for step in loop.steps(stage.advance, run, stage.rows, n=stage.length):
                progress = Progress(done, total, step, pipe)
                yield progress
                done += 1
            before = stage.end(step.run)

    def decode(self, latents: Array, output: str = "pil") -> Any:
        """Images of latents (B, h, w, 4), one at a time."""
        if output == "latent":
            return np.asarray(latents)
        net, params, _ = self.parts.vae
        z = jnp.asarray(latents) / net.scaling_factor + net.shift_factor
        pixels = [program.decode(net, params, z[k : k + 1]) for k in range(len(z))]
        return images.to_output(np.concatenate(pixels), output)

    def embed(
        self,
        prompts: Sequence[str | Prompt],
        *,
        clip_skip: int = 0,
        weighted: bool = False,
        chunks: int = 1,
    ) -> Embedding:
        """Embeddings of prompts, for use in their place; see `diffjax.pretrained.prompts.encode`.

        Raises:
            ValueError: there is no prompt, or one for two encoders that the model does not have.
        """
        encoders = tuple(self.parts.texts.values())
        if not prompts:
            raise ValueError("there is no prompt")
        if not self.is_xl and any(isinstance(prompt, Prompt) for prompt in prompts):
            raise ValueError("this model has one text encoder: a prompt for two is for XL")
        if weighted:
            chunks = max(chunks, *(count_chunks(encoders, prompt) for prompt in prompts))

        def one(prompt: str | Prompt) -> Embedding:
            return self.remember(
                ("prompt", prompt, clip_skip, weighted, chunks),
                lambda: encode(
                    encoders,
                    prompt,
                    penultimate=self.is_xl,
                    skip=clip_skip,
                    weighted=weighted,
                    chunks=chunks,
                ),
            )

        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *map(one, prompts))

    def with_lora(self, path: StrPath, *, scale: float = 1.0) -> Pipeline:
        """The pipeline with a low-rank adapter merged in; see `merge_lora`.

        ``lora`` of a call adds adapters of the UNet without another copy of its weights.
        """
        texts = self.parts.texts
        models = {"unet": self.parts.unet} | {name: text.model for name, text in texts.items()}
        models = merge_lora(models, path, scale=scale)
        changed = {name: text._replace(model=models[name]) for name, text in texts.items()}
        return Pipeline(self.parts._replace(unet=models["unet"], texts=changed))

    def load_lora(self, path: StrPath) -> PyTree:
        """Adapters for `Lora`; see `diffjax.pretrained.load_lora`."""
        return load_lora(self.parts.unet, path)

    def with_concept(self, path: StrPath, *, name: str | None = None) -> Pipeline:
        """The pipeline with a word more, by textual inversion; see `add_concept`."""
        encoders = add_concept(tuple(self.parts.texts.values()), path, name=name)
        texts = dict(zip(self.parts.texts, encoders, strict=True))
        return Pipeline(self.parts._replace(texts=texts))

    def save(self, folder: StrPath) -> None:
        """Write a folder that diffusers, or `load`, reads."""
        save_components(folder, self.parts)

    # ---- the model --------------------------------------------------------------------------

    @property
    def is_xl(self) -> bool:
        """Whether the network is told sizes."""
        return bool(self.parts.unet.net.added_dim)

    @property
    def extra_channels(self) -> int:
        """Channels of the network's input beside the latents; those of models that fill in."""
        return self.parts.unet.config.get("in_channels", 4) - self.parts.vae.net.latent_channels

    def native_size(self) -> tuple[int, int]:
        """Height and width of the images that the model was made for.

        Raises:
            ValueError: its config does not say.
        """
        side = self.parts.unet.config.get("sample_size")
        if not side:
            raise ValueError("the model does not say its size: give size=(height, width)")
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return self.parts.vae.net.factor * height, self.parts.vae.net.factor * width

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made before, or is made now."""
        if key not in self._kept:
            while len(self._kept) >= CACHED:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = make()
        return self._kept[key]

    # ---- from a request to stages -----------------------------------------------------------

    def _stages(self, request: Request) -> list[tuple[Pipeline, Stage]]:
        refiner = request.refiner
        if refiner is None:
            return [(self, self._stage(request))]
        if not 0 < refiner.start < 1:
            raise ValueError(f"a refiner starts between 0 and 1, got {refiner.start}")
        first = self._stage(request, end=refiner.start)
        # Other noise than that of the base model.
        keys = program.fold(scene.make_keys(request.key, request.count()), REFINER)
        rest = dataclasses.replace(
            request, key=keys, control=(), lora=(), refiner=None, latents=None
        )
        shape = first.z.shape[1:3]
        return [(self, first), (refiner.pipe, refiner.pipe._stage(rest, shape, refiner.start))]

    def _stage(
        self,
        request: Request,
        shape: tuple[int, ...] | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> Stage:
        """A run of the loop for a request, or for the part of it between two fractions."""
        view = scene.make(self, request, shape)
        sampling, guidance, unet = request.sampling(), request.guiding(), self.parts.unet
        scheduler = self.remember(
            ("scheduler", repr(sampling._replace(steps=0))),
            lambda: make_scheduler(self.parts.scheduler, sampling),
        )
        grid = scheduler.grid(sampling.steps, strength=view.strength, start=start)
        rows = scheduler.rows(grid, end)
        check_levels(scheduler.parameterization, rows.level)
        length = len(rows.level.t)
        padded = loop.pad(rows, -(-length // ROWS) * ROWS)
        scale = (5.0 if self.is_xl else 7.5) if guidance.scale is None else guidance.scale
        scales = guiding.interval(padded, scale, low=guidance.low, high=guidance.high)
        guided = program.how_guided(scales[:length], scale)
        cond, null = conditions.make(self, request, view.size, guided=guided != "no")
        inputs: dict[str, Any] = {"params": unet.params, "keys": view.keys, "cond": cond}
        if request.lora:
            inputs["lora"] = [(one.weights, float(one.scale)) for one in request.lora]
        if guided != "no":
            inputs |= {"null": null, "scale": scales}
        if view.concat is not None:
            cond["concat"] = null["concat"] = view.concat
        if view.known is not None:
            inputs["known"] = view.known | program.known_levels(padded, length, end is None)
        nets, inputs["controls"] = program.controls(request, padded, length, view.size[:2])
        rescale = guidance.rescale if guided != "no" else 0.0
        made = Program(unet.net, scheduler, guided, rescale, nets)
        return Stage(made, inputs, padded, length, view.begin(rows, grid.init_std))
