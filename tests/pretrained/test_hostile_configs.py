"""Configs and weights of strangers: values that were accepted once, and what took forever."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import diffjax
from diffjax.pretrained import clip, load_model, save_model, schedulers, tokenizers
from diffjax.pretrained.config_specs import NETWORK, PER_LEVEL, SCHEDULER
from diffjax.pretrained.files import open_folder, open_safetensors
from diffjax.pretrained.pipelines import load_components
from diffjax.pretrained.scheduler_kinds import KINDS
from diffjax.pretrained.tokenizer_files import check_pattern
from tests.parity import ae_cases, generate_cases, sd_cases
from tests.pretrained import words

FILE = "diffusion_pytorch_model.safetensors"
NETS = {
    "unet": sd_cases.UNETS["sd1"],
    "controlnet": generate_cases.CONTROLS["sd1"],
    "vae": ae_cases.AUTOENCODERS["kl"],
    "text": sd_cases.TEXTS["clip"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of small networks, which tests copy from."""
    root = tmp_path_factory.mktemp("models")
    for name, config in NETS.items():
        save_model(root / name, *sd_cases.random_params(config), config=config)
    return root


def edited(models, name, tmp_path, **changes):
    """A copy with another config."""
    tmp_path.mkdir(exist_ok=True)
    for file in (models / name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = {**NETS[name], **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def refused(folder, *parts):
    """Loading ends in a short sentence that names the folder and these parts."""
    with pytest.raises(ValueError) as error:
        load_model(folder)
    text = str(error.value)
    assert str(folder) in text and all(part in text for part in parts), text
    assert len(text) < 2000


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vae", {"scaling_factor": 0}),
        ("vae", {"scaling_factor": NAN}),
        ("vae", {"scaling_factor": None}),
        ("vae", {"scaling_factor": "0.18215"}),
        ("vae", {"scaling_factor": -1}),
        ("vae", {"scaling_factor": True}),
        ("vae", {"shift_factor": INF}),
        ("vae", {"use_quant_conv": "yes"}),
        ("vae", {"latent_channels": 4.0}),
        ("vae", {"norm_num_groups": 0}),
        ("unet", {"norm_eps": NAN}),
        ("unet", {"norm_eps": 0}),
        ("unet", {"dropout": -0.1}),
        ("unet", {"dropout": 1.5}),
        ("unet", {"in_channels": 10**30}),
        ("unet", {"in_channels": -4}),
        ("unet", {"freq_shift": INF}),
        ("unet", {"flip_sin_to_cos": 1}),
        ("unet", {"attention_head_dim": 0}),
        ("unet", {"block_out_channels": []}),
        ("unet", {"block_out_channels": [8, "16"]}),
        ("unet", {"down_block_types": "DownBlock2D"}),
        ("unet", {"down_block_types": [["DownBlock2D"], "DownBlock2D"]}),
        ("unet", {"_class_name": ["UNet2DConditionModel"]}),
        ("unet", {"_class_name": None}),
        ("unet", {"_class_name": {"a": 1}}),
        ("text", {"layer_norm_eps": NAN}),
        ("text", {"architectures": "CLIPTextModel"}),
        ("text", {"architectures": [["CLIPTextModel"]]}),
        ("text", {"hidden_act": ["gelu"]}),
        ("text", {"vocab_size": -1}),
        ("text", {"eos_token_id": [2]}),
    ],
)
def test_values_that_no_network_has(models, name, changes, tmp_path):
    (key,) = changes
    refused(edited(models, name, tmp_path, **changes), key, "but must be")


@pytest.mark.parametrize(
    ("name", "changes", "part"),
    [
        ("unet", {"layers_per_block": 10**9}, "layers_per_block is 1000000000"),
        ("unet", {"layers_per_block": 50}, "layers_per_block is 50, but the weights have only 2"),
        ("unet", {"transformer_layers_per_block": 100}, "the weights have only 1"),
        ("unet", {"cross_attention_dim": 2**17}, "(8, 131072)"),
        ("unet", {"attention_head_dim": 5}, "do not fit each other"),
        ("unet", {"norm_num_groups": 3}, "norm_groups=3 does not divide"),
        ("text", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("text", {"num_hidden_layers": 1000}, "the weights have only 3 layers"),
        ("text", {"vocab_size": 2**24}, "token_embedding.weight has shape (40, 16)"),
        ("text", {"max_position_embeddings": 2**16}, "position_embedding.weight"),
        ("text", {"num_attention_heads": 3}, "do not fit each other"),
        ("vae", {"layers_per_block": 64}, "the weights have only 2 resnets"),
        ("vae", {"num_vq_embeddings": 5}, "unknown"),
    ],
)
def test_work_is_bounded_by_what_the_weights_have(models, name, changes, part, tmp_path):
    refused(edited(models, name, tmp_path, **changes), part)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("unet", key) for key in PER_LEVEL),
        *(("controlnet", key) for key in PER_LEVEL if not key.startswith("reverse_")),
        ("vae", "layers_per_block"),
    ],
)
def test_lists_by_level_have_an_entry_for_every_level(models, name, key, tmp_path):
    entry = NETS[name].get(key, False if key == "only_cross_attention" else 1)
    assert load_model(edited(models, name, tmp_path / "right", **{key: [entry] * 2})).net
    for count in (1, 3, 4, 8):
        wrong = edited(models, name, tmp_path / f"{count}", **{key: [entry] * count})
        many = f"with {count} entries, but must have one for each of the 2 levels"
        refused(wrong, key, many, "block_out_channels")
    refused(edited(models, name, tmp_path / "none", **{key: []}), key)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[" * 100_000, "config.json is not JSON that can be read: it is too deeply nested"),
        ('{"in_channels": 4, "in_channels": 4}', "the key 'in_channels' occurs twice"),
        ('{"_class_name": "UNet2DConditionModel", "x": ' + "9" * 5000 + "}", "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_configs_that_are_no_json(models, text, part, tmp_path):
    folder = edited(models, "unet", tmp_path)
    (folder / "config.json").write_text(text)
    refused(folder, part)


# ---- weights ------------------------------------------------------------------------------------


def changed(models, name, tmp_path, change):
    folder = edited(models, name, tmp_path)
    file = next(folder.glob("*.safetensors"))
    state = load_file(file)
    key = sorted(k for k, v in state.items() if v.ndim == 2)[0]
    state[key] = change(state[key])
    save_file(state, file)
    return folder, key


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.bool_])
def test_weights_that_are_no_floats(models, kind, tmp_path):
    folder, key = changed(models, "unet", tmp_path, lambda value: value.astype(kind))
    refused(folder, key, f"numbers of type {np.dtype(kind)}")


def test_weights_that_are_not_finite_after_the_cast(models, tmp_path):
    folder, key = changed(models, "unet", tmp_path, lambda value: value * 0 + 1e6)
    assert load_model(folder) is not None
    with pytest.raises(ValueError, match="too large for float16") as error:
        load_model(folder, dtype=jnp.float16)
    assert key in str(error.value) and str(folder) in str(error.value)
    assert load_model(folder, dtype=jnp.bfloat16) is not None


def test_weights_that_are_not_finite_are_named_with_their_file(models, tmp_path):
    folder, key = changed(models, "text", tmp_path, lambda value: value * np.nan)
    refused(folder, key, "model.safetensors holds values that are not finite")


def test_headers_of_many_keys_are_read(tmp_path):
    # A reader that compared every key with every other one would take minutes.
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    for more, ending in (("", None), (', "key7": {}', ValueError)):
        header = json.dumps({f"key{i}": entry for i in range(120_000)})[:-1] + more + "}"
        path = tmp_path / "a.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
        if ending is None:
            assert len(open_safetensors(path)) == 120_000
        else:
            with pytest.raises(ending, match=r"a\.safetensors"):
                open_safetensors(path)


def test_a_message_about_many_keys_is_short(models, tmp_path):
    folder = edited(models, "text", tmp_path)
    save_file({f"k{i}": np.zeros(1, "f4") for i in range(5000)}, folder / "model.safetensors")
    refused(folder, "5000 keys are unexpected", "and 4990 more")


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a\0b", "x" * 300, "", "a/b.safetensors"])
def test_shards_do_not_leave_the_folder(tmp_path, name):
    index = {"weight_map": {"w": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is not the name of a file") as error:
        open_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


# ---- schedulers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("EDMEulerScheduler", {"sigma_max": INF}),
        ("EDMEulerScheduler", {"sigma_min": 0}),
        ("EDMEulerScheduler", {"rho": NAN}),
        ("EDMEulerScheduler", {"sigma_data": None}),
        ("DDIMScheduler", {"dynamic_thresholding_ratio": 5}),
        ("DDIMScheduler", {"num_train_timesteps": 10**12}),
        ("DDIMScheduler", {"num_train_timesteps": 1000.5}),
        ("DDIMScheduler", {"beta_start": NAN}),
        ("DDIMScheduler", {"clip_sample": "no"}),
        ("DDIMScheduler", {"trained_betas": ["a"]}),
        ("DDIMScheduler", {"trained_betas": [0.1] * 200_000}),
        ("DDIMScheduler", {"timestep_spacing": ["leading"]}),
        ("DDIMScheduler", {"beta_schedule": {}}),
        ("EulerDiscreteScheduler", {"sigma_max": -INF}),
        ("UniPCMultistepScheduler", {"disable_corrector": 3}),
        ("UniPCMultistepScheduler", {"solver_order": "2"}),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": NAN}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 0}),
        ("DDIMScheduler", {"_class_name": ["DDIMScheduler"]}),
    ],
)
def test_values_that_no_scheduler_has(name, changes, tmp_path):
    (key,) = changes
    file = tmp_path / schedulers.FILE
    file.write_text(json.dumps({"_class_name": name, **changes}))
    with pytest.raises(ValueError, match=f"{key} is .* but must be") as error:
        schedulers.load_scheduler(tmp_path)
    assert str(file) in str(error.value)


def test_levels_that_do_not_rise(tmp_path):
    config = {"_class_name": "EDMEulerScheduler", "sigma_min": 90.0}
    with pytest.raises(ValueError, match=r"sigma_min is 90\.0, which is not below sigma_max, 80"):
        schedulers.load_scheduler(config)


def test_every_option_of_a_scheduler_has_a_range():
    for name, kind in KINDS.items():
        absent = kind.defaults.keys() - SCHEDULER.keys() - kind.fixed.keys()
        assert not absent, (name, absent)
        for key, value in kind.defaults.items():
            if key in SCHEDULER and value is not None:
                assert SCHEDULER[key].holds(value), (name, key)


def test_a_unet_needs_a_number_of_outputs():
    from diffjax.pretrained import configs

    config = {"_class_name": "UNet2DConditionModel", "out_channels": None}
    with pytest.raises(ValueError, match="out_channels is null; a UNet needs a whole number"):
        configs.build(config)


def test_every_option_of_a_network_has_a_range():
    from diffjax.pretrained import configs

    for name, kind in configs.KINDS.items():
        assert not kind.defaults.keys() - NETWORK.keys(), name
        for key, value in kind.defaults.items():
            assert NETWORK[key].holds(value), (name, key)


# ---- the files around them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("vocab.json", '{"a": "b"}', "gives 'a' the id 'b'"),
        ("vocab.json", '{"a": 0, "b": 0}', "one id to several"),
        ("vocab.json", '{"a": 16777216}', "ids up to"),
        ("vocab.json", "{}", "no vocabulary"),
        ("vocab.json", '{"a": 1e400}', "the id inf"),
        ("merges.txt", "zz yy\n", "which the vocabulary lacks"),
        ("merges.txt", "a b c\n", "no pair"),
        ("tokenizer_config.json", '{"model_max_length": -1}', "model_max_length is -1"),
        ("tokenizer_config.json", '{"model_max_length": NaN}', "model_max_length is nan"),
        ("tokenizer_config.json", '{"bos_token": ["a"]}', "bos_token is ['a']"),
        ("tokenizer_config.json", '{"bos_token": {"content": {}}}', "bos_token is"),
        ("special_tokens_map.json", "[]", "no JSON object"),
    ],
)
def test_tokenizers_of_two_files(name, change, part, tmp_path):
    words.write(tmp_path)
    (tmp_path / name).write_text(change)
    with pytest.raises(ValueError) as error:
        tokenizers.load_tokenizer(tmp_path)
    assert part in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (("model", "type"), "Unigram", "no byte pair encoding"),
        (("model", "vocab"), [["a", 0.0]], "no vocabulary"),
        (("model", "merges"), [["zz", "yy"]], "which the vocabulary lacks"),
        (("model", "dropout"), 0.5, "dropout=0.5"),
        (("model",), None, "no byte pair encoding"),
        (("normalizer",), {"type": "Nothing"}, "no tokenizer that can be read"),
        (("added_tokens",), [{"id": -1, "content": "a"}], "the id -1"),
        (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "(a+)+b"}, "any time"),
    ],
)
def test_tokenizers_of_one_file(path, value, part, tmp_path):
    words.write(tmp_path / "old")
    tokenizers.load_tokenizer(tmp_path / "old").backend.save(str(tmp_path / "tokenizer.json"))
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    where = found
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(ValueError) as error:
        tokenizers.load_tokenizer(tmp_path)
    assert part in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("bad", ["(a+)+", "(?=a)b", r"(a)\1", "a*a*b", "(a|b)*", 5, "x" * 2000])
def test_regular_expressions_that_take_any_time(bad):
    with pytest.raises(ValueError, match=r"^FILE has .*regular expression"):
        check_pattern(bad, "FILE")


@pytest.mark.parametrize(
    "good",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"<\|startoftext\|>|<\|endoftext\|>|'s|[\p{L}]+|[^\s\p{L}\p{N}]+",
        r"\s+",
    ],
)
def test_regular_expressions_of_clip(good):
    check_pattern(good, "FILE")


@pytest.mark.parametrize(
    "value", [[], ["diffusers"], [1, 2], [None, ["x"]], ["a", "b", "c"], [["unet"], "x"]]
)
def test_parts_of_a_model_are_pairs(value, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": value}))
    with pytest.raises(ValueError, match=r"model_index\.json: unet is .* must be a pair"):
        load_components(tmp_path)


@pytest.mark.parametrize("part", [None, [], {"hidden_size": -1}, {"num_hidden_layers": 10**9}])
def test_both_halves_of_clip_are_objects(part, tmp_path):
    config = {"text_config": part, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=str(tmp_path)):
        clip.load_clip(tmp_path)


def test_nulls_that_diffusers_writes_are_read(tmp_path):
    """Its UNet configs have null where we fix a value, num_attention_heads among them."""
    model = Path(__file__).parents[2] / "docs/results/models/small-model"
    shutil.copytree(model, tmp_path / "model")
    file = tmp_path / "model" / "unet" / "config.json"
    nulls = ("num_attention_heads", "encoder_hid_dim", "time_cond_proj_dim", "class_embed_type")
    file.write_text(json.dumps(json.loads(file.read_text()) | dict.fromkeys(nulls)))
    assert diffjax.load(tmp_path / "model").parts.unet.config["num_attention_heads"] is None
