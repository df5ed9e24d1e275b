"""Write ControlNets as a single file in the layout of the original ControlNet code.

Web interfaces read this layout. It is the inverse of what `single_file` reads.
"""

from __future__ import annotations

import re

from safetensors.numpy import save_file

from diffjax.nets.controlnet import ControlNet
from diffjax.pretrained import configs
from diffjax.pretrained.files import StrPath
from diffjax.pretrained.single_file import CONTROL, HINT, MIDDLE, OUTER, RES
from diffjax.pretrained.state_dict import to_state_dict
from diffjax.types import Params

_OUTER = {theirs: original for original, theirs in OUTER.items()}
_RES = {theirs: original for original, theirs in RES.items()}


def restore_control_key(key: str, blocks: int, last: int) -> str:
    """Return the original name of a ControlNet's weight: the inverse of `rename_control_key`.

    Args:
        key: diffusers' name, such as ``down_blocks.0.resnets.1.conv1.weight``.
        blocks: number of residual blocks per level.
        last: number of the last layer of the hint encoder.

    Raises:
        ValueError: the original code has no such weight.
    """
    module, _, leaf = key.rpartition(".")
    if module in _OUTER:
        return f"{_OUTER[module]}.{leaf}"
    if m := re.fullmatch(r"controlnet_down_blocks\.(\d+)", module):
        return f"zero_convs.{m[1]}.0.{leaf}"
    if module == "controlnet_mid_block":
        return f"middle_block_out.0.{leaf}"
    if m := re.fullmatch(r"controlnet_cond_embedding\.(conv_in|conv_out|blocks\.(\d+))", module):
        number = 2 * int(m[2]) + 2 if m[2] else {"conv_in": 0, "conv_out": last}[m[1]]
        return f"{HINT}.{number}.{leaf}"
    if m := re.fullmatch(r"mid_block\.(\w+\.\d)\.(.+)", module):
        return f"middle_block.{MIDDLE.index(m[1])}.{_RES.get(m[2], m[2])}.{leaf}"
    m = re.fullmatch(r"down_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", module)
    if m is None:
        raise ValueError(f"{key} has no name in the published layout")
    resamples = m[2] == "downsamplers"
    number = 1 + int(m[1]) * (blocks + 1) + (blocks if resamples else int(m[3]))
    rest = "op" if resamples else _RES.get(m[4], m[4])
    return f"input_blocks.{number}.{int(m[2] == 'attentions')}.{rest}.{leaf}"


def save_control_file(path: StrPath, net: ControlNet, params: Params) -> None:
    """Write a ControlNet as one .safetensors file that `load_single_file` and the original code
    read.

    Args:
        path: the file to write.
        net: the network.
        params: its parameters.

    Raises:
        ValueError: the original code has no such network.
    """
    configs.describe(net)
    blocks = net.base.blocks
    if not isinstance(blocks, int):
        raise ValueError(f"the published layout has no other numbers of blocks per level: {blocks}")
    state, last = to_state_dict(params), 4 * len(net.hint_widths) - 2
    named = {CONTROL + restore_control_key(k, blocks, last): v for k, v in state.items()}
    save_file(named, path)
