"""Turn prompts into images with a Stable Diffusion model.

    pipe = diffjax.load("stable-diffusion-v1-5")
    images = pipe("a red cat", key=0, sampler="dpmpp_2m", guidance=7.5)

One composition serves every use. Text-to-image, image-to-image, inpainting, ControlNet and a base
model with a refiner differ in three things only: where the loop starts, what the network reads
beside z, and whether a step puts known pixels back.

A call passes through these modules, in this order: `request` reads the arguments, `stages` and
`scene` plan the run on the host, `conditions` and `keys` make the arrays, `program` compiles the
loop, and `pipeline` decodes the result.
"""

from diffjax.generate.checks import RequestError
from diffjax.generate.options import (
    GRIDS,
    SAMPLERS,
    Control,
    FreeU,
    Guidance,
    Image,
    ImagePrompt,
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
    "ImagePrompt",
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
