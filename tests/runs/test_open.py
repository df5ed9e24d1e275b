"""`diffjax.open`: whatever lies at a path becomes a model, or a sentence."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

import diffjax
from configs import cfg as cfg_configs
from configs.base import smoke
from diffjax import lora, runs
from diffjax.model import encode
from diffjax.model.model import merge_adapters
from diffjax.runs.locate import find_kind
from diffjax.runs.saving import Source
from diffjax.train import Checkpoints
from diffjax.train.snapshots import Snapshots
from diffjax.types import ConfigError, Level
from tests.parity import generate_cases as g


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir whose last parameters are not their average."""
    folder = tmp_path_factory.mktemp("run")
    config = smoke(cfg_configs.digits())
    state = runs.init_untrained(config)
    state = state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(3, state, {"config": config.to_dict(), "frozen": ""})
        checkpoints.wait()
    return folder, state


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_run_has_its_average_or_its_last_parameters(run):
    folder, state = run
    assert find_kind(folder) == "run"
    assert_same(diffjax.open(folder).params, state.ema)
    assert_same(diffjax.open(str(folder), raw=True).params, state.params)
    model = diffjax.open(folder)
    assert model.num_classes == 10 and model.space.shape == (4, 4, 1)
    images = diffjax.draw(model, num=3, steps=2, scale=2.0, labels=[4])
    assert images.shape == (3, 4, 4, 1) and np.isfinite(images).all()
    with pytest.raises(ConfigError, match=r"no checkpoint in .*best"):
        diffjax.open(folder, best=True)


def test_a_run_has_averages_of_other_lengths(run, tmp_path):
    """Of two snapshots of the same parameters every average is these parameters."""
    folder = shutil.copytree(run[0], tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds no averages up to step 3.*ema.kind=power"):
        diffjax.open(folder, ema_length=0.13)
    section = runs.open_run(folder).config.ema
    section.update(kind="power", lengths=(0.05,), snapshot_every=1)
    other = run[1]._replace(ema=jax.tree.map(lambda leaf: leaf + 2, run[1].ema))
    with Snapshots(folder, section) as snapshots:
        for step in (1, 2):
            snapshots.take(step, other)
    found = runs.open_run(folder, ema_length=0.13)
    assert int(found.state.step) == 2  # that of the newest snapshot
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, found.model.params, other.ema)
    with pytest.raises(ConfigError, match=r"raw=True and ema_length=0.13 exclude each other"):
        diffjax.open(folder, raw=True, ema_length=0.13)


def test_an_exported_file_is_the_run(run, tmp_path):
    folder, state = run
    file = tmp_path / "model.safetensors"
    runs.write_export(file, runs.open_run(folder).config, state)
    assert find_kind(file) == "export"
    assert_same(diffjax.open(file).params, state.ema)
    with pytest.raises(ConfigError, match=r"raw=True: .* holds averages alone"):
        diffjax.open(file, raw=True)
    with pytest.raises(ConfigError, match=r"ema_length=0.2: .* holds one average"):
        diffjax.open(file, ema_length=0.2)


@pytest.mark.parametrize("family", ["sd1", "xl"])
def test_a_published_model_is_the_pipelines(family, tmp_path):
    pipe = g.pipeline(family)
    pipe.save(tmp_path / "model")
    assert find_kind(tmp_path / "model") == "pipeline"
    model = diffjax.open(tmp_path / "model")
    assert_same(model.params, pipe.parts.unet.params)
    entries = dict(zip(("text", "text_2"), pipe.parts.texts.values(), strict=False))
    batch = {entry: one.tokenizer.plain("a red cat").ids for entry, one in entries.items()}
    wanted = pipe.embed(["a red cat"])
    batch["time_ids"] = jnp.zeros((1, 6))
    cond = encode(model, model.condition.take(batch, jax.random.key(0)))
    np.testing.assert_allclose(cond["context"], wanted.context, atol=1e-5)
    if pipe.is_xl:
        np.testing.assert_allclose(cond["added"]["text_embeds"], wanted.pooled, atol=1e-5)
    level = Level(jnp.asarray(500.0), *map(jnp.asarray, model.schedule.at(500.0)))
    z = jax.random.normal(jax.random.key(0), (1, *model.space.shape))
    x = diffjax.denoiser(model, cond)(z, level).x
    assert x.shape == z.shape and np.isfinite(x).all()
    image = model.space.leave(model.frozen, model.statistics, z)
    latents = np.asarray(pipe.decode(z, "np"))
    np.testing.assert_allclose(np.clip((image + 1) / 2, 0, 1), latents, atol=1e-4)


def test_what_is_no_model_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no .*nowhere"):
        diffjax.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is no workdir, diffusers folder or"):
        diffjax.open(tmp_path)
    g.pipeline("sd1").save(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"one network of a published model; open the folder"):
        diffjax.open(tmp_path / "model" / "unet")


@pytest.mark.parametrize("part", [None, "lora"])
def test_what_is_saved_is_opened_to_the_same_model(run, tmp_path, part):
    folder, _ = run
    model = diffjax.open(folder)
    if part:  # an adapter, which is merged
        one = lora.init(jax.random.key(0), model.params, rank=2, targets=("conv_in",))
        model = model._replace(adapters=((jax.tree.map(jnp.ones_like, one), 0.5),))
    diffjax.save(model, tmp_path / "kept", license="mit", picture=PIL.Image.new("RGB", (4, 4)))
    again = diffjax.open(tmp_path / "kept")
    merged = merge_adapters(model)
    assert_same(again.params, merged.params)
    assert_same(again.statistics, model.statistics)
    assert again.source.config.to_dict() == model.source.config.to_dict()
    assert again.source.step == model.source.step == 0
    card = (tmp_path / "kept/README.md").read_text()
    assert 'license: "mit"' in card and 'diffjax.open("kept")' in card and "sample.png" in card
    assert (part is None) == np.array_equal(model.params["conv_in"]["kernel"],
                                            again.params["conv_in"]["kernel"])  # fmt: skip


def test_a_published_model_is_saved_with_the_parameters_that_it_has(tmp_path):
    g.pipeline("sd1").save(tmp_path / "model")
    model = diffjax.open(tmp_path / "model")
    changed = model._replace(params=jax.tree.map(lambda leaf: 2 * leaf, model.params))
    diffjax.save(changed, tmp_path / "kept")
    again = diffjax.open(tmp_path / "kept")
    assert_same(again.params, changed.params)
    assert_same(again.frozen, model.frozen)
    assert "diffjax.load" in (tmp_path / "kept/README.md").read_text()


def test_a_model_by_hand_is_saved_with_a_config(run, tmp_path):
    model = diffjax.open(run[0])
    by_hand, config = model._replace(source=None), model.source.config
    with pytest.raises(ConfigError, match=r"put together by hand.*give config=.*save_safetensors"):
        diffjax.save(by_hand, tmp_path / "no")
    diffjax.save(by_hand, tmp_path / "yes", config=config)
    assert_same(diffjax.open(tmp_path / "yes").params, model.params)
    wider = ConfigDict(config.to_dict())
    wider.network.channels = 2 * config.network.channels
    for wrong, options, message in (
        (by_hand, {"config": wider}, "are not those of its config"),
        (model._replace(params=None), {}, "has no parameters"),
        (model, {"license": "MIT License"}, "no identifier of a licence"),
        (model._replace(controls=(None,)), {}, "control networks is written by diffjax export"),
    ):
        with pytest.raises(ConfigError, match=message):
            diffjax.save(wrong, tmp_path / "no", **options)
    word = ConfigDict({**config.to_dict(), "task": "concept"})
    with pytest.raises(ConfigError, match="task=concept is written by diffjax export"):
        diffjax.save(model._replace(source=Source(word)), tmp_path / "no")
