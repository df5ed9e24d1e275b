import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax import lora
from diffjax.pretrained import Component, load_lora, merge_lora, open_safetensors, save_lora
from diffjax.pretrained.state_dict import to_state_dict
from tests.parity import sd_cases

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = "text_model.encoder.layers.2.self_attn.q_proj"
RANK = 2


@pytest.fixture(scope="module")
def models():
    out = {}
    for name, config in [
        ("unet", sd_cases.UNETS["sd1"]),
        ("text_encoder", sd_cases.TEXTS["clip"]),
        ("text_encoder_2", sd_cases.TEXTS["openclip"]),
    ]:
        net, params = sd_cases.random_params(config)
        out[name] = Component(net, params, config)
    return out


def _factors(shape):
    """(down, up) of a weight, as torch would have them."""
    rng = np.random.default_rng(sum(shape))
    up = rng.standard_normal((shape[0], RANK, *(1 for _ in shape[2:]))).astype(np.float32)
    return rng.standard_normal((RANK, *shape[1:])).astype(np.float32), up


def _expected(weight, factor):
    down, up = _factors(weight.shape)
    product = np.einsum("or,r...->o...", up.reshape(len(up), RANK), down)
    return weight + factor * product.reshape(weight.shape)


def _merged(tmp_path, models, tensors, metadata=None, **options):
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    return merge_lora(models, tmp_path / "lora.safetensors", **options)


def _check(merged, models, part, module, factor):
    before = to_state_dict(models[part].params)
    after = to_state_dict(merged[part].params)
    key = f"{module}.weight"
    np.testing.assert_allclose(after[key], _expected(before[key], factor), rtol=1e-5, atol=1e-6)
    changed = {k for k in before if not np.array_equal(before[k], after[k])}
    assert changed == {key}


KOHYA = [
    ("unet", Q, "lora_unet_" + Q.replace(".", "_")),
    ("unet", OUT, "lora_unet_" + OUT.replace(".", "_")),
    ("unet", CONV, "lora_unet_" + CONV.replace(".", "_")),
    ("unet", Q, "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"),
    ("unet", OUT, "lora_unet_output_blocks_3_1_transformer_blocks_0_attn2_to_out_0"),
    ("unet", CONV, "lora_unet_input_blocks_1_0_in_layers_2"),
    ("unet", "mid_block.resnets.1.time_emb_proj", "lora_unet_middle_block_2_emb_layers_1"),
    ("unet", "time_embedding.linear_2", "lora_unet_time_embed_2"),
    ("text_encoder", TEXT, "lora_te_" + TEXT.replace(".", "_")),
    ("text_encoder", TEXT, "lora_te1_" + TEXT.replace(".", "_")),
    ("text_encoder_2", TEXT, "lora_te2_" + TEXT.replace(".", "_")),
]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_is_one_number(tmp_path, models, shape):
    down, up = _factors(to_state_dict(models["unet"].params)[f"{Q}.weight"].shape)
    tensors = {f"unet.{Q}.lora_down.weight": down, f"unet.{Q}.lora_up.weight": up}
    tensors[f"unet.{Q}.alpha"] = np.full(shape, 0.5, np.float32)
    _check(_merged(tmp_path, models, tensors), models, "unet", Q, 0.5 / RANK)


@pytest.mark.parametrize(("part", "module", "name"), KOHYA, ids=lambda value: value[:40])
def test_kohya(tmp_path, models, part, module, name):
    down, up = _factors(to_state_dict(models[part].params)[f"{module}.weight"].shape)
    tensors = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": np.array(0.5, np.float32),
    }
    merged = _merged(tmp_path, models, tensors, scale=0.8)
    _check(merged, models, part, module, 0.8 * 0.5 / RANK)


PEFT, OLD, OLDER = "{}.lora_{}.weight", "{}.lora.{}.weight", "{}.lora_linear_layer.{}.weight"
DIFFUSERS = [
    ("unet", Q, f"unet.{Q}", PEFT),
    ("unet", Q, Q, PEFT),
    ("unet", Q, f"base_model.model.{Q}", PEFT),
    ("unet", Q, f"unet.{Q}", OLD),
    ("unet", OUT, f"unet.{OUT[:-9]}.processor.to_out", "{}_lora.{}.weight"),
    ("text_encoder", TEXT, f"text_encoder.{TEXT}", PEFT),
    ("text_encoder", TEXT, f"text_encoder.{TEXT.removeprefix('text_model.')}", PEFT),
    ("text_encoder_2", TEXT, f"text_encoder_2.{TEXT}", OLDER),
]


@pytest.mark.parametrize(("part", "module", "name", "style"), DIFFUSERS)
def test_diffusers_and_peft(tmp_path, models, part, module, name, style):
    factors = _factors(to_state_dict(models[part].params)[f"{module}.weight"].shape)
    keys = [style.format(name, role) for role in (("A", "B") if style == PEFT else ("down", "up"))]
    merged = _merged(tmp_path, models, dict(zip(keys, factors, strict=True)))
    _check(merged, models, part, module, 1.0)


def test_alpha_in_the_metadata(tmp_path, models):
    down, up = _factors(to_state_dict(models["unet"].params)[f"{Q}.weight"].shape)
    tensors = {f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up}
    stored = {"unet.r": RANK, "unet.lora_alpha": 6}
    for more, factor in [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / RANK**0.5),
        ({"rank_pattern": {Q: RANK}, "r": 4}, 3.0),
        ({"alpha_pattern": {"o_q": 8, "attn1.to_q": 4, "to_q": 8}}, 2.0),
        ({"alpha_pattern": {Q: 4}, "use_rslora": True}, 4 / RANK**0.5),
        ({"alpha_pattern": {CONV: 4}}, 3.0),
    ]:
        given = stored | {f"unet.{key}": value for key, value in more.items()}
        metadata = {"lora_adapter_metadata": json.dumps(given)}
        _check(_merged(tmp_path, models, tensors, metadata), models, "unet", Q, factor)
    for more, message in [
        ({"use_dora": True}, "use_dora"),
        ({"alpha_pattern": {".*to_q": 1}}, r"names of layers, not '\.\*to_q'"),
    ]:
        given = stored | {f"unet.{key}": value for key, value in more.items()}
        metadata = {"lora_adapter_metadata": json.dumps(given)}
        with pytest.raises(ValueError, match=message):
            _merged(tmp_path, models, tensors, metadata)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet.nowhere.to_q", r"no weights for unet\.nowhere\.to_q"),
        (f"text_encoder_3.{TEXT}", "no weights for text_encoder_3"),
    ],
)
def test_weights_that_do_not_exist_are_named(tmp_path, models, name, message):
    down, up = _factors((8, 8))
    with pytest.raises(ValueError, match=message):
        _merged(tmp_path, models, {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})


def test_other_shapes_and_other_adapters_are_refused(tmp_path, models):
    down, up = _factors((8, 9))
    pair = {f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up}
    with pytest.raises(ValueError, match=r"\(8, 8\), but the adapter has shapes \(2, 9\)"):
        _merged(tmp_path, models, pair)
    with pytest.raises(ValueError, match=r"not a low-rank adapter.*hada_w1_a"):
        _merged(tmp_path, models, {**pair, "lora_unet_x.hada_w1_a": down})
    with pytest.raises(ValueError, match="not a low-rank adapter"):
        _merged(tmp_path, models, {f"unet.{Q}.lora_A.weight": down})


# ---- adapters as trees ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep():
    """A UNet with stacks of one, two and three blocks, and adapters for it."""
    net, params = sd_cases.random_params(sd_cases.UNETS["xl"])
    targets = (*lora.ATTENTION, "conv1", "proj_in")
    made = lora.init(jax.random.key(0), params, rank=RANK, targets=targets)
    rng = np.random.default_rng(0)
    made = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), made)
    return Component(net, params, {}), made


def _near(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)


def test_what_is_saved_is_loaded_and_merged_as_it_was_trained(tmp_path, deep):
    model, made = deep
    save_lora(tmp_path / "lora.safetensors", made, scale=0.5)
    back = load_lora(model, tmp_path / "lora.safetensors")
    jax.tree.map(np.testing.assert_array_equal, back, lora.fold(made, 0.5))
    wanted = lora.merge(model.params, made, 0.5 * 0.8)
    _near(lora.merge(model.params, back, 0.8), wanted)
    merged = merge_lora({"unet": model}, tmp_path / "lora.safetensors", scale=0.8)
    _near(merged["unet"].params, wanted)


def test_files_have_the_names_and_axes_of_peft(tmp_path, deep):
    save_lora(tmp_path / "lora.safetensors", deep[1], scale=1.0)
    file = open_safetensors(tmp_path / "lora.safetensors")
    block = "unet.mid_block.attentions.0.transformer_blocks.2.attn2.to_k"
    assert file[f"{block}.lora_A.weight"].shape == (RANK, 12)
    assert file[f"{block}.lora_B.weight"].shape == (16, RANK)
    conv = "unet.down_blocks.0.resnets.0.conv1"
    assert file[f"{conv}.lora_A.weight"].shape == (RANK, 8, 3, 3)
    assert file[f"{conv}.lora_B.weight"].shape == (8, RANK, 1, 1)
    assert all(key.startswith("unet.") for key in file)


def test_layers_of_a_stack_may_differ_in_rank_or_have_no_adapter(tmp_path, deep):
    model, tensors = deep[0], {}
    rng = np.random.default_rng(1)
    for block, rank in ((0, 1), (2, 3)):
        name = f"lora_unet_mid_block_attentions_0_transformer_blocks_{block}_attn1_to_q"
        tensors[f"{name}.lora_down.weight"] = rng.normal(size=(rank, 16)).astype("f4")
        tensors[f"{name}.lora_up.weight"] = rng.normal(size=(16, rank)).astype("f4")
        tensors[f"{name}.alpha"] = np.array(2.0, np.float32)
    save_file(tensors, tmp_path / "lora.safetensors")
    found = lora.merge(model.params, load_lora(model, tmp_path / "lora.safetensors"), 0.7)
    merged = merge_lora({"unet": model}, tmp_path / "lora.safetensors", scale=0.7)
    _near(found, merged["unet"].params)


def test_adapters_that_do_not_fit_are_refused(tmp_path, deep, models):
    path = tmp_path / "lora.safetensors"
    save_lora(path, deep[1], scale=1.0)
    with pytest.raises(ValueError, match="the networks have no weights for unet"):
        load_lora(models["unet"], path)
    down, up = _factors((8, 9))
    save_file({f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up}, path)
    with pytest.raises(ValueError, match=r"\(8, 8\), but the adapter has shapes \(2, 9\)"):
        load_lora(models["unet"], path)
    pair = {f"text_encoder.{TEXT}.lora_A.weight": down, f"text_encoder.{TEXT}.lora_B.weight": up}
    save_file(pair, path)
    with pytest.raises(ValueError, match=r"also for text encoders.*give load_loras all networks"):
        load_lora(models["unet"], path)
