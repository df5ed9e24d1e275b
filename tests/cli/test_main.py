"""The command `diffjax`: what it lists, what it starts, and what it says of other names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import diffjax
from diffjax.cli.__main__ import CHECKOUT_COMMANDS, COMMANDS

ROOT = Path(__file__).parents[2]


def _run(folder, *arguments, module="diffjax.cli"):
    """Start a command in a folder that is no checkout: (exit code, stdout, stderr)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_command_with_a_line(tmp_path, flag):
    code, out, _ = _run(tmp_path, flag)
    lines = out.splitlines()
    assert code == 0 and len(lines) <= 40
    for name, text in {**COMMANDS, **CHECKOUT_COMMANDS}.items():
        assert any(line.split(maxsplit=1) == [name, text] for line in lines), name


def test_version(tmp_path):
    assert _run(tmp_path, "--version") == (0, f"diffjax {diffjax.__version__}\n", "")


def test_listing_commands_imports_no_jax():
    code = (
        "import sys; sys.argv = ['diffjax', '--help']; import diffjax.cli.__main__ as m; m.main();"
        "assert not {'jax', 'absl', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("name", CHECKOUT_COMMANDS)
def test_commands_of_a_checkout_say_how_they_are_run(tmp_path, name):
    code, out, said = _run(tmp_path, name, "--config=configs/ddpm.py:digits")
    assert code == 2 and not out and "Traceback" not in said
    assert "run from a checkout" in said and f"python -m experiments.{name} --help" in said
    assert (ROOT / "experiments" / f"{name}.py").exists()


def test_an_unknown_command_suggests_the_closest(tmp_path):
    code, _, said = _run(tmp_path, "genrate")
    assert code == 2 and "no command 'genrate'" in said and "Did you mean 'generate'?" in said
    code, _, said = _run(tmp_path)
    assert code == 2 and "Commands:" in said
    code, _, said = _run(tmp_path, "--verison")
    assert code == 2 and "no command '--verison'" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_start_outside_of_a_checkout(tmp_path, name):
    first = "model" if name in ("generate", "web") else "workdir"
    code, out, _ = _run(tmp_path, name, "--help")
    assert code == 0 and f"diffjax {name} --{first}=" in out


def test_what_is_needed_or_unknown_outside_of_a_checkout(tmp_path):
    code, _, said = _run(tmp_path, "export")
    assert code == 2 and "error: --config=FILE:VARIANT is needed" in said
    code, _, said = _run(tmp_path, "generate", "--workdir=x")
    assert code == 2 and "unknown flag --workdir" in said


def test_an_image_is_made_outside_of_a_checkout(tmp_path):
    model = ROOT / "docs/results/models/small-model"
    code, _, said = _run(
        tmp_path, "generate", f"--model={model}", "--prompt=a red circle", "--steps=1"
    )
    assert code == 0, said
    assert [path.name for path in (tmp_path / "generated").iterdir()] == ["00000.png"]


def test_a_config_that_lies_in_a_checkout_is_said_to(tmp_path):
    code, _, said = _run(
        tmp_path, "--config=configs/ddpm.py:digits", "--dry_run", module="experiments.train"
    )
    assert code == 2 and "run from a checkout" in said and "Traceback" not in said


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--helpfull"]])
def test_a_reader_that_leaves_early_sees_no_traceback(arguments):
    command = [sys.executable, "-m", "diffjax.cli", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
