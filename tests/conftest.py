import os

# Tests compile hundreds of small programs once each: compile fast rather than run fast. Child
# processes inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
