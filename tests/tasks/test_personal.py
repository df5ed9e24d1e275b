"""What is trained of text encoders: all of it, adapters, or the embeddings of a new word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from configs import stable_diffusion
from diffjax import lora, parameterization, schedules
from diffjax.losses import draw_noise
from diffjax.model import make_model
from diffjax.model.condition import TABLE, make_clips, make_condition
from diffjax.model.space import make_pixel_space
from diffjax.pretrained import Component, save_lora
from diffjax.pretrained.lora_files import load_loras
from diffjax.pretrained.prompts import TextEncoder, add_concept, encode
from diffjax.pretrained.tokenizers import train_tokenizer
from diffjax.runs.concepts import choose_rows, save_word
from diffjax.tasks import assemble_model, make_lora_task
from diffjax.tasks.concept_task import make_concept_task
from diffjax.tasks.consistency_task import measure_inconsistency
from diffjax.types import ConfigError
from tests.tasks.test_lora import SHAPE, small

WORDS = ("a", "red", "cat", "on", "the", "left")
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 22, (2, 18)), jnp.int32)


@pytest.fixture(scope="module")
def frozen():
    """Random parameters of a UNet and a text encoder of the small config."""
    config, rng = small(), np.random.default_rng(0)
    net, model = make_clips(config)["text_encoder"], make_model(config, SHAPE)
    shapes = {
        "base": jax.eval_shape(
            model.network.init, jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.zeros(1),
            model.condition.example,
        )["params"],
        "text_encoder": jax.eval_shape(net.init, jax.random.key(2), IDS)["params"],
    }  # fmt: skip
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(x.dtype), shapes)


def text_config(task, **lora):
    config = small("shapes_word" if task == "concept" else "shapes_lora")
    config.cond.text.update(vocabulary=22, positions=18)  # those of `tokenizer`
    config.cond.empty = (20, 21, 21)
    if lora:
        config.lora.update(lora)
    return config


def context_of(model, ids, params=None):
    """What the network attends to, compiled once for the whole file where it can be."""
    params = model.params if params is None else params
    return model.condition.encode(params, model.frozen or {}, {}, {"text": ids})["context"]


def test_trained_parameters_come_before_frozen_ones_and_get_the_gradient(frozen):
    model = make_model(text_config("lora"), SHAPE)._replace(frozen=frozen)
    others = jax.tree.map(lambda leaf: leaf + 0.1, frozen["text_encoder"])

    @jax.jit
    def measure(params):
        return (context_of(model, IDS, params) ** 2).mean()

    value, slope = jax.jit(jax.value_and_grad(measure))({"text_encoder": others})
    assert abs(float(value) - float(measure({}))) > 1e-3
    moved = jax.tree.map(lambda leaf: float(abs(leaf).max()) > 0, slope["text_encoder"])
    assert moved[TABLE]["embedding"] and moved["text_model.final_layer_norm"]["scale"]


def test_whole_encoders_are_part_of_what_is_trained(frozen):
    config = text_config("lora")
    plain = make_model(config, SHAPE).condition.init(jax.random.key(0))
    config.cond.train_text = True
    found = jax.eval_shape(make_model(config, SHAPE).condition.init, jax.random.key(0))
    assert plain == {}
    assert jax.tree.structure(found["text_encoder"]) == jax.tree.structure(frozen["text_encoder"])


def test_adapters_of_encoders_are_trained_merged_and_saved(frozen, tmp_path):
    config = text_config("lora", text_targets=("q_proj", "mlp.fc1"), rank=2, alpha=4.0)
    task = make_lora_task(config, SHAPE)
    batch = {"image": jnp.zeros((1, *SHAPE)), "text": IDS[:1]}
    made, _ = jax.eval_shape(task.init, jax.random.key(0), frozen, batch)
    rng = np.random.default_rng(1)
    made = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), made)
    layers = made["text_encoder"]["text_model.encoder.layers"]
    assert set(layers) == {"self_attn.q_proj", "mlp.fc1"}
    model = assemble_model(config, SHAPE, made, frozen, {})
    ((adapters, scale),) = model.adapters
    merged = lora.merge(model.params, adapters, scale)
    save_lora(tmp_path / "lora.safetensors", made, scale=scale)
    there = {
        name: Component(net, frozen[part], {})
        for name, net, part in (
            ("unet", model.network, "base"),
            ("text_encoder", make_clips(config)["text_encoder"], "text_encoder"),
        )
    }
    back = load_loras(there, tmp_path / "lora.safetensors")
    again = lora.merge(frozen["text_encoder"], back["text_encoder"], 1.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), merged["text_encoder"], again
    )
    keys = load_file(tmp_path / "lora.safetensors")
    assert any(key.startswith("text_encoder.text_model.encoder.layers.0.mlp") for key in keys)
    assert set(back) == {"unet", "text_encoder"}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(WORDS, length=18)


def test_a_word_is_encoded_in_training_as_it_is_after_loading(frozen, tokenizer, tmp_path):
    config = text_config("concept")
    config.concept.update(word="<cat>", vectors=2)
    config.cond.text.vocabulary = tokenizer.backend.get_vocab_size()
    net = make_clips(config)["text_encoder"]
    table = frozen["text_encoder"][TABLE]["embedding"]
    table = np.resize(table, (net.vocabulary, table.shape[1]))
    parts = {**frozen, "text_encoder": {**frozen["text_encoder"], TABLE: {"embedding": table}}}
    task = make_concept_task(config, SHAPE)
    batch = {"image": jnp.zeros((1, *SHAPE)), "text": IDS[:1]}
    shapes, _ = jax.eval_shape(task.init, jax.random.key(0), parts, batch)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == {
        "text_encoder": {"embedding": (2, table.shape[1])}
    }
    drawn = np.random.default_rng(3).normal(size=(2, 8)).astype("f4")
    rows = {"text_encoder": {"embedding": drawn}}
    save_word(tmp_path / "word.safetensors", rows, "<cat>")
    assert list(load_file(tmp_path / "word.safetensors")) == ["<cat>"]
    plain = TextEncoder(tokenizer, Component(net, parts["text_encoder"], {}))
    (known,) = add_concept((plain,), tmp_path / "word.safetensors")
    model = assemble_model(config, SHAPE, rows, parts, {})
    ids = known.tokenizer.plain("a red <cat>").ids
    found = context_of(model, ids)
    wanted = encode((known,), "a red <cat>").context
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    others = jax.tree.map(lambda leaf: -leaf, rows)  # norms would not see a constant
    moved = context_of(assemble_model(config, SHAPE, others, parts, {}), ids)
    assert float(abs(moved - found).max()) > 1e-3


def test_a_word_begins_with_the_embeddings_of_a_text(frozen, tokenizer):
    config = text_config("concept")
    config.concept.update(word="<x>", vectors=3, initial="red cat")
    table = np.arange(200 * 8, dtype=np.float32).reshape(200, 8)
    parts = {"text_encoder": {TABLE: {"embedding": table}}}
    found = choose_rows(config, {"text": tokenizer}, parts)()
    red, cat = tokenizer.ids("red cat")
    np.testing.assert_array_equal(found["text_encoder"]["embedding"], table[[red, cat, red]])
    config.concept.initial = "a red cat on"
    with pytest.raises(ConfigError, match=r"concept\.initial='a red cat on' has 4 tokens"):
        choose_rows(config, {"text": tokenizer}, parts)
    config.concept.initial = ""
    assert choose_rows(config, {"text": tokenizer}, parts) is None


def test_what_no_encoder_can_have_is_refused():
    config = text_config("concept")
    config.concept.vectors = 0
    with pytest.raises(ValueError, match=r"concept\.vectors of at least 1, got 'clip' and 0"):
        make_concept_task(config, SHAPE)
    config = text_config("lora", text_targets=("q_proj",))
    config.cond.context = ""
    with pytest.raises(ValueError, match=r"lora\.text_targets needs published text encoders"):
        make_lora_task(config, SHAPE)


def test_configs_say_what_is_trained():
    variants = stable_diffusion.VARIANTS
    assert variants["sd15_text"]().cond.train_text
    assert variants["sd15_text_lora"]().lora.text_targets
    assert variants["sd15_word"]().task == variants["sdxl_word"]().task == "concept"
    assert all("prior" in config() for name, config in variants.items() if "dreambooth" in name)


def test_an_instruction_and_its_picture_are_dropped_apart_and_together():
    config = text_config("lora")
    config.cond.concat = "edit"
    condition = make_condition(config, make_pixel_space(SHAPE), 0)
    count = 4000
    hint = jnp.full((count, 2, 2, 3), 0.75)
    raw = condition.take({"text": jnp.ones((count, 18), jnp.int32), "hint": hint}, None)
    np.testing.assert_array_equal(raw["edit"]["image"], 0.5)
    key = jax.random.key(0)
    found = condition.drop(key, raw, 0.1)
    # As diffusers' train_instruct_pix2pix has it, of conditioning_dropout_prob p = 0.05.
    p, drawn = 0.05, jax.random.uniform(key, (count,))
    np.testing.assert_array_equal(found["text"][:, 0] == 20, drawn < 2 * p)
    np.testing.assert_array_equal(found["edit"]["seen"] == 0, (drawn >= p) & (drawn < 3 * p))
    both = (found["text"][:, 0] == 20) & (found["edit"]["seen"] == 0)
    assert abs(float(both.mean()) - 0.05) < 0.015
    null = condition.null(raw)  # of guidance, which keeps the picture
    assert (null["text"][:, 0] == 20).all() and (null["edit"]["seen"] == 1).all()


def test_the_picture_before_an_edit_is_encoded_without_the_scale():
    config = text_config("lora")
    config.cond.update(context="", concat="edit")
    space = make_pixel_space(SHAPE)._replace(encode=lambda frozen, extra, images: 3 * images)
    condition = make_condition(config, space, 0)
    raw = condition.take({"hint": jnp.full((2, *SHAPE), 0.75)}, None)
    raw["edit"]["seen"] = jnp.array([1.0, 0.0])
    found = condition.encode({}, {}, {"latent_scale": 3.0}, raw)["concat"]
    np.testing.assert_allclose(found, np.broadcast_to(np.array([0.5, 0])[:, None, None, None],
                                                      (2, *SHAPE)))  # fmt: skip


class Linear:
    """A network that predicts noise as a multiple of z that depends on the condition."""

    def apply(self, variables, z, t, cond, train=False):
        return variables["params"]["gain"] * z * (1 + cond) + t[:, None, None, None] / 1000


def test_a_distilled_student_is_measured_as_diffusers_does():
    """Every line of the expected value is one of train_lcm_distill_lora_sd_wds.py."""
    config = ConfigDict({"steps": 50, "low": 5.0, "high": 15.0, "huber": 1e-3})
    config.timestep_scaling = 10.0
    plain = make_model(text_config("lora"), SHAPE)
    plain = plain._replace(  # as Stable Diffusion
        schedule=schedules.scaled_linear(), parameterization=parameterization.make("eps")
    )
    teacher = plain._replace(network=Linear(), params={"gain": 0.4})
    student = teacher._replace(params={"gain": 0.3})
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, *SHAPE)), jnp.float32)
    key = jax.random.key(2)
    found = measure_inconsistency(student, teacher, config, x, (0.2, 0.0), key)

    keys = jax.random.split(key, 3)
    start = np.asarray(jax.random.randint(keys[0], (6,), 1, 51)) * 20 - 1
    end = np.maximum(start - 20, 0)
    noise, _ = draw_noise(keys[1], x.shape)
    w = np.asarray(jax.random.uniform(keys[2], (6,), minval=5.0, maxval=15.0))
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)

    def wide(values):
        return np.asarray(values, np.float64)[:, None, None, None]

    def denoise(z, t, gain, cond):
        eps = gain * z * (1 + cond) + wide(t) / 1000
        return (z - wide((1 - alphas[t]) ** 0.5) * eps) / wide(alphas[t] ** 0.5), eps

    def consistent(z, t):
        scaled = t * 10.0
        out = wide(scaled / (scaled**2 + 0.25) ** 0.5) * denoise(z, t, 0.3, 0.2)[0]
        return wide(0.25 / (scaled**2 + 0.25)) * z + out

    z = wide(alphas[start] ** 0.5) * x + wide((1 - alphas[start]) ** 0.5) * noise
    said, silent = denoise(z, start, 0.4, 0.2), denoise(z, start, 0.4, 0.0)
    x0, eps = (a + wide(w) * (a - b) for a, b in zip(said, silent, strict=True))
    lower = wide(alphas[end] ** 0.5) * x0 + wide((1 - alphas[end]) ** 0.5) * eps
    error = consistent(z, start) - consistent(lower, end)
    np.testing.assert_allclose(found, (np.sqrt(error**2 + 1e-6) - 1e-3).mean(), rtol=1e-4)
