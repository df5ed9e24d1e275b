"""The package as somebody uses it who has not read it: the snippets of docs/library.md."""

import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax
from diffjax import losses, schedules, tasks, types
from diffjax.model import UNCONDITIONAL, Model, make_pixel_space
from diffjax.parameterization import eps

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "library.md"


def snippets():
    """The code blocks of the page that are Python, by their first comment."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.S)
    return {block.splitlines()[0].lstrip("# "): block for block in blocks}


def test_importing_is_fast_and_says_what_there_is():
    code = (
        "import sys, diffjax; before = set(sys.modules); names = dir(diffjax);"
        "assert not {'flax', 'optax', 'orbax'} & before, 'loaded at import';"
        "assert {'open', 'draw', 'fit', 'load', 'schedules'} <= set(names);"
        "[getattr(diffjax, name) for name in names]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(diffjax.__all__) == set(dir(diffjax))
    with pytest.raises(AttributeError, match=r"no attribute 'schedule'\. Did you mean 'schedules'"):
        _ = diffjax.schedule


def test_one_page_trains_saves_opens_draws_and_evaluates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, blocks = {}, snippets()
    assert list(blocks) == ["train", "draw", "evaluate", "a run", "save"]
    for name in ("train", "draw", "evaluate"):
        small = blocks[name].replace("steps=1000", "steps=30").replace("num=500", "num=40")
        exec(compile(small, name, "exec"), names)  # the page itself
    assert names["images"].shape == (16, 8, 8, 1) and np.abs(names["images"]).max() <= 1
    assert names["losses"][-1] < names["losses"][0]
    assert names["scores"]["distance"] > 0
    kept = ROOT / "docs/results/models/cfg14-p10.safetensors"
    diffjax.save(diffjax.open(kept), "runs/digits")
    for name in ("a run", "save"):
        exec(compile(blocks[name].replace("num=16", "num=1, steps=2"), name, "exec"), names)
    jax.tree.map(np.testing.assert_array_equal, names["again"].params, names["model"].params)
    assert names["again"].source.step == names["model"].source.step > 0


class Tiny(nn.Module):
    """A network of one's own."""

    @nn.compact
    def __call__(self, z, t, cond=None, train=False):
        shift = nn.Dense(4)(jnp.sin(t[:, None] / 100))[:, None, None]
        return nn.Conv(z.shape[-1], (3, 3))(nn.silu(nn.Conv(4, (3, 3))(z) + shift))


def make_model():
    return Model(schedules.cosine(100), eps(), Tiny(), make_pixel_space((4, 4, 1)), UNCONDITIONAL)


def make_batches(count, label=False):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {"image": rng.uniform(-1, 1, (8, 4, 4, 1)).astype(np.float32)}


def test_fit_trains_a_module_of_ones_own_with_any_optimizer():
    seen = []
    task = diffjax.diffusion_task(make_model(), weight=losses.min_snr(5.0))
    state = diffjax.fit(
        task,
        make_batches(40),
        40,
        optimizer=optax.lion(3e-3),
        on_metrics=lambda step, metrics: seen.append((step, metrics["loss"])),
        log_every=20,
    )
    assert [step for step, _ in seen] == [20, 40] and int(state.step) == 40
    model = make_model()._replace(params=state.ema)
    images = diffjax.draw(model, num=5, sampler="heun", grid="linspace", steps=3, seed=1)
    again = diffjax.draw(
        model, num=3, sampler="heun", grid="linspace", steps=3, seed=1, batch_size=2
    )
    np.testing.assert_allclose(images[:3], again, atol=1e-5)


def test_fit_says_what_is_wrong():
    task = diffjax.diffusion_task(make_model())
    with pytest.raises(ValueError, match="batches for 2 of 3 steps"):
        diffjax.fit(task, make_batches(2), 3)
    with pytest.raises(ValueError, match="not finite at step 1"):
        diffjax.fit(task, [{"image": np.full((8, 4, 4, 1), np.nan, np.float32)}], 1)
    model = make_model()._replace(params={})
    with pytest.raises(ValueError, match="labels are for models that are given classes"):
        diffjax.draw(model, labels=[1])


def test_each_new_part_is_one_entry(monkeypatch):
    """A schedule, a network and a task of somebody else's; tests/evaluation has the metric."""
    from diffjax import config, runs
    from diffjax.model import build

    def flat(steps: int = 10):
        return schedules.from_betas(np.full(steps, 0.3))

    monkeypatch.setitem(schedules.SCHEDULES, "flat", flat)
    monkeypatch.setitem(
        build.NETWORKS, "tiny", lambda out_channels, num_classes=0, dtype=None: Tiny()
    )

    def make_ones_task(cfg, image_shape, levels=256, num_classes=0):
        def init(key, frozen, batch):
            return {"w": jnp.zeros(image_shape)}, {}

        def loss(params, frozen, extra, key, step, batch):
            value = jnp.square(batch["image"] - params["w"]).mean()
            return value, (extra, {"loss": value})

        return types.Task(init, loss)

    monkeypatch.setitem(tasks.TASKS, "ones", tasks.TaskKind(make_ones_task, None))
    cfg = config.make({"schedule.name": "flat", "schedule.steps": 10, "data.image_size": 4})
    cfg.network.update(name="tiny")
    task = runs.build_task(cfg)
    state = diffjax.fit(task, make_batches(2), 2)
    assert set(state.params) == {"Conv_0", "Conv_1", "Dense_0"}
    assert runs.build_model(cfg).schedule.steps == 10
    cfg.task = "ones"
    state = diffjax.fit(runs.build_task(cfg), make_batches(3), 3)
    assert state.params["w"].shape == (4, 4, 1)
