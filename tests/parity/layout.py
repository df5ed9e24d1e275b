"""Images between our layout and torch's."""

import numpy as np
import torch


def nchw(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(value).permute(0, 3, 1, 2).contiguous()


def nhwc(value: torch.Tensor) -> np.ndarray:
    return value.detach().permute(0, 2, 3, 1).numpy()
