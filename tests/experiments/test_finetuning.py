"""Fine-tuning of a small model of the Stable Diffusion family, from its folder to another one."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import diffjax
from configs import stable_diffusion
from diffjax import data, lora, runs
from diffjax.config import load_config, read_config
from diffjax.model.condition import make_clips
from diffjax.pretrained import configs, load_lora, load_model
from diffjax.pretrained.state_dict import to_state_dict
from diffjax.runs import locate
from diffjax.runs.finetuning import choose_initial, find_differences
from diffjax.runs.fixed_parts import describe_autoencoder
from diffjax.types import ConfigError
from tests.cheap import SGD
from tests.parity import generate_cases as g
from tests.pretrained import ldm

LORA_FILE = "pytorch_lora_weights.safetensors"
TINY = """
from configs import controlnet, stable_diffusion
from ml_collections import ConfigDict

def get_config(name):
    config = getattr(controlnet if "canny" in name else stable_diffusion, name)()
    config.network.update(channels=8, multipliers=(1, 2), blocks=1, attention_levels=(0,), heads=2)
    config.network.update(context_dim=6, depth=(1, 1), norm_groups=4)
    config.autoencoder.update(channels=4, multipliers=(1, 2), blocks=1, norm_groups=2, scale=0.0)
    text = {text}
    config.cond.update(text=ConfigDict(text), empty={empty})
    config.schedule.beta_end = 0.004
    config.data.update(image_size=16, batch_size=2, bucket_step=4)
    config.optim.warmup = 0
    if "control" in config:
        config.data.bucket_step = 0
        config.control.net.update(hint_widths=(4, 6), hint_factor=2)
    config.train.update(steps=2, log_every=1, checkpoint_every=1, sample_every=0)
    return config
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a model, its config, and images with captions."""
    root = tmp_path_factory.mktemp("finetuning")
    pipe = g.pipeline("sd1")
    pipe.save(root / "model")
    net, one = (
        pipe.parts.texts["text_encoder"].model.net,
        pipe.parts.texts["text_encoder"].tokenizer,
    )
    names = ("vocabulary", "positions", "width", "layers", "heads")
    text = {name: getattr(net, name) for name in names}
    config = TINY.replace("{text}", repr(text)).replace(
        "{empty}", repr((one.start, one.end, one.pad))
    )
    (root / "tiny.py").write_text(config)
    (root / "images").mkdir()
    for k, size in enumerate([(16, 16), (30, 16), (16, 30), (17, 17)]):
        pixels = np.random.default_rng(k).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{k}.png")
        (root / "images" / f"{k}.txt").write_text(g.PROMPTS[k % 2])
    return root


@pytest.fixture(scope="module")
def train(execute, root):
    def run(variant, workdir, *options, code=0):
        given = (f"--config.model.path={root / 'model'}", f"--config.data.dir={root / 'images'}")
        config = f"--config={root / 'tiny.py'}:{variant}"
        return execute("train", config, f"--workdir={workdir}", *given, *options, code=code)

    return run


def config_of(root, variant, path="model"):
    cfg = load_config(f"{root / 'tiny.py'}:{variant}")
    cfg.model.path = str(root / path)
    return cfg


def batches_of(root):
    """Those of the two steps."""
    cfg = config_of(root, "sd15_lora")
    cfg.data.dir = str(root / "images")
    source = runs.load_source(cfg)
    return [data.batch_at(source, step, batch_size=2, seed=cfg.seed) for step in range(2)]


def outputs(net, params):
    z = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype("f4")
    return np.asarray(jax.jit(net.apply)({"params": params}, z, 3, {"context": np.ones((1, 5, 6))}))


def restored(workdir):
    cfg = read_config(workdir)
    return runs.read_state(cfg, workdir)


def test_full_fine_tuning_begins_with_the_model_and_ends_as_a_folder(execute, train, root):
    run, out = root / "full", root / "full-model"
    train("sd15", run, "--config.train.steps=0")
    execute("export", f"--workdir={run}", f"--out={out}")
    before, after = load_model(root / "model" / "unet"), diffjax.load(out).parts
    jax.tree.map(np.testing.assert_array_equal, restored(run).params, before.params)
    np.testing.assert_array_equal(outputs(*after.unet[:2]), outputs(*before[:2]))
    for file in (root / "model").rglob("*.*"):
        if file.name == "README.md":  # the model card says how each was trained
            continue
        there = out / file.relative_to(root / "model")
        assert file.read_bytes() == there.read_bytes()
    # The scale of the latents was the model's.
    assert json.loads((run / "config.json").read_text())["autoencoder"]["scale"] == 0.3
    # What was trained is what is written.
    state = restored(run)
    state = state._replace(ema=jax.tree.map(lambda x: x + 0.01, state.ema))
    runs.publish(read_config(run), state, {}, out)
    after = diffjax.load(out).parts
    jax.tree.map(np.testing.assert_array_equal, after.unet.params, state.ema)


@pytest.mark.slow
def test_a_model_learns_to_fill_in(execute, train, root):
    run, out = root / "filling", root / "filling-model"
    said = train("sd15_inpainting", run, "--config.train.steps=1", "--config.optim.lr=0.01")
    assert "trained to step 1" in said
    execute("export", f"--workdir={run}", f"--out={out}")
    before, pipe = load_model(root / "model" / "unet"), diffjax.load(out)
    first = pipe.parts.unet.params["conv_in"]["kernel"]
    assert first.shape[2] == 9 and pipe.beside == "mask"
    moved = first[:, :, :4] - before.params["conv_in"]["kernel"]
    assert 0 < abs(moved).max() < 0.02 and 0 < abs(first[:, :, 4:]).max() < 0.02
    assert pipe.parts.manifest["_class_name"] == "StableDiffusionInpaintPipeline"
    # It goes on from there, as it is.
    cfg = config_of(root, "sd15_inpainting", "filling-model")
    start = choose_initial(cfg, runs.make_abstract_state(cfg, runs.build_task(cfg)).params)
    jax.tree.map(np.testing.assert_array_equal, start(), pipe.parts.unet.params)
    runs.publish(cfg, restored(run), {}, root / "filling-again")
    assert (root / "filling-again" / "model_index.json").read_bytes() == (
        out / "model_index.json"
    ).read_bytes()


@pytest.mark.slow
def test_a_controlnet_of_the_model(execute, train, root):
    run, out = root / "canny", root / "canny-net"
    train("sd15_canny", run, "--config.optim.lr=0.01")
    base, state = load_model(root / "model" / "unet"), restored(run)
    stored = runs.load_fixed_parts(read_config(run), run)
    jax.tree.map(np.testing.assert_array_equal, stored["base"], base.params)
    said = execute("export", f"--workdir={run}", f"--out={out}")
    assert f"diffjax generate --control={out}:IMAGE" in said
    net, pipe = load_model(out), diffjax.load(root / "model")
    jax.tree.map(np.testing.assert_array_equal, net.params, state.ema["control"])

    def draw(*control):
        return pipe("a red cat", sampler=2, size=16, output="np", control=control)

    hint = np.eye(16)[..., None].repeat(3, -1)
    assert (draw(diffjax.Control(net, hint)) != draw()).any()
    # Two programs, whose sums XLA may order differently.
    np.testing.assert_allclose(draw(diffjax.Control(net, hint, scale=0.0)), draw(), atol=1e-5)


def test_adapters_are_trained_on_the_model_as_it_is(execute, train, root):
    run, out = root / "lora", root / "adapter"
    train("sd15_lora", run, *SGD, "--config.optim.lr=1")  # two steps, of two shapes
    base, state = load_model(root / "model" / "unet"), restored(run)
    assert len(list((run / "frozen").iterdir())) == 1
    stored = runs.load_fixed_parts(read_config(run), run)
    jax.tree.map(np.testing.assert_array_equal, stored["base"], base.params)
    sizes = sum(x.size for x in jax.tree.leaves(state.params))
    assert sizes < 0.3 * sum(x.size for x in jax.tree.leaves(base.params))
    execute("export", f"--workdir={run}", f"--out={out}")
    merged = lora.merge(base.params, load_lora(base, out / LORA_FILE), 1.0)
    wanted = lora.merge(base.params, state.ema, 1.0)
    np.testing.assert_allclose(outputs(base.net, merged), outputs(base.net, wanted), atol=1e-6)
    assert not np.array_equal(outputs(base.net, wanted), outputs(*base[:2]))
    diffjax.load(root / "model").with_lora(out / LORA_FILE)


@pytest.mark.slow
def test_a_run_that_stopped_sees_the_same_buckets_and_ends_with_the_same_bits(train, root):
    whole, again = root / "lora-whole", root / "lora-again"
    train("sd15_lora", whole)
    train("sd15_lora", again, "--config.train.steps=1")
    train("sd15_lora", again)
    assert {len(one["image"][0]) for one in batches_of(root)} > {16}
    jax.tree.map(np.testing.assert_array_equal, restored(again), restored(whole))


def test_a_model_of_ones_own_becomes_a_folder(tmp_path):
    cfg = stable_diffusion.get_config("shapes")
    cfg.model.path = "random"
    cfg.network.update(channels=8, norm_groups=2)
    cfg.schedule.zero_snr = True
    rng = np.random.default_rng(0)
    shapes = (
        runs.make_abstract_state(cfg, runs.build_task(cfg)),
        runs.make_abstract_fixed_parts(cfg),
    )
    state, given = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)
    runs.publish(cfg, state._replace(extra={"latent_scale": np.float32(0.7)}), given, tmp_path)
    pipe = diffjax.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, pipe.parts.unet.params, state.ema)
    jax.tree.map(np.testing.assert_array_equal, pipe.parts.vae.params, given["autoencoder"])
    assert pipe.native_size() == (32, 32)
    assert pipe.parts.scheduler["prediction_type"] == "v_prediction"
    assert pipe.parts.scheduler["rescale_betas_zero_snr"] is True
    assert pipe.parts.scheduler["timestep_spacing"] == "trailing"
    assert pipe.parts.vae.net.scaling_factor == pytest.approx(0.7)
    text, caption = pipe.parts.texts["text_encoder"], "a small red circle at the top left"
    assert len(text.tokenizer.ids(caption)) == len(caption.split())
    # Another run can begin from it.
    other = stable_diffusion.get_config("shapes_lora")
    other.network.update(channels=8, norm_groups=2)
    other.model.path = str(tmp_path)
    other.schedule.zero_snr = True
    found = runs.load_fixed_parts(other, tmp_path, fresh=True)
    jax.tree.map(np.testing.assert_array_equal, found["base"], state.ema)
    assert float(found["statistics"]["latent_scale"]) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("sd15", {"model.path": ""}, r"config\.model\.path is needed: a diffusers folder"),
        ("sd15", {"model.path": "/nowhere/x"}, "there is no /nowhere/x"),
        ("sd15", {"network.channels": 16}, r"conv_in.*\(8,\), but .* needs \(16,\)"),
        ("sd15_lora", {"network.heads": 4}, r"attention_head_dim is \[2, 2\], and \[4, 4\]"),
        (
            "sd15_lora",
            {"parameterization.name": "v"},
            "'epsilon', and 'v_prediction'",
        ),
        ("sd15_lora", {"autoencoder.scale": 0.5}, r"scaling_factor is 0\.3, and 0\.5"),
        ("sd15_lora", {"cond.text.layers": 2}, "text_encoder of .* is not the one"),
        ("sd15_lora", {"lora.rank": 0}, "rank must be at least 1, got 0"),
        ("sd15_lora", {"lora.targets": ("to_x",)}, "'to_x'; choose from conv, .*to_q"),
    ],
)
def test_what_does_not_fit_is_named(root, tmp_path, variant, options, message):
    cfg = config_of(root, variant)
    cfg.update_from_flattened_dict(options)
    with pytest.raises(ValueError, match=message):
        runs.load_fixed_parts(cfg, tmp_path, fresh=True)
        shapes = runs.make_abstract_state(cfg, runs.build_task(cfg)).params
        start = choose_initial(cfg, shapes)
        assert start is not None
        start()


CROSS, DOWN, UP = "CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D"
UNET = dict(
    _class_name="UNet2DConditionModel",
    block_out_channels=[320, 640, 1280, 1280],
    attention_head_dim=8,
    cross_attention_dim=768,
    down_block_types=[CROSS, CROSS, CROSS, DOWN],
    up_block_types=[UP, "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    sample_size=64,
)
UNET_21 = UNET | dict(
    attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True
)
UNET_XL = UNET | dict(
    block_out_channels=[320, 640, 1280],
    attention_head_dim=[5, 10, 20],
    cross_attention_dim=2048,
    transformer_layers_per_block=[1, 2, 10],
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    down_block_types=[DOWN, CROSS, CROSS],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", UP],
)
VAE = dict(
    _class_name="AutoencoderKL",
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
)
CLIP = dict(
    architectures=["CLIPTextModel"],
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    projection_dim=768,
)
OPEN_CLIP = CLIP | dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
)
BIG = CLIP | dict(
    architectures=["CLIPTextModelWithProjection"],
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
)
PUBLISHED = {
    "sd15": {"unet": UNET, "vae": VAE, "text_encoder": CLIP},
    "sd21": {"unet": UNET_21, "vae": VAE, "text_encoder": OPEN_CLIP},
    "sdxl": {"unet": UNET_XL, "vae": VAE, "text_encoder": CLIP, "text_encoder_2": BIG},
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_configs_describe_the_published_models(variant):
    cfg = stable_diffusion.get_config(variant)
    nets = {"unet": runs.build_model(cfg).network, "vae": describe_autoencoder(cfg)}
    nets |= make_clips(cfg)
    assert nets.keys() == PUBLISHED[variant].keys()
    for name, config in PUBLISHED[variant].items():
        assert find_differences(name, nets[name], configs.build(config)) == []
    assert find_differences("vae", nets["vae"], nets["vae"].clone(blocks=1))


def test_tokenizers_and_captions_are_checked(root):
    cfg = config_of(root, "sd15")
    cfg.data.update(name="captioned_folder", dir=str(root / "images"))
    batch = runs.load_source(cfg).take([0])
    np.testing.assert_array_equal(
        batch["text"][0], g.tokenizer("<|endoftext|>").plain(g.PROMPTS[0]).ids[0]
    )
    cfg.cond.empty = (1, 2)
    with pytest.raises(ConfigError, match=r"empty text .* but config\.cond\.empty=\(1, 2\)"):
        runs.load_source(cfg)
    cfg.cond.text.positions = 7
    with pytest.raises(ConfigError, match=r"texts of 12, but .* 7 positions"):
        runs.load_source(cfg)
    cfg.data.name = "digits"
    cfg.data.update(image_size=8, channels=1, levels=17, bucket_step=0)
    with pytest.raises(ConfigError, match="digits has no captions"):
        runs.load_source(cfg)


def test_no_folder_for_other_configs(execute, tmp_path):
    options = ("--config=configs/ddpm.py:digits", f"--workdir={tmp_path}")
    assert "must end in .safetensors" in execute("export", *options, "--out=x", code=2)


def test_a_run_is_no_model(root):
    (root / "run").mkdir()
    (root / "run" / "config.json").write_text("{}")
    cfg = config_of(root, "sd15", "run")
    with pytest.raises(ConfigError, match=r"has no model_index\.json.*experiments\.export"):
        runs.load_fixed_parts(cfg, Path(root), fresh=True)


def test_parts_of_a_single_file(root, monkeypatch):
    parts = g.components("sd1")
    file = ldm.under("model.diffusion_model.", ldm.unet(to_state_dict(parts.unet.params), 1))
    file |= ldm.under("first_stage_model.", ldm.autoencoder(to_state_dict(parts.vae.params), 2))
    text = to_state_dict(parts.texts["text_encoder"].model.params)
    file |= ldm.under("cond_stage_model.transformer.", text)
    save_file(file, root / "model.safetensors")
    overrides = {"unet": {"attention_head_dim": 2, "norm_num_groups": 4}}
    overrides |= {"vae": {"norm_num_groups": 2}, "text_encoder": {"num_attention_heads": 2}}
    patched = functools.partial(locate.load_single_file, overrides=overrides)
    monkeypatch.setattr(locate, "load_single_file", patched)
    cfg = config_of(root, "sd15_lora", "model.safetensors")
    cfg.autoencoder.scale = 0.3
    found = runs.load_fixed_parts(cfg, root, fresh=True)
    jax.tree.map(np.testing.assert_array_equal, found["base"], parts.unet.params)
    jax.tree.map(np.testing.assert_array_equal, found["autoencoder"], parts.vae.params)
    with pytest.raises(ConfigError, match="no tokenizer: config"):
        runs.make_tokenizers(cfg)
    cfg.model.tokenizer = str(root / "model" / "tokenizer")
    assert runs.tokenize(cfg, runs.make_tokenizers(cfg), ["a red cat"]).shape == (1, g.LENGTH)
