"""The sections of the first stage of latent diffusion with their defaults, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffjax.types import Config  # not before: it takes a second

# In place of those of `diffjax.config.defaults.DEFAULTS`.
FIRST_STAGE: Config = {
    "network": {
        # kl or vq
        "name": "kl",
        # Width of the first level
        "channels": 128,
        # Each level after the first halves the resolution
        "multipliers": (1, 2, 4, 4),
        # Residual blocks of a level
        "blocks": 2,
        # Levels with attention; 0 has the full resolution
        "attention_levels": (),
        # Channels C of the latents
        "latent_channels": 4,
        # Groups of every norm
        "norm_groups": 32,
        # Attention at the lowest resolution
        "middle_attention": True,
        # How parameters begin: ddpm or torch (diffjax.nets.initialisation)
        "initialisation": "ddpm",
        # vq: size of the codebook
        "codes": 8192,
        # vq: channels of a code; 0: latent_channels
        "code_channels": 0,
        # How attention is computed, as of the UNet
        "attention": "auto",
        # Compute blocks again in the backward pass, to save memory
        "remat": False,
        # Type of the computation; parameters stay float32
        "dtype": "float32",
    },
    "loss": {
        # Distance of pixels: l1 or l2
        "pixel": "l1",
        # Perceptual distance: lpips, classifier (of diffjax.metrics) or none
        "perceptual": "lpips",
        # Factor on the perceptual distance
        "perceptual_weight": 1.0,
        # Its weights: a file; for classifier also the name of another data set
        "perceptual_weights": "",
        # Factor on the KL divergence of the posterior from N(0, I)
        "kl_weight": 1e-6,
        # vq: factor on what pulls codes towards the latents
        "codebook_weight": 1.0,
        # vq: factor on what pulls the encoder towards its codes
        "commitment_weight": 0.25,
        # Codes used less than this share of the mean move to a latent; 0: none
        "dead": 0.1,
        # Factor on the adversarial loss; 0: no discriminator
        "disc_weight": 0.5,
        # Step from which the discriminator counts
        "disc_start": 50_001,
        # Width of the discriminator
        "disc_channels": 64,
        # Strided layers of the discriminator
        "disc_layers": 3,
        # Balance both losses by their gradients at the last layer
        "adaptive": True,
    },
}
