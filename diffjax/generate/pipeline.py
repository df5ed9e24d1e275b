"""The composition: a request to stages of the one sampling loop, and their results to images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.generate import images, program
from diffjax.generate.options import (
    Control,
    Guidance,
    Image,
    Refiner,
    Request,
    Sampling,
    Size,
    make_scheduler,
)
from diffjax.generate.program import Program
from diffjax.pretrained.files import StrPath
from diffjax.pretrained.lora import merge_lora
from diffjax.pretrained.models import Sharding
from diffjax.pretrained.pipelines import Components, load_components, save_components
from diffjax.pretrained.prompts import Embedding, add_concept, count_chunks, encode
from diffjax.samplers import loop
from diffjax.types import Array, PyTree, Rows

ROWS = 1024  # plans are padded to multiples of it, so that their length is no part of a program
CACHED = 256  # embeddings and encoded images that a pipeline keeps
# Draws of a key beside those of the sampler, see `diffjax.samplers.loop.image_noise`.
PRIOR, POSTERIOR, MASKED = 1, 2, 3


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
    if jax.config.jax_compilation_cache_dir is None:
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
        count: rows to run.
        z: where to begin, unless another stage went before.
    """

    program: Program
    inputs: PyTree
    rows: Rows
    count: int
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
        return run.z / self.rows.next.alpha[self.count - 1]


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
        return self.pipe.decode(self.step.run.x, output)


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
        prompt: str | Sequence[str] | Embedding,
        *,
        key: Any = 0,
        sampler: Sampling | str | int | None = None,
        guidance: Guidance | float | None = None,
        image: Image | None = None,
        control: Sequence[Control] = (),
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
            refiner=refiner,
            size=size,
            num=num,
            latents=latents,
            clip_skip=clip_skip,
            weighted=weighted,
        )
        images.check_output(output)
        if callback is None:
            before: Array | None = None
            for _, stage in self._stages(request):
                run = stage.advance(stage.begin(before), stage.rows, 0, stage.count)
                before = stage.end(run)
            return self.decode(run.z, output)
        for progress in self.steps(request):
            if callback(progress):
                break
        return self.decode(progress.step.run.z, output)

    def steps(self, request: Request) -> Iterator[Progress]:
        """Run evaluation by evaluation; edit in between, or leave the loop to stop.

        The same compiled program as of a call, and the same bits.

        Raises:
            ValueError: see `__call__`.
        """
        stages = self._stages(request)
        total, done, before = sum(stage.count for _, stage in stages), 0, None
        for pipe, stage in stages:
            run = stage.begin(before)
            for step in loop.steps(stage.advance, run, stage.rows, n=stage.count):
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
        prompts: Sequence[str],
        *,
        clip_skip: int = 0,
        weighted: bool = False,
        chunks: int = 1,
    ) -> Embedding:
        """Embeddings of prompts, for use in their place; see `diffjax.pretrained.prompts.encode`.

        Raises:
            ValueError: there is no prompt.
        """
        encoders = tuple(self.parts.texts.values())
        if not prompts:
            raise ValueError("there is no prompt")
        if weighted:
            chunks = max(chunks, *(count_chunks(encoders, prompt) for prompt in prompts))

        def one(prompt: str) -> Embedding:
            return self._remember(
                ("prompt", prompt, clip_skip, weighted, chunks),
                lambda: encode(
                    encoders,
                    prompt,
                    penultimate=self._is_xl,
                    skip=clip_skip,
                    weighted=weighted,
                    chunks=chunks,
                ),
            )

        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *map(one, prompts))

    def with_lora(self, path: StrPath, *, scale: float = 1.0) -> Pipeline:
        """The pipeline with a low-rank adapter merged in; see `merge_lora`."""
        texts = self.parts.texts
        models = {"unet": self.parts.unet} | {name: text.model for name, text in texts.items()}
        models = merge_lora(models, path, scale=scale)
        changed = {name: text._replace(model=models[name]) for name, text in texts.items()}
        return Pipeline(self.parts._replace(unet=models["unet"], texts=changed))

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
    def _is_xl(self) -> bool:
        return bool(self.parts.unet.net.added_dim)

    @property
    def _extra(self) -> int:
        """Channels of the input beside the latents."""
        return self.parts.unet.config.get("in_channels", 4) - self.parts.vae.net.latent_channels

    def _remember(self, key: Any, make: Callable[[], Any]) -> Any:
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
        # Other noise than that of the base model.
        keys = program.fold(_keys(request.key, self._count(request)), 2**31 - 1)
        second = dataclasses.replace(request, key=keys, control=(), refiner=None, latents=None)
        first = self._stage(request, end=refiner.start)
        return [
            (self, first),
            (refiner.pipe, refiner.pipe._stage(second, first.z.shape[1:3], start=refiner.start)),
        ]

    def _count(self, request: Request) -> int:
        """Number of images."""
        prompt = request.prompt
        if isinstance(prompt, Embedding):
            return len(prompt.context) * request.num
        count = request.num * (1 if isinstance(prompt, str) else len(prompt))
        if count < 1:
            raise ValueError(f"there is nothing to make: {prompt!r}, num={request.num}")
        return count

    def _stage(
        self,
        request: Request,
        shape: tuple[int, ...] | None = None,
        *,
        start: float | None = None,
        end: float | None = None,
    ) -> Stage:
        count = self._count(request)
        scene = self._scene(request, count, shape)
        sampling, guidance = request.sampling(), request.guiding()
        scheduler = self._remember(
            ("scheduler", repr(sampling._replace(steps=0))),
            lambda: make_scheduler(self.parts.scheduler, sampling),
        )
        grid = scheduler.grid(sampling.steps, strength=scene.strength, start=start)
        rows = scheduler.rows(grid, end)
        steps = len(rows.level.t)
        padded = loop.pad(rows, -(-steps // ROWS) * ROWS)
        scale = guidance.scale if guidance.scale is not None else 5.0 if self._is_xl else 7.5
        scales = program.scales(padded, scale, guidance.low, guidance.high)
        guided = program.how_guided(scales[:steps], scale)
        cond, null = self._conditions(request, scene.size, guided != "no")
        for one in (cond, null):
            one.update({"concat": scene.concat} if scene.concat is not None else {})
        inputs = {"params": self.parts.unet.params, "keys": scene.keys, "cond": cond}
        if guided != "no":
            inputs |= {"null": null, "scale": scales}
        if scene.known is not None:
            inputs["known"] = {**scene.known, **program.known_levels(padded, steps, end is None)}
        made = Program(
            self.parts.unet.net, scheduler, guided, guidance.rescale if guided != "no" else 0.0
        )
        return Stage(made, inputs, padded, steps, scene.begin(rows, grid.init_std))

    def _scene(self, request: Request, count: int, shape: tuple[int, ...] | None) -> Scene:
        """Where the images are to begin, and what is known of them."""
        vae = self.parts.vae.net
        keys, image = _keys(request.key, count), request.image
        given = None if image is None else images.read(image.pixels, latents=vae.latent_channels)
        size = self._size(request, given, shape)
        latent = (size.height // vae.factor, size.width // vae.factor, vae.latent_channels)
        noise = program.draw(keys, latent, PRIOR)
        if request.latents is not None:
            noise = jnp.asarray(request.latents, jnp.float32)
            if noise.shape != (count, *latent):
                raise ValueError(f"latents must be {(count, *latent)}, got {noise.shape}")
        mask = None if image is None or image.mask is None else images.read_mask(image.mask)
        if self._extra and (mask is None or given is None or given[1]):
            raise ValueError("this model fills in images: give image=Image(pixels, mask=mask)")
        if given is None or image is None:
            return Scene(size, keys, noise, 1.0)
        prompts = count // request.num
        pixels = images.spread(given[0], prompts, count, "image")
        x = pixels if given[1] else self._encode(pixels, program.draw(keys, latent, POSTERIOR))
        strength = image.strength if image.strength is not None else self._strength(mask)
        scene = Scene(size, keys, noise, strength, jnp.asarray(x))
        if mask is None:
            return scene
        mask = images.spread(mask, prompts, count, "mask")
        if mask.shape[1:3] != (size.height, size.width):
            raise ValueError(
                f"the mask is {mask.shape[1:3]}, the image {(size.height, size.width)}"
            )
        small = jnp.asarray(mask[:, :: vae.factor, :: vae.factor])
        scene = scene._replace(pure=strength == 1)
        if not self._extra:
            return scene._replace(known={"x": x, "eps": noise, "mask": small})
        # Where the mask is white the image is grey, 0 in [-1, 1].
        hidden = np.where(mask >= 0.5, np.float32(0.5), pixels)
        hidden = self._encode(hidden, program.draw(keys, latent, MASKED))
        return scene._replace(concat=jnp.concatenate([small, hidden], -1))

    def _strength(self, mask: Any) -> float:
        if self._is_xl:
            return 0.3 if mask is None else 0.9999
        return 0.8 if mask is None else 1.0

    def _size(self, request: Request, given: tuple[np.ndarray, bool] | None, shape: Any) -> Size:
        """The size of the output, and that the network can have it."""
        net, factor = self.parts.unet.net, self.parts.vae.net.factor
        asked = request.sizes()
        found: Any = shape and tuple(factor * side for side in shape)
        if given is not None:
            found = tuple(side * (factor if given[1] else 1) for side in given[0].shape[1:3])
        elif request.latents is not None:
            found = tuple(factor * side for side in np.shape(request.latents)[1:3])
        if not (asked.height or found):
            side = self.parts.unet.config.get("sample_size") or 0
            found = tuple(factor * s for s in (side if isinstance(side, list) else (side, side)))
        height, width = asked[:2] if asked.height else found
        unit = factor * 2 ** (len(net.multipliers) - 1)
        if found and (height, width) != found:
            raise ValueError(f"size {(height, width)} is not that of what is given, {found}")
        if height < 1 or width < 1 or height % unit or width % unit:
            raise ValueError(f"height and width must be multiples of {unit}, got {(height, width)}")
        return asked._replace(height=height, width=width)

    def _encode(self, pixels: np.ndarray, eps: Array) -> Array:
        """Latents of pixels (B, H, W, 3) in [0, 1], drawn from their posterior."""
        net, params, _ = self.parts.vae

        def one(image: np.ndarray) -> Any:
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            return self._remember(
                ("image", image.shape, digest),
                lambda: program.posterior(net, params, 2 * image[None] - 1),
            )

        posterior = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *map(one, pixels))
        return (posterior.with_noise(eps) - net.shift_factor) * net.scaling_factor

    def _conditions(
        self, request: Request, size: Size, guided: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the network is given for prompts, and for negative ones (empty if not guided)."""
        prompt, guidance = request.prompt, request.guiding()
        prompts = [prompt] if isinstance(prompt, str) else prompt
        negative = guidance.negative
        weighted, tokens = request.weighted, next(iter(self.parts.texts.values())).tokenizer
        chunks = 1
        if weighted and guided and isinstance(negative, str):
            chunks = self.embed([negative], weighted=True).context.shape[1] // tokens.length
        if not isinstance(prompts, Embedding):
            skip = request.clip_skip
            prompts = self.embed(prompts, clip_skip=skip, weighted=weighted, chunks=chunks)
        cond = self._condition(prompts, request.num, size)
        if not guided:
            return cond, {}
        count = len(prompts.context)
        if negative is None and self.parts.index.get("force_zeros_for_empty_prompt", False):
            nothing: Embedding = jax.tree.map(jnp.zeros_like, prompts)
        elif isinstance(negative, Embedding):
            nothing = negative
        else:
            same = not negative or isinstance(negative, str)
            texts = [negative or ""] * count if same else negative
            chunks = prompts.context.shape[1] // tokens.length
            nothing = self.embed(texts, weighted=weighted, chunks=chunks)
        if len(nothing.context) != count:
            raise ValueError(f"{count} prompts have {len(nothing.context)} negative prompts")
        return cond, self._condition(nothing, request.num, size.negated())

    def _condition(self, embedding: Embedding, num: int, size: Size) -> dict[str, Any]:
        context, pooled = (
            None if leaf is None else jnp.repeat(jnp.asarray(leaf), num, axis=0)
            for leaf in embedding
        )
        cond = {"context": context}
        net = self.parts.unet.net
        if net.added_dim:
            if pooled is None:
                raise ValueError("this model needs pooled embeddings beside the context")
            ids = size.ids((net.added_dim - pooled.shape[-1]) // net.added_time_dim)
            times = jnp.broadcast_to(jnp.asarray(ids, jnp.float32), (len(pooled), len(ids)))
            cond["added"] = {"text_embeds": pooled, "time_ids": times}
        return cond


class Scene(NamedTuple):
    """What a stage begins with.

    Attributes:
        size: of the output.
        keys: of the images.
        noise: initial noise, standard normal.
        strength: share of the steps to run.
        x: latents of the image, if there is one.
        pure: begin from noise alone even so.
        known: x, eps and mask to put back after every step, or None.
        concat: what the network is given beside z, or None.
    """

    size: Size
    keys: Array
    noise: Array
    strength: float
    x: Array | None = None
    pure: bool = False
    known: dict[str, Array] | None = None
    concat: Array | None = None

    def begin(self, rows: Rows, std: float) -> Array:
        """The state at the first row."""
        if self.x is None or self.pure:
            return std * self.noise
        return rows.level.alpha[0] * self.x + rows.level.sigma[0] * self.noise


def _keys(key: Any, count: int) -> Array:
    """One key per image: from a seed or a key by the image's number, or as they are given.

    Raises:
        ValueError: there are keys, but not one per image.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        keys = key
    elif np.ndim(key):
        keys = jnp.stack([jax.random.key(int(seed)) for seed in key])
    else:
        keys = jax.random.key(int(key))
    if not keys.ndim:
        return jax.vmap(partial(jax.random.fold_in, keys))(jnp.arange(count))
    if len(keys) != count:
        raise ValueError(f"there are {count} images, but {len(keys)} keys or seeds")
    return keys
