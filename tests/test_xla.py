"""The flag that keeps compiled sums right on CPUs (jax issue 39103)."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from diffjax import xla

HERE = Path(__file__).parents[1]
# In 32768^2 all bits of a float32 but the exponent are zero, so the sum is exact in any order.
SUM = """
i = jnp.arange(32769, dtype=jnp.float32)
x = jnp.stack((i, 0 * i, 0 * i), 1)
f = jax.vmap(lambda r: jnp.sum((jnp.eye(3) @ r) ** 2))
print(int(f(x)[-1]), int(jax.jit(f)(x)[-1]))
"""
JAX = "import jax, jax.numpy as jnp\n"


def run(program: str, **env: str) -> subprocess.CompletedProcess:
    outer = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    outer |= {"PYTHONPATH": str(HERE), "JAX_PLATFORMS": "cpu"}
    outer.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    return subprocess.run(
        [sys.executable, "-c", program], env={**outer, **env}, capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "program", ["import diffjax\n" + JAX + SUM, JAX + "import diffjax\n" + SUM]
)
def test_compiled_sum_is_exact(program):
    """Whichever of jax and diffjax is imported first."""
    done = run(program)
    assert done.stdout.split() == ["1073741824"] * 2
    assert "RuntimeWarning" not in done.stderr


def test_entry_points_compute_the_sum_exactly():
    assert (
        run("from diffjax.cli import run_flags\n" + JAX + SUM).stdout.split() == ["1073741824"] * 2
    )


def test_flag_of_the_user_stays():
    flag = f"{xla.FLAG}=-reduce"
    program = "import diffjax, os; print(os.environ['XLA_FLAGS'])"
    assert run(program, XLA_FLAGS=flag).stdout.strip() == flag


def test_other_flags_stay():
    program = "import diffjax, os; print(os.environ['XLA_FLAGS'])"
    flag = "--xla_force_host_platform_device_count=2"
    assert run(program, XLA_FLAGS=flag).stdout.split()[0] == flag


@pytest.mark.skipif(xla._jaxlib_version()[:2] != xla.WRONG, reason="jaxlib is right by itself")
def test_a_started_backend_is_warned_of():
    done = run("import jax; jax.devices(); import diffjax, os; print(os.environ.get('XLA_FLAGS'))")
    assert done.stdout.strip() == "None"
    assert "RuntimeWarning" in done.stderr and xla.FLAG in done.stderr


@pytest.mark.parametrize("version", [(0, 12, 0), (0, 9, 2), ()])
def test_other_versions_are_left_alone(monkeypatch, version):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(xla, "_jaxlib_version", lambda: version)
    xla.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == ""


def test_programs_have_a_folder_for_each_machine_version_and_flags(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = xla.choose_program_folder()
    assert (
        first.parent == tmp_path / "diffjax" / "programs" and xla.choose_program_folder() == first
    )
    folders = {first}
    with monkeypatch.context() as change:
        change.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        folders.add(xla.choose_program_folder())
    for name, value in (("_jaxlib_version", (0, 11, 0)), ("_describe_processor", "another")):
        with monkeypatch.context() as change:
            change.setattr(xla, name, lambda value=value: value)
            folders.add(xla.choose_program_folder())
    assert len(folders) == 4
    assert not any(tmp_path.iterdir())  # JAX makes it when there is something to keep


def test_the_folder_of_the_user_stays(tmp_path):
    program = "from diffjax import xla; import jax; xla.keep_programs()\n"
    program += "print(jax.config.values['jax_compilation_cache_dir'])"
    assert run(program, JAX_COMPILATION_CACHE_DIR=str(tmp_path)).stdout.strip() == str(tmp_path)


@pytest.mark.parametrize(
    "backend, before, after",
    [("gpu", "UNKNOWN", "O1"), ("gpu", "O0", "O0"), ("cpu", "UNKNOWN", "UNKNOWN")],
)
def test_gpus_compile_at_a_level_of_their_own(monkeypatch, backend, before, after):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    try:
        jax.config.update("jax_optimization_level", before)
        xla.set_gpu_level()
        assert jax.config.values["jax_optimization_level"] == after
    finally:
        jax.config.update("jax_optimization_level", "UNKNOWN")
