"""`experiments.train` with the tiny task: python -m tests.train.entry --config=... --workdir=...

TINY_TASK in the environment asks for it, NAN_AT and STEP_SECONDS for its faults, and KILL_IN for
the end of the process in a method of `Checkpoints`; data and all the rest stay real.
"""

import os
import signal
import time

from diffjax import runs
from diffjax.cli import run_flags
from diffjax.train import Checkpoints
from experiments import train
from tests.train.tiny import make_task

REAL_TASK, REAL_BATCHES = runs.build_task, runs.start_batches


def _tiny_task(cfg):
    if "TINY_TASK" not in os.environ:
        return REAL_TASK(cfg)
    bad = os.environ.get("NAN_AT")
    return make_task(nan_at=int(bad) if bad else None)


def _slower(start):
    def batches(step, sharding):
        for batch in start(step, sharding):
            time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
            yield batch

    return batches


def _die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    if "KILL_IN" in os.environ:
        setattr(Checkpoints, os.environ["KILL_IN"], _die)
    runs.build_task = _tiny_task
    runs.start_batches = lambda cfg, source: _slower(REAL_BATCHES(cfg, source))
    run_flags.run(train.main, train.USES)


if __name__ == "__main__":
    main()
