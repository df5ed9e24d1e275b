"""Training of a ControlNet: what moves, what does not, and what it costs to begin with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import controlnet as controlnet_config
from diffjax.config import make_section
from diffjax.model import make_model, make_sampler, make_steering, sample
from diffjax.model.control_networks import make_controlnet
from diffjax.tasks import assemble_model, make_controlnet_task, make_task
from diffjax.tasks.controlnet_task import join_network, select_decoder
from diffjax.train import init_state, make_optimizer, make_step
from diffjax.types import ConfigError
from tests.train.tiny import assert_same

SHAPE, CLASSES = (4, 4, 1), 3


def config(**sections):
    cfg = controlnet_config.fashion_mnist_edges()
    cfg.data.update(image_size=4, num_classes=CLASSES, batch_size=4, name="noise")
    cfg.network.update(channels=8, multipliers=(1,), attention_levels=(), norm_groups=2)
    cfg.control.net.hint_widths = (4, 8)
    cfg.optim.update(lr=1e-2, warmup=0, clip=0.0, decay="constant")
    cfg.sample.update(steps=3)
    for section, values in sections.items():
        cfg[section].update(ConfigDict(values))
    return cfg


def task_of(cfg):
    return make_controlnet_task(cfg, SHAPE, 256, CLASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hint_factor=0), "hint_factor is 0, but the released hint encoder of hint_widths"),
        (dict(hint_factor=-1), "hint_factor is -1, but"),
        (dict(hint_factor=3), "hint_factor is 3, but .* smaller by one of 1, 2$"),
        (dict(hint_factor=8), "hint_factor is 8, but .* smaller by one of 1, 2$"),
        (dict(hint_factor=2, hint_widths=(4,)), "hint_factor is 2, but .* smaller by one of 1$"),
        (
            dict(hint_encoder="paper", hint_factor=32),
            "hint_factor is 32, but the paper hint encoder .* 1, 2, 4, 8, 16$",
        ),
        (dict(hint_widths=()), r"hint_widths must be one or more whole numbers .*, got \(\)"),
        (dict(hint_widths=(4, 0)), r"hint_widths must be .* of at least 1, got \(4, 0\)"),
        (dict(hint_widths=(4, -8)), "hint_widths must be"),
        (dict(hint_widths=(4, 8.5)), "hint_widths must be"),
        (dict(hint_widths=("a", "b")), "hint_widths must be"),
        (dict(hint_channels=0), "hint_channels must be a whole number of at least 1, got 0"),
        (dict(name="t2i_adapter", hint_factor=0), "hint_factor must be .* at least 1, got 0"),
        (dict(name="t2i_adapter", blocks=-1), "blocks must be a whole number of at least 0"),
        (dict(name="t2i_adapter", hint_channels=-1), "hint_channels must be"),
    ],
)
def test_wrong_options_of_the_hint_are_named(options, message):
    cfg = config()
    cfg.control.net.update(options)
    with pytest.raises(ConfigError, match=rf"^control\.net\.{message}"):
        task_of(cfg)


def test_hints_of_another_size_than_the_factor_says():
    cfg = config()
    cfg.control.net.hint_factor = 2  # right for latents of half the side
    task = task_of(cfg)
    with pytest.raises(ValueError, match=r"\(4, 8, 8, 1\) .* hint_factor=2, got \(4, 4, 4, 1\)"):
        trace_loss(task, batch_of())


def trace_loss(task, batch):
    frozen = frozen_base()  # made outside of the trace, since it is kept

    def run():
        params, extra = task.init(jax.random.key(0), frozen, batch)
        return task.loss(params, frozen, extra, jax.random.key(0), 0, batch)

    return jax.eval_shape(run)


def batch_of(seed=0, size=4):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.uniform(-1, 1, (size, *SHAPE)).astype(np.float32),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
        "hint": rng.uniform(0, 1, (size, *SHAPE)).astype(np.float32),
    }


@functools.cache
def frozen_base():
    """Random weights, none of them zero."""
    net = make_model(config(), SHAPE, 256, CLASSES).network
    cond = {"label": jnp.zeros(1, jnp.int32)}
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.zeros(1), cond)
    rng = np.random.default_rng(7)
    return {
        "base": jax.tree.map(
            lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), jnp.float32), like["params"]
        )
    }


@functools.cache
def trained(steps=2):
    cfg = config()
    task, frozen = task_of(cfg), frozen_base()
    optimizer = make_optimizer(cfg.optim, cfg.train.steps)
    state = jax.jit(functools.partial(init_state, task, optimizer))(
        jax.random.key(0), frozen, batch_of()
    )
    step = jax.jit(make_step(task, optimizer))
    states = [state]
    for k in range(steps):
        state, metrics = step(state, frozen, batch_of(k))
        states.append(state)
    assert metrics["finite"] == 1
    return states


def moved(before, after):
    pairs = zip(before.items(), after.items(), strict=True)
    same = (jax.tree.map(np.array_equal, a, b) for (_, a), (_, b) in pairs)
    return {k for k, equal in zip(before, same, strict=True) if not all(jax.tree.leaves(equal))}


def test_training_moves_zero_convolutions_first_and_never_the_base():
    before = jax.tree.map(np.array, frozen_base())
    first, second, third = trained()
    zero = {f"controlnet_down_blocks.{i}" for i in range(2)} | {"controlnet_mid_block"}
    assert set(first.params) == {"control"}
    assert moved(first.params["control"], second.params["control"]) == zero
    assert moved(second.params["control"], third.params["control"]) == set(third.params["control"])
    assert_same(before, jax.tree.map(np.array, frozen_base()))
    # Neither the state nor the optimiser's holds anything of the base's size beyond the copy.
    held = {name for tree in (first.params, first.ema) for name in tree["control"]}
    assert not any(name.startswith(("up_blocks", "conv_out")) for name in held)
    sizes = [sum(x.size for x in jax.tree.leaves(t)) for t in (first.params, first.opt)]
    assert sizes[1] <= 2 * sizes[0] + 4


def test_at_the_start_the_loss_is_that_of_the_base():
    cfg = config()
    state = trained()[0]
    plain = make_task(cfg, SHAPE, 256, CLASSES)
    batch = batch_of()

    @jax.jit
    def losses(params, frozen):
        arguments = state.extra, jax.random.key(3), jnp.int32(0), batch
        ours = task_of(cfg).loss(params, frozen, *arguments)[0]
        return ours, plain.loss(frozen["base"], None, *arguments)[0]

    ours, theirs = losses(state.params, frozen_base())
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_an_adapter_is_trained_beside_a_base_that_stays_and_draws_with_its_features():
    cfg = config(control={"net": {"name": "t2i_adapter", "blocks": 1}}, times={"name": "cubic"})
    task, frozen = task_of(cfg), frozen_base()
    before = jax.tree.map(np.array, frozen)
    optimizer = make_optimizer(cfg.optim, cfg.train.steps)
    state = init_state(task, optimizer, jax.random.key(0), frozen, batch_of())
    assert all(name.startswith("adapter.") for name in state.params["control"])
    after, metrics = jax.jit(make_step(task, optimizer))(state, frozen, batch_of())
    assert metrics["finite"] == 1
    assert moved(state.params["control"], after.params["control"]) == set(state.params["control"])
    assert_same(before, jax.tree.map(np.array, frozen))
    model = assemble_model(cfg, SHAPE, after.params, frozen, after.extra)
    sampler, rows = make_sampler(cfg, model)

    @jax.jit
    def draw(strength):
        cond, hints = {"label": batch_of()["label"]}, [batch_of()["hint"]]
        keys = jax.random.split(jax.random.key(1), 4)
        return sample(model, cond, sampler, rows, keys, hints=hints, strengths=[strength])

    images = [np.asarray(draw(strength)) for strength in (0.0, 1.0)]
    assert np.isfinite(images).all() and np.abs(images[1] - images[0]).max() > 1e-4
    cfg.control.only_middle = True
    with pytest.raises(ValueError, match="an adapter acts on the way down"):
        task_of(cfg)


def test_half_of_the_labels_are_dropped_and_no_hint():
    assert controlnet_config.fashion_mnist_edges().cond.drop == 0.5
    cfg = config(cond={"drop": 0.999})
    task, state, batch = task_of(cfg), trained()[-1], batch_of()
    loss = jax.jit(lambda b: task.loss(
        state.params, frozen_base(), state.extra, jax.random.key(3), jnp.int32(0), b)[0]
    )  # fmt: skip
    value = float(loss(batch))
    assert float(loss({**batch, "label": (batch["label"] + 1) % CLASSES})) == value
    assert float(loss({**batch, "hint": 1 - batch["hint"]})) != value


def gradients(cfg, params):
    task = task_of(cfg)

    @jax.jit
    def run(params, frozen):
        arguments = {"times": ()}, jax.random.key(3), jnp.int32(0), batch_of()
        return jax.grad(lambda p: task.loss(p, frozen, *arguments)[0])(params)

    return run(params, frozen_base())


def nonzero(tree):
    return {k for k, v in tree.items() if any(np.any(x) for x in jax.tree.leaves(v))}


def test_an_unlocked_decoder_has_gradients_and_starts_as_the_bases():
    cfg, decoder = config(control={"train_decoder": True}), select_decoder(frozen_base()["base"])
    params = jax.jit(task_of(cfg).init)(jax.random.key(0), frozen_base(), batch_of())[0]
    assert_same(params["decoder"], decoder)
    assert {"conv_out", "up_blocks.0.resnets.0"} <= nonzero(gradients(cfg, params)["decoder"])


def test_control_of_the_middle_alone():
    params = trained()[0].params
    found = gradients(config(control={"only_middle": True}), params)
    assert nonzero(found["control"]) == {"controlnet_mid_block"}


@pytest.mark.slow
def test_remat_and_bfloat16():
    params = trained()[-1].params
    plain, again, half = (
        gradients(config(network=changes), params)
        for changes in ({}, {"remat": "blocks"}, {"dtype": "bfloat16"})
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), plain, again)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    assert nonzero(half["control"]) == nonzero(plain["control"])


# ---- samples ------------------------------------------------------------------------------------


def drawn(cfg, params, scale=None, hint=None, strength=1.0):
    model = assemble_model(cfg, SHAPE, params, frozen_base(), {})
    sampler, rows = make_sampler(cfg, model)
    keys, steering = jax.random.split(jax.random.key(0), 2), make_steering(cfg)
    hint = batch_of(5, 2)["hint"] if hint is None else hint
    scales = None if scale is None else np.full(len(rows.level.t), scale, np.float32)

    @jax.jit
    def run(arrays, hint, strength, scale):
        return sample(
            model.with_arrays(arrays),
            {"label": jnp.array([0, 1])},
            sampler,
            rows,
            keys,
            scale=scale,
            hints=[hint],
            strengths=[strength],
            steering=steering,
        )

    return np.asarray(run(model.arrays, hint, strength, scales))


def test_samples_follow_hint_strength_and_balance():
    cfg = config(sample={"sampler": "ddim"})
    params = trained()[-1].params
    controlled = drawn(cfg, params, 2.0)
    zero = np.zeros(3, np.float32)
    none = drawn(cfg, params, 2.0, strength=zero)
    assert np.abs(controlled - none).max() > 1e-4
    other = drawn(cfg, params, 2.0, hint=np.zeros((2, *SHAPE), np.float32), strength=zero)
    np.testing.assert_array_equal(none, other)
    guess = drawn(config(sample={"sampler": "ddim"}, control={"balance": "guess"}), params, 2.0)
    assert np.abs(controlled - guess).max() > 1e-5
    unguided = drawn(cfg, params)
    assert np.abs(unguided - controlled).max() > 1e-4


# ---- what is refused ----------------------------------------------------------------------------


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"data.augment=0.1 would move images under their hints"):
        task_of(config(data={"augment": 0.1}))
    with pytest.raises(ValueError, match="unknown network option 'hint_size'"):
        make_controlnet({"hint_size": 3}, make_model(config(), SHAPE, 256, CLASSES).network)
    batch = {**batch_of(), "hint": np.zeros((4, 16, 16, 1), np.float32)}
    state = trained()[0]
    with pytest.raises(ValueError, match=r"cond\['hint'\] of shape \(4, 4, 4, 1\)"):
        task_of(config()).loss(
            state.params, frozen_base(), state.extra, jax.random.key(0), jnp.int32(0), batch
        )
    wide = config(network={"channels": 16})
    with pytest.raises(ValueError, match="for another base"):
        jax.eval_shape(task_of(wide).init, jax.random.key(0), frozen_base(), batch_of())


def test_adapters_of_the_copied_encoder_are_trained_and_merged():
    cfg = config()
    cfg.lora = make_section("lora", rank=1, alpha=2.0, targets=("conv1",))
    base, batch = frozen_base()["base"], jax.tree.map(lambda leaf: leaf[:1], batch_of())

    def init(cfg):
        return jax.eval_shape(task_of(cfg).init, jax.random.key(0), {"base": base}, batch)[0]

    shapes, plain = init(cfg), init(config())["control"]
    assert set(shapes["control"]) == {k for k in plain if k not in base or k == "conv_in"}
    rng = np.random.default_rng(0)
    made = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), shapes)
    net = join_network(cfg, made, base)
    assert set(plain) <= set(net)
    for path, leaf in jax.tree_util.tree_leaves_with_path({k: net[k] for k in plain}):
        name, *_ = (part.key for part in path)
        if name in base and name != "conv_in":
            before = base
            for part in path:
                before = before[part.key]
            is_adapted = {"conv1", "kernel"} <= {str(part.key).split(".")[-1] for part in path}
            assert np.array_equal(leaf, before) != is_adapted
    cfg.control.net.lite = True
    with pytest.raises(ValueError, match=r"config\.lora needs a network that copies its base"):
        init(cfg)
