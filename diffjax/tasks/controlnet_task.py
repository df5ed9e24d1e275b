r"""Training a ControlNet on a frozen base (Zhang et al. 2023, section 3.3).

The loss is that of the base, ``E |raw(z, t, cond, hint) - target|^2``; half of the conditions are
dropped (``cond.drop``), so that the network learns to read the hint in place of a prompt.

``frozen["base"]`` holds the parameters of the base, with those that were trained beside it, and
``frozen["statistics"]`` what it measured of its data. The parameters are no argument of the
gradient, so that nothing is kept of the base's encoder for the backward pass, and of its decoder
only what the gradient of the features needs: neither gradients, nor optimiser state, nor inputs of
its layers.

With a section ``lora`` the layers that are copied from the base stay as they are but for low-rank
adapters, ``params["adapters"]``. The layers that read the hint, the connections and the first
convolution are trained whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax import lora
from diffjax.model import ControlNetwork, Model, make_control_network, make_model
from diffjax.model.control_networks import HINT
from diffjax.nets.controlnet import copy_base
from diffjax.nets.unet import UNet
from diffjax.tasks.beside_task import train_beside
from diffjax.tasks.diffusion_task import make_task
from diffjax.tasks.lora_task import compute_scale
from diffjax.types import Array, Batch, Cond, Frozen, Params, Task

DECODER = ("up_blocks.", "conv_norm_out", "conv_out")  # what an unlocked base trains
NET = "control"  # the entry of the parameters that holds the ControlNet's
FIRST = "conv_in"  # which reads the channels of z alone, and is trained whole
ADAPTERS = "adapters"  # the entry with the adapters of what is copied from the base


class ControlledNetwork(NamedTuple):
    """A base and the network beside it, as one network with the interface of Linen modules.

    Its parameters are those of the base and two entries: ``control``, the parameters of the
    ControlNet, and ``hint``, the pictures (B, H, W, C) that it reads.

    Attributes:
        base: the UNet that is controlled.
        beside: the ControlNet or T2I-Adapter.
    """

    base: UNet
    beside: ControlNetwork

    def init(self, key: jax.Array, z: Array, t: Array, cond: Cond = None) -> dict[str, Params]:
        """Initialise the parameters of the ControlNet alone."""
        return {"params": {NET: self.beside.init(key, z, t, cond)}}

    def apply(
        self,
        variables: Mapping[str, Params],
        z: Array,
        t: Array,
        cond: Cond = None,
        **options: object,
    ) -> Array:
        """Evaluate the controlled base. Dropout acts in the ControlNet only."""
        params = dict(variables["params"])
        beside = self.beside._replace(params=params.pop(NET))
        hint, cond = beside.prepare_hint(params.pop(HINT)), cond or {}
        added = beside.compute_residuals(z, t, {**cond, HINT: hint}, **options)
        controlled = {**cond, beside.entry: added}
        return cast(Array, self.base.apply({"params": params}, z, t, controlled))


def select_decoder(base: Params) -> Params:
    """Select the parameters of a base that are trained if its decoder is."""
    return {k: v for k, v in base.items() if k.startswith(DECODER)}


def make_controlnet_task(
    config: ConfigDict, image_shape: tuple[int, int, int], levels: int = 256, num_classes: int = 0
) -> Task:
    """Make the task that trains a ControlNet or T2I-Adapter beside a frozen base.

    The sections of the config other than ``control`` are those of the base. A batch has ``hint``
    (B, f h, f w, C) in [0, 1] beside what the base needs. With ``control.only_middle`` the skips
    get no residuals; with ``control.train_decoder`` the decoder of the base is trained too, as
    ``params["decoder"]``.

    Args:
        config, image_shape, levels, num_classes: see `diffjax.model.make_model`.

    Raises:
        ValueError: as `make_task`, and for augmentations, which would move images under hints.
    """
    section = config.control
    if config.data.augment:
        raise ValueError(f"data.augment={config.data.augment} would move images under their hints")
    base = make_model(config, image_shape, levels, num_classes).network
    control = make_control_network(section, base)  # which checks that the base is a UNet
    network = ControlledNetwork(cast(UNet, base), control)
    inner = make_task(config, image_shape, levels, num_classes, wrap=lambda _: network)

    def start(key: jax.Array, fresh: Params, frozen: Frozen) -> Params:
        params = {NET: copy_base(fresh[NET], frozen["base"])}
        if "lora" in config:
            params = _draw_adapters(config, params[NET], frozen["base"], key)
        if section.train_decoder:
            params["decoder"] = jax.tree.map(jnp.copy, select_decoder(frozen["base"]))
        return params

    def join(params: Params, frozen: Frozen, batch: Batch) -> Params:
        net = join_network(config, params, frozen["base"])
        return {**_merge_decoder(params, frozen), NET: net, HINT: batch[HINT]}

    return train_beside(inner, start, join)


def _draw_adapters(
    config: ConfigDict, net: Params, base: Params, key: jax.Array
) -> dict[str, Params]:
    """Draw adapters of the layers that a ControlNet has from its base, and keep the others.

    Raises:
        ValueError: the network has no layer of its base, or no layer is a target.
    """
    copied = {k: v for k, v in net.items() if k in base and k != FIRST}
    if not copied:
        raise ValueError(
            "config.lora needs a network that copies its base: control.net.name=controlnet and "
            "control.net.lite=False"
        )
    section = config.lora
    adapters = lora.init(key, copied, rank=section.rank, targets=tuple(section.targets))
    return {NET: {k: v for k, v in net.items() if k not in copied}, ADAPTERS: adapters}


def join_network(config: ConfigDict, params: Params, base: Params) -> Params:
    """Join the parameters of the trained network: with adapters, they are merged into copies.

    Args:
        params: what the task trained.
        base: parameters of the base, which are read only if there are adapters.
    """
    if ADAPTERS not in params:
        net: Params = params[NET]
        return net
    encoder = {k: v for k, v in base.items() if not k.startswith(DECODER)}
    return lora.merge({**encoder, **params[NET]}, params[ADAPTERS], compute_scale(config.lora))


def _merge_decoder(params: Params, frozen: Mapping[str, Params]) -> Params:
    """Merge the parameters of the base with those of it that were trained."""
    return {**frozen["base"], **params.get("decoder", {})}


def assemble_controlled(
    config: ConfigDict, model: Model, params: Params, frozen: Mapping[str, Params]
) -> Model:
    """Assemble the base and the ControlNet that was trained beside it.

    Args:
        model: the base, without parameters.
        params, frozen: what the task trained, and what it read.
    """
    network = make_control_network(config.control, model.network)
    return model._replace(
        params=_merge_decoder(params, frozen),
        controls=(network._replace(params=join_network(config, params, frozen["base"])),),
    )
