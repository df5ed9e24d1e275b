"""An IP-Adapter beside a frozen base: what is trained, what is dropped, and the file of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.model.condition import make_clips, make_condition
from diffjax.model.image_prompt_condition import make_image_encoder
from diffjax.model.space import make_pixel_space
from diffjax.nets.image_prompts import copy_layers
from diffjax.pretrained import Component, load_image_adapter, save_image_adapter, save_model
from diffjax.pretrained.image_adapters import ENCODER
from diffjax.runs.states import make_abstract_base
from diffjax.tasks import make_task
from diffjax.tasks.ip_adapter_task import make_ip_adapter_task
from diffjax.types import IMAGE_PROMPTS
from tests.tasks.test_lora import SHAPE, small

COUNT = 4


def prompted(kind="base"):
    config = small("shapes_ip_adapter")
    config.ip_adapter.kind = kind
    config.cond.empty = (20, 21, 21)
    return config


@pytest.fixture(scope="module")
def setting():
    config = prompted()
    task, rng = make_ip_adapter_task(config, SHAPE), np.random.default_rng(0)
    text = jnp.asarray(rng.integers(0, 20, (COUNT, 18)), jnp.int32)
    batch = {"image": jnp.asarray(rng.uniform(-1, 1, (COUNT, *SHAPE)), jnp.float32), "text": text}
    vision = make_image_encoder(config)
    image = jnp.zeros((1, vision.size, vision.size, 3))
    shapes = {
        "base": make_abstract_base(config)["base"],
        "text_encoder": jax.eval_shape(make_clips(config)["text_encoder"].init, jax.random.key(2),
                                       text)["params"],
        "image_encoder": jax.eval_shape(vision.init, jax.random.key(2), image)["params"],
    }  # fmt: skip
    frozen = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)
    params, extra = jax.jit(task.init)(jax.random.key(3), frozen, batch)
    return config, task, frozen, batch, params, extra


def test_the_layers_begin_as_those_of_the_text_and_the_base_is_no_part_of_what_is_trained(setting):
    _, _, frozen, _, params, _ = setting
    assert set(params) == {"image_proj", "layers"}
    jax.tree.map(np.testing.assert_array_equal, params["layers"], copy_layers(frozen["base"]))
    assert not any("processor" in str(path) for path, _ in
                   jax.tree_util.tree_leaves_with_path(frozen["base"]))  # fmt: skip


def test_everything_that_is_trained_has_a_gradient_and_the_picture_changes_the_loss(setting):
    _, task, frozen, batch, params, extra = setting

    @jax.jit
    def measure(params, batch):
        return jax.value_and_grad(
            lambda p: task.loss(p, frozen, extra, jax.random.key(5), 0, batch)[0]
        )(params)

    value, slope = measure(params, batch)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(slope))
    silent = jax.tree.map(jnp.zeros_like, params["layers"])
    without, _ = measure({**params, "layers": silent}, batch)
    config = small()  # the base alone, which reads no picture
    config.cond.update(drop=0.1, empty=(20, 21, 21))
    plain = make_task(config, SHAPE)
    assert abs(float(value - without)) > 1e-4
    bare = jax.jit(
        lambda: plain.loss(frozen["base"], frozen, extra, jax.random.key(5), 0, batch)[0]
    )()
    np.testing.assert_allclose(without, bare, rtol=1e-5)


def test_text_and_picture_are_dropped_apart_and_together():
    condition = make_condition(prompted(), make_pixel_space(SHAPE), 0)
    count, key = 4000, jax.random.key(0)
    raw = condition.take(
        {"text": jnp.ones((count, 18), jnp.int32), "image": jnp.zeros((count, *SHAPE))}, key
    )
    found, drawn, p = condition.drop(key, raw, 0.1), jax.random.uniform(key, (count,)), 0.05
    np.testing.assert_array_equal(found["text"][:, 0] == 20, drawn < 2 * p)
    np.testing.assert_array_equal(found["picture"]["seen"] == 0, (drawn >= p) & (drawn < 3 * p))
    null = condition.null(raw)  # of guidance, which hides both
    assert (null["text"][:, 0] == 20).all() and (null["picture"]["seen"] == 0).all()


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_a_picture_that_is_not_seen_says_nothing(setting, kind):
    frozen = setting[2]
    condition = make_condition(prompted(kind), make_pixel_space(SHAPE), 0)
    params = condition.init(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)), jnp.float32)
    for seen in (0.0, 1.0):
        raw = {"text": jnp.ones((2, 18), jnp.int32)}
        raw["picture"] = {"image": images, "seen": jnp.full(2, seen)}
        (one,) = condition.encode(params, frozen, {}, raw)[IMAGE_PROMPTS]
        same = np.allclose(one["tokens"][0], one["tokens"][1], atol=1e-6)
        assert same == (seen == 0)


def test_what_was_trained_is_read_as_an_adapter(setting, tmp_path):
    config, _, frozen, _, params, _ = setting
    path = tmp_path / "a.safetensors"
    save_image_adapter(path, frozen["base"], params["image_proj"], params["layers"])
    save_model(tmp_path / ENCODER, make_image_encoder(config), frozen["image_encoder"])
    net = small().network
    unet = Component(type("Net", (), {"context_dim": net.context_dim}), frozen["base"], {})
    found = load_image_adapter(unet, tmp_path)
    for ours, theirs in (
        (found.params, params["image_proj"]),
        (found.layers, params["layers"]),
        (found.encoder.params, frozen["image_encoder"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_section_is_needed():
    with pytest.raises(ValueError, match=r"needs the section config\.ip_adapter"):
        make_ip_adapter_task(small(), SHAPE)
    config = prompted()
    config.ip_adapter.kind = "bass"
    with pytest.raises(ValueError, match="base"):
        make_ip_adapter_task(config, SHAPE)
