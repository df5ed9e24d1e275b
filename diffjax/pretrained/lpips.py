"""Load the weights of the perceptual distance LPIPS from a file that the user converts once.

Training an autoencoder with a perceptual loss (`diffjax.nets.perceptual`) needs them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffjax.nets.perceptual import LPIPS
from diffjax.pretrained.files import StrPath, open_safetensors
from diffjax.pretrained.state_dict import from_state_dict
from diffjax.types import Params

# Constants, and a second name of the same weights.
_SURPLUS = ("scaling_layer.", "lins.")


def load_lpips(path: StrPath) -> Params:
    """Load the parameters of `LPIPS` from the lpips package's state dict, saved as safetensors.

    The file is made once, where torch is installed::

            import lpips, safetensors.torch
            state = lpips.LPIPS(net="vgg").state_dict()
            state = {k: v.contiguous() for k, v in state.items() if not k.startswith("lins.")}
            safetensors.torch.save_file(state, "lpips_vgg.safetensors")

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a pickle or damaged, or holds something else.
    """
    weights = open_safetensors(path)
    kept = {key: weights.tensors[key] for key in weights if not key.startswith(_SURPLUS)}
    image = jnp.zeros((1, 16, 16, 3))
    like = jax.eval_shape(lambda: LPIPS().init(jax.random.key(0), image, image))["params"]
    return jax.tree.map(jnp.asarray, from_state_dict(type(weights)(kept), like))
