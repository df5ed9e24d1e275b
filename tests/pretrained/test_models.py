"""Folders of diffusers, made here: what they may hold, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax.pretrained import configs, load_model, save_model
from diffjax.pretrained.files import open_folder, open_safetensors
from diffjax.pretrained.state_dict import to_state_dict
from tests.parity import ae_cases, dinov2_cases, dit_cases, generate_cases, sd_cases
from tests.pretrained.image_adapters import VISION
from tests.pretrained.test_asymmetric import CONFIG as ASYMMETRIC

UNET = sd_cases.UNETS["sd1"]
TEXT = sd_cases.TEXTS["clip"]
FILE = "diffusion_pytorch_model.safetensors"


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def text():
    return sd_cases.random_params(TEXT)


@pytest.fixture(scope="module")
def unet():
    return sd_cases.random_params(UNET)


@pytest.fixture
def folder(tmp_path, unet):
    save_model(tmp_path / "unet", *unet)
    return tmp_path / "unet"


@pytest.mark.parametrize("name", [*sd_cases.UNETS, *sd_cases.TEXTS, *ae_cases.AUTOENCODERS])
def test_a_described_network_is_built_again(name):
    config = {**sd_cases.UNETS, **sd_cases.TEXTS, **ae_cases.AUTOENCODERS}[name]
    net = configs.build(config)
    described = configs.describe(net, in_channels=config.get("in_channels", 3))
    assert configs.build(described) == net
    if "in_channels" in config:
        assert described["in_channels"] == config["in_channels"]


def test_folder_round_trip(folder, unet):
    model = load_model(folder)
    assert model.net == unet[0]
    _assert_equal(model.params, unet[1])
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", FILE]


@pytest.mark.parametrize("shard", [1, 20_000])
def test_shards(tmp_path, unet, shard):
    save_model(tmp_path, *unet, shard=shard)
    assert not (tmp_path / FILE).exists()
    index = json.loads((tmp_path / f"{FILE}.index.json").read_text())
    assert set(index["weight_map"]) == set(to_state_dict(unet[1]))
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(unet[1]))
    if shard > 1:
        sizes = [sum(v.nbytes for v in load_file(p).values()) for p in tmp_path.glob("*-of-*")]
        assert len(sizes) > 2 and max(sizes) <= shard
    _assert_equal(load_model(tmp_path).params, unet[1])


def test_another_model_is_not_replaced(folder, unet, text):
    save_model(folder, *unet)  # the same kind may be
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"config.json is of a UNet2DConditionModel, and a C"):
        save_model(folder, *text)
    # Readers would go on taking the one file for the weights.
    with pytest.raises(FileExistsError, match=rf"{FILE} is of weights in one file"):
        save_model(folder, *unet, shard=20_000)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_other_files_of_a_folder_stay(tmp_path, unet):
    (tmp_path / "notes.txt").write_text("mine")
    save_model(tmp_path, *unet, shard=20_000)
    with pytest.raises(FileExistsError, match=rf"{FILE}.index.json is of weights in several"):
        save_model(tmp_path, *unet)
    (tmp_path / "config.json").write_text('{"name": "a web app"}')
    with pytest.raises(FileExistsError, match=r"config.json is of no model, and a UNet2DCond"):
        save_model(tmp_path, *unet, shard=20_000)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_variants_are_chosen_by_name(tmp_path, text):
    save_model(tmp_path, *text)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    _assert_equal(load_model(tmp_path, variant="fp16").params, text[1])
    with pytest.raises(FileNotFoundError, match=r"variant None; it has model\.fp16\.safetensors"):
        load_model(tmp_path)


def test_sharded_variant(tmp_path, text):
    save_model(tmp_path, *text, shard=4000)
    index = tmp_path / "model.safetensors.index.json"
    index.rename(tmp_path / "model.safetensors.index.fp16.json")
    _assert_equal(load_model(tmp_path, variant="fp16").params, text[1])


def test_type_and_placement(folder):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    asked = []

    def sharding(key, shape):
        asked.append((key, shape))
        return device

    model = load_model(folder, dtype=jnp.bfloat16, sharding=sharding)
    leaves = jax.tree.leaves(model.params)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}
    assert model.net.dtype == jnp.bfloat16
    assert len(asked) == len(leaves) and ("conv_in.weight", (3, 3, 4, 8)) in asked


KINDS = {
    "UNet2DConditionModel": UNET,
    "ControlNetModel": generate_cases.CONTROLS["sd1"],
    "ControlNetUnionModel": generate_cases.CONTROLS["xl-union"],
    "T2IAdapter": generate_cases.ADAPTERS["sd1"],
    "AutoencoderKL": ae_cases.AUTOENCODERS["kl"],
    "AutoencoderTiny": ae_cases.AUTOENCODERS["tiny"],
    "DiTTransformer2DModel": dit_cases.CONFIG,
    "Transformer2DModel": {**dit_cases.CONFIG, "_class_name": "Transformer2DModel"},
    "VQModel": ae_cases.AUTOENCODERS["vq"],
    "CLIPTextModel": TEXT,
    "CLIPTextModelWithProjection": sd_cases.TEXTS["openclip"],
    "CLIPVisionModelWithProjection": configs.describe(VISION),
    "Dinov2Model": dinov2_cases.CONFIGS["plain"],
    "Dinov2WithRegistersModel": dinov2_cases.CONFIGS["registers"],
    "AsymmetricAutoencoderKL": {"_class_name": "AsymmetricAutoencoderKL", **ASYMMETRIC},
}


@pytest.mark.parametrize("name", configs.KINDS)
def test_every_kind_loads_in_half_precision(tmp_path, name):
    save_model(tmp_path, *sd_cases.random_params(KINDS[name]), config=KINDS[name])
    model = load_model(tmp_path, dtype=jnp.bfloat16)
    assert configs.read_class_name(model.config) == name
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.bfloat16)}
    assert getattr(model.net, "base", model.net).dtype == jnp.bfloat16


def test_reading_holds_one_tensor_at_a_time(folder, monkeypatch):
    """Opening reads no tensor, and every one is read once."""
    reads = []
    real = np.fromfile

    def counted(path, dtype, count, offset):
        reads.append(count)
        return real(path, dtype, count, offset=offset)

    monkeypatch.setattr(np, "fromfile", counted)
    weights = open_folder(folder)
    assert not reads
    model = load_model(folder)
    assert len(reads) == len(weights)
    assert sum(reads) == sum(leaf.size for leaf in jax.tree.leaves(model.params))


MEMORY = """
import sys
import jax, jax.numpy as jnp
from diffjax.pretrained import load_model

def status(key):
    lines = open("/proc/self/status")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

jax.block_until_ready(jnp.zeros(3) + 1)
before = status("VmRSS")
params = jax.block_until_ready(load_model(sys.argv[1]).params)
weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(weights, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_loading_needs_little_more_memory_than_the_weights(tmp_path):
    config = UNET | dict(block_out_channels=[320, 640], norm_num_groups=32, attention_head_dim=8)
    config |= dict(layers_per_block=2)  # two tensors, read and placed at once, are a small share
    net = configs.build(config)
    shapes = configs.shapes(net, config)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    save_model(tmp_path, net, params, config=config)
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    weights, peak = map(int, said.split())
    assert weights > 250e6
    assert peak < 1.2 * weights


@pytest.mark.parametrize("style", ["bare", "buffer"])
def test_styles_of_text_encoders(tmp_path, text, style):
    save_model(tmp_path, *text)
    state = load_file(tmp_path / "model.safetensors")
    if style == "bare":
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
    else:
        state["text_model.embeddings.position_ids"] = np.arange(9)[None]
    save_file(state, tmp_path / "model.safetensors")
    _assert_equal(load_model(tmp_path).params, text[1])


@pytest.mark.parametrize("kind", ["UNet2DConditionModel", "ControlNetModel", "AutoencoderKL"])
def test_what_an_average_leaves_in_a_config(kind):
    """Of diffusers' EMAModel, as in SDXL's inpainting model."""
    left = dict(decay=0.9999, inv_gamma=1.0, min_decay=0.0, optimization_step=37000, power=0.67)
    left |= dict(update_after_step=0, use_ema_warmup=False)
    assert configs.build({**KINDS[kind], **left}) == configs.build(KINDS[kind])


# ---- what is refused ----------------------------------------------------------------------------


def _edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frobnicate": 3}, r"frobnicate=3 \(unknown\)"),
        ({"act_fn": "gelu", "spin": 1}, r"act_fn='gelu' \(only 'silu' or 'swish'\), spin=1"),
        ({"num_attention_heads": 4}, "num_attention_heads=4"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
        ({"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "counterpart"),
        ({"cross_attention_dim": [12, 13]}, r"cross_attention_dim=\(12, 13\)"),
        ({"addition_embed_type": "image"}, "addition_embed_type='image'"),
        ({"_class_name": "UNet3DConditionModel"}, "unknown class 'UNet3DConditionModel'"),
    ],
)
def test_unsupported_configs_are_explained(folder, changes, message):
    _edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_a_config_that_names_no_class(tmp_path, text):
    save_model(tmp_path, *text)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="neither _class_name nor architectures"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt"])
def test_folders_of_pickles_are_refused(folder, name):
    (folder / FILE).rename(folder / name)
    with pytest.raises(ValueError, match=r"is a pickle.*\.safetensors"):
        load_model(folder)


def test_an_empty_folder_is_named(folder):
    (folder / FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"unet has no \.safetensors weights"):
        load_model(folder)


@pytest.fixture
def sharded(tmp_path, text):
    save_model(tmp_path / "text", *text, shard=4000)
    return tmp_path / "text"


def _index(folder, edit):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_shard_names_stay_in_their_folder(sharded, name):
    _index(sharded, lambda where: where.update({"text_projection.weight": name}))
    with pytest.raises(ValueError, match="is not the name of a file"):
        load_model(sharded)


def test_an_absent_shard_is_named(sharded):
    next(iter(sorted(sharded.glob("*-of-*")))).unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00001-of-"):
        load_model(sharded)


def test_keys_of_the_index_are_in_the_shards(sharded):
    some = sorted(sharded.glob("*-of-*"))[0].name
    _index(sharded, lambda where: where.update({"nowhere.weight": some}))
    with pytest.raises(ValueError, match=r"no shard holds: nowhere\.weight"):
        load_model(sharded)


def test_a_key_in_two_shards_is_refused(sharded):
    first, second, *_ = sorted(sharded.glob("*-of-*"))
    key, value = next(iter(load_file(second).items()))
    save_file({**load_file(first), key: value}, first)
    with pytest.raises(ValueError, match=f"hold {key} twice"):
        load_model(sharded)


def test_an_index_without_a_map(sharded):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(ValueError, match="weight_map of file names"):
        load_model(sharded)


def test_links_may_not_leave_the_folder(folder, tmp_path):
    (folder / FILE).rename(tmp_path / "elsewhere.safetensors")
    os.symlink(tmp_path / "elsewhere.safetensors", folder / FILE)
    with pytest.raises(ValueError, match="link that leaves its folder"):
        load_model(folder)


def test_links_into_the_blobs_of_a_cache_are_fine(tmp_path, unet):
    blobs, snapshot = tmp_path / "repo/blobs", tmp_path / "repo/snapshots/abc/unet"
    save_model(snapshot, *unet)
    blobs.mkdir()
    (snapshot / FILE).rename(blobs / "0123")
    os.symlink("../../../blobs/0123", snapshot / FILE)
    os.symlink(snapshot.parent, tmp_path / "model")
    for folder in (snapshot, tmp_path / "model" / "unet"):
        _assert_equal(load_model(folder).params, unet[1])


def test_a_key_that_the_header_has_twice(tmp_path):
    path = tmp_path / "twice.safetensors"
    entry = '"dtype":"F32","shape":[1],"data_offsets":'
    header = f'{{"a":{{{entry}[0,4]}},"a":{{{entry}[0,4]}}}}'.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(ValueError, match=r"twice\.safetensors"):
        open_safetensors(path)


def test_attention_of_early_autoencoders(tmp_path):
    """It had other names."""
    net, params = sd_cases.random_params(ae_cases.AUTOENCODERS["kl"])
    save_model(tmp_path, net, params)
    state, old = load_file(tmp_path / FILE), {}
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for key, value in state.items():
        for new, legacy in names.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{legacy}.")
        old[key] = value
    assert sum("proj_attn" in key for key in old) == 4
    save_file(old, tmp_path / FILE)
    _assert_equal(load_model(tmp_path).params, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 4}, "in_channels=4 with out_channels=3"),
        ({"latents_mean": [0.0]}, r"latents_mean=\(0\.0,\) .* must each have latent_channels=4"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "counterpart of UpDecoderBlock2D"),
    ],
)
def test_unsupported_autoencoders_are_explained(tmp_path, changes, message):
    save_model(tmp_path, *sd_cases.random_params(ae_cases.AUTOENCODERS["kl"]))
    _edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)
