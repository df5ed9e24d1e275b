"""The composition: a request to stages of the one sampling loop, and their results to images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.generate import images, program
from diffjax.generate.checks import (
    RequestError,
    read_flag,
    read_floats,
    read_whole,
    refuse,
    show,
)
from diffjax.generate.crops import Crop
from diffjax.generate.diffusers_names import explain_attribute, refuse_arguments
from diffjax.generate.loaded import LoadedModel
from diffjax.generate.options import (
    Control,
    FreeU,
    Guidance,
    Lora,
    Refiner,
    Sampling,
    Size,
    Texts,
)
from diffjax.generate.request import LAYERS, Request
from diffjax.generate.stages import Stage, make_stages
from diffjax.generate.texts import read_prompts
from diffjax.pretrained.files import StrPath
from diffjax.pretrained.lora import load_loras, merge_lora
from diffjax.pretrained.models import Component, Sharding
from diffjax.pretrained.pipelines import load_components, save_components
from diffjax.pretrained.prompts import Embedding, Prompt, add_concept, count_chunks
from diffjax.samplers import loop
from diffjax.types import Array, PyTree, summarize


def load(
    path: StrPath,
    *,
    dtype: Any = jnp.float32,
    variant: str | None = None,
    tokenizer: StrPath | None = None,
    prediction: str | None = None,
    sharding: Sharding | None = None,
    vae: StrPath | None = None,
) -> Pipeline:
    """A pipeline from a diffusers folder or a single .safetensors file.

    Compiled programs are kept on disk, in ``JAX_COMPILATION_CACHE_DIR`` or the user's cache.

    Args:
        dtype: of weights and computation, such as ``jnp.bfloat16``.
        variant, tokenizer, prediction, sharding, vae: see `load_components`.

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
        vae=vae,
    )
    return Pipeline(parts)


@dataclasses.dataclass(repr=False)
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

    def __repr__(self) -> str:
        return summarize(self)

    def edit(self, z: Array) -> None:
        """Go on from other latents.

        Raises:
            RequestError: they have another shape, or are not finite.
        """
        shape = self.step.run.z.shape
        if np.shape(read_floats("z", z, "(B, h, w, channels)")) != shape:
            raise refuse("z", f"must have the shape {shape}, got {show(z)}")
        self.step.edit(z)

    def images(self, output: str = "pil") -> Any:
        """Decode the images that the model predicts at this point."""
        run = self.step.run
        return self.pipe.decode(run.z if run.x is None else run.x, output)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pipeline(LoadedModel):
    """A text-to-image model, ready to be called.

    Attributes:
        parts: networks, tokenizers and configs.
    """

    def __repr__(self) -> str:
        parts = self.parts
        lines = [f"Pipeline({parts.manifest.get('_class_name', 'of parts')}"]
        models = {"unet": parts.unet, "vae": parts.vae}
        models |= {name: text.model for name, text in parts.texts.items()}
        lines += [f"  {name}: {_describe(model)}" for name, model in models.items()]
        config = parts.scheduler
        said = config.get("prediction_type", "epsilon")
        return "\n".join([*lines, f"  scheduler: {config.get('_class_name')}, {said})"])

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(explain_attribute(name), name=name, obj=self)

    def __call__(
        self,
        prompt: Texts | Embedding | None = None,
        *,
        key: Any = 0,
        sampler: Sampling | str | int | None = None,
        guidance: Guidance | float | None = None,
        image: Any = None,
        control: Sequence[Control] | Control = (),
        lora: Sequence[Lora] | Lora = (),
        refiner: Refiner | Pipeline | None = None,
        size: Size | Sequence[int] | int | None = None,
        num: int = 1,
        latents: Array | None = None,
        clip_skip: int = 0,
        weighted: bool = False,
        step_noise: Array | None = None,
        freeu: FreeU | None = None,
        output: str = "pil",
        callback: Callable[[Progress], Any] | None = None,
        **unknown: Any,
    ) -> Any:
        """Images of prompts.

        Args:
            prompt, ...: see `Request`.
            output: ``pil`` for a list, ``np`` for (B, H, W, 3) in [0, 1], ``latent`` for
                (B, h, w, 4).
            callback: called after every evaluation of the network; may edit; if it returns True
                the run ends there.

        Raises:
            TypeError: an argument is unknown; what diffusers calls so is named.
            RequestError: what is asked for does not exist or does not fit; the choices are named.
                Nothing has been computed then.
        """
        refuse_arguments(unknown, _ARGUMENTS)
        request = Request(
            prompt,  # type: ignore[arg-type]  # None is refused with the rest
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
            step_noise=step_noise,
            freeu=freeu,
        )
        images.check_output(output)
        if callback is not None and not callable(callback):
            raise refuse("callback", f"must be a function of a Progress, got {show(callback)}")
        end = request.read_sampler().end
        if end < 1 and output != "latent":
            hint = f"sampler.end={end:g} leaves latents with noise, which output='latent' returns"
            raise refuse("output", f"is {output!r}, but {hint}")
        stages = make_stages(self, request)
        latents = _run(stages) if callback is None else self._run_watched(stages, callback)
        return self._decode(latents, output, stages[-1][1].crop)

    def _run_watched(
        self, stages: Sequence[tuple[LoadedModel, Stage]], callback: Callable[[Progress], Any]
    ) -> Array:
        """Latents of stages; a callback that returns True ends them where they are."""
        for progress in self._steps(stages):
            if callback(progress):
                return progress.step.run.z
        return stages[-1][1].finish(progress.step.run)

    def steps(self, request: Request) -> Iterator[Progress]:
        """Run evaluation by evaluation; edit in between, or leave the loop to stop.

        The same compiled program as of a call, and the same bits.

        Raises:
            ValueError: see `__call__`.
        """
        if not isinstance(request, Request):
            raise refuse("request", f"must be a Request(prompt), got {show(request)}")
        return self._steps(make_stages(self, request))

    def _steps(self, stages: Sequence[tuple[LoadedModel, Stage]]) -> Iterator[Progress]:
        before = None
        total, done = sum(stage.length for _, stage in stages), 0
        for loaded, stage in stages:
            pipe, run = cast(Pipeline, loaded), stage.begin(before)
            for step in loop.steps(stage.advance, run, stage.rows, n=stage.length):
                progress = Progress(done, total, step, pipe)
                yield progress
                done += 1
            before = stage.end(step.run)

    def decode(self, latents: Array, output: str = "pil") -> Any:
        """Images of latents (B, h, w, 4), one at a time.

        Raises:
            RequestError: they have another shape, or are not finite, or there is no such output.
        """
        return self._decode(latents, output)

    def _decode(self, latents: Array, output: str, crop: Crop | None = None) -> Any:
        """Images of latents, pasted into what they are a crop of.

        Raises:
            RequestError: see `decode`.
        """
        images.check_output(output)
        read_floats("latents", latents, "(B, h, w, channels)")
        channels = self.parts.vae.net.latent_channels
        if latents.shape[-1] != channels:
            raise refuse("latents", f"must be (B, h, w, {channels}), got {show(latents)}")
        if output == "latent":
            return np.asarray(latents)
        net, params, _ = self.parts.vae
        z = jnp.asarray(latents) / net.latent_scale + net.latent_shift
        pixels = [program.decode(net, params, z[k : k + 1]) for k in range(len(z))]
        whole = np.concatenate(pixels)
        return images.to_output(whole if crop is None else crop.paste(whole), output)

    def embed(
        self,
        prompts: Texts,
        *,
        clip_skip: int = 0,
        weighted: bool = False,
        chunks: int = 1,
    ) -> Embedding:
        """Embeddings of prompts, for use in their place; see `diffjax.pretrained.prompts.encode`.

        Raises:
            RequestError: there is no prompt, or one for two encoders that the model does not have.
            ValueError: so many layers cannot be left out.
        """
        encoders = tuple(self.parts.texts.values())
        texts = read_prompts("prompts", prompts)
        if isinstance(texts, Embedding):
            raise refuse("prompts", "is an Embedding already")
        if not self.is_xl and any(isinstance(prompt, Prompt) for prompt in texts):
            raise RequestError(
                "prompts", "this model has one text encoder: a prompt for two is for XL"
            )
        clip_skip = read_whole("clip_skip", clip_skip, 0, LAYERS)
        chunks = read_whole("chunks", chunks, 1)
        if read_flag("weighted", weighted):
            chunks = max(chunks, *(count_chunks(encoders, prompt) for prompt in texts))

        return self.embed_checked(texts, clip_skip=clip_skip, weighted=weighted, chunks=chunks)

    def with_lora(self, path: StrPath, *, scale: float = 1.0) -> Pipeline:
        """The pipeline with an adapter merged in; see `merge_lora`.

        ``lora`` of a call adds low-rank adapters without another copy of the weights.
        """
        texts = self.parts.texts
        models = {"unet": self.parts.unet} | {name: text.model for name, text in texts.items()}
        models = merge_lora(models, path, scale=scale)
        changed = {name: text._replace(model=models[name]) for name, text in texts.items()}
        return Pipeline(self.parts._replace(unet=models["unet"], texts=changed))

    def load_lora(self, path: StrPath) -> PyTree:
        """Adapters for `Lora`, by the name of the network; see `diffjax.pretrained.load_loras`."""
        texts = {name: text.model for name, text in self.parts.texts.items()}
        return load_loras({"unet": self.parts.unet, **texts}, path)

    def with_concept(
        self, path: StrPath, *, name: str | None = None, allow_legacy_pickle: bool = False
    ) -> Pipeline:
        """The pipeline with more words, by textual inversion; see `add_concept`."""
        encoders = add_concept(
            tuple(self.parts.texts.values()),
            path,
            name=name,
            allow_legacy_pickle=allow_legacy_pickle,
        )
        texts = dict(zip(self.parts.texts, encoders, strict=True))
        return Pipeline(self.parts._replace(texts=texts))

    def save(self, folder: StrPath) -> None:
        """Write a folder that diffusers, or `load`, reads."""
        save_components(folder, self.parts)


def _run(stages: Sequence[tuple[LoadedModel, Stage]]) -> Array:
    """Run stages one after the other; the latents of the last."""
    before = None
    for _, stage in stages:
        run = stage.advance(stage.begin(before), stage.rows, 0, stage.length)
        before = stage.end(run)
    return stage.finish(run)


_ARGUMENTS: dict[str, Any] = dict.fromkeys(
    [*(field.name for field in dataclasses.fields(Request)), "output", "callback"]
)


def _describe(model: Component) -> str:
    """Class, size and type of a network."""
    leaves = jax.tree.leaves(model.params)
    types = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    count = sum(leaf.size for leaf in leaves)
    return f"{type(model.net).__name__}, {count:,} parameters of {types}"
