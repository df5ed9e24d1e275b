"""A text-to-image model that is loaded, and what was computed with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.generate.checks import RequestError
from diffjax.pretrained.pipelines import Components, name_beside
from diffjax.pretrained.prompts import Embedding, Prompt, encode
from diffjax.types import PyTree

CACHED = 256  # embeddings and encoded images that are kept


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LoadedModel:
    """What the stages of a request know of a `Pipeline`.

    Attributes:
        parts: networks, tokenizers and configs.
    """

    parts: Components
    _kept: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def embed_checked(
        self,
        prompts: Sequence[str | Prompt],
        *,
        clip_skip: int = 0,
        weighted: bool = False,
        chunks: int = 1,
        adapters: Mapping[str, tuple[tuple[PyTree, float], ...]] | None = None,
    ) -> Embedding:
        """Embed prompts that were checked, and keep the embeddings for the next time.

        Args:
            adapters: of text encoders, by their names; embeddings with some are not kept.

        Raises:
            ValueError: so many layers cannot be left out.
        """
        given, texts = adapters or {}, self.parts.texts
        encoders = tuple(
            text._replace(adapters=given.get(name, ())) for name, text in texts.items()
        )

        def make(prompt: str | Prompt) -> Embedding:
            return encode(
                encoders,
                prompt,
                penultimate=self.is_xl,
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
        """Whether the network is conditioned on sizes."""
        return bool(self.parts.unet.net.added_dim)

    @property
    def beside(self) -> str:
        """What the network is given beside the latents; see `diffjax.generate.beside`."""
        channels = self.parts.unet.config.get("in_channels", 4)
        return name_beside(channels, self.parts.vae.net.latent_channels)

    def native_size(self) -> tuple[int, int]:
        """Return the height and width in pixels of the images that the model was trained on.

        Raises:
            ValueError: its config does not say.
        """
        side = self.parts.unet.config.get("sample_size")
        if not side:
            raise RequestError("size", "the model does not say its size: give size=(height, width)")
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return self.parts.vae.net.factor * height, self.parts.vae.net.factor * width

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the value kept under a key; make and keep it if there is none."""
        if key not in self._kept:
            while len(self._kept) >= CACHED:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = make()
        return self._kept[key]
