"""What the trainer adds to its steps, on the smallest real config: a benchmark, not a test.

    python -m tests.train.loop_cost

prints milliseconds: of the host's own work in a step, of a step, of a save, and of making a batch.
CPU time of the loop's thread stands for the host's share, so that other work on the machine does
not matter. On CPUs XLA runs a part of every program in the thread that calls it: a step counts
there for as much as a program that takes and gives as many arrays and does nearly nothing.
"""

import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from diffjax import runs
from diffjax.config import load_config
from diffjax.train import prepare, train, training_loop

STEPS, EVERY = 120, 60


def measure_costs(workdir):
    cfg = load_config("configs/ddpm.py:digits")
    cfg.train.update(steps=STEPS, log_every=20, checkpoint_every=EVERY, sample_every=0)
    source, marks, saves = runs.load_source(cfg), [], []
    start = runs.start_batches(cfg, source)

    def batches(step, sharding):
        for batch in start(step, sharding):
            marks.append((time.thread_time(), time.process_time(), time.monotonic()))
            yield batch

    inside, compiled = [], prepare.compile_step

    def watched(*arguments):
        step = compiled(*arguments)

        def call(*given):
            begun = time.thread_time()
            result = step(*given)
            inside.append(time.thread_time() - begun)
            return result

        return call

    save = training_loop.Checkpoints.save

    def timed(self, *arguments):
        begun = time.monotonic()
        save(self, *arguments)
        saves.append(time.monotonic() - begun)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop.Checkpoints, "save", timed)
        patch.setattr(prepare, "compile_step", watched)
        state = train(runs.build_task(cfg), cfg, workdir, batches)
    # From step 20 (everything compiled) up to the first checkpoint.
    thread, process, wall = (b - a for a, b in zip(marks[21], marks[EVERY], strict=True))
    steps = EVERY - 21
    cores = min(2, len(os.sched_getaffinity(0)))
    own = (thread - sum(inside[21:EVERY])) / steps
    found = {
        "host_ms": 1e3 * (own + dispatch(state)),
        "step_ms": 1e3 * process / steps / cores,  # if it had the cores to itself
        "wall_ms": 1e3 * wall / steps,
        "save_ms": 1e3 * saves[0],
    }
    host = source_batches(cfg, source)
    begun = time.process_time()
    count = sum(1 for _ in itertools.islice(host, 200))
    found["batch_ms"] = 1e3 * (time.process_time() - begun) / count
    host.close()
    return found


def dispatch(state, repeats=30):
    """Seconds of this thread to call a program with as many arrays, placed as a state's are."""
    place = jax.tree.map(lambda x: x.sharding, state)
    tree = jax.device_put(jax.tree.map(lambda x: jnp.zeros(x.ndim * (1,)), state), place)
    add = jax.jit(
        lambda tree: jax.tree.map(lambda x: x + 1, tree),
        in_shardings=(place,),
        out_shardings=place,
        donate_argnums=0,
    )
    tree = jax.block_until_ready(add(tree))
    total = 0.0
    for _ in range(repeats):
        begun = time.thread_time()
        tree = add(tree)
        total += time.thread_time() - begun
        jax.block_until_ready(tree)
    return total / repeats


def source_batches(cfg, source):
    from diffjax import data

    return data.batches(source, batch_size=cfg.data.batch_size, seed=0, step=0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="loop-cost") as folder:
        print(json.dumps(measure_costs(Path(folder))))
