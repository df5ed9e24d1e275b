"""Import torchvision, if it is there: a build for another torch lacks operators that nobody uses.

Without them its import fails, and with it those of transformers, diffusers, pytorch-fid and
torch-fidelity. Import this before them.
"""

import importlib

import torch

_OPERATORS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
KEPT: list[torch.library.Library] = []  # an operator lives as long as its library

try:
    importlib.import_module("torchvision")
except ImportError:
    pass
except RuntimeError:
    KEPT.append(torch.library.Library("torchvision", "DEF"))
    for _name in ("nms", "qnms"):
        KEPT[0].define(_name + _OPERATORS)
    importlib.import_module("torchvision")
