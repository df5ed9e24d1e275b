"""NCSN and NCSNv2 beside their releases, whose pixels lie in [0, 1]; see `release_cases`."""

import importlib
from argparse import Namespace

import numpy as np
import torch

from configs import smld
from diffjax.tasks import make_task
from diffjax.train.optimizer import make_optimizer
from tests.parity import refinenet_cases
from tests.parity.layout import nchw
from tests.parity.release_steps import (
    SIDE,
    compare,
    draw_step,
    drawing,
    make_times_of,
    on_path,
    shake,
)

WIDTH, RATE = 16, 1e-4
_SECOND = dict(
    sigma_begin=50, sigma_end=0.01, sigma_dist="geometric", normalization="InstanceNorm++",
    nonlinearity="elu", spec_norm=False,
)  # fmt: skip


def _make_net(name, width, levels):
    """The network of a release, which is among the folders that are imported from."""
    data = Namespace(logit_transform=False, rescaled=False, channels=3, image_size=SIDE)
    model = Namespace(ngf=width, num_classes=levels, **_SECOND)
    settings = Namespace(data=data, device="cpu", model=model)
    if name == "ncsn":
        networks = importlib.import_module("models.cond_refinenet_dilated")
        return networks.CondRefineNetDilated(settings)
    return importlib.import_module("models.ncsnv2").NCSNv2(settings)


def forward(name, folder):
    """The output of a release, in our units, for the weights and inputs of `refinenet_cases`."""
    with on_path(folder):
        net = _make_net(name, refinenet_cases.WIDTH, refinenet_cases.LEVELS)
        state = {k: tuple(v.shape) for k, v in net.named_parameters()}
        state = _turn_levels({k: refinenet_cases.make_weight(k, s) for k, s in state.items()})
        net.load_state_dict({k: torch.tensor(v.copy()) for k, v in state.items()}, strict=False)
        level = torch.from_numpy(refinenet_cases.LEVELS - 1 - refinenet_cases.INDEX)
        with torch.no_grad():
            out = net(nchw((refinenet_cases.make_input() + 1) / 2), level)
            if name == "ncsnv2":
                out = out * net.sigmas[level].reshape(-1, 1, 1, 1)
    return out.numpy().transpose(0, 2, 3, 1)


def _make(config):
    config.data.update(image_size=SIDE, dequantize=False)
    config.network.channels = WIDTH
    # Adam's first step is the rate times the sign of the gradient, also where that is rounding.
    config.optim.lr = RATE
    return config, make_task(config, (SIDE, SIDE, 3)), make_times_of(config)


def ncsn(folder):
    """The network that is told the level, with the weighted loss of all levels."""
    config, task, times = _make(smld.ncsn())
    torch.manual_seed(0)
    with on_path(folder):
        net = shake(_make_net("ncsn", WIDTH, 10))
        loss = importlib.import_module("losses.dsm").anneal_dsm_score_estimation
        sigmas = torch.from_numpy(np.geomspace(1, 0.01, 10)).float()

        def theirs(images, labels, key, extra):
            t, eps = draw_step(key, config, times, extra, images.shape)
            level = torch.from_numpy(9 - t).long()
            with drawing(randn_like=[nchw(eps)]):
                return loss(net, nchw((images + 1) / 2), level, sigmas)

        return compare(
            task, make_optimizer(config.optim, 10), net, _turn_levels, theirs,
            torch.optim.Adam(net.parameters(), lr=RATE),
        )  # fmt: skip


def _turn_levels(state):
    """Our levels begin with the least noise."""
    return {k: v[::-1] if k.endswith("embed.weight") else v for k, v in state.items()}


def ncsnv2(folder):
    """The network that is not told the level, whose output is divided by sigma."""
    config, task, times = _make(smld.ncsnv2())
    torch.manual_seed(0)
    with on_path(folder):
        net = shake(_make_net("ncsnv2", WIDTH, 232))
        loss = importlib.import_module("losses.dsm").anneal_dsm_score_estimation

        def theirs(images, labels, key, extra):
            t, eps = draw_step(key, config, times, extra, images.shape)
            level = torch.from_numpy(231 - t).long()
            with drawing(randn_like=[nchw(eps)]):
                return loss(net, nchw((images + 1) / 2), net.sigmas, level)

        return compare(
            task, make_optimizer(config.optim, 10), net, _turn_output, theirs,
            torch.optim.Adam(net.parameters(), lr=RATE),
        )  # fmt: skip


def _turn_output(state):
    """Our output is the noise, and theirs the score times sigma: of the other sign."""
    return {k: -v if k.startswith("end_conv") else v for k, v in state.items()}
