"""Prompts to images: one composition for every use of a Stable Diffusion model.

    pipe = diffjax.load("stable-diffusion-v1-5")
    images = pipe("a red cat", key=0, sampler="dpmpp_2m", guidance=7.5)

Text-to-image, image-to-image, inpainting, ControlNet and base with refiner differ in where the
loop starts, what the network is given beside z, and whether a step puts known pixels back.
"""

from diffjax.generate.checks import RequestError
from diffjax.generate.options import (
    GRIDS,
    SAMPLERS,
    Control,
    FreeU,
    Guidance,
    Image,
    Latents,
    Lora,
    PerturbedAttention,
    Refiner,
    Sampling,
    Size,
)
from diffjax.generate.pipeline import Pipeline, Progress, load
from diffjax.generate.request import Request
from diffjax.pretrained.prompts import Embedding, Prompt

__all__ = [
    "GRIDS",
    "SAMPLERS",
    "Control",
    "Embedding",
    "FreeU",
    "Guidance",
    "Image",
    "Latents",
    "Lora",
    "PerturbedAttention",
    "Pipeline",
    "Progress",
    "Prompt",
    "Refiner",
    "Request",
    "RequestError",
    "Sampling",
    "Size",
    "load",
]
