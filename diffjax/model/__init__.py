"""The model: a network with its schedule, space and condition, how it denoises and how it samples.

::

    model = diffjax.open("runs/digits")
    images = sample(model, cond, sampler, rows, keys)

`make_model` builds one of a config for training (`diffjax.tasks`), `make_published_model` one of
the files of diffusers. From there on both are the same `Model`, and `denoiser` and `sample` are the
only functions that turn its network into images.
"""

from diffjax.model.build import (
    make_model,
    make_network,
    make_parameterization,
    make_sampler,
    make_schedule,
    make_steering,
)
from diffjax.model.condition import UNCONDITIONAL, Condition, make_condition, make_label_condition
from diffjax.model.control_networks import ControlNetwork, apply_control, make_control_network
from diffjax.model.image_maker import ImageInputs, ImageMaker, draw
from diffjax.model.model import (
    Arrays,
    Model,
    decode_samples,
    denoiser,
    encode,
    evaluate_network,
    film,
    predict,
    sample,
)
from diffjax.model.space import Space, make_autoencoder, make_pixel_space, make_space
from diffjax.model.steering_options import Steering

__all__ = [
    "UNCONDITIONAL",
    "Arrays",
    "Condition",
    "ControlNetwork",
    "ImageInputs",
    "ImageMaker",
    "Model",
    "Space",
    "Steering",
    "apply_control",
    "decode_samples",
    "denoiser",
    "draw",
    "encode",
    "evaluate_network",
    "film",
    "make_autoencoder",
    "make_condition",
    "make_control_network",
    "make_label_condition",
    "make_model",
    "make_network",
    "make_parameterization",
    "make_pixel_space",
    "make_sampler",
    "make_schedule",
    "make_space",
    "make_steering",
    "predict",
    "sample",
]
