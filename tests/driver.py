"""Runs entry points in forked children, so that a test suite pays for imports once.

Reads one JSON list per line, ``[module, argument, ...]``, and answers with ``{"code", "output"}``.
The libraries are imported here, but no JAX backend is started before a child forks.
"""

import gc
import importlib
import json
import os
import sys
import tempfile

from diffjax.cli import run_flags


def child(command: list[str], out: int) -> None:
    """Become ``python -m experiments.MODULE ARGUMENTS``."""
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = command
    gc.disable()  # a child does not live long
    module = importlib.import_module(f"experiments.{command[0]}")
    run_flags.run(module.main, getattr(module, "USES", ()))


def main() -> None:
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out:
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                code = 0
                try:
                    child(json.loads(line), out.fileno())
                except SystemExit as stop:
                    code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
                    if isinstance(stop.code, str):  # as Python does
                        print(stop.code, file=sys.stderr)
                except BaseException as error:  # reported to the test as a crash
                    print(f"Traceback: {error!r}", file=sys.stderr)
                    code = 99
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            _, status = os.waitpid(pid, 0)
            out.seek(0)
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "output": out.read().decode(errors="replace"),
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
