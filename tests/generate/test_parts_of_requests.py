"""Lists of steps, parts of the denoising, given noise, crops, perturbed attention and FreeU."""

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

from diffjax import generate, guidance
from diffjax.generate import crops, program
from diffjax.generate.keys import make_keys
from diffjax.generate.options import make_scheduler
from diffjax.nets.unet import weigh_skip
from diffjax.samplers import image_noise
from diffjax.types import Level, Prediction
from tests.parity import generate_cases as g

SIZE, KEYS = g.SIZE, (3, 4)
ANCESTRAL = generate.Sampling("euler_ancestral", 4)


@pytest.fixture(scope="module")
def pipe():
    return g.pipeline("sd1")


def _make(pipe, prompts=g.PROMPTS, **options):
    options = {"key": KEYS, "sampler": ANCESTRAL, "size": SIZE, "output": "np", **options}
    return pipe(prompts, **options)


@pytest.fixture(scope="module")
def made(pipe):
    return _make(pipe)


# ---- steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_the_timesteps_of_a_grid_as_a_list_give_the_same_bits(pipe, name):
    sampling = generate.Sampling(name, 4)
    times = make_scheduler(pipe.parts.scheduler, sampling).grid(4).levels.t[:-1]
    listed = generate.Sampling(name, timesteps=times.tolist())
    wanted = _make(pipe, sampler=sampling)
    np.testing.assert_array_equal(_make(pipe, sampler=listed), wanted)
    moved = generate.Sampling(name, timesteps=[*times[:-1], times[-1] + 5])
    assert np.abs(_make(pipe, sampler=moved) - wanted).max() > 1e-4


def test_given_noise_stands_for_that_of_the_key(pipe, made):
    noise = image_noise(make_keys(KEYS, 2), (SIZE // 2, SIZE // 2, 4))
    draws = np.stack([noise(i) for i in range(4)])
    np.testing.assert_allclose(_make(pipe, step_noise=draws), made, atol=1e-5)
    assert np.abs(_make(pipe, step_noise=0 * draws) - made).max() > 1e-3


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral", "heun"])
def test_two_calls_are_one_call_with_a_refiner(pipe, name):
    sampling, told = generate.Sampling(name, 6), generate.Guidance(2.0, negative="dog")
    texts = list(g.OWN_PROMPTS)
    wanted = _make(pipe, sampler=sampling, refiner=generate.Refiner(pipe, 0.5, texts, told))
    latents = _make(pipe, sampler=sampling._replace(end=0.5), output="latent")
    rest = sampling._replace(start=0.5)
    found = _make(pipe, texts, sampler=rest, guidance=told, latents=latents, size=None)
    np.testing.assert_array_equal(found, wanted)
    plain = _make(pipe, sampler=sampling, refiner=generate.Refiner(pipe, 0.5))
    assert np.abs(plain - wanted).max() > 1e-3


def test_noise_is_shared_by_base_and_refiner(pipe):
    # Times 831, 665 of the base, 499 and so on of the refiner.
    sampling, refiner = ANCESTRAL._replace(steps=6), generate.Refiner(pipe, 0.5)
    keys = make_keys(KEYS, 2)
    shape = (SIZE // 2, SIZE // 2, 4)
    second = image_noise(program.fold_keys(keys, generate.stages.CONTINUED), shape)
    first = image_noise(keys, shape)
    draws = np.stack([first(i) for i in range(2)] + [second(i) for i in range(4)])
    wanted = _make(pipe, sampler=sampling, refiner=refiner)
    found = _make(pipe, sampler=sampling, refiner=refiner, step_noise=draws)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# ---- crops --------------------------------------------------------------------------------------


def test_the_box_around_a_mask():
    mask = np.zeros((1, 40, 60, 1))
    mask[0, 10:14, 20:30] = 0.3
    # Ten wide and four high: widened to a square, and to a rectangle of 1 to 2.
    assert crops.find_box(mask, 0, (8, 8)) == (7, 20, 17, 30)
    assert crops.find_box(mask, 3, (8, 8)) == (4, 17, 20, 33)
    assert crops.find_box(mask, 0, (16, 8)) == (2, 20, 22, 30)
    mask[0, :, 0] = 1  # as high as the image: what has no room on the left is on the right
    assert crops.find_box(mask, 0, (8, 8)) == (0, 0, 40, 40)
    assert crops.find_box(mask, 100, (8, 8)) == (0, 0, 40, 60)


def test_cut_and_cover_keep_the_aspect_ratio():
    image = np.arange(4 * 8, dtype=np.float32).reshape(1, 4, 8, 1) / 32
    box = crops.Box(0, 0, 4, 8)
    np.testing.assert_array_equal(crops.cut(image, box, (4, 8)), image)
    tall = crops.cut(image, box, (8, 8))  # two rows above and below
    np.testing.assert_array_equal(tall[:, 2:6], image)
    np.testing.assert_array_equal(tall[:, 0], image[:, 0])
    np.testing.assert_array_equal(tall[:, 7], image[:, 3])
    np.testing.assert_array_equal(crops.cover(image, (4, 4)), image[:, :, 2:6])


def test_a_crop_is_filled_in_and_pasted_back(pipe):
    whole = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    mask = np.zeros((48, 40), np.uint8)
    mask[30:36, 8:14] = 255
    picture = generate.Image(PIL.Image.fromarray(whole), mask=mask, mask_padding=4)
    images = _make(pipe, image=picture, sampler=3)
    assert images.shape == (2, 48, 40, 3)
    kept = mask == 0
    np.testing.assert_allclose(images[:, kept], np.stack([whole[kept] / 255] * 2), atol=1e-5)
    assert np.abs(images - whole / 255)[:, ~kept].max() > 0.1
    # The crop alone, cut by hand, is filled in the same way.
    box = crops.find_box(mask[None, ..., None], 4, (SIZE, SIZE))
    part = crops.cut(whole[None], box, (SIZE, SIZE))
    small = crops.cut(mask[None, ..., None], box, (SIZE, SIZE))[..., 0] >= 128
    alone = _make(pipe, image=generate.Image(part, mask=small), sampler=3, output="latent")
    cropped = _make(pipe, image=picture, sampler=3, output="latent")
    np.testing.assert_array_equal(cropped, alone)


# ---- perturbed attention and FreeU --------------------------------------------------------------


def test_add_contrast_adds_what_another_denoiser_lacks():
    z, level = jnp.ones((1, 2, 2, 1)), Level(0.0, 1.0, 1.0, 1)
    c, u, w = (Prediction(k * z, -k * z) for k in (5.0, 3.0, 4.0))
    combine = guidance.add_contrast(
        lambda z, level: w, lambda level: jnp.array([0.0, 0.5])[level.i]
    )
    found = combine(c, u, 2.0, z, level)  # 3 + 2 (5 - 3) + 0.5 (5 - 4)
    np.testing.assert_allclose(found.x, 7.5 * z)
    np.testing.assert_allclose(found.eps, -7.5 * z)
    np.testing.assert_allclose(combine(c, u, 2.0, z, level._replace(i=0)).x, 7 * z)


def test_scales_of_perturbed_attention_compile_nothing_and_0_is_none(pipe, made):
    found = _make(pipe, guidance=generate.Guidance(perturbed=2.0))
    assert np.abs(found - made).max() > 1e-3
    none = generate.Guidance(perturbed=generate.PerturbedAttention(0.0))
    np.testing.assert_array_equal(_make(pipe, guidance=none), made)
    # So fast a fall leaves nothing of the scale at any step but the first.
    fallen = generate.PerturbedAttention(1.0, adaptive=1000.0)
    np.testing.assert_allclose(
        _make(pipe, guidance=generate.Guidance(perturbed=fallen)), made, atol=1e-5
    )


def test_factors_of_1_change_nothing_and_others_do(pipe, made):
    same = _make(pipe, freeu=generate.FreeU(1, 1, 1, 1))
    np.testing.assert_allclose(same, made, atol=1e-5)
    for k in range(4):
        factors = [1.0, 1.0, 1.0, 1.0]
        factors[k] = 0.5
        assert np.abs(_make(pipe, freeu=generate.FreeU(*factors)) - made).max() > 1e-4, k


def test_skips_lose_their_lowest_frequencies():
    rows = np.arange(8)[None, :, None, None]
    flat, fast = np.ones((1, 8, 8, 2)), np.cos(np.pi * rows) * np.ones((1, 8, 8, 2))
    h, skip = weigh_skip(
        jnp.ones((1, 8, 8, 4)), jnp.asarray(3 * flat + fast), jnp.array([2.0]), jnp.array([0.1])
    )
    np.testing.assert_allclose(h[0, 0, 0], [2, 2, 1, 1])
    np.testing.assert_allclose(skip, 0.3 * flat + fast, atol=1e-5)


# ---- adapters of text encoders ------------------------------------------------------------------


def test_adapters_of_text_encoders_are_added_at_run_time(pipe, made, tmp_path):
    rng, tensors = np.random.default_rng(0), {}
    layers = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q": (16, 16),
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj": (6, 6),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": (8, 6),
    }
    for name, (outputs, inputs) in layers.items():
        tensors[f"{name}.lora_A.weight"] = rng.normal(size=(2, inputs)).astype("f4")
        tensors[f"{name}.lora_B.weight"] = rng.normal(size=(outputs, 2)).astype("f4")
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    weights = pipe.load_lora(path)
    assert set(weights) == {"unet", "text_encoder"}
    wanted = _make(pipe.with_lora(path, scale=0.8))
    found = _make(pipe, lora=generate.Lora(weights, 0.8))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    texts = generate.Lora({"text_encoder": weights["text_encoder"]}, 0.8)
    assert np.abs(_make(pipe, lora=texts) - found).max() > 1e-4
    assert np.abs(_make(pipe, lora=texts) - made).max() > 1e-4
    np.testing.assert_array_equal(_make(pipe), made)  # nothing of it is kept
    with pytest.raises(generate.RequestError, match=r"lora\[0\].weights do not fit .* text_enc"):
        _make(pipe, lora=generate.Lora({"text_encoder_2": weights["text_encoder"]}))
