"""The first-stage loss: both players, the adaptive weight, the codebook, and bit-exact resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import autoencoder as configs
from configs.base import smoke
from diffjax.model import make_autoencoder
from diffjax.nets.autoencoder import Quantized
from diffjax.nets.discriminator import PatchGAN
from diffjax.tasks import make_autoencoder_task
from diffjax.tasks.autoencoder_task import (
    _compute_regularizer,
    compute_adaptive_weight,
    compute_hinge_loss,
)
from diffjax.train import init_state, make_optimizer, make_step
from tests.train.tiny import assert_same

SHAPE = (8, 8, 1)


def config(variant="fashion_mnist", **loss):
    cfg = smoke(configs.VARIANTS[variant]())
    cfg.network.multipliers = (1,)
    cfg.loss.update(disc_start=2, **loss)
    cfg.optim.update(warmup=0, decay="constant")
    return cfg


def batch(n=2):
    rng = np.random.default_rng(3)
    return {"image": jnp.asarray(rng.uniform(-1, 1, (n, *SHAPE)), jnp.float32)}


@pytest.fixture(scope="module")
def run():
    """The compiled step of the default task, and its first state."""
    cfg = config()
    task = make_autoencoder_task(cfg, SHAPE)
    optimizer = make_optimizer(cfg.optim, 10)
    state = jax.jit(
        lambda b: init_state(task, optimizer, jax.random.key(0), None, b),
    )(batch())
    return task, jax.jit(make_step(task, optimizer, seed=1)), state


def leaves(tree, name):
    return jax.tree.leaves(tree[name])


def test_the_discriminator_rests_until_its_step(run):
    _, step, state = run
    states, logs = [state], []
    for _ in range(3):
        state, metrics = step(state, None, batch())
        states.append(state)
        logs.append({k: float(v) for k, v in metrics.items()})
    for early in states[1:3]:
        assert_same(early.params["discriminator"], states[0].params["discriminator"])
    moved = zip(
        leaves(states[3].params, "discriminator"),
        leaves(states[2].params, "discriminator"), strict=True,
    )  # fmt: skip
    assert any(np.any(a != b) for a, b in moved)
    assert [log["weight"] > 0 for log in logs] == [False, False, True]
    first, last = logs[0], logs[2]
    assert first["loss"] == pytest.approx(first["nll"] + 1e-4 * first["kl"], rel=1e-5)
    total = last["nll"] + last["weight"] * last["adversarial"] + 1e-4 * last["kl"]
    assert last["loss"] == pytest.approx(total + last["discriminator"], rel=1e-5)


def test_gradients_are_those_of_the_loss_as_written(run):
    """The reconstruction's gradient is carried over by hand; the weight is a constant."""
    task, _, state = run
    x, key = batch()["image"], jax.random.key(2)
    net, judge = make_autoencoder(config().network, 1), PatchGAN(4, 1)

    def ours(params):
        return task.loss(params, None, state.extra, key, jnp.asarray(2), batch())

    def plain(params, weight):
        own = {k: v for k, v in params.items() if k != "discriminator"}
        other = {"params": params["discriminator"], "batch_stats": state.extra["statistics"]}
        fixed = jax.lax.stop_gradient(other)
        eps = jax.random.normal(key, (2, 8, 8, 4))
        x_hat, posterior = net.apply({"params": own}, x, eps)
        real, _ = judge.apply(other, x, mutable=["batch_stats"])
        fake, _ = judge.apply(other, jax.lax.stop_gradient(x_hat), mutable=["batch_stats"])
        gain = -judge.apply(fixed, x_hat, mutable=["batch_stats"])[0].mean()
        nll = jnp.abs(x - x_hat).sum() / 2
        return nll + weight * gain + 1e-4 * posterior.kl().mean() + compute_hinge_loss(real, fake)

    (value, (_, metrics)), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(state.params)
    expected, wanted = jax.jit(jax.value_and_grad(plain))(state.params, metrics["weight"])
    assert float(metrics["weight"]) > 0
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale)


def test_stopping_and_resuming_is_bit_identical_with_both_optimizers(run, tmp_path):
    from diffjax.train import Checkpoints

    _, step, start = run
    whole = start
    for n in range(4):
        whole, _ = step(whole, None, batch())
        if n == 2:
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(3, whole)
    like = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding), start
    )
    _, resumed = Checkpoints(tmp_path).restore(like)
    resumed, _ = step(resumed, None, batch())
    assert_same(resumed, whole)


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    a, b = jnp.array([3.0, 4.0]), jnp.array([0.0, 0.5])
    assert float(compute_adaptive_weight(a, b)) == pytest.approx(5 / (0.5 + 1e-4))
    assert float(compute_adaptive_weight(a, 0 * b)) == 1e4
    assert float(compute_adaptive_weight(0 * a, b)) == 0


def test_hinge():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.0])
    assert float(compute_hinge_loss(real, fake)) == pytest.approx(0.5 * (0.25 + 0.5))


def _quantized(indices, anchors):
    zero = jnp.zeros(2)
    return Quantized(zero, indices, zero, zero, anchors)


def test_the_terms_of_a_codebook_have_their_weights():
    """Codes 0.25 and encoder 1 in the release of latent diffusion, as in its config here."""
    section = configs.vq_f4().loss
    assert (section.codebook_weight, section.commitment_weight, section.dead) == (0.25, 1.0, 0.0)
    table = jnp.ones((3, 2))
    own = {"quantize": {"embedding": {"embedding": table}}}
    zeros = jnp.zeros((1, 1, 1), int)
    code = Quantized(jnp.zeros((1, 1, 1, 2)), zeros, jnp.array([8.0]), jnp.array([3.0]), table)
    value, _, _ = _compute_regularizer(section, own, {"usage": jnp.ones(3) / 3}, code)
    assert float(value) == pytest.approx(0.25 * 8 + 1.0 * 3)


def test_dead_codes_go_where_the_nearest_latents_are():
    section = configs.fashion_mnist_vq().loss
    usage = jnp.array([0.5, 0.5, 0.001, 0.0])
    anchors = jnp.arange(8.0).reshape(4, 2)
    code = _quantized(jnp.array([[0, 0, 0, 1]]), anchors)

    def value(table):
        own = {"quantize": {"embedding": {"embedding": table}}}
        out, extra, shown = _compute_regularizer(section, own, {"usage": usage}, code)
        return out, (extra["usage"], shown)

    gradient, (new, shown) = jax.grad(value, has_aux=True)(jnp.zeros((4, 2)))
    np.testing.assert_array_equal(gradient[:2], 0)
    # Two dead codes share the pull: d/de of mean((e - anchor)^2) / 2.
    np.testing.assert_allclose(gradient[2:], -anchors[2:] / 2, rtol=1e-6)
    share = np.array([0.75, 0.25, 0, 0])
    np.testing.assert_allclose(new, 0.99 * usage + 0.01 * share, rtol=1e-5)
    assert float(shown["codes_alive"]) == 0.5
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert float(shown["perplexity"]) == pytest.approx(np.exp(entropy), rel=1e-5)


def test_wrong_names_and_images_are_explained():
    for change, message in [
        (
            {"perceptual": "vgg"},
            "unknown perceptual network 'vgg'; choose one of classifier, lpips",
        ),
        ({"pixel": "l3"}, "unknown pixel loss 'l3'; choose one of l1, l2"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_autoencoder_task(config(**change), SHAPE)
    bad = config()
    bad.network.name = "vae"
    with pytest.raises(ValueError, match="unknown autoencoder 'vae'; choose one of kl, vq"):
        make_autoencoder_task(bad, SHAPE)
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 1\) expected, got \(9, 8, 1\)"):
        make_autoencoder_task(config(), SHAPE).init(
            jax.random.key(0), None, {"image": jnp.zeros((1, 9, 8, 1))}
        )
