"""`experiments.train` again and again, each run in a fork of one process that has its imports.

Reads jobs as JSON lines {"argv", "env", "output"}; answers each with its process id when it starts
and with its exit code (negative: the signal that killed it) when it has ended.
"""

import json
import os
import sys

from tests.train import entry


def _child(job):
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(job["env"])
    sys.argv = ["train", *job["argv"]]
    entry.main()


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
