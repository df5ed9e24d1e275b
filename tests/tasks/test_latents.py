"""Diffusion in latents: scale, stored moments, conditions, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ldm
from configs.base import smoke
from diffjax import samplers
from diffjax.model import make_model, make_sampler, make_steering, sample
from diffjax.model.channel_conditions import CONCATS, EDIT, average_area, draw_holes
from diffjax.model.space import encode_moments, make_space
from diffjax.runs import guides
from diffjax.tasks import make_task
from diffjax.tasks.classifier_task import make_noisy_classifier_task
from diffjax.types import ConfigError
from tests.filled import fill

SHAPE = (4, 4, 1)


def config(variant="fashion_mnist", *, first=None, **cond):
    cfg = smoke(ldm.VARIANTS[variant]())
    cfg.network.update(multipliers=(1,), attention_levels=())
    cfg.autoencoder.update(multipliers=(1, 1), **(first or {}))
    cfg.cond.update(cond)
    return cfg


def frozen_of(cfg, seed=1):
    net = make_space(cfg, SHAPE).net
    return net, {"autoencoder": fill(net, jnp.zeros((1, *SHAPE)), seed=seed)}


def encode(net, params, images):
    run = jax.jit(lambda p, x: net.apply({"params": p}, x, method=net.encode).mean)
    return run(params, images)


def moments_of(net, frozen, images):
    return jax.jit(functools.partial(encode_moments, net))(frozen["autoencoder"], images)


def decode(net, params, latents):
    return jax.jit(lambda p, z: net.apply({"params": p}, z, method=net.decode))(params, latents)


@pytest.fixture(scope="module")
def made():
    cfg = config()
    net, frozen = frozen_of(cfg)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.uniform(-1, 1, (4, *SHAPE)), jnp.float32),
        "label": jnp.arange(4),
    }
    return cfg, net, frozen, batch


def test_the_scale_is_measured_once(made):
    cfg, net, frozen, batch = made
    space = make_space(cfg, SHAPE)
    enter = jax.jit(space.enter)
    z, extra = enter(frozen, space.extra, jax.random.key(0), batch)
    assert float(z.std()) == pytest.approx(1, rel=1e-5)
    _, same = enter(frozen, extra, jax.random.key(1), {"image": 0.1 * batch["image"]})
    assert float(same["latent_scale"]) == float(extra["latent_scale"])
    given = cfg.copy_and_resolve_references()
    given.autoencoder.scale = 0.5
    fixed = make_space(given, SHAPE)
    z, extra = fixed.enter(frozen, fixed.extra, jax.random.key(0), batch)
    assert float(extra["latent_scale"]) == 0.5
    mean = jax.jit(fixed.encode)(frozen, extra, batch["image"])
    back = jax.jit(fixed.leave)(frozen, extra, mean)
    straight = jax.jit(net.apply)({"params": frozen["autoencoder"]}, batch["image"])[0]
    np.testing.assert_allclose(back, straight, atol=1e-5)


def test_statistics_by_channel_bring_latents_to_one_scale(made):
    cfg, net, frozen, batch = made
    plain = encode(net, frozen["autoencoder"], batch["image"])
    mean, std = plain.mean((0, 1, 2)), plain.std((0, 1, 2))
    given = cfg.copy_and_resolve_references()
    statistics = {"latents_mean": tuple(map(float, mean)), "latents_std": tuple(map(float, std))}
    given.autoencoder.update(scale=0.5, **statistics)
    space = make_space(given, SHAPE)
    z = jax.jit(space.encode)(frozen, space.extra, batch["image"])
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(z.std((0, 1, 2)), 0.5, rtol=1e-4)
    back = decode(net, frozen["autoencoder"], plain)
    np.testing.assert_allclose(jax.jit(space.leave)(frozen, space.extra, z), back, atol=1e-4)
    # The picture before an edit comes as the autoencoder has it, as in diffusers.
    edits = CONCATS[EDIT](given, space)
    raw = {"image": batch["image"], "seen": jnp.ones(4)}
    found = edits.encode({}, frozen, space.extra, raw)["concat"]
    np.testing.assert_allclose(found, plain, atol=1e-5)
    # Pipelines scale by the config alone, and agree.
    published = space.net.clone(scaling_factor=0.5)
    np.testing.assert_allclose(published.scale_latents(plain), z, atol=1e-5)
    np.testing.assert_allclose(published.unscale_latents(z), plain, atol=1e-4)
    given.autoencoder.scale = 0.0
    with pytest.raises(ValueError, match=r"latents_std needs autoencoder.scale"):
        make_space(given, SHAPE)


def test_an_autoencoder_can_see_pixels_from_0_to_1(made):
    cfg, net, frozen, batch = made
    given = cfg.copy_and_resolve_references()
    given.autoencoder.unit_range = True
    other, (params, image) = make_space(given, SHAPE).net, (frozen["autoencoder"], batch["image"])
    code, wanted = encode(other, params, image), encode(net, params, (image + 1) / 2)
    np.testing.assert_allclose(code, wanted, atol=1e-6)
    back, half = decode(other, params, code), decode(net, params, code)
    np.testing.assert_allclose((back + 1) / 2, half, atol=1e-6)


def test_stored_moments_give_the_loss_of_encoding_on_the_fly(made):
    cfg, net, frozen, batch = made
    task = make_task(cfg, SHAPE, 256, 10)
    params, extra = jax.jit(lambda: task.init(jax.random.key(0), None, batch))()
    stored = np.asarray(moments_of(net, frozen, batch["image"]))
    assert stored.shape == (4, 2, 2, 8)

    def call(batch):
        return task.loss(params, frozen, extra, jax.random.key(5), jnp.asarray(0), batch)

    direct, (_, metrics) = jax.jit(call)(batch)
    again, _ = jax.jit(call)({"moments": stored, "label": batch["label"]})
    assert float(direct) == pytest.approx(float(again), rel=1e-6)
    assert float(metrics["loss"]) == float(direct)


def test_samples_are_decoded_and_guided(made):
    cfg, net, frozen = made[0].copy_and_resolve_references(), *made[1:3]
    cfg.parameterization.name = "eps"
    task, model = make_task(cfg, SHAPE, 256, 10), make_model(cfg, SHAPE, 256, 10)
    assert model.space.shape == (2, 2, 4)
    params, _ = jax.jit(
        lambda: task.init(jax.random.key(0), None, {"image": jnp.zeros((1, *SHAPE))})
    )()

    sampler, rows = make_sampler(cfg, model)
    keys = jax.random.split(jax.random.key(0), 2)
    noise = samplers.image_noise(keys, model.space.shape)
    extra = {"latent_scale": jnp.asarray(2.0)}
    cond = {"label": jnp.array([1, 2])}
    scale = np.ones(len(rows.level.t), np.float32)
    steering = make_steering(cfg)

    @jax.jit
    def draw(params):
        own = model._replace(params=params, frozen=frozen, statistics=extra)
        return sample(own, cond, sampler, rows, keys, scale=scale, steering=steering)

    images = draw(params)
    assert images.shape == (2, *SHAPE)
    # An untrained network predicts no noise: DDIM then only rescales the first one.
    last = samplers.prior(noise, rows) / rows.level.alpha[0]
    expected = decode(net, frozen["autoencoder"], last / 2.0)
    np.testing.assert_allclose(images, np.clip(expected, -1, 1), atol=2e-3)


def test_clipping_latents_is_refused(made):
    cfg = made[0].copy_and_resolve_references()
    cfg.sample.clip = True
    with pytest.raises(ValueError, match=r"bounds pixels.*set sample\.clip=False"):
        make_task(cfg, SHAPE, 256, 10)


def test_images_must_divide_by_the_factor():
    with pytest.raises(ValueError, match="5x5 do not divide by the factor 2"):
        make_space(config(), (5, 5, 1))


# ---- conditions ---------------------------------------------------------------------------------


def condition_of(cfg, classes=3):
    return make_model(cfg, SHAPE, 256, classes).condition


def test_text_is_encoded_by_trained_tokens():
    cfg = config("shapes", first={"latent_channels": 2})
    cfg.data.channels = 1
    condition = condition_of(cfg, 0)
    params = jax.jit(condition.init)(jax.random.key(0))
    assert set(params) == {"text_encoder"}
    raw = condition.take({"text": jnp.array([[1, 2, 0], [0, 0, 0]])}, jax.random.key(0))
    encode = jax.jit(condition.encode)
    encoded = encode(params, None, {}, raw)["context"]
    null = encode(params, None, {}, condition.null(raw))["context"]
    assert encoded.shape == (2, 3, 8)
    np.testing.assert_allclose(encoded[1], null[1], atol=1e-6)
    assert np.abs(encoded[0] - null[0]).max() > 1e-3
    assert condition.guided and condition.needs == ("text",)


def test_labels_can_be_tokens():
    cfg = config(context="label")
    cfg.network.update(conditional=False, context_dim=8)
    condition = condition_of(cfg)
    params = condition.init(jax.random.key(0))
    assert params["label_encoder"]["embedding"].shape == (4, 8)
    raw = {"label": jnp.array([0, 2])}
    assert condition.null(raw)["label"].tolist() == [3, 3]
    encoded = condition.encode(params, None, {}, raw)["context"]
    np.testing.assert_array_equal(encoded[1, 0], params["label_encoder"]["embedding"][2])
    with pytest.raises(ValueError, match="needs data with classes"):
        condition_of(cfg, 0)


@pytest.mark.parametrize("xl", [False, True])
def test_embeddings_made_beforehand(xl):
    cfg = config(context="given", given={"tokens": 3, "pooled": 4})
    cfg.network.update(conditional=False, context_dim=8)
    cfg.network.update({"added_dim": 4 + 6 * 2, "added_time_dim": 2} if xl else {})
    condition = condition_of(cfg)
    shapes = {"context": (3, 8), **({"text_embeds": (4,), "time_ids": (6,)} if xl else {})}
    assert condition.needs == tuple(shapes)
    batch = {k: jnp.ones((2, *shape)) for k, shape in shapes.items()}
    raw = condition.take(batch, jax.random.key(0))
    found, null = (condition.encode({}, {}, {}, x) for x in (raw, condition.null(raw)))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, null)
    assert found["context"].all() and not null["context"].any()
    if xl:
        assert not null["added"]["text_embeds"].any()
        assert null["added"]["time_ids"].all()


def test_channels_to_join(made):
    _, net, frozen, batch = made
    extra = {"latent_scale": jnp.asarray(2.0)}
    key = jax.random.key(0)

    low = condition_of(config(concat="superres"))
    raw = low.take(batch, key)
    joined = jax.jit(low.encode)({}, frozen, extra, raw)["concat"]
    np.testing.assert_allclose(joined, average_area(batch["image"], (2, 2, 4)))
    np.testing.assert_allclose(low.null(raw)["low"], raw["low"])
    degraded = config(concat="superres")
    degraded.data.degradation = "bsrgan_light"
    low = condition_of(degraded)
    assert low.needs == ("low",)
    given = low.take({**batch, "low": joined + 1}, key)
    np.testing.assert_allclose(low.encode({}, frozen, extra, given)["concat"], joined + 1)

    hole = condition_of(config(concat="inpaint"))
    raw = hole.take(batch, key)
    joined = jax.jit(hole.encode)({}, frozen, extra, raw)["concat"]
    assert joined.shape == (4, 2, 2, 5)
    assert not np.any(raw["hole"]["image"] * raw["hole"]["hole"])
    seen = moments_of(net, frozen, raw["hole"]["image"])[..., :4]
    np.testing.assert_allclose(joined[..., :4], 2 * seen, atol=1e-5)

    fill = condition_of(config(concat="fill"))
    many = {k: jnp.concatenate([v] * 16) for k, v in batch.items()}
    raw = fill.take(many, key)
    mask = raw["hole"]["hole"]
    assert 0.1 < float((mask.mean((1, 2, 3)) == 1).mean()) < 0.4
    joined = jax.jit(fill.encode)({}, frozen, extra, raw)["concat"]
    np.testing.assert_array_equal(joined[..., :1], mask[:, ::2, ::2])
    seen = moments_of(net, frozen, many["image"] * (1 - mask))[..., :4]
    np.testing.assert_allclose(joined[..., 1:], 2 * seen, atol=1e-5)

    cfg = config(concat="map", map_classes=3)
    mask = jnp.asarray(np.random.default_rng(0).integers(0, 3, (4, 4, 4)))
    raw = condition_of(cfg).take({**batch, "mask": mask}, key)
    assert raw["map"].shape == (4, 2, 2, 3)
    np.testing.assert_allclose(raw["map"].sum(-1), 1, rtol=1e-6)
    assert float(raw["map"][0, 0, 0, 1]) == (mask[0, :2, :2] == 1).mean()


def test_holes_are_rectangles_of_the_sizes_asked_for():
    hole = np.asarray(draw_holes(jax.random.key(0), jnp.zeros((50, 32, 32, 1))))[..., 0]
    rows, columns = hole.any(2), hole.any(1)
    np.testing.assert_array_equal(hole, rows[:, :, None] * columns[:, None])
    sides = np.stack([rows.sum(1), columns.sum(1)]) / 32
    assert sides.min() >= 0.2 and sides.max() <= 0.8 and sides.std() > 0.1


def test_unknown_kinds_are_named():
    with pytest.raises(
        ValueError, match="unknown context 'image'; choose one of , clip, clip_xl, given, label"
    ):
        condition_of(config(context="image"))
    with pytest.raises(ValueError, match="unknown concatenation 'depth'"):
        condition_of(config(concat="depth"))


def test_a_classifier_reads_noisy_latents(made):
    cfg, net, frozen, batch = made
    cfg = cfg.copy_and_resolve_references()
    cfg.network.update(conditional=False)
    cfg.cond.context = ""
    with pytest.raises(ConfigError, match=r"config.autoencoder.scale to that of the diffusion"):
        make_noisy_classifier_task(cfg, SHAPE, num_classes=4)
    cfg.autoencoder.scale = 0.5
    task = make_noisy_classifier_task(cfg, SHAPE, num_classes=4)
    params, extra = jax.jit(task.init)(jax.random.key(0), frozen, batch)
    assert params["conv_in"]["kernel"].shape[2] == net.embed_channels != SHAPE[-1]
    assert float(extra["latent_scale"]) == 0.5

    @jax.jit
    def loss(frozen, image):
        total, (after, _) = task.loss(
            params, frozen, extra, jax.random.key(3), jnp.asarray(0), {**batch, "image": image}
        )
        assert set(after) == set(extra)
        return total

    # A decoder is not read, and an encoder that gives zeros leaves the noise alone.
    blank = jax.tree.map(jnp.zeros_like, frozen)
    assert loss(frozen, batch["image"]) != loss(frozen, -batch["image"])
    assert loss(blank, batch["image"]) == loss(blank, -batch["image"])


def test_a_classifier_of_other_latents_is_refused(monkeypatch):
    judge = ldm.cin_vq8_classifier()
    monkeypatch.setattr(guides, "read_config", lambda path: judge)
    guided = ldm.cin_vq8()
    guided.sample.classifier = "judge.safetensors"
    assert guides.make_log_prob(guided) is not None
    judge.autoencoder.codes = 5
    with pytest.raises(ConfigError, match="are of other latents, or one of pixels"):
        guides.make_log_prob(guided)
    del judge.autoencoder
    with pytest.raises(ConfigError, match="are of other latents, or one of pixels"):
        guides.make_log_prob(guided)
