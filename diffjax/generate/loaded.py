"""A text-to-image model that is loaded, and a cache of what was computed with it.

The stages of a request need the model's parts, but not the calls of `Pipeline`, which imports them.
`LoadedModel` is the part of a pipeline that they share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.generate.checks import RequestError
from diffjax.pretrained.pipelines import Components
from diffjax.pretrained.prompts import Embedding, Prompt, encode
from diffjax.types import T

CACHED = 256  # embeddings and encoded images that are kept


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LoadedModel:
    """The parts of a model that the stages of a request read, with a cache of embeddings and
    encoded images.

    Attributes:
        parts: networks, tokenizers and configs.
    """

    parts: Components
    _kept: dict[tuple, Any] = dataclasses.field(default_factory=dict)

    def embed_checked(
        self,
        prompts: Sequence[str | Prompt],
        *,
        clip_skip: int = 0,
        weighted: bool = False,
        chunks: int = 1,
    ) -> Embedding:
        """Embed prompts that were checked before. Embeddings are kept, so a prompt is encoded once.

        Args:
            prompts: the texts.
            clip_skip: layers to leave out before the one whose output is used.
            weighted: whether brackets in the texts are weights.
            chunks: number of chunks of 77 tokens to fill up to.

        Returns:
            An embedding with context (len(prompts), 77 chunks, D).

        Raises:
            ValueError: the encoder has no layer left.
        """
        encoders = tuple(self.parts.texts.values())

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

    @property
    def is_xl(self) -> bool:
        """Whether the network is conditioned on sizes and a pooled embedding, as XL and its
        refiner are.
        """
        return bool(self.parts.unet.net.added_dim)

    @property
    def extra_channels(self) -> int:
        """Channels of the UNet's input beside the latents: 5 for inpainting models (mask and
        image), else 0.
        """
        return self.parts.unet.config.get("in_channels", 4) - self.parts.vae.net.latent_channels

    def native_size(self) -> tuple[int, int]:
        """Return the height and width in pixels of the images that the model was trained on.

        Raises:
            RequestError: the UNet's config has no ``sample_size``.
        """
        side = self.parts.unet.config.get("sample_size")
        if not side:
            raise RequestError("size", "the model does not say its size: give size=(height, width)")
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return self.parts.vae.net.factor * height, self.parts.vae.net.factor * width

    def remember(self, key: tuple, make: Callable[[], T]) -> T:
        """Return the value that is kept under a key, or make it and keep it.

        At most `CACHED` values are kept; the oldest one is dropped first.
        """
        if key not in self._kept:
            while len(self._kept) >= CACHED:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = make()
        return self._kept[key]
