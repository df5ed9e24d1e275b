"""Losses of personal training, as the training scripts of diffusers compute them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffjax import losses  # noqa: E402
from diffjax.model.published import make_published_model  # noqa: E402
from diffjax.tasks import make_diffusion_task  # noqa: E402
from diffjax.tasks.concept_task import join_rows  # noqa: E402
from tests.parity import generate_cases as g  # noqa: E402
from tests.parity import generate_record as record  # noqa: E402

WEIGHT = 0.7  # of the prior


def make_loss(pipe, ids, key):
    """The loss of the rows of a word with prior preservation, and the noisy inputs it is of."""
    model = make_published_model(pipe.parts)
    times = losses.uniform(model.schedule)
    task = make_diffusion_task(model, times=times)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (len(ids), 16, 16, 3)), jnp.float32)
    weight = jnp.asarray([2.0, 2 * WEIGHT] * (len(ids) // 2), jnp.float32)
    batch = {"image": images, "text": jnp.asarray(ids), "weight": weight}
    extra = {"times": times.init(), **model.statistics}
    frozen = {**model.frozen, "base": model.params}

    def loss(rows):
        joined = join_rows({"text_encoder": {"embedding": rows}}, frozen)
        return task.loss(joined, frozen, extra, key, 0, batch)[0]

    time_key, noise_key, _ = jax.random.split(key, 3)
    x, _ = model.space.enter(frozen, extra, jax.random.fold_in(key, 5), batch)
    t, _ = times.draw(time_key, extra["times"], len(ids))
    eps, _ = losses.draw_noise(noise_key, x.shape)
    return loss, [np.asarray(v) for v in (x, t, eps)]


def test_prior_preservation_and_the_gradient_of_a_word(tmp_path):
    pipe = g.pipeline("sd1")
    text = pipe.parts.texts["text_encoder"]
    ids = np.concatenate([text.tokenizer.plain(p).ids for p in (g.PROMPTS * 4)[:4]])
    table = text.model.params["text_model.embeddings.token_embedding"]["embedding"]
    ids[:2, 2] = len(table)  # the new word, in two of the texts
    rows = np.random.default_rng(1).normal(size=(1, table.shape[1])).astype("f4")
    loss, (x, t, eps) = make_loss(pipe, ids, jax.random.key(4))
    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(rows))

    pipe.save(tmp_path / "model")
    theirs = record.diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")
    encoder, unet = theirs.text_encoder, theirs.unet
    encoder.resize_token_embeddings(len(table) + 1)
    embedding = encoder.get_input_embeddings().weight
    with torch.no_grad():
        embedding[-1] = torch.from_numpy(rows[0])
    x, eps = (torch.from_numpy(v.transpose(0, 3, 1, 2).copy()) for v in (x, eps))
    steps = torch.from_numpy(t).long()
    noisy = theirs.scheduler.add_noise(x, eps, steps)
    found = unet(noisy, steps, encoder(torch.from_numpy(ids).long())[0]).sample
    mse = torch.nn.functional.mse_loss
    total = mse(found[0::2], eps[0::2]) + WEIGHT * mse(found[1::2], eps[1::2])
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-4)
    wanted = embedding.grad[-1].numpy()
    np.testing.assert_allclose(slope[0], wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_the_gradient_of_a_word_in_both_encoders_of_xl(tmp_path):
    """As textual_inversion_sdxl.py, which trains the first encoder, with the second one too."""
    pipe, key = g.pipeline("xl"), jax.random.key(4)
    model = make_published_model(pipe.parts)
    times = losses.uniform(model.schedule)
    task = make_diffusion_task(model, times=times)
    rng, count = np.random.default_rng(0), 2
    entries = dict(zip(("text", "text_2"), pipe.parts.texts.items(), strict=True))
    batch = {"image": jnp.asarray(rng.uniform(-1, 1, (count, 16, 16, 3)), jnp.float32)}
    batch["time_ids"] = jnp.asarray([[16, 16, 0, 0, 16, 16]] * count, jnp.float32)
    rows, ids = {}, {}
    for entry, (name, text) in entries.items():
        ids[entry] = np.concatenate([text.tokenizer.plain(p).ids for p in g.PROMPTS])
        table = text.model.params["text_model.embeddings.token_embedding"]["embedding"]
        ids[entry][:, 2] = len(table)  # the new word
        rows[name] = {"embedding": rng.normal(size=(1, table.shape[1])).astype("f4")}
        batch[entry] = jnp.asarray(ids[entry])
    extra = {"times": times.init(), **model.statistics}
    frozen = {**model.frozen, "base": model.params}

    def loss(rows):
        return task.loss(join_rows(rows, frozen), frozen, extra, key, 0, batch)[0]

    value, slope = jax.jit(jax.value_and_grad(loss))(rows)
    time_key, noise_key, _ = jax.random.split(key, 3)
    x, _ = model.space.enter(frozen, extra, jax.random.fold_in(key, 5), batch)
    t, _ = times.draw(time_key, extra["times"], count)
    eps, _ = losses.draw_noise(noise_key, x.shape)

    pipe.save(tmp_path / "model")
    theirs = record.diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")
    x, eps = (torch.from_numpy(np.asarray(v).transpose(0, 3, 1, 2).copy()) for v in (x, eps))
    hidden, tables = [], {}
    for entry, (name, _) in entries.items():
        encoder = getattr(theirs, name)
        encoder.resize_token_embeddings(int(ids[entry].max()) + 1)
        tables[name] = encoder.get_input_embeddings().weight
        with torch.no_grad():
            tables[name][-1] = torch.from_numpy(rows[name]["embedding"][0])
        out = encoder(torch.from_numpy(ids[entry]).long(), output_hidden_states=True)
        hidden.append(out.hidden_states[-2])
    added = {"text_embeds": out[0], "time_ids": torch.from_numpy(np.asarray(batch["time_ids"]))}
    steps = torch.from_numpy(np.asarray(t)).long()
    noisy = theirs.scheduler.add_noise(x, eps, steps)
    found = theirs.unet(noisy, steps, torch.cat(hidden, -1), added_cond_kwargs=added).sample
    total = torch.nn.functional.mse_loss(found, eps)
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-4)
    for name, table in tables.items():
        wanted, ours = table.grad[-1].numpy(), slope[name]["embedding"][0]
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
