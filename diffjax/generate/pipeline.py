"""The pipeline of a text-to-image model: it loads the parts, runs requests and decodes the images.

`stages` turns a request into runs of the one sampling loop. This module executes them, either in
one compiled call or evaluation by evaluation with a `Progress` for the caller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.typing import DTypeLike

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
from diffjax.generate.diffusers_names import Explains, explain_attribute, refuse_arguments
from diffjax.generate.finishing import Finish
from diffjax.generate.loaded import LoadedModel
from diffjax.generate.options import (
    Control,
    FreeU,
    Guidance,
    ImagePrompt,
    Lora,
    Refiner,
    Sampling,
    Size,
    Texts,
)
from diffjax.generate.request import LAYERS, Request
from diffjax.generate.stages import Stage, make_stages
from diffjax.generate.texts import read_prompts
from diffjax.pretrained.cards import PICTURE, UNKNOWN, Card, check_license, write_card
from diffjax.pretrained.components import save_components
from diffjax.pretrained.files import StrPath
from diffjax.pretrained.image_adapters import ImageAdapter, load_image_adapter
from diffjax.pretrained.lora_files import load_loras, merge_lora
from diffjax.pretrained.models import Component, Sharding
from diffjax.pretrained.pipelines import load_components
from diffjax.pretrained.prompts import Embedding, Prompt, add_concept, count_chunks
from diffjax.samplers import loop
from diffjax.types import Array, Params, summarize
from diffjax.xla import keep_programs, set_gpu_level


def load(
    path: StrPath,
    *,
    dtype: DTypeLike = jnp.float32,
    variant: str | None = None,
    tokenizer: StrPath | None = None,
    prediction: str | None = None,
    sharding: Sharding | None = None,
    vae: StrPath | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Pipeline:
    """Load a pipeline from a diffusers folder, a single .safetensors file, or a name on the Hub.

    Compiled programs are kept on disk, see `diffjax.xla.keep_programs`.

    Args:
        path: the folder, the file, or OWNER/NAME[@REVISION][/PATH].
        dtype: type of weights and computation, such as ``jnp.bfloat16``.
        variant, tokenizer, prediction, sharding, vae: see `load_components`.
        revision, token, local_files_only: of names on the Hub, see `diffjax.pretrained.download`.

    Raises:
        FileNotFoundError, ValueError: see `load_components`.
    """
    keep_programs()
    set_gpu_level()
    parts = load_components(
        path,
        dtype=dtype,
        variant=variant,
        tokenizer=tokenizer,
        prediction=prediction,
        sharding=sharding,
        vae=vae,
        revision=revision,
        token=token,
        local_files_only=local_files_only,
    )
    return Pipeline(parts)


@dataclasses.dataclass(repr=False)
class Progress:
    """The state of a run after an evaluation of the network, as `Pipeline.steps` yields it.

    Attributes:
        i: index of the evaluation that was just done, from 0.
        count: evaluations of the whole run, those of a refiner included.
        step: the step of the loop; its ``run`` holds the state z and the prediction x.
        pipe: the pipeline whose network was evaluated, the base model's or the refiner's.
    """

    i: int
    count: int
    step: loop.Step
    pipe: Pipeline

    def __repr__(self) -> str:
        return summarize(self)

    def edit(self, z: Array) -> None:
        """Replace the state z, so that the run goes on from other latents.

        Args:
            z: latents of the shape of ``step.run.z``, noisy as the state is.

        Raises:
            RequestError: the latents have another shape, or are not finite.
        """
        shape = self.step.run.z.shape
        if np.shape(read_floats("z", z, "(B, h, w, channels)")) != shape:
            raise refuse("z", f"must have the shape {shape}, got {show(z)}")
        self.step.edit(z)

    def images(self, output: str = "pil") -> Any:
        """Decode the images that the model predicts at this point of the run.

        Args:
            output: ``pil``, ``np`` or ``latent``, see `Pipeline.__call__`.
        """
        run = self.step.run
        return self.pipe.decode(run.z if run.x is None else run.x, output)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pipeline(LoadedModel, metaclass=Explains):
    """A text-to-image model that can be called with prompts.

    Pipelines are immutable: `with_lora` and `with_concept` return new ones that share the other
    weights.

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
        prediction = config.get("prediction_type", "epsilon")
        return "\n".join([*lines, f"  scheduler: {config.get('_class_name')}, {prediction})"])

    def __getattr__(self, name: str) -> Any:
        known = dir(type(self))
        raise AttributeError(explain_attribute(name, known), name=name, obj=self)

    def __call__(
        self,
        prompt: Texts | Embedding | None = None,
        *,
        key: object = 0,
        sampler: Sampling | str | int | None = None,
        guidance: Guidance | float | None = None,
        image: object = None,
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
        image_prompt: Sequence[ImagePrompt] | ImagePrompt = (),
        output: str = "pil",
        callback: Callable[[Progress], object] | None = None,
        finish: Finish | None = None,
        **unknown: object,
    ) -> Any:
        """Generate images of prompts.

        Args:
            prompt, key, sampler, guidance, image, control, lora, refiner, size, num, latents,
                clip_skip, weighted, step_noise, freeu, image_prompt: see `Request`.
            output: ``pil`` for a list of images, ``np`` for a float32 array (B, H, W, 3) in [0, 1],
                ``latent`` for (B, h, w, 4).
            callback: a function of a `Progress`, called after every evaluation of the network. It
                may edit the state. If it returns True, the run ends there.
            finish: a function of the images, (B, H, W, 3) in [0, 1], that returns what is given
                back, such as a safety checker or a watermark (`diffjax.generate.finishing`).

        Raises:
            TypeError: an argument is unknown; the message translates the names of diffusers.
            RequestError: an argument is wrong or does not fit the model. The message names the
                argument and the choices, and nothing has been computed yet.
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
            image_prompt=image_prompt,
        )
        images.check_output(output)
        if callback is not None and not callable(callback):
            raise refuse("callback", f"must be a function of a Progress, got {show(callback)}")
        if finish is not None and not callable(finish):
            raise refuse("finish", f"must be a function of images, got {show(finish)}")
        end = request.read_sampler().end
        if end < 1 and output != "latent":
            hint = f"sampler.end={end:g} leaves latents with noise, which output='latent' returns"
            raise refuse("output", f"is {output!r}, but {hint}")
        stages = make_stages(self, request)
        latents = _run(stages) if callback is None else self._run_watched(stages, callback)
        last = stages[-1][1]
        return self._decode(latents, output, last.crop, finish, last.kept)

    def _run_watched(
        self, stages: Sequence[tuple[LoadedModel, Stage]], callback: Callable[[Progress], object]
    ) -> Array:
        """Run stages, and return the final latents (B, h, w, C). A callback that returns True ends
        the run where it is.
        """
        for progress in self._steps(stages):
            if callback(progress):
                return progress.step.run.z
        return stages[-1][1].finish(progress.step.run)

    def steps(self, request: Request) -> Iterator[Progress]:
        """Run a request evaluation by evaluation.

        The caller may edit the state, or leave the loop to stop.

        A call runs the same compiled program, so that both give the same bits.

        Raises:
            RequestError: see `__call__`.
        """
        if not isinstance(request, Request):
            raise refuse("request", f"must be a Request(prompt), got {show(request)}")
        return self._steps(make_stages(self, request))

    def _steps(self, stages: Sequence[tuple[LoadedModel, Stage]]) -> Iterator[Progress]:
        """Yield the progress of stages that were planned; checks have run before the first
        value is asked for.
        """
        before = None
        total, done = sum(stage.length for _, stage in stages), 0
        for loaded, stage in stages:
            pipe, run = cast(Pipeline, loaded), stage.begin(before)
            for step in loop.steps(stage.advance, run, stage.rows, n=stage.length):
                progress = Progress(done, total, step, pipe)
                yield progress
                done += 1
            before = stage.end(step.run)

    def decode(self, latents: Array, output: str = "pil", *, finish: Finish | None = None) -> Any:
        """Decode latents to images, one image at a time to bound the memory.

        Args:
            latents: (B, h, w, C), multiplied by the autoencoder's scaling factor, as the UNet sees
                them.
            output: ``pil``, ``np`` or ``latent``, see `__call__`.
            finish: a function of the images, see `__call__`; latents are given back without it.

        Raises:
            RequestError: the latents have another shape or are not finite, or the output is
                unknown.
        """
        return self._decode(latents, output, finish=finish)

    def _decode(
        self,
        latents: Array,
        output: str,
        crop: Crop | None = None,
        finish: Finish | None = None,
        kept: Sequence[np.ndarray] = (),
    ) -> Any:
        """Images of latents, pasted into what they are a crop of; errors as `decode`."""
        images.check_output(output)
        read_floats("latents", latents, "(B, h, w, channels)")
        channels = self.parts.vae.net.latent_channels
        if latents.shape[-1] != channels:
            raise refuse("latents", f"must be (B, h, w, {channels}), got {show(latents)}")
        if output == "latent":
            return np.asarray(latents)
        net, params, _ = self.parts.vae
        z = net.unscale_latents(jnp.asarray(latents))
        rows = [tuple(one[k : k + 1] for one in (z, *kept)) for k in range(len(z))]
        whole = np.concatenate([program.decode(net, params, *row) for row in rows])
        if finish is not None:
            whole = 2 * finish(images.to_output(whole, "np")) - 1  # type: ignore[arg-type]
        return images.to_output(whole if crop is None else crop.paste(whole), output)

    def embed(
        self,
        prompts: Texts,
        *,
        clip_skip: int = 0,
        weighted: bool = False,
        chunks: int = 1,
    ) -> Embedding:
        """Embed prompts, for use in place of texts; see `diffjax.pretrained.prompts.encode`.

        Args:
            prompts: one text or several.
            clip_skip: layers of the text encoder to leave out.
            weighted: whether brackets are weights; then a prompt may be longer than a chunk.
            chunks: chunks of 77 tokens that there are at least.

        Raises:
            RequestError: there is no prompt, one is an embedding already, or one is a `Prompt` of
                two texts while the model has one encoder.
            ValueError: ``clip_skip`` leaves no layer.
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
        """Return the pipeline with an adapter merged into its networks; see `merge_lora`.

        The argument ``lora`` of a call adds low-rank adapters without another copy of the weights.

        Args:
            path: a file of adapters, or a folder of peft or diffusers.
            scale: 1 as trained, 0 for no change.

        Raises:
            FileNotFoundError, ValueError: see `merge_lora`.
        """
        texts = self.parts.texts
        models = {"unet": self.parts.unet} | {name: text.model for name, text in texts.items()}
        models = merge_lora(models, path, scale=scale)
        changed = {name: text._replace(model=models[name]) for name, text in texts.items()}
        return Pipeline(self.parts._replace(unet=models["unet"], texts=changed))

    def load_lora(self, path: StrPath) -> dict[str, Params]:
        """Load adapters for `Lora` by the network's name; see `load_loras`."""
        texts = {name: text.model for name, text in self.parts.texts.items()}
        return load_loras({"unet": self.parts.unet, **texts}, path)

    def load_image_adapter(
        self, path: StrPath, *, encoder: StrPath | None = None, allow_legacy_pickle: bool = False
    ) -> ImageAdapter:
        """Load an IP-Adapter for `ImagePrompt`; see `diffjax.pretrained.load_image_adapter`."""
        options: dict[str, Any] = dict(encoder=encoder, allow_legacy_pickle=allow_legacy_pickle)
        unet = self.parts.unet
        return load_image_adapter(unet, path, dtype=unet.net.dtype or jnp.float32, **options)

    def with_concept(
        self, path: StrPath, *, name: str | None = None, allow_legacy_pickle: bool = False
    ) -> Pipeline:
        """Return the pipeline with words added by textual inversion; see `add_concept`."""
        encoders = add_concept(
            tuple(self.parts.texts.values()),
            path,
            name=name,
            allow_legacy_pickle=allow_legacy_pickle,
        )
        texts = dict(zip(self.parts.texts, encoders, strict=True))
        return Pipeline(self.parts._replace(texts=texts))

    def save(
        self, folder: StrPath, *, license: str = UNKNOWN, picture: PIL.Image.Image | None = None
    ) -> None:
        """Write a folder that `load` and diffusers read, with a model card.

        A card that is there already stays as it is.

        Args:
            license: the Hub's identifier of the licence, for the card.
            picture: an image that the model made, for the card.

        Raises:
            ConfigError: ``license`` is no identifier.
            ValueError, FileExistsError: see `save_components`.
        """
        check_license(license)
        path = Path(folder)
        save_components(path, self.parts)
        if picture is not None:
            picture.save(path / PICTURE)
        kind = self.parts.manifest.get("_class_name", "text-to-image model")
        usage = f'import diffjax\n\npipe = diffjax.load("{path.name}")\npipe("a red cat")[0]'
        summary = f"A text-to-image model in the layout of diffusers' {kind}, written by diffjax."
        card = Card(path.name, summary, usage, library="diffusers", license=license)
        write_card(path, card._replace(picture=(path / PICTURE).exists()))


def _run(stages: Sequence[tuple[LoadedModel, Stage]]) -> Array:
    """Run stages one after the other; the latents of the last."""
    before = None
    for _, stage in stages:
        run = stage.advance(stage.begin(before), stage.rows, 0, stage.length)
        before = stage.end(run)
    return stage.finish(run)


_ARGUMENTS: dict[str, None] = dict.fromkeys(
    [*(field.name for field in dataclasses.fields(Request)), "output", "callback", "finish"]
)


def _describe(model: Component) -> str:
    """Describe a network by its class, number of parameters and their types, for the repr."""
    leaves = jax.tree.leaves(model.params)
    types = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    count = sum(leaf.size for leaf in leaves)
    return f"{type(model.net).__name__}, {count:,} parameters of {types}"
