"""XLA flags that correct wrong values, and the folder of compiled programs.

The flags are set before JAX starts its first backend. jaxlib 0.10.2 computes wrong values on CPUs
for some reductions under jit (jax issue 39103). The cause is its YNNPACK fusions. Without those of
reductions the values are right; without those of convolutions too, gradients of convolutions are
also about twice as fast.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import sys
import warnings
from pathlib import Path

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


def keep_programs() -> None:
    """Keep compiled programs on disk, so that a later process does not compile them again.

    The folder is that of ``JAX_COMPILATION_CACHE_DIR``, or else one in the user's cache folder,
    which can be removed at any time. ``JAX_ENABLE_COMPILATION_CACHE=false`` turns this off.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(choose_program_folder()))


def choose_program_folder() -> Path:
    """Choose the folder of compiled programs for this machine, version of jaxlib, and XLA_FLAGS.

    JAX looks programs up by their content, options and version. For CPUs it leaves out which
    instructions and how many cores they were compiled for: a program for AVX-512 from a home folder
    that several machines share would end a process on another one. So each kind has a folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = ".".join(map(str, _jaxlib_version()))
    known = (version, os.environ.get("XLA_FLAGS", ""), str(os.cpu_count()), _describe_processor())
    digest = hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]
    return cache / "diffjax" / "programs" / f"jaxlib-{version}-{digest}"


def _describe_processor() -> str:
    """Describe the processor: its architecture, and where Linux tells it, its instructions."""
    lines: list[str] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(told))])


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


def set_gpu_level() -> None:
    """Compile for GPUs at XLA's optimization level O1, unless the user has set a level.

    O1 overlaps communication with computation, which costs time to compile (openxla.org,
    "Effort levels"). It replaces a list of flags, of which XLA refuses those that it does not
    know. On other devices nothing changes. This starts the backend, so call it after
    `diffjax.train.hosts.start`. ``JAX_OPTIMIZATION_LEVEL=O0`` turns it off.
    """
    import jax

    unset = jax.config.values["jax_optimization_level"] == "UNKNOWN"
    if unset and jax.default_backend() == "gpu":
        jax.config.update("jax_optimization_level", "O1")
