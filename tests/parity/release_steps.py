"""What comparisons of two training steps with a release share; see `release_cases`."""

import contextlib
import importlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from diffjax.model import make_schedule
from diffjax.pretrained.state_dict import from_state_dict, to_state_dict
from diffjax.tasks.diffusion_task import make_times

STEPS, BATCH, SIDE = 2, 4, 8


@contextlib.contextmanager
def on_path(*folders):
    """Import from checkouts; what was imported is forgotten afterwards."""
    extension = importlib.import_module("torch.utils.cpp_extension")
    load, before = extension.load, set(sys.modules)
    # A release has a package `configs` too.
    ours = {k: v for k, v in sys.modules.items() if k.partition(".")[0] == "configs"}
    for name in ours:
        del sys.modules[name]
    package = types.ModuleType("configs")
    package.__path__ = [str(folder / "configs") for folder in folders]
    sys.modules["configs"] = package
    sys.path[:0] = map(str, folders)
    # Compiled operators of score_sde are for GPUs, and have a counterpart for others.
    extension.load = lambda *args, **options: None
    try:
        yield
    finally:
        del sys.path[: len(folders)]
        extension.load = load
        for name in [k for k in set(sys.modules) - before if _lies_in(sys.modules[k], folders)]:
            del sys.modules[name]
        for name in [k for k in sys.modules if k.partition(".")[0] == "configs"]:
            del sys.modules[name]
        sys.modules.update(ours)


def _lies_in(module, folders):
    """Whether a module is of a checkout; a folder without an __init__.py has a path alone."""
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(str(place).startswith(str(folder)) for place in places for folder in folders)


@contextlib.contextmanager
def drawing(**draws):
    """Functions of torch that return what was drawn beforehand, one after another."""
    saved = {name: getattr(torch, name) for name in draws}
    for name, values in draws.items():
        queue = iter(values)
        setattr(torch, name, lambda *args, queue=queue, **options: next(queue))
    try:
        yield
    finally:
        for name, function in saved.items():
            setattr(torch, name, function)


def shake(module):
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return module


def compare(task, optimizer, module, convert, theirs, torch_optimizer, *, classes=0, seed=0):
    """Losses and gradients of both, step by step.

    Args:
        convert: state of the release by name -> ours in diffusers' names; linear.
        theirs: ``(images, labels, key, extra) -> loss``, a tensor.

    Returns:
        A row a step: both losses, and the largest error of a gradient over its largest value.
    """
    rng = np.random.default_rng(seed)
    extra = None
    rows = []
    for step in range(STEPS):
        images = rng.uniform(-1, 1, (BATCH, SIDE, SIDE, 3)).astype("f4")
        labels = rng.integers(0, max(classes, 1), BATCH).astype("i4")
        batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
        key = jax.random.fold_in(jax.random.key(seed), step)
        if extra is None:
            fresh, extra = task.init(jax.random.key(9), {}, batch)
            own = {k: v for k, v in fresh.items() if k != "discriminator"}
            state = convert(_read(module, lambda value: value))
            params = {**fresh, **from_state_dict(state, own)}
            memory = optimizer.init(params)

        def loss(params, extra=extra, key=key, step=step, batch=batch):
            return task.loss(params, {}, extra, key, jnp.asarray(step), batch)

        (ours, (extra, _)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        torch_optimizer.zero_grad()
        other = theirs(images, labels, key, extra)
        other.backward()
        wanted = convert(_read(module, lambda value: value.grad))
        found = to_state_dict({k: v for k, v in grads.items() if k != "discriminator"})
        assert set(found) == set(wanted)
        worst = max(np.abs(found[k] - wanted[k]).max() for k in found)
        rows.append(
            {
                "ours": float(ours),
                "release": float(other.detach()),
                "gradient": float(worst / max(np.abs(v).max() for v in wanted.values())),
            }
        )
        updates, memory = optimizer.update(grads, memory, params)
        params = optax.apply_updates(params, updates)
        torch_optimizer.step()
    return rows


def _read(module, take):
    return {
        name: (take(value).detach().numpy().copy())
        for name, value in module.named_parameters()
        if take(value) is not None
    }


def draw_step(key, config, task_times, extra, shape):
    """Times and noise of a step of `diffjax.tasks.diffusion_task`."""
    time_key, noise_key, _ = jax.random.split(key, 3)
    t, _ = task_times.draw(time_key, extra["times"], shape[0])
    return np.asarray(t), np.asarray(jax.random.normal(noise_key, shape))


def make_small(config, **network):
    config.data.update(image_size=SIDE, batch_size=BATCH, augment=0.0)
    config.network.update(blocks=1, dropout=0.0, **network)
    config.optim.update(warmup=0)
    return config


def make_times_of(config):
    return make_times(config, make_schedule(config))
