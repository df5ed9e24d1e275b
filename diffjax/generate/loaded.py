"""A text-to-image model that is loaded, and a cache of what was computed with it.

The stages of a request need the model's parts, but not the calls of `Pipeline`, which imports them.
`LoadedModel` is the part of a pipeline that they share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.generate.checks import RequestError
from diffjax.nets.k_unet import KUNet
from diffjax.pretrained.components import Components, name_beside
from diffjax.pretrained.prompts import Embedding, Prompt, encode
from diffjax.types import PyTree, T

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
        adapters: Mapping[str, tuple[tuple[PyTree, float], ...]] | None = None,
    ) -> Embedding:
        """Embed prompts that were checked before. Embeddings are kept, so a prompt is encoded once.

        Args:
            prompts: the texts.
            clip_skip: layers to leave out before the one whose output is used.
            weighted: whether brackets in the texts are weights.
            chunks: number of chunks of 77 tokens to fill up to.

        Returns:
            An embedding with context (len(prompts), 77 chunks, D).

        Args:
            adapters: of text encoders, by their names; embeddings with some are not kept.

        Raises:
            ValueError: the encoder has no layer left.
        """
        given, texts = adapters or {}, self.parts.texts
        encoders = tuple(
            text._replace(adapters=given.get(name, ())) for name, text in texts.items()
        )

        def make(prompt: str | Prompt) -> Embedding:
            return encode(
                encoders,
                prompt,
                layer=self.text_layer,
                skip=clip_skip,
                weighted=weighted,
                chunks=chunks,
            )

        def one(prompt: str | Prompt) -> Embedding:
            if any(name in texts for name in given):
                return make(prompt)
            key = ("prompt", prompt, clip_skip, weighted, chunks)
            return self.remember(key, lambda: make(prompt))

        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *map(one, prompts))

    @property
    def is_xl(self) -> bool:
        """Whether the network is conditioned on sizes and a pooled embedding, as XL and its
        refiner are.
        """
        return bool(self.parts.unet.net.added_dim)

    @property
    def text_layer(self) -> str:
        """The output of the text encoders that the network reads; see `encode`."""
        if isinstance(self.parts.unet.net, KUNet):
            return "bare"
        return "penultimate" if self.is_xl else "last"

    @property
    def beside(self) -> str:
        """What the network is given beside the latents; see `diffjax.generate.beside`."""
        return name_beside(self.parts.unet.config, self.parts.vae.net.latent_channels)

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
