"""Training low-rank adapters on a network that stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stable_diffusion
from diffjax import lora
from diffjax.model.condition import make_clips, make_condition
from diffjax.model.space import make_pixel_space
from diffjax.tasks import make_lora_task, make_task
from diffjax.train import init_state, make_optimizer, make_step

SHAPE = (8, 8, 3)


def small(variant="shapes_lora"):
    """Without an autoencoder: on pixels."""
    config = stable_diffusion.get_config(f"{variant},smoke")
    del config.autoencoder
    config.data.image_size = SHAPE[0]
    config.network.update(multipliers=(1,), attention_levels=(0,))
    config.optim.update(lr=1e-2, warmup=0, decay="constant", clip=0.0)
    return config


@pytest.fixture(scope="module")
def setting():
    config = small()
    task, plain = make_lora_task(config, SHAPE), make_task(config, SHAPE)
    rng = np.random.default_rng(0)
    text = jnp.asarray(rng.integers(0, 22, (4, 18)), jnp.int32)
    batch = {"image": jnp.asarray(rng.normal(size=(4, *SHAPE)), jnp.float32), "text": text}
    net = make_clips(config)["text_encoder"]
    shapes = {
        "base": jax.eval_shape(plain.init, jax.random.key(1), None, batch)[0],
        "text_encoder": jax.eval_shape(net.init, jax.random.key(2), text)["params"],
    }
    frozen = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)
    return config, task, plain, frozen, batch


def test_adapters_alone_are_trained_averaged_and_kept(setting):
    config, task, plain, frozen, batch = setting
    optimizer = make_optimizer(config.optim, 100)
    init = jax.jit(lambda f: init_state(task, optimizer, jax.random.key(3), f, batch))
    state = init(frozen)
    names = {path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(state.params)}
    assert names == {"lora_A", "lora_B"}
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)
    merged = lora.merge(frozen["base"], state.params, 1.0)
    jax.tree.map(np.testing.assert_array_equal, merged, frozen["base"])
    key = jax.random.fold_in(jax.random.key(0), 0)  # of the first step
    base = jax.jit(lambda f, e: plain.loss(f["base"], f, e, key, 0, batch)[0])
    losses, before = [float(base(frozen, state.extra))], jax.tree.map(np.array, frozen)
    step = jax.jit(make_step(task, optimizer))
    for _ in range(6):
        # The same noise every time, so that the losses compare.
        state, metrics = step(state._replace(step=jnp.zeros((), jnp.int32)), frozen, batch)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[-1] < losses[1]
    jax.tree.map(np.testing.assert_array_equal, before, frozen)
    moved = jax.tree.map(lambda x: float(jnp.abs(x).max()) > 0, state.params)
    assert all(jax.tree.leaves(moved))


def test_wrong_ranks_and_targets_are_named(setting):
    frozen, batch = setting[3:]
    config = small()
    config.lora.rank = 0
    with pytest.raises(ValueError, match=r"config\.lora\.rank must be at least 1, got 0"):
        make_lora_task(config, SHAPE)
    config.lora.update(rank=1, targets=("to_x",))
    task = make_lora_task(config, SHAPE)
    with pytest.raises(ValueError, match=r"'to_x'; choose from .*proj_in.*to_k, to_out\.0"):
        jax.eval_shape(task.init, jax.random.key(0), frozen, batch)


def test_the_empty_text_is_that_of_the_tokenizer():
    config = small()
    config.cond.empty = (20, 21, 7)
    condition = make_condition(config, make_pixel_space(SHAPE), 0)
    null = condition.null(condition.take({"text": jnp.ones((2, 5), jnp.int32)}, None))
    np.testing.assert_array_equal(null["text"], [[20, 21, 7, 7, 7]] * 2)


def test_xl_is_told_what_its_pipeline_tells_it():
    from tests.parity import generate_cases as g

    pipe = g.pipeline("xl")
    wanted = pipe.embed(["a red cat"])
    config = small("sdxl")
    first, second = (text.model for text in pipe.parts.texts.values())
    for section, net in (("text", first.net), ("text_2", second.net)):
        names = ("vocabulary", "positions", "features", "width", "layers", "heads", "activation")
        config.cond[section] = {k: getattr(net, k) for k in (*names, "end", "projection")}
    config.network.update(context_dim=12, added_dim=6 + 6 * 8)
    condition = make_condition(config, make_pixel_space(SHAPE), 0)
    ids = [text.tokenizer.plain("a red cat").ids for text in pipe.parts.texts.values()]
    sizes = jnp.ones((1, 6))
    raw = condition.take({"text": ids[0], "text_2": ids[1], "time_ids": sizes}, None)
    frozen = {"text_encoder": first.params, "text_encoder_2": second.params}
    encode = jax.jit(lambda given: condition.encode({}, frozen, {}, given))
    found = encode(raw)
    np.testing.assert_allclose(found["context"], wanted.context, atol=1e-5)
    np.testing.assert_allclose(found["added"]["text_embeds"], wanted.pooled, atol=1e-5)
    null = encode(condition.null(raw))
    assert not np.any(null["context"]) and not np.any(null["added"]["text_embeds"])
    np.testing.assert_array_equal(null["added"]["time_ids"], sizes)
