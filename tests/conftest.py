import os
import signal
import tempfile
from pathlib import Path

# Tests compile hundreds of small programs once each: compile fast rather than run fast. Child
# processes inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# `diffjax.load` keeps compiled programs there; not among the user's files.
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "diffjax-tests")
# A shell ignores Ctrl-C for what it runs in the background, and so would the tests of Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
