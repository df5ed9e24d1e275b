"""Parameters to and from the file formats of other libraries."""

from diffjax.pretrained.files import load_safetensors
from diffjax.pretrained.state_dict import from_state_dict, save_safetensors, to_state_dict

__all__ = ["from_state_dict", "load_safetensors", "save_safetensors", "to_state_dict"]
