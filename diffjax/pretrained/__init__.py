"""Networks and parameters to and from the file formats of other libraries."""

from diffjax.pretrained.files import load_safetensors
from diffjax.pretrained.lora import merge_lora
from diffjax.pretrained.models import Model, load_model, save_model
from diffjax.pretrained.single_file import load_single_file, open_single_file
from diffjax.pretrained.state_dict import from_state_dict, save_safetensors, to_state_dict

__all__ = [
    "Model",
    "from_state_dict",
    "load_model",
    "load_safetensors",
    "load_single_file",
    "merge_lora",
    "open_single_file",
    "save_model",
    "save_safetensors",
    "to_state_dict",
]
