"""Models that are given more than latents: images to edit, depth, small images, guidance scales."""

import jax
import numpy as np
import pytest

import diffjax
from diffjax import Guidance, Image, Sampling
from diffjax.generate import Latents, beside
from diffjax.nets.resize import resize_bicubic
from diffjax.pretrained.prompts import Embedding
from tests.parity import generate_cases as g

SIZE, NAN = g.SIZE, float("nan")


def _make(family, **options):
    options = {"key": (3, 4), "sampler": 2, "output": "np", **options}
    return g.pipeline(family)(list(g.PROMPTS), **options)


def _depth(**options):
    return {"image": Image(g.picture(), depth=g.depth(), **options)}


# Family, what is asked for, and parts of the message.
REFUSED = {
    "edit nothing": ("edit", dict(size=SIZE), "this model edits images by instruction"),
    "edit with a mask": (
        "edit",
        dict(image=Image(g.picture(), mask=g.mask())),
        "image.mask is of no use: this model edits images by instruction",
    ),
    "edit with a strength": ("edit", dict(image=Image(g.picture(), 0.5)), "image.strength is of"),
    "edit with a low scale": (
        "edit",
        dict(image=g.picture(), guidance=Guidance(5, image=0.5)),
        "guidance.image must be finite and at least 1, got 0.5",
    ),
    "scale of an image": (
        "sd1",
        dict(size=SIZE, guidance=Guidance(5, image=1.5)),
        "guidance.image is for models that edit images by instruction",
    ),
    "depth without": ("depth", dict(image=g.picture()), "this model keeps the depth of an image"),
    "depth of latents": (
        "depth",
        dict(image=Image(Latents(np.zeros((8, 8, 4), "f4")), depth=g.depth())),
        "this model keeps the depth of an image",
    ),
    "depth NaN": (
        "depth",
        dict(image=Image(g.picture(), depth=np.full((8, 8), NAN, "f4"))),
        "image.depth must be finite",
    ),
    "depth flat": (
        "depth",
        dict(image=Image(g.picture(), depth=np.ones((8, 8), "f4"))),
        "image.depth is the same everywhere",
    ),
    "depth of others": (
        "depth",
        dict(image=Image(g.picture(), depth=np.stack([g.depth()] * 3))),
        "image.depth: give one depth, or one for each of 2",
    ),
    "depth of no use": ("sd1", dict(size=SIZE, **_depth()), "image.depth is of no use"),
    "upscale nothing": ("upscale", dict(size=SIZE), "this model enlarges images"),
    "upscale too noisy": (
        "upscale",
        dict(image=Image(g.small_picture(), noise_level=1000)),
        "image.noise_level must lie in 0 .. 299, got 1000",
    ),
    "double nothing": ("double", dict(size=SIZE), "this model doubles images"),
    "double with a noise": (
        "double",
        dict(image=Image(g.small_picture(), noise_level=20)),
        "image.noise_level is of no use: this model doubles images",
    ),
    "double with a strength": (
        "double",
        dict(image=Image(g.small_picture(), 0.5)),
        "image.strength is of no use",
    ),
    "double with FreeU": (
        "double",
        dict(image=g.small_picture(), freeu=g.FREEU),
        "freeu does not fit this model: a latent upscaler has a UNet of its own",
    ),
    "double latents to another size": (
        "double",
        dict(image=Image(Latents(g.small_latents())), size=2 * SIZE),
        "is not that of what is given, (16, 16)",
    ),
    "double with a plain embedding": (
        "double",
        dict(image=g.small_picture(), guidance=Guidance(3, Embedding(np.ones((1, 12, 6), "f4")))),
        "guidance.negative.pooled is None",
    ),
    "double with another's embedding": (
        "double",
        dict(
            image=g.small_picture(),
            guidance=Guidance(3, Embedding(np.ones((1, 12, 6), "f4"), np.ones((1, 9), "f4"))),
        ),
        "guidance.negative.pooled has a width of 9",
    ),
    "noise of no use": (
        "sd1",
        dict(image=Image(g.picture(), noise_level=20)),
        "image.noise_level is of no use",
    ),
    "interval of an embedded scale": (
        "lcm",
        dict(size=SIZE, guidance=Guidance(5, low=1.0)),
        "guidance.low is 1, but guidance is an input of this model",
    ),
    "rescale of an embedded scale": (
        "lcm",
        dict(size=SIZE, guidance=Guidance(5, rescale=0.5)),
        "guidance.rescale is 0.5, but guidance is an input of this model",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_model_does_not_take_is_refused_by_name(name):
    family, options, part = REFUSED[name]
    with pytest.raises(diffjax.RequestError) as caught:
        _make(family, **options)
    assert part in str(caught.value)


def test_edited_and_enlarged_images_have_the_size_of_the_model():
    assert _make("edit", image=g.picture()).shape == (2, SIZE, SIZE, 3)
    assert _make("upscale", image=g.small_picture()).shape == (2, SIZE, SIZE, 3)
    wide = np.concatenate([g.small_picture()] * 2, 1)
    assert _make("upscale", image=wide).shape == (2, SIZE, 2 * SIZE, 3)
    # Brought to the size that is asked for.
    assert _make("upscale", image=wide, size=SIZE).shape == (2, SIZE, SIZE, 3)


def test_doubled_images_are_twice_as_large():
    wide = np.concatenate([g.small_picture()] * 2, 1)
    assert _make("double", image=wide[:, :-1]).shape == (2, SIZE, 24, 3)  # multiples of 8
    assert _make("double", image=wide, size=SIZE).shape == (2, SIZE, SIZE, 3)


def test_without_guidance_at_0_a_doubled_image_ignores_its_prompt():
    texts = g.pipeline("double")
    options = dict(key=3, sampler=2, output="np", image=g.small_picture())
    plain = texts("", guidance=0, **options)
    np.testing.assert_array_equal(texts(g.PROMPTS[0], guidance=0, **options), plain)
    assert np.abs(texts(g.PROMPTS[0], guidance=1, **options) - plain).max() > 1e-3


def test_an_image_scale_of_1_is_ordinary_guidance_of_the_text():
    """With s_i = 1 the empty image drops out: what is left is u + s (c - u), u with the image."""
    found = _make("edit", image=g.picture(), guidance=Guidance(3.0, image=1.0))
    other = _make("edit", image=g.picture(), guidance=Guidance(3.0, image=3.0))
    assert np.abs(found - other).max() > 1e-3
    default = _make("edit", image=g.picture(), guidance=3.0)
    wanted = _make("edit", image=g.picture(), guidance=Guidance(3.0, image=1.5))
    np.testing.assert_array_equal(default, wanted)


def test_a_told_scale_changes_the_image_and_compiles_nothing():
    first = _make("lcm", size=SIZE, sampler=Sampling("lcm", 2), guidance=2.0)
    seen = []

    def listen(event, seconds, fun_name="", **rest):
        if event.endswith("backend_compile_duration") and fun_name == "jit(advance)":
            seen.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        second = _make("lcm", size=SIZE, sampler=Sampling("lcm", 2), guidance=9.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert np.abs(first - second).max() > 1e-3 and not seen


def test_depths_are_interpolated_and_brought_to_the_range():
    ramp = np.arange(12, dtype=np.float32)[None] * np.ones((4, 1), np.float32)
    found = beside.read_depth(ramp, (4, 6))
    assert found.shape == (1, 4, 6, 1) and (found.min(), found.max()) == (-1, 1)
    # Cubic convolution keeps lines; centres of six pixels of a ramp of twelve: 0.5, 2.5, ...
    inner = resize_bicubic(ramp[None], (4, 6))[0, 0, 1:-1]
    np.testing.assert_allclose(inner, [2.5, 4.5, 6.5, 8.5], rtol=1e-6)
    np.testing.assert_array_equal(resize_bicubic(ramp[None], (4, 12))[0], ramp)


def test_the_small_image_is_as_noisy_as_its_schedule_says():
    pipe = g.pipeline("upscale")
    pixels, noise = np.full((1, 2, 2, 3), 0.75, np.float32), np.ones((1, 2, 2, 3), np.float32)
    clean = np.asarray(beside.add_low_noise(pipe, pixels, 0, 0 * noise))
    np.testing.assert_allclose(clean, 0.5, rtol=1e-3)
    for level in (0, 50, 299):
        noisy = np.asarray(beside.add_low_noise(pipe, pixels, level, noise))[0, 0, 0, 0]
        plain = np.asarray(beside.add_low_noise(pipe, pixels, level, 0 * noise))[0, 0, 0, 0]
        alpha, sigma = plain / 0.5, noisy - plain
        assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-5)
