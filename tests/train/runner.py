"""`experiments.train` again and again, each run in a fork of one process that has its imports.

Reads jobs as JSON lines {"argv", "env", "output"}; answers each with its process id when it starts
and with its exit code (negative: the signal that killed it) when it has ended.
"""

import json
import os
import sys
import time

from experiments import common
from experiments import train as entry
from tests.train.tiny import make_task

REAL_TASK = common.task_of


def _tiny_task(cfg):
    """The tiny task where the job asks for it, with its fault; data and the rest stay real."""
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


def _child(job):
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(job["env"])
    sys.argv = ["train", *job["argv"]]
    common.task_of = _tiny_task
    real = common.batches_of
    common.batches_of = lambda cfg, source: _slower(real(cfg, source))
    common.run(entry.main)


def main():
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            _child(job)
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
