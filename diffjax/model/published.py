"""A published text-to-image model as a `Model`."""

from __future__ import annotations

from diffjax import grids
from diffjax.model.condition import make_text_condition
from diffjax.model.model import Model
from diffjax.model.space import make_latent_space
from diffjax.nets.k_unet import KUNet
from diffjax.parameterization import k_diffusion
from diffjax.pretrained.components import Components
from diffjax.pretrained.schedulers import Scheduler, load_scheduler
from diffjax.types import Parameterization


def make_published_model(parts: Components, scheduler: Scheduler | None = None) -> Model:
    """Make the model of a diffusers folder or a single file, with its parameters.

    Its raw conditions are what ``model.condition.take`` makes of a batch with token ids (B, M),
    ``text``, and for XL also ``text_2`` and ``time_ids`` (B, 6); see
    `diffjax.pretrained.tokenizers`.

    Args:
        parts: its networks, tokenizers and scheduler config.
        scheduler: in place of the model's own.

    Raises:
        ValueError: the scheduler is not supported.
    """
    scheduler = scheduler or load_scheduler(parts.scheduler)
    unet, vae, schedule = parts.unet.net, parts.vae.net, scheduler.schedule
    side = parts.unet.config.get("sample_size") or 64
    height, width = side if isinstance(side, list | tuple) else (side, side)
    nets = {
        name: text.model.net.clone(end=text.tokenizer.end) for name, text in parts.texts.items()
    }
    first = next(iter(parts.texts.values())).tokenizer
    frozen = {name: text.model.params for name, text in parts.texts.items()}
    space = make_latent_space(
        vae,
        (height * vae.factor, width * vae.factor, vae.out_channels),
        vae.latent_scale,
    )
    return Model(
        schedule=schedule,
        parameterization=choose_parameterization(parts, scheduler),
        network=unet,
        space=space,
        condition=make_text_condition(
            nets, unet.token_dim, (first.start, first.end, first.pad), _list_added_shapes(parts)
        ),
        params=parts.unet.params,
        frozen={**frozen, "autoencoder": parts.vae.params},
        statistics=space.extra,
        grid=grids.full(schedule) if schedule.steps is not None else None,
    )


def choose_parameterization(parts: Components, scheduler: Scheduler) -> Parameterization:
    """Return what the network predicts: as the scheduler says, but for k-diffusion's network."""
    if isinstance(parts.unet.net, KUNet):
        return k_diffusion()
    return scheduler.parameterization


def _list_added_shapes(parts: Components) -> dict[str, tuple[int, ...]]:
    """List the shapes of what the UNet of XL reads of an image besides the context."""
    unet = parts.unet.net
    if not unet.added_dim:
        return {}
    *_, last = parts.texts.values()
    pooled = last.model.net.projection
    ids = (unet.added_dim - pooled) // unet.added_time_dim
    return {"text_embeds": (pooled,), "time_ids": (ids,)}
