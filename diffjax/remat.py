"""What networks with ``remat=auto`` compute again in the backward pass: said while they are traced.

The trainer finds the policy from the compiled step (`diffjax.train.memory`), and knows no networks;
the networks know no trainer. So the policy is a value of the context.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

# The policies that ``auto`` stands for, in the order of the work that they add.
POLICIES = ("none", "products", "blocks")
_POLICY = contextvars.ContextVar("remat", default=POLICIES[0])


@contextlib.contextmanager
def resolve_remat(policy: str) -> Iterator[None]:
    """Trace networks with ``remat=auto`` as if they had another policy.

    Args:
        policy: one of `POLICIES`.

    Raises:
        ValueError: another one.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; choose one of {', '.join(POLICIES)}")
    token = _POLICY.set(policy)
    try:
        yield
    finally:
        _POLICY.reset(token)


def read_auto_policy() -> str:
    """Return the policy that ``auto`` stands for here; ``none`` if nobody said."""
    return _POLICY.get()
