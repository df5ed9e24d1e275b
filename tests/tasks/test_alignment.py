"""REPA: the term in closed form, what gets its gradient, and where it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax
from configs import autoencoder, ddpm, dit
from configs.base import smoke
from diffjax import runs
from diffjax.config import make_section
from diffjax.nets.dinov2 import dinov2_input
from diffjax.pretrained import save_model
from diffjax.pretrained.files import open_safetensors
from diffjax.runs.fixed_parts import load_fixed_parts
from diffjax.tasks import make_task
from diffjax.tasks.alignment import ENCODER, PROJECTOR, make_alignment, make_feature_encoder
from diffjax.types import ConfigError

SHAPE = (8, 8, 1)


def config(weight=0.5, block=2, **loss):
    cfg = smoke(dit.digits_repa())
    cfg.network.blocks = 3
    cfg.align.update(weight=weight, block=block)
    cfg.loss.update(loss)
    return cfg


def fill(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.2, p.shape), p.dtype), tree)


def frozen_of(cfg, seed=1):
    net = make_feature_encoder(cfg)
    image = jnp.zeros((1, net.patch, net.patch, 3))
    return {ENCODER: fill(jax.eval_shape(net.init, jax.random.key(0), image)["params"], seed)}


def start(cfg):
    task = make_task(cfg, SHAPE, 17, 10)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(-1, 1, (4, *SHAPE)), jnp.float32)
    batch = {"image": image, "label": jnp.arange(4)}
    shapes, _ = jax.eval_shape(task.init, jax.random.key(0), None, batch)
    _, extra = task.init(jax.random.key(0), None, batch)
    return task, fill(shapes, 2), extra, batch


def measure(task, params, frozen, extra, batch):
    """Gradients of the parameters and of the frozen ones, and (loss, metrics)."""

    def call(params, frozen):
        value, (_, metrics) = task.loss(params, frozen, extra, jax.random.key(5), 0, batch)
        return value, metrics

    return jax.jit(jax.value_and_grad(call, (0, 1), has_aux=True))(params, frozen)


@pytest.fixture(scope="module")
def made():
    cfg = config()
    return (cfg, frozen_of(cfg), *start(cfg))


def test_equal_features_give_minus_one_and_orthogonal_ones_zero(made):
    cfg, *_ = made
    term = make_alignment(cfg, runs.build_model(cfg))
    params = {PROJECTOR: fill(jax.eval_shape(term.init, jax.random.key(0)), 3)}
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 8)), jnp.float32)
    same = term.projector.apply({"params": params[PROJECTOR]}, tokens)
    np.testing.assert_allclose(term.measure(params, tokens, same), -1, rtol=1e-5)
    np.testing.assert_allclose(term.measure(params, tokens, -3 * same), 1, rtol=1e-5)
    half = same.at[:, ::2].set(0)  # of a token without a feature the cosine is 0
    np.testing.assert_allclose(term.measure(params, tokens, half), -0.5, rtol=1e-5)
    turned = jnp.stack([-same[..., 1], same[..., 0]], -1)
    only = jnp.zeros_like(same).at[..., :2].set(turned)
    np.testing.assert_allclose(term.measure(params, tokens, only), 0, atol=1e-6)


def test_the_loss_is_that_of_sit_and_the_weighted_term(made):
    _, frozen, task, params, extra, batch = made
    (value, metrics), _ = measure(task, params, frozen, extra, batch)
    plain = config(0.0)
    del plain.align
    alone = {k: v for k, v in params.items() if k != PROJECTOR}
    (wanted, _), _ = measure(make_task(plain, SHAPE, 17, 10), alone, {}, extra, batch)
    assert float(metrics["mse"]) == pytest.approx(float(wanted), rel=1e-6)
    assert float(value) == pytest.approx(float(wanted + 0.5 * metrics["align"]), rel=1e-5)
    assert -1 < float(metrics["align"]) < 1 and float(metrics["align"]) != 0


def test_with_the_weight_0_it_is_sit_bit_for_bit():
    off, none = config(0.0), config(0.0)
    del none.align
    one, other = start(off), start(none)
    assert jax.tree.structure(one[1]) == jax.tree.structure(other[1])
    assert runs.make_abstract_fixed_parts(off) is None
    for a, b in zip(*(jax.tree.leaves(measure(s[0], s[1], {}, *s[2:])) for s in (one, other)),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_the_first_blocks_and_the_projection_get_its_gradient(made):
    """The frozen encoder gets none, and neither do the blocks after block 2."""
    _, frozen, task, params, extra, batch = made
    _, (slope, none) = measure(task, params, frozen, extra, batch)
    assert all(not leaf.any() for leaf in jax.tree.leaves(none))
    plain = config(1e-30)  # the term is there, and adds nothing
    _, (before, _) = measure(make_task(plain, SHAPE, 17, 10), params, frozen, extra, batch)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)), slope, before)
    for leaf in jax.tree.leaves(moved["transformer_blocks"]):
        scale = leaf.max()
        assert leaf[2].max() <= 1e-5 * scale  # and rounding
    kernel = moved["transformer_blocks"]["ff"]["net.2"]["kernel"]
    assert (kernel[:2].max((1, 2)) > 1e-5).all()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope[PROJECTOR]))
    for name in ("proj_out_1", "proj_out_2"):
        assert all(leaf.max() < 1e-6 for leaf in jax.tree.leaves(moved[name]))


def test_kept_tokens_are_those_after_the_block():
    """A network of the first k blocks alone has the same tokens in front of its last layers."""
    cfg, z, t = config(), jnp.ones((2, *SHAPE)), jnp.array([0.1, 0.9])
    z = z * jnp.linspace(-1, 1, 8)[None, :, None, None]
    net, cond = runs.build_model(cfg).network, {"label": jnp.array([1, 3])}
    params = fill(jax.eval_shape(net.init, jax.random.key(0), z, t, cond)["params"], 0)
    out, tokens = net.apply({"params": params}, z, t, cond, keep=2)
    np.testing.assert_allclose(out, net.apply({"params": params}, z, t, cond), rtol=1e-5, atol=1e-6)
    first = {**params, "transformer_blocks": jax.tree.map(
        lambda p: p[:2], params["transformer_blocks"])}  # fmt: skip
    short, last = net.clone(blocks=2).apply({"params": first}, z, t, cond, keep=2)
    np.testing.assert_allclose(tokens, last, rtol=1e-5, atol=1e-6)
    assert np.abs(short - out).max() > 1e-3


def test_a_patch_of_the_encoder_is_what_a_token_stands_for(made):
    cfg, frozen, *_, batch = made
    term = make_alignment(cfg, runs.build_model(cfg))
    found = term.encode(frozen, batch, batch["image"].shape)
    x = dinov2_input(batch["image"], (4 * term.encoder.patch, 4 * term.encoder.patch))
    assert found.shape == (4, 16, term.encoder.features)
    np.testing.assert_array_equal(found, term.encoder.apply({"params": frozen[ENCODER]}, x))


def test_data_that_the_encoder_cannot_read_are_refused():
    stored, spectral = config(), config()
    stored.data.name, spectral.data.channels = "latents", 2
    with pytest.raises(ConfigError, match="latents that were stored beforehand"):
        runs.build_task(stored)
    with pytest.raises(ConfigError, match=r"data.channels=3 or 1, and data.channels is 2"):
        runs.build_task(spectral)


def _unet():
    cfg = smoke(ddpm.digits())
    cfg.align = make_section("align")
    return cfg


def _first_stage():
    cfg = smoke(autoencoder.VARIANTS["fashion_mnist"]())
    cfg.align = make_section("align")
    return cfg


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (_unet, "network.name=dit, and network.name is 'unet'"),
        (_first_stage, "task=diffusion, and task is 'autoencoder'"),
        (lambda: config(name="vlb"), "loss.name=simple, and loss.name is 'vlb'"),
        (lambda: config(uncertainty=True), "loss.uncertainty=False, and loss.uncertainty is True"),
        (lambda: config(block=4), r"align.block=4 must lie in 1 .. 3"),
    ],
)
def test_it_is_refused_where_it_has_no_effect(cfg, said):
    with pytest.raises(ConfigError, match=said):
        runs.build_task(cfg())
    moved = config()
    moved.data.augment = 0.1
    with pytest.raises(ConfigError, match=r"data.augment=0.0, and data.augment is 0.1"):
        runs.build_task(moved)


def test_the_encoder_is_needed_and_compared(tmp_path):
    cfg = config()
    cfg.align.encoder = ""
    with pytest.raises(ConfigError, match=r"config\.align\.encoder is needed"):
        load_fixed_parts(cfg, tmp_path, fresh=True)
    net, params = make_feature_encoder(cfg), frozen_of(cfg)[ENCODER]
    save_model(tmp_path / "dinov2", net, params)
    cfg.align.encoder = str(tmp_path / "dinov2")
    found = load_fixed_parts(cfg, tmp_path, fresh=True)[ENCODER]
    jax.tree.map(np.testing.assert_array_equal, found, params)
    cfg.align.vision.heads = 4
    with pytest.raises(ConfigError, match="num_attention_heads is 2, and 4 in the config"):
        load_fixed_parts(cfg, tmp_path, fresh=True)
    cfg.align.vision.features = 16
    with pytest.raises(ConfigError, match=r"is not the one of config\.align\.vision"):
        load_fixed_parts(cfg, tmp_path, fresh=True)


def test_an_exported_model_leaves_the_encoder_behind(execute, tmp_path):
    run, file, again = tmp_path / "run", tmp_path / "model.safetensors", tmp_path / "saved"
    execute("train", "--config=configs/dit.py:digits_repa,smoke", f"--workdir={run}")
    execute("export", f"--workdir={run}", f"--out={file}")
    assert not any(ENCODER in key for key in open_safetensors(file))
    diffjax.save(diffjax.open(run), again)  # so does a model that is saved
    drawn = []
    for where in (run, file, again / "model.safetensors"):
        model = diffjax.open(where)
        z, t = jnp.ones((2, *model.space.shape)), jnp.array([0.2, 0.7])
        cond = {"label": jnp.array([0, 1])}
        drawn.append(model.network.apply({"params": model.params}, z, t, cond))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert np.abs(drawn[0]).max() > 0
