r"""The first stage of latent diffusion as a `Task`: an autoencoder against a discriminator.

Rombach et al. 2022, appendix G; Esser et al. 2021, eq. 5-7. Two players share one loss: each
term stops the gradient at the other player's parameters, so that one backward pass serves both.
LDM alternates instead: its discriminator sees the reconstruction of the updated autoencoder.

Config sections read here: ``network`` and ``loss``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.model.space import make_autoencoder
from diffjax.nets.autoencoder import Autoencoder, Posterior, Quantized, VQModel
from diffjax.nets.discriminator import PatchGAN
from diffjax.nets.initialisation import init_network, initialise
from diffjax.nets.perceptual import LPIPS, classifier_distance
from diffjax.types import Array, Frozen, LossAndState, Params, Statistics, Task, choose

PIXEL_LOSSES = {"l1": jnp.abs, "l2": jnp.square}
PERCEPTUAL = ("lpips", "classifier", "none")
USAGE_DECAY = 0.99  # of the average that says which codes are dead

Batch = Mapping[str, Array]


def measure_perceptual_distance(frozen: Frozen, x: jax.Array, y: jax.Array) -> jax.Array:
    """Measure the perceptual distance (B,) of images by the network that there is.

    Args:
        frozen: ``lpips`` (Zhang et al. 2018) or ``classifier``; without either the distance is 0.
        x, y: images (B, H, W, C) in [-1, 1].
    """
    frozen = frozen or {}
    if "lpips" in frozen:
        widths = tuple(frozen["lpips"][f"lin{i}.model.1"]["kernel"].shape[2] for i in range(5))
        out: Any = LPIPS(widths).apply({"params": frozen["lpips"]}, x, y)
        return out
    if "classifier" in frozen:
        return classifier_distance(frozen["classifier"], x, y)
    return jnp.zeros(len(x))


def compute_adaptive_weight(nll: Array, adversarial: Array, limit: float = 1e4) -> Array:
    """Compute the weight of the adversarial term (Esser et al. 2021, eq. 7).

    ``|grad nll| / (|grad adversarial| + 1e-4)``, at most ``limit``, without a gradient.

    Args:
        nll, adversarial: gradients of both terms at the kernel of the last layer.
    """
    norms = jnp.sqrt((nll**2).sum()), jnp.sqrt((adversarial**2).sum())
    return jax.lax.stop_gradient(jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, limit))


def compute_hinge_loss(real: Array, fake: Array) -> Array:
    """Compute the hinge loss of a discriminator from logits of real and fake images, of any shape.

    ``(mean relu(1 - real) + mean relu(1 + fake)) / 2``, as in VQGAN (Esser et al. 2021).
    """
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def make_autoencoder_task(
    config: ConfigDict, image_shape: tuple[int, int, int], levels: int = 256, num_classes: int = 0
) -> Task:
    """Make the task that trains an autoencoder, the first stage of latent diffusion.

    The loss is ``nll + on w adversarial + regularizer + on hinge`` with ``on = step >= disc_start``
    and ``w = disc_weight * compute_adaptive_weight``. ``nll`` is ``|x - x_hat|`` (or its square)
    plus the weighted perceptual distance, summed over an image for a KL autoencoder and averaged
    for a codebook, as released with the papers.

    Parameters are those of the autoencoder and, under ``discriminator``, those of the other player.
    ``frozen`` may hold a perceptual network, see `measure_perceptual_distance`. ``extra`` holds the
    batch statistics of the discriminator and, for a codebook, the running share of latents that
    fall to each code.

    Args:
        config: its sections ``network`` and ``loss`` are read.
        image_shape: (H, W, C) of the data.
        levels, num_classes: not used; all tasks have these arguments.

    Raises:
        ValueError: unknown names or options.
    """
    net, section = make_autoencoder(config.network, image_shape[-1]), config.loss
    choose("perceptual network", section.perceptual, dict.fromkeys(PERCEPTUAL))
    pixel = choose("pixel loss", section.pixel, PIXEL_LOSSES)
    judge = PatchGAN(section.disc_channels, section.disc_layers) if section.disc_weight else None
    stage = _FirstStage(net, image_shape, section, pixel, judge)
    return Task(stage.init, stage.loss)


class _FirstStage(NamedTuple):
    """What the functions of the task share; see `make_autoencoder_task`.

    Attributes:
        net: the autoencoder.
        image_shape: (H, W, C).
        section: ``config.loss``.
        pixel: distance of each pixel, from the difference of two images.
        judge: the discriminator, or None.
    """

    net: Autoencoder
    image_shape: tuple[int, int, int]
    section: ConfigDict
    pixel: Callable[[Array], Array]
    judge: PatchGAN | None

    def init(self, key: jax.Array, frozen: Frozen, batch: Batch) -> tuple[Params, Statistics]:
        """See `Task.init`."""
        image = batch["image"]
        if tuple(image.shape[1:]) != tuple(self.image_shape):
            raise ValueError(f"images of shape {self.image_shape} expected, got {image.shape[1:]}")
        made = init_network(self.net, key, image)["params"]
        extra: dict[str, Any] = {}
        params = dict(initialise(made, self.net.initialisation, key))
        if isinstance(self.net, VQModel):
            extra["usage"] = jnp.full(self.net.codes, 1 / self.net.codes)
        if self.judge is not None:
            judge = init_network(self.judge, jax.random.fold_in(key, 1), image)
            params["discriminator"], extra["statistics"] = judge["params"], judge["batch_stats"]
        return params, extra

    def compute_nll(self, frozen: Frozen, x: jax.Array, x_hat: jax.Array) -> Array:
        """Compute pixel and perceptual distance, summed over an image or averaged (codebook)."""
        distance = self.section.perceptual_weight * measure_perceptual_distance(frozen, x, x_hat)
        each = self.pixel(x - x_hat) + distance[:, None, None, None]
        return each.mean() if isinstance(self.net, VQModel) else each.sum() / len(x)

    def loss(
        self,
        params: Params,
        frozen: Frozen,
        extra: Statistics,
        key: jax.Array,
        step: Array,
        batch: Batch,
    ) -> LossAndState:
        """See `Task.loss`."""
        x, stop = batch["image"], jax.lax.stop_gradient
        own = {k: v for k, v in params.items() if k != "discriminator"}
        x_hat, code = _reconstruct(self.net, own, key, x)
        fixed = stop(x_hat)
        value, pull = jax.value_and_grad(self.compute_nll, argnums=2)(frozen, x, fixed)
        metrics = {"nll": value, "psnr": _measure_psnr(x, fixed)}
        total: Array = jnp.zeros(())
        if self.judge is not None:
            section = self.section
            on = jnp.where(step >= section.disc_start, 1.0, 0.0)
            hinged, statistics, shown = _judge(self.judge, params, extra, x, fixed)
            gain, gain_pull = _compute_adversarial(self.judge, params, extra, fixed)
            weight = on * section.disc_weight
            if section.adaptive:
                last = _make_last_layer_pullback(self.net, own, key, x)
                weight = weight * compute_adaptive_weight(last(pull), last(gain_pull))
            value, pull = value + weight * gain, pull + weight * gain_pull
            total = on * hinged
            extra = {**extra, "statistics": statistics}
            metrics |= {"adversarial": gain, "weight": weight, "discriminator": hinged, **shown}
        # Both terms have been taken back to x_hat already, for the weight: go on from there.
        carried = (pull * x_hat).sum()
        total = total + value + carried - stop(carried)
        regular, extra, shown = _compute_regularizer(self.section, own, extra, code)
        return total + regular, (extra, {"loss": total + regular, **metrics, **shown})


def _reconstruct(
    net: Autoencoder, own: Params, key: jax.Array, x: Array
) -> tuple[Array, Posterior | Quantized]:
    """Reconstruct images; also returns their posterior, which is sampled from, or their codes."""
    if isinstance(net, VQModel):
        return cast(tuple[Array, Quantized], net.apply({"params": own}, x))
    b, h, w, _ = x.shape
    eps = jax.random.normal(key, (b, h // net.factor, w // net.factor, net.latent_channels))
    return cast(tuple[Array, Posterior], net.apply({"params": own}, x, eps))


def _make_last_layer_pullback(
    net: Autoencoder, own: Params, key: jax.Array, x: Array
) -> Callable[[Array], Array]:
    """Make the function that takes a gradient at the reconstruction back to the last kernel."""
    own = jax.lax.stop_gradient(own)
    decoder = own["decoder"]
    bias = decoder["conv_out"]["bias"]

    def apply(kernel: Array) -> Array:
        changed = {**decoder, "conv_out": {"kernel": kernel, "bias": bias}}
        return _reconstruct(net, {**own, "decoder": changed}, key, x)[0]

    pull = jax.vjp(apply, decoder["conv_out"]["kernel"])[1]
    return lambda gradient: pull(gradient)[0]


def _judge(
    judge: PatchGAN, params: Params, extra: Statistics, x: Array, x_hat: Array
) -> tuple[Array, Statistics, dict[str, Array]]:
    """Judge images and their reconstructions by the discriminator.

    Returns:
        The hinge loss, the new batch statistics, and the mean logits for the log.
    """
    given, statistics = {"params": params["discriminator"]}, extra["statistics"]
    logits = []
    for images in (x, x_hat):
        out, changed = judge.apply({**given, "batch_stats": statistics}, images, mutable=True)
        statistics = changed["batch_stats"]
        logits.append(out)
    real, fake = logits
    return compute_hinge_loss(real, fake), statistics, {"real": real.mean(), "fake": fake.mean()}


def _compute_adversarial(
    judge: PatchGAN, params: Params, extra: Statistics, x_hat: Array
) -> tuple[Array, Array]:
    """Compute ``-mean D(x_hat)`` and its gradient at x_hat; the discriminator is held fixed."""
    given = {"params": params["discriminator"], "batch_stats": extra["statistics"]}
    fixed = jax.lax.stop_gradient(given)

    def compute_score(images: Array) -> Array:
        return -judge.apply(fixed, images, mutable=["batch_stats"])[0].mean()

    return jax.value_and_grad(compute_score)(x_hat)


def _compute_regularizer(
    section: ConfigDict, own: Params, extra: Statistics, code: Posterior | Quantized
) -> tuple[Array, Statistics, dict[str, Array]]:
    """Compute the term that keeps the latents in bounds.

    For a KL autoencoder that is ``kl_weight KL(q(z|x) || N(0, I))``. For a codebook it is the
    codebook and the commitment loss (van den Oord et al. 2017, eq. 3), and a pull of dead codes
    towards latents.

    Returns:
        The term, the statistics with the running usage of codes, and values for the log.
    """
    if isinstance(code, Posterior):
        kl = code.kl().mean()
        return section.kl_weight * kl, extra, {"kl": kl}
    codebook, commitment = code.codebook.mean(), code.commitment.mean()
    counts = jnp.zeros_like(extra["usage"]).at[code.indices].add(1.0)
    share = counts / code.indices.size
    usage = USAGE_DECAY * extra["usage"] + (1 - USAGE_DECAY) * share
    dead = usage * len(usage) < section.dead
    table = own["quantize"]["embedding"]["embedding"]
    far = (dead[:, None] * (table - code.anchors) ** 2).mean(-1).sum() / jnp.maximum(dead.sum(), 1)
    value = section.codebook_weight * (codebook + far) + section.commitment_weight * commitment
    entropy = -(share * jnp.log(jnp.maximum(share, 1e-10))).sum()
    shown = {
        "codebook": codebook,
        "commitment": commitment,
        "codes_alive": 1 - dead.mean(),
        "perplexity": jnp.exp(entropy),
    }
    return value, {**extra, "usage": usage}, shown


def _measure_psnr(x: Array, x_hat: Array) -> Array:
    """Measure the mean peak signal-to-noise ratio in dB of images in [-1, 1]."""
    square = ((x - jnp.clip(x_hat, -1, 1)) ** 2).mean((1, 2, 3))
    return (10 * jnp.log10(4 / jnp.maximum(square, 1e-10))).mean()
