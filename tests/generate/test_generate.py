"""Generations by a model in small: what depends on what, what is compiled, what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import diffjax
from diffjax import generate, lora
from diffjax.generate import images, program, stages
from diffjax.model import Model
from diffjax.pretrained import load_model, save_lora, save_model
from diffjax.pretrained.schedulers import load_scheduler
from diffjax.xla import choose_program_folder
from tests.parity import generate_cases as g

SIZE, KEYS = g.SIZE, (3, 4)
STEPS = generate.Sampling(steps=4)


@pytest.fixture(scope="module")
def pipe():
    return g.pipeline("sd1")


def _make(pipe, prompts=g.PROMPTS, **options):
    options = {"key": KEYS, "sampler": STEPS, "size": SIZE, "output": "np", **options}
    return pipe(prompts, **options)


@pytest.fixture(scope="module")
def made(pipe):
    return _make(pipe)


@pytest.fixture
def compiled(made):
    """What compiles the sampling loop during a test."""
    seen = []

    def listen(event, seconds, fun_name="", **rest):
        if event.endswith("backend_compile_duration") and fun_name == "jit(advance)":
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_an_image_depends_on_its_prompt_and_seed_alone(pipe, made):
    assert made.shape == (2, SIZE, SIZE, 3)
    assert made.dtype == np.float32 and made.min() >= 0 and made.max() <= 1
    swapped = _make(pipe, g.PROMPTS[::-1], key=KEYS[::-1])
    np.testing.assert_array_equal(swapped[::-1], made)
    other = _make(pipe, key=(KEYS[0], 99))
    np.testing.assert_array_equal(other[0], made[0])
    assert np.abs(other[1] - made[1]).max() > 0.05


def test_one_seed_gives_every_image_its_own(pipe):
    keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(7), k))(np.arange(2))
    wanted = _make(pipe, key=keys)
    for key in (7, np.int64(7), jax.random.key(7)):
        np.testing.assert_array_equal(_make(pipe, key=key), wanted)
    several = _make(pipe, g.PROMPTS[0], num=2, key=7)
    np.testing.assert_array_equal(several[0], wanted[0])


def test_what_changes_compiles_nothing(pipe, made, compiled):
    for change in (
        dict(prompts=("dog", "!")),
        dict(key=0),
        dict(guidance=2.5),
        dict(guidance=generate.Guidance(4, negative="red")),
        dict(sampler=9),
        dict(sampler=generate.Sampling("euler", 5, "karras")),
        dict(sampler=generate.Sampling("euler_ancestral", 3)),
        dict(sampler=generate.Sampling("ddim", 4, eta=0.5)),
        dict(clip_skip=1),
    ):
        assert np.abs(_make(pipe, **change) - made).max() > 1e-3, change
    assert not compiled
    _make(pipe, guidance=1)  # one pass of the network instead of two
    assert len(compiled) == 1


def test_adapters_are_added_at_run_time(pipe, made, compiled, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "lora.safetensors"
    fresh = lora.init(jax.random.key(0), pipe.parts.unet.params, rank=2)
    adapters = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape).astype("f4"), fresh)
    save_lora(path, adapters, scale=1.0)
    weights = pipe.load_lora(path)
    added = _make(pipe, lora=[generate.Lora(weights, 0.8)])
    assert len(compiled) == 1
    np.testing.assert_allclose(_make(pipe.with_lora(path, scale=0.8)), added, atol=1e-5)
    assert np.abs(added - made).max() > 1e-3
    np.testing.assert_allclose(_make(pipe, lora=[generate.Lora(weights, 0.0)]), made, atol=1e-6)
    assert len(compiled) == 1


def test_step_by_step_gives_the_same_bits(pipe, made, compiled):
    request = generate.Request(g.PROMPTS, KEYS, STEPS, size=SIZE)
    seen = list(pipe.steps(request))
    assert [(p.i, p.count) for p in seen] == [(k, 4) for k in range(4)]
    np.testing.assert_array_equal(pipe.decode(seen[-1].step.run.z, "np"), made)
    assert not compiled
    assert isinstance(seen[0].images()[0], PIL.Image.Image)


def test_callbacks_edit_and_interrupt(pipe, made):
    calls = []

    def stop(progress):
        calls.append(progress.i)
        return progress.i == 1

    early = _make(pipe, callback=stop)
    assert calls == [0, 1]
    assert np.abs(early - made).max() > 1e-3

    def scale(progress):
        if progress.i == 1:
            progress.edit(progress.step.run.z * 1.5)

    assert np.abs(_make(pipe, callback=scale) - made).max() > 1e-3
    np.testing.assert_array_equal(_make(pipe, callback=lambda progress: None), made)


def test_given_latents_and_embeddings(pipe, made):
    noise = program.draw_noise(generate.scene.make_keys(KEYS, 2), (SIZE // 2, SIZE // 2, 4), 1)
    np.testing.assert_array_equal(_make(pipe, latents=noise, size=None), made)
    embedding = pipe.embed(g.PROMPTS)
    np.testing.assert_array_equal(_make(pipe, embedding), made)
    negative = generate.Guidance(negative=pipe.embed([""]))
    np.testing.assert_array_equal(_make(pipe, guidance=negative), made)


def test_outputs(pipe, made):
    latents = _make(pipe, output="latent")
    assert latents.shape == (2, SIZE // 2, SIZE // 2, 4)
    np.testing.assert_array_equal(pipe.decode(latents, "np"), made)
    pictures = _make(pipe, output="pil")
    np.testing.assert_array_equal(np.asarray(pictures[1]), np.rint(made[1] * 255))


def test_embeddings_and_images_are_encoded_once(pipe, monkeypatch):
    calls = []
    monkeypatch.setattr(generate.loaded, "encode", lambda *a, **k: calls.append(a[1]) or 1 / 0)
    pipe.embed(g.PROMPTS)  # known by now
    with pytest.raises(ZeroDivisionError):
        pipe.embed(["a new one"])
    assert calls == ["a new one"]


def test_a_folder_holds_all_of_it(pipe, made, compiled, tmp_path):
    pipe.save(tmp_path)
    loaded = diffjax.load(tmp_path)
    np.testing.assert_array_equal(_make(loaded), made)
    assert not compiled
    assert loaded.parts.manifest["_class_name"] == "StableDiffusionPipeline"


def test_controls_in_half_precision(pipe, made, tmp_path):
    net = g.controls("sd1")[0]
    pipe.save(tmp_path / "model")
    save_model(tmp_path / "net", net.net, net.params, config=net.config)
    half = diffjax.load(tmp_path / "model", dtype=jnp.bfloat16)
    loaded = load_model(tmp_path / "net", dtype=jnp.bfloat16)
    plain = _make(half)
    controlled = _make(half, control=[generate.Control(loaded, g.picture())])
    exact = _make(pipe, control=[generate.Control(net, g.picture())])
    assert np.abs(controlled - plain).max() > 0.05
    assert np.abs(controlled - exact).mean() < 0.02


def test_the_compilation_cache_is_on(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipe.save(tmp_path / "model")
    chosen = jax.config.values["jax_compilation_cache_dir"]
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        diffjax.load(tmp_path / "model")
        folder = Path(jax.config.values["jax_compilation_cache_dir"])
        assert folder == choose_program_folder() and folder.is_relative_to(tmp_path / "diffjax")
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)


def test_weights_in_prompts_and_long_prompts(pipe):
    plain = pipe.embed(["red cat"])
    same = pipe.embed(["red cat"], weighted=True)
    np.testing.assert_array_equal(same.context, plain.context)
    weighted = pipe.embed(["(red:1.5) cat"], weighted=True)
    assert weighted.context.shape == plain.context.shape
    np.testing.assert_allclose(weighted.context.mean(), plain.context.mean(), rtol=1e-4)
    assert np.abs(weighted.context - plain.context).max() > 0.01
    long = pipe.embed(["red cat " * 8, "dog"], weighted=True)
    assert long.context.shape == (2, 2 * g.LENGTH, 6)
    empty = pipe.embed([""])
    np.testing.assert_array_equal(long.context[1, g.LENGTH :], empty.context[0])


def test_a_prompt_for_each_encoder(pipe):
    xl = g.pipeline("xl")
    first, second = (xl.embed([text]) for text in g.PROMPTS)
    both = xl.embed([generate.Prompt(*g.PROMPTS)])
    np.testing.assert_array_equal(both.context[..., :6], first.context[..., :6])
    np.testing.assert_array_equal(both.context[..., 6:], second.context[..., 6:])
    np.testing.assert_array_equal(both.pooled, second.pooled)
    assert np.abs(second.context - first.context).max(axis=(0, 1)).all()
    long = xl.embed([generate.Prompt("red", "red cat " * 8)], weighted=True)
    assert long.context.shape == (1, 2 * g.LENGTH, 12)
    with pytest.raises(ValueError, match="one text encoder: a prompt for two is for XL"):
        pipe.embed([generate.Prompt("red", "cat")])


def test_a_new_word(pipe, tmp_path):
    from safetensors.numpy import save_file

    rows = np.random.RandomState(0).standard_normal((2, 6)).astype(np.float32)
    save_file({"emb_params": rows}, tmp_path / "my-cat.safetensors")
    more = pipe.with_concept(tmp_path / "my-cat.safetensors")
    text = more.parts.texts["text_encoder"]
    assert text.tokenizer.ids("my-cat") == [len(g.VOCABULARY), len(g.VOCABULARY) + 1]
    table = text.model.params["text_model.embeddings.token_embedding"]["embedding"]
    np.testing.assert_array_equal(table[-2:], rows)
    assert np.abs(more.embed(["my-cat"]).context - pipe.embed(["my-cat"]).context).max() > 0.01
    save_file({"emb_params": rows[:, :5]}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"width 6; there are emb_params \(2, 5\)"):
        pipe.with_concept(tmp_path / "other.safetensors")


def test_micro_conditioning():
    size = generate.Size(8, 16, crop=(1, 2), negative_original=(4, 4))
    assert size.to_time_ids(6) == (8, 16, 1, 2, 8, 16)
    assert size.for_negative().to_time_ids(6) == (4, 4, 1, 2, 8, 16)
    assert size.to_time_ids(5) == (8, 16, 1, 2, 6.0)
    assert size.for_negative().to_time_ids(5) == (4, 4, 1, 2, 2.5)
    with pytest.raises(ValueError, match="this one takes 4"):
        size.to_time_ids(4)


def _picture(*shape):
    return np.zeros(shape, np.uint8)


WRONG = {
    "no prompt": (dict(prompts=[]), "no prompt"),
    "num": (dict(num=0), "num must be at least 1"),
    "size": (dict(size=SIZE + 1), r"multiples of 2, got \(17, 17\)"),
    "keys": (dict(key=(1, 2, 3)), "2 images, but 3 keys"),
    "seed": (dict(key=2**32), r"seeds must lie in \[0, 2\^32\), got 4294967296"),
    "seeds": (dict(key=(1, -1)), r"seeds must lie in \[0, 2\^32\), got -1"),
    "latents": (dict(latents=np.zeros((1, 8, 8, 4))), "latents must be"),
    "output": (dict(output="jpg"), "unknown output 'jpg'"),
    "sampler": (dict(sampler="ddum"), "unknown sampler 'ddum'; choose one of ddim"),
    "grid": (dict(sampler=generate.Sampling(grid="log")), "unknown grid 'log'"),
    "grid of another": (
        dict(sampler=generate.Sampling("ddim", grid="karras")),
        "ddim.* has no use_beta_sigmas, .*use_karras_sigmas|DDIM has no",
    ),
    "option": (dict(sampler=generate.Sampling(options={"rho": 7})), "has no rho"),
    "steps": (dict(sampler=0), "steps"),
    "negatives": (
        dict(guidance=generate.Guidance(negative=["a", "b", "c"])),
        "2 prompts have 3 negative prompts",
    ),
    "rescale": (dict(guidance=generate.Guidance(rescale=2)), "rescale must lie in"),
    "clip_skip": (dict(clip_skip=3), "must leave a layer of 3"),
    "mask": (
        dict(image=generate.Image(_picture(SIZE, SIZE, 3), mask=_picture(8, 8))),
        r"mask is \(8, 8\), but the image \(16, 16\)",
    ),
    "latents of an image": (
        dict(image=generate.Image(generate.Latents(np.zeros((4, 4, 4), np.float32)))),
        r"size \(16, 16\) is not that of what is given, \(8, 8\)",
    ),
    "alpha or latents": (
        dict(image=generate.Image(np.zeros((SIZE, SIZE, 4)))),
        "could be latents or a picture with alpha",
    ),
    "small image": (dict(image=generate.Image(_picture(1, 8, 3)), size=None), r"got \(0, 8\)"),
    "channels": (dict(image=generate.Image(_picture(SIZE, SIZE, 2))), "images must be"),
    "range": (dict(image=generate.Image(np.full((SIZE, SIZE, 3), 2.0))), r"lie in \[0, 1\]"),
    "images": (dict(image=generate.Image(_picture(3, SIZE, SIZE, 3))), "one image, or one for"),
    "strength": (dict(image=generate.Image(_picture(SIZE, SIZE, 3), 0.1)), "strength"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_named(pipe, name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        _make(pipe, **options)


def test_images_and_masks_are_brought_to_the_size(pipe):
    smooth = np.linspace(0, 255, 24 * 20 * 3).reshape(24, 20, 3).astype(np.uint8)
    mask = np.zeros((24, 20), np.uint8)
    mask[6:] = 255
    asked = PIL.Image.fromarray(smooth).resize((SIZE, SIZE), PIL.Image.Resampling.LANCZOS)
    small = PIL.Image.fromarray(mask).resize((SIZE, SIZE), PIL.Image.Resampling.LANCZOS)
    expected = _make(pipe, image=generate.Image(asked, 0.5, small))
    for image, hole in ((smooth, mask), (PIL.Image.fromarray(smooth), PIL.Image.fromarray(mask))):
        made = _make(pipe, image=generate.Image(image, 0.5, hole))
        np.testing.assert_array_equal(made, expected)
    levels, unit = (images.read_images(x, size=(SIZE, SIZE))[0] for x in (smooth, smooth / 255))
    np.testing.assert_allclose(unit, levels, atol=1.01 / 255)
    uneven = _make(pipe, image=generate.Image(smooth[:, :19], 0.5), size=None)
    assert uneven.shape == (2, 24, 18, 3)


def test_photographs_are_upright():
    turned, upright = PIL.Image.fromarray(g.picture()[:, :12]), np.rot90(g.picture()[:, :12], -1)
    turned.getexif()[0x0112] = 6  # to be turned right
    np.testing.assert_array_equal(images.read_images(turned)[0][0], upright / np.float32(255))


def test_hints_may_mark_pixels():
    hint = np.full((4, 4, 3), 0.5, np.float32)
    hint[:2] = -1
    np.testing.assert_array_equal(images.read_images(hint, low=-1)[0][0], hint)
    large = images.read_images(hint, size=(8, 8), low=-1)[0][0]
    np.testing.assert_array_equal(large, hint.repeat(2, 0).repeat(2, 1))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        images.read_images(hint)


def test_controls_that_pool_always_guess(pipe):
    net = g.controls("sd1")[0]
    pooled = net._replace(net=net.net.clone(pool=True))
    marked = np.full((SIZE, SIZE, 3), -1.0)
    given = [generate.Control(pooled, marked), generate.Control(net, g.picture())]
    stage = stages.make_stages(pipe, generate.Request("cat", control=given, size=SIZE))[0][1]
    assert [balance for _, balance in stage.program.nets] == ["guess", "balanced"]
    assert stage.inputs["controls"][0]["hint"].max() == -1


def test_sides_that_do_not_halve(pipe):
    assert _make(pipe, size=(SIZE + 2, SIZE)).shape == (2, SIZE + 2, SIZE, 3)


def test_one_side_alone_is_asked_for(pipe):
    def size(pipe=pipe, image=None, **asked):
        request = generate.Request("cat", size=generate.Size(**asked), image=image)
        return generate.scene.lay_out(pipe, request).size[:2]

    assert size() == (SIZE, SIZE)
    assert size(height=SIZE + 2) == (SIZE + 2, SIZE)
    assert size(width=SIZE + 2) == (SIZE, SIZE + 2)
    assert size(width=SIZE, image=generate.Image(_picture(24, 20, 3))) == (24, SIZE)
    config = {key: v for key, v in pipe.parts.unet.config.items() if key != "sample_size"}
    unsaid = pipe.parts._replace(unet=pipe.parts.unet._replace(config=config))
    assert size(generate.Pipeline(unsaid), height=4, width=6) == (4, 6)
    with pytest.raises(ValueError, match="does not say its size"):
        size(generate.Pipeline(unsaid), height=4)


def test_a_variant_may_be_there_for_some_networks_only(pipe, tmp_path, caplog):
    pipe.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights of variant 'fp16'"):
        diffjax.load(tmp_path, variant="fp16")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with caplog.at_level("WARNING"):
        loaded = diffjax.load(tmp_path, variant="fp16")
    assert "vae has no weights of variant fp16" in caplog.text
    assert "unet has no" not in caplog.text
    jax.tree.map(np.testing.assert_array_equal, loaded.parts.unet.params, pipe.parts.unet.params)


def test_an_empty_negative_prompt_is_zero_for_xl_unless_the_model_says_otherwise(pipe):
    def null(pipe, **says):
        manifest = {k: v for k, v in pipe.parts.manifest.items() if not k.startswith("force_")}
        other = generate.Pipeline(pipe.parts._replace(manifest=manifest | says))
        size = generate.Size(SIZE, SIZE)
        request = generate.Request("cat")
        return generate.conditions.make_conditions(other, request, size, guided=True)[1]["context"]

    xl = g.pipeline("xl")
    assert not null(xl).any() and not null(xl, force_zeros_for_empty_prompt=True).any()
    assert null(xl, force_zeros_for_empty_prompt=False).any() and null(pipe).any()


def test_models_that_are_given_something_else_are_refused(pipe, tmp_path):
    config = {**pipe.parts.unet.config, "in_channels": 6}
    pipe.save(tmp_path)
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="takes 6 channels, which is not supported"):
        diffjax.load(tmp_path)


def test_a_model_that_fills_in_needs_a_mask():
    with pytest.raises(ValueError, match="fills in images"):
        _make(g.pipeline("sd1-inpainting"))


def test_a_refiner_starts_in_between(pipe):
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        _make(pipe, refiner=generate.Refiner(pipe, 1.0))


def test_folders_that_lack_a_part(pipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        diffjax.load(tmp_path)
    pipe.save(tmp_path)
    manifest = {**pipe.parts.manifest, "vae": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="it lacks vae"):
        diffjax.load(tmp_path)


@pytest.mark.parametrize(
    ("family", "kind", "scheduler", "mended"),
    [
        ("sd1", "PNDM", {}, {"steps_offset": 1}),
        ("sd1-inpainting", "PNDM", {}, {"steps_offset": 1, "skip_prk_steps": True}),
        ("sd1", "DDIM", {}, {"steps_offset": 1, "clip_sample": False}),
        ("sd1-inpainting", "DDIM", {}, {"steps_offset": 1}),
        ("sd1", "DDIM", {"steps_offset": 1, "clip_sample": False}, {}),
        ("sd1", "DPMSolverSinglestep", {}, {}),
        ("xl", "DDIM", {}, {}),
    ],
)
def test_old_configs_are_mended(tmp_path, caplog, family, kind, scheduler, mended):
    """As by the pipelines of diffusers, those of XL excepted."""
    parts, given = g.components(family), {"_class_name": f"{kind}Scheduler", **scheduler}
    config = {**parts.unet.config, "sample_size": 32, "_diffusers_version": "0.6.0"}
    old = parts._replace(scheduler=given, unet=parts.unet._replace(config=config))
    generate.Pipeline(old).save(tmp_path)
    with caplog.at_level("WARNING"):
        loaded = diffjax.load(tmp_path)
    assert loaded.parts.scheduler == given | mended
    assert loaded.parts.unet.config["sample_size"] == (32 if family == "xl" else 64)
    assert all(f"{key}={value}" in caplog.text for key, value in mended.items())
    config = {**config, "_diffusers_version": "0.9.0"}
    generate.Pipeline(old._replace(unet=old.unet._replace(config=config))).save(tmp_path)
    assert diffjax.load(tmp_path).parts.unet.config["sample_size"] == 32


def test_all_that_is_asked_for_is_described():
    names = [field.name for field in dataclasses.fields(generate.Request)]
    for name in names:
        assert f"{name}: " in generate.Request.__doc__, name


class _Spy:
    """A network that keeps what it is given, and answers with zeros."""

    def __init__(self, residuals=False):
        self.seen, self._residuals = [], residuals

    def apply(self, variables, z, t, cond):
        if not isinstance(z, jax.core.Tracer):
            self.seen.append((np.asarray(z), np.asarray(t)))
        zeros = jnp.zeros_like(z)
        return ([zeros], zeros) if self._residuals else zeros


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_a_controlnet_sees_what_the_unet_sees(name):
    """EDM's input scale, up to 1/80, counts for both."""
    scheduler = load_scheduler({"_class_name": name, "sigma_max": 80.0})
    unet, net = _Spy(), _Spy(residuals=True)
    model = Model(scheduler.schedule, scheduler.parameterization, unet, None, None)
    made = program.Program(model, scheduler, "no", 0.0, ((net, "balanced"),))
    given = {"params": {}, "hint": jnp.zeros((1, 8, 8, 3)), "strength": np.ones(4, np.float32)}
    inputs = {"params": {}, "cond": {}, "controls": [given]}
    rows = scheduler.rows(scheduler.grid(4))
    level = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], rows.level)
    z = 80 * jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    with jax.disable_jit():
        program.build_denoiser(made, inputs)(z, level)
    (seen, t), (controlled, t_too) = unet.seen[-1], net.seen[-1]
    np.testing.assert_array_equal(controlled, seen)
    np.testing.assert_array_equal(t_too, t)
    np.testing.assert_allclose(seen, z / np.hypot(80, 0.5), rtol=1e-4)
