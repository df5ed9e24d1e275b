"""Losses of diffusers' training scripts: weights by SNR, noise, text encoders, edits, LCM."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffjax import losses  # noqa: E402
from diffjax.config import make_section  # noqa: E402
from diffjax.model.channel_conditions import CONCATS, EDIT  # noqa: E402
from diffjax.model.published import make_published_model  # noqa: E402
from diffjax.pretrained.state_dict import iterate_state  # noqa: E402
from diffjax.tasks import make_diffusion_task  # noqa: E402
from diffjax.tasks.consistency_task import measure_inconsistency  # noqa: E402
from tests.parity import generate_cases as g  # noqa: E402
from tests.parity import generate_record as record  # noqa: E402

KEY, COUNT = jax.random.key(4), 3
LIMIT = 1e-4  # relative, of losses


def load_both(family, mode, folder):
    """Our model, and their pipeline with the same weights."""
    pipe = g.pipeline(family)
    pipe.save(folder / "model")
    theirs = record.diffusers.DiffusionPipeline.from_pretrained(folder / "model")
    return pipe, make_published_model(pipe.parts), theirs


def to_torch(value):
    """An array (B, H, W, C) as theirs, or one of another rank as it is."""
    value = np.array(value)
    return torch.from_numpy(value.transpose(0, 3, 1, 2).copy() if value.ndim == 4 else value)


def measure(pipe, model, weight=None, noise=losses.draw_noise, gradient=None, **more):
    """Our loss of a batch, and what it is of: latents, times, noise and token ids.

    Args:
        gradient: a list, to which that of the parameters is appended.
    """
    times = losses.uniform(model.schedule)
    task = make_diffusion_task(model, weight=weight, times=times, noise=noise)
    rng = np.random.default_rng(0)
    text = pipe.parts.texts["text_encoder"]
    ids = np.concatenate([text.tokenizer.plain(p).ids for p in (g.PROMPTS * 2)[:COUNT]])
    images = jnp.asarray(rng.uniform(-1, 1, (COUNT, 16, 16, 3)), jnp.float32)
    batch = {"image": images, "text": jnp.asarray(ids), **more}
    extra = {"times": times.init(), **model.statistics}
    given = (model.params, model.frozen, extra, KEY, 0, batch)
    if gradient is None:
        value, _ = jax.jit(task.loss)(*given)
    else:
        (value, _), found = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(*given)
        gradient.append(found)
    time_key, noise_key, _ = jax.random.split(KEY, 3)
    x, _ = model.space.enter(model.frozen, extra, jax.random.fold_in(KEY, 5), batch)
    t, _ = times.draw(time_key, extra["times"], COUNT)
    eps, _ = losses.draw_noise(noise_key, x.shape)
    return float(value), [to_torch(v) for v in (x, t, eps, ids)]


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_weights_by_snr(family, tmp_path):
    """``snr_gamma=5`` of the text-to-image scripts, for noise and for velocity."""
    pipe, model, theirs = load_both(family, "text", tmp_path)
    value, (x, t, eps, ids) = measure(pipe, model, losses.min_snr(5.0))
    scheduler, steps = theirs.scheduler, t.long()
    noisy, abar = scheduler.add_noise(x, eps, steps), scheduler.alphas_cumprod[steps]
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x, eps, steps) if velocity else eps
    with torch.no_grad():
        found = theirs.unet(noisy, steps, theirs.text_encoder(ids.long())[0]).sample
    snr = abar / (1 - abar)
    weights = snr.clamp(max=5.0) / (snr + 1 if velocity else snr)
    wanted = (weights * ((found - target) ** 2).mean((1, 2, 3))).mean()
    np.testing.assert_allclose(value, wanted.item(), rtol=LIMIT)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize(("offset", "perturbation"), [(0.3, 0.0), (0.0, 0.4), (0.3, 0.4)])
def test_noise_that_is_offset_or_perturbed(family, offset, perturbation, tmp_path):
    """``noise_offset`` and ``input_perturbation`` of the text-to-image scripts.

    The target has the offset, and the input has both.
    """
    pipe, model, theirs = load_both(family, "text", tmp_path)
    draw = partial(losses.draw_noise, offset=offset, perturbation=perturbation)
    value, (x, t, eps, ids) = measure(pipe, model, noise=draw)
    key, (count, channels, *sides) = jax.random.split(KEY, 3)[1], x.shape
    means = jax.random.normal(jax.random.fold_in(key, 1), (count, 1, 1, channels))
    other = jax.random.normal(jax.random.fold_in(key, 2), (count, *sides, channels))
    noise = eps + offset * to_torch(means)
    scheduler, steps = theirs.scheduler, t.long()
    noisy = scheduler.add_noise(x, noise + perturbation * to_torch(other), steps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x, noise, steps) if velocity else noise
    with torch.no_grad():
        found = theirs.unet(noisy, steps, theirs.text_encoder(ids.long())[0]).sample
    wanted = torch.nn.functional.mse_loss(found, target)
    np.testing.assert_allclose(value, wanted.item(), rtol=LIMIT)


def test_training_of_a_whole_text_encoder(tmp_path):
    """``train_text_encoder`` of DreamBooth's script: the loss, and its gradient by every weight."""
    pipe, model, theirs = load_both("sd1", "text", tmp_path)
    trained = {**model.params, "text_encoder": model.frozen["text_encoder"]}
    rest = {name: part for name, part in model.frozen.items() if name != "text_encoder"}
    model, gradient = model._replace(params=trained, frozen=rest), []
    value, (x, t, eps, ids) = measure(pipe, model, gradient=gradient)
    encoder, steps = theirs.text_encoder, t.long()
    noisy = theirs.scheduler.add_noise(x, eps, steps)
    loss = torch.nn.functional.mse_loss(
        theirs.unet(noisy, steps, encoder(ids.long())[0]).sample, eps
    )
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=LIMIT)
    ours = dict(iterate_state(gradient[0]["text_encoder"]))
    wanted = {
        key if key.startswith("text_model.") else f"text_model.{key}": weight.grad.numpy()
        for key, weight in encoder.named_parameters()
    }
    assert ours.keys() == wanted.keys()
    largest = max(np.abs(one).max() for one in wanted.values())
    assert largest > 1e-6
    for key, one in wanted.items():
        np.testing.assert_allclose(ours[key], one, rtol=0, atol=LIMIT * largest, err_msg=key)


def test_edits_by_instruction(tmp_path):
    """The picture before an edit is the mode of its posterior, not scaled, beside noisy latents."""
    pipe, model, theirs = load_both("edit", "edit", tmp_path)
    text, part = model.condition, CONCATS[EDIT](None, model.space)

    def encode(params, frozen, extra, raw):
        return {
            **text.encode(params, frozen, extra, {"text": raw["text"]}),
            **part.encode(params, frozen, extra, raw[EDIT]),
        }

    def take(batch, key):
        return {**text.take(batch, key), EDIT: part.take(batch, key)}

    model = model._replace(condition=text._replace(take=take, encode=encode))
    before = np.random.default_rng(1).uniform(0, 1, (COUNT, 16, 16, 3)).astype("f4")
    value, (x, t, eps, ids) = measure(pipe, model, hint=jnp.asarray(before))
    steps = t.long()
    with torch.no_grad():
        given = theirs.vae.encode(2 * to_torch(before) - 1).latent_dist.mode()
        noisy = torch.cat([theirs.scheduler.add_noise(x, eps, steps), given], 1)
        found = theirs.unet(noisy, steps, theirs.text_encoder(ids.long())[0]).sample
    wanted = torch.nn.functional.mse_loss(found, eps)
    np.testing.assert_allclose(value, wanted.item(), rtol=LIMIT)


def test_lcm_distillation(tmp_path):
    """As train_lcm_distill_lora_sd_wds.py: a guided DDIM step of the teacher, pseudo-Huber."""
    _, model, theirs = load_both("sd1", "text", tmp_path)
    section = ConfigDict(make_section("consistency"))
    student = model._replace(params=jax.tree.map(lambda leaf: 1.05 * leaf, model.params))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, 8, 8, 4)).astype("f4")
    said, silent = rng.normal(size=(2, COUNT, g.LENGTH, 6)).astype("f4")
    conds = {"context": jnp.asarray(said)}, {"context": jnp.asarray(silent)}
    value = measure_inconsistency(student, model, section, jnp.asarray(x), conds, KEY)

    time_key, noise_key, scale_key = jax.random.split(KEY, 3)
    place = np.asarray(jax.random.randint(time_key, (COUNT,), 1, section.steps + 1)) - 1
    eps = to_torch(jax.random.normal(noise_key, x.shape))
    w = jax.random.uniform(scale_key, (COUNT,), minval=section.low, maxval=section.high)
    w, x, said, silent = to_torch(w)[:, None, None, None], *map(to_torch, (x, said, silent))
    abar, skip = theirs.scheduler.alphas_cumprod, 1000 // section.steps
    grid = np.arange(1, section.steps + 1) * skip - 1
    start = torch.from_numpy(grid[place])
    before = (start - skip).clamp(min=0)
    previous = torch.cat([abar[:1], abar[grid[:-1]]])[place]

    def shape(value):
        return value.reshape(-1, 1, 1, 1)

    def predict(unet, z, t, context):
        noise = unet(z, t, context).sample
        alpha = shape(abar[t])
        return (z - (1 - alpha).sqrt() * noise) / alpha.sqrt(), noise

    def bound(z, t, x):
        scaled = section.timestep_scaling * t.double()
        skipped, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
        return shape(skipped.float()) * z + shape(out.float()) * x

    teacher, pupil = theirs.unet, type(theirs.unet).from_config(theirs.unet.config).eval()
    pupil.load_state_dict({k: 1.05 * v for k, v in teacher.state_dict().items()})
    with torch.no_grad():
        z = theirs.scheduler.add_noise(x, eps, start)
        ours = bound(z, start, predict(pupil, z, start, said)[0])
        (x_c, e_c), (x_u, e_u) = (predict(teacher, z, start, one) for one in (said, silent))
        guided_x, guided_e = x_c + w * (x_c - x_u), e_c + w * (e_c - e_u)
        low = shape(previous).sqrt() * guided_x + (1 - shape(previous)).sqrt() * guided_e
        target = bound(low, before, predict(pupil, low, before, said)[0])
        wanted = (((ours - target) ** 2 + section.huber**2).sqrt() - section.huber).mean()
    np.testing.assert_allclose(float(value), wanted.item(), rtol=LIMIT)
