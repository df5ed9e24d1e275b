"""The network and the loss of EDM2 beside the released code, in a checkout (see `test_releases`).

git clone https://github.com/NVlabs/edm2 RELEASES/edm2
DIFFJAX_RELEASES=RELEASES python -m pytest -m parity tests/parity/test_edm2.py
"""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from configs import edm2
from diffjax.model import predict
from diffjax.nets.magnitude import Uncertainty
from diffjax.runs.states import build_model, build_task
from diffjax.tasks.diffusion_task import UNCERTAINTY
from diffjax.train.averages import find_exponent, power_decay
from diffjax.train.snapshots import weigh_snapshots
from diffjax.types import Level
from tests.parity.layout import nchw
from tests.parity.release_cases import drawing, on_path
from tests.parity.test_releases import folders

pytestmark = pytest.mark.parity
SIDE, BATCH, CLASSES = 8, 3, 10


def _config():
    config = edm2.digits()
    config.data.channels = 3
    config.network.update(channels=8, multipliers=(1, 2), blocks=2, head_channels=4)
    return config


def _name(path):
    """The release's name of a parameter of ours, by its path."""
    name = ".".join(key.key for key in path)
    if name.startswith(UNCERTAINTY):
        return name.replace(f"{UNCERTAINTY}.", "logvar_").replace("kernel", "weight")
    name = re.sub(
        r"^(enc|dec)\.(\d)", lambda m: f"{m[1]}.{SIDE >> int(m[2])}x{SIDE >> int(m[2])}", name
    )
    return "unet." + name.replace("kernel", "weight")


def _fill(shapes, state):
    """Our parameters with the release's numbers."""

    def take(path, leaf):
        value = state[_name(path)].detach().numpy()
        if path[-1].key in ("freqs", "phases"):
            return jnp.asarray(value / (2 * np.pi))
        order = {2: (1, 0), 4: (2, 3, 1, 0)}.get(value.ndim, ())
        value = jnp.asarray(value.transpose(order))
        assert value.shape == leaf.shape
        return value

    return jax.tree_util.tree_map_with_path(take, shapes)


@pytest.fixture(scope="module")
def both():
    """The release's network and ours with its weights, of which none is 0."""
    config = _config()
    task = build_task(config)
    batch = {"image": jnp.zeros((1, SIDE, SIDE, 3)), "label": jnp.zeros(1, jnp.int32)}
    shapes, extra = jax.eval_shape(lambda k: task.init(k, None, batch), jax.random.key(0))
    torch.manual_seed(0)
    (folder,) = folders(("edm2",))
    with on_path(folder):
        networks = importlib.import_module("training.networks_edm2")
        loss = importlib.import_module("training.training_loop").EDM2Loss(P_mean=-0.8, P_std=1.6)
        phema = importlib.import_module("training.phema")
        net = networks.Precond(
            SIDE, 3, CLASSES, use_fp16=False, model_channels=8, channel_mult=[1, 2], num_blocks=2,
            attn_resolutions=[SIDE // 2], channels_per_head=4,
        )  # fmt: skip
        with torch.no_grad():
            for name, value in net.named_parameters():
                if name.endswith("gain"):
                    value.fill_(0.7)
        state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        yield config, task, _fill(shapes, state), extra, net, loss, phema


def test_the_network_is_that_of_the_release(both):
    config, _, params, _, net, _, _ = both
    rng = np.random.default_rng(0)
    z = rng.standard_normal((BATCH, SIDE, SIDE, 3)).astype("f4") * 2
    sigma, label = np.array([0.03, 0.6, 20.0], "f4"), np.array([1, 9, 4], "i4")
    hot = torch.nn.functional.one_hot(torch.from_numpy(label).long(), CLASSES)
    with torch.no_grad():
        x, logvar = net.eval()(nchw(z), torch.from_numpy(sigma), hot, return_logvar=True)
    model = build_model(config)
    level = Level(jnp.log(sigma) / 4, jnp.ones(BATCH), jnp.asarray(sigma))
    found = predict(model._replace(params=params), z, level, {"label": jnp.asarray(label)})[1].x
    np.testing.assert_allclose(found, x.numpy().transpose(0, 2, 3, 1), atol=1e-4, rtol=1e-4)
    u = Uncertainty().apply({"params": params[UNCERTAINTY]}, jnp.log(sigma) / 4)
    np.testing.assert_allclose(u, logvar.numpy().ravel(), atol=1e-4, rtol=1e-4)


def test_the_loss_is_that_of_the_release(both):
    _, task, params, _, net, loss, _ = both
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (BATCH, SIDE, SIDE, 3)).astype("f4")
    label, key = np.array([0, 3, 7], "i4"), jax.random.key(2)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(label)}
    extra = {"times": ()}
    value, _ = task.loss(params, None, extra, key, jnp.asarray(0), batch)
    time_key, noise_key, _ = jax.random.split(key, 3)
    normal = np.array(jax.random.normal(time_key, (BATCH,))).reshape(-1, 1, 1, 1)
    eps = np.array(jax.random.normal(noise_key, images.shape))
    hot = torch.nn.functional.one_hot(torch.from_numpy(label).long(), CLASSES)
    with drawing(randn=[torch.from_numpy(normal)], randn_like=[nchw(eps)]), torch.no_grad():
        wanted = loss(net.eval(), nchw(images), hot).sum() / BATCH
    assert float(value) == pytest.approx(float(wanted), rel=1e-4)


def test_averages_are_those_of_the_release(both):
    phema = both[-1]
    for length in (0.01, 0.05, 0.1, 0.25):
        assert find_exponent(length) == pytest.approx(float(phema.std_to_exp(length)), rel=1e-9)
        wanted = phema.power_function_beta(length, t_next=38, t_delta=2)  # step 19 of batches of 2
        assert float(power_decay(length)(18)) == pytest.approx(float(wanted), rel=1e-6)
    steps = [s for s in range(500, 8001, 500) for _ in range(2)]
    lengths = [0.05, 0.1] * 16
    for length in (0.03, 0.075, 0.15):
        wanted = phema.solve_posthoc_coefficients(steps, lengths, 8000, length)[:, 0]
        found = weigh_snapshots(steps, lengths, 8000, length)
        profiles = phema.power_function_response(np.array(steps), np.array(lengths), 8001, axis=0)
        error = np.abs(profiles @ (found - wanted)).max() / np.abs(profiles @ wanted).max()
        assert error < 0.02, (length, error)
