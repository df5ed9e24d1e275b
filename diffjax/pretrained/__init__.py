"""Networks and parameters to and from the file formats of other libraries."""

from diffjax.pretrained.control_file import save_control_file
from diffjax.pretrained.files import load_safetensors, open_safetensors
from diffjax.pretrained.lora import load_lora, load_loras, merge_lora, save_lora
from diffjax.pretrained.models import Component, load_model, save_model
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
    "flow_mu",
    "from_state_dict",
    "load_lora",
    "load_loras",
    "load_model",
    "load_safetensors",
    "load_scheduler",
    "load_single_file",
    "merge_lora",
    "open_safetensors",
    "open_single_file",
    "save_control_file",
    "save_lora",
    "save_model",
    "save_safetensors",
    "save_scheduler",
    "to_config",
    "to_state_dict",
    "with_class",
]
