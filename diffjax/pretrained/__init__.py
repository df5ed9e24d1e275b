"""Read and write the models of other libraries: networks, parameters, adapters, schedulers.

Formats are those of diffusers, transformers, peft, kohya's scripts, LyCORIS and the original Stable
Diffusion code. `pipelines.load_components` reads a whole text-to-image model; `load_model` reads
one network; `load_scheduler` reads a scheduler_config.json. The modules below them are layered:
`files` and `pickles` open weights tensor by tensor, `configs` turns a config.json into a Linen
module, and `state_dict` moves arrays between a state dict and a tree of parameters.

Files of other people are not trusted. Sizes, types and names are checked before memory is reserved,
no code of a file is run, and every error names the file and the key.
"""

from diffjax.pretrained.control_file import save_control_file
from diffjax.pretrained.files import load_safetensors, open_safetensors
from diffjax.pretrained.hub import download
from diffjax.pretrained.image_adapters import load_image_adapter, save_image_adapter
from diffjax.pretrained.lora_files import load_lora, merge_lora, save_lora
from diffjax.pretrained.models import Component, load_model, save_model
from diffjax.pretrained.safety import load_safety_checker
from diffjax.pretrained.schedulers import (
    Scheduler,
    flow_mu,
    load_scheduler,
    save_scheduler,
    to_config,
    with_class,
)
from diffjax.pretrained.single_file import load_single_file, open_single_file
from diffjax.pretrained.state_dict import from_state_dict, save_safetensors, to_state_dict

__all__ = [
    "Component",
    "Scheduler",
    "download",
    "flow_mu",
    "from_state_dict",
    "load_image_adapter",
    "load_lora",
    "load_loras",
    "load_model",
    "load_safetensors",
    "load_safety_checker",
    "load_scheduler",
    "load_single_file",
    "merge_lora",
    "open_safetensors",
    "open_single_file",
    "save_control_file",
    "save_image_adapter",
    "save_lora",
    "save_model",
    "save_safetensors",
    "save_scheduler",
    "to_config",
    "to_state_dict",
    "with_class",
]
