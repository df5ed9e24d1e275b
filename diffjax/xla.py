"""XLA flags that correct wrong values, set before JAX starts its first backend.

jaxlib 0.10.2 computes wrong values on CPUs for some reductions under jit (jax issue 39103). The
cause is its YNNPACK fusions. Without those of reductions the values are right; without those of
convolutions too, gradients of convolutions are also about twice as fast.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import warnings

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
VALUE = "-individual_convolution,-reduce"
WRONG = (0, 10)  # major and minor number of the releases of jaxlib that need the flag


def set_cpu_flags() -> None:
    """Add the flag to ``XLA_FLAGS`` if this version of jaxlib needs it.

    A value that the user has set for the same flag stays. XLA reads the variable when the first
    backend starts. If one runs already, a RuntimeWarning tells the user what to do instead.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG in flags or _jaxlib_version()[:2] != WRONG:
        return
    if _started_on_cpu():
        warnings.warn(
            "JAX started its CPU backend before diffjax was imported. With this version of jaxlib "
            "some compiled sums are wrong (jax issue 39103). Import diffjax before the first "
            f"array is made, or set XLA_FLAGS={FLAG}={VALUE}",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}={VALUE}".strip()


def _jaxlib_version() -> tuple[int, ...]:
    """Return the version of jaxlib; () if there is no jaxlib, or if it is not made of numbers."""
    try:
        return tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:3]))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ()


def _started_on_cpu() -> bool:
    """Return whether a backend runs already and computes on the CPU."""
    bridge = sys.modules.get("jax._src.xla_bridge")  # JAX has no public function for this
    started = getattr(bridge, "backends_are_initialized", None)
    if started is None or not started():
        return False
    return sys.modules["jax"].default_backend() == "cpu"
