"""Output to a reader that may leave early, such as head."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def stop_with_reader() -> Iterator[None]:
    """Flush the output at the end of the context.

    If the reader of a pipe has left, the process ends without a message.

    Raises:
        SystemExit: with code 1, if the reader has left.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left goes nowhere, or Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
