"""The command `diffjax`: what the package does without a checkout of the repository.

The first argument names a command. Its module is imported only then, so that help and errors come
at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import diffjax
from diffjax.cli.output import stop_with_reader

# Commands of the package: NAME is the function `main` of diffjax.cli.NAME_command.
COMMANDS = {
    "generate": "make images of prompts with a Stable Diffusion model",
    "web": "serve a web page to try a Stable Diffusion model on",
    "evaluate": "measure a run, or images",
    "export": "write the weights of a run as one file or a diffusers folder",
}
# Commands that need configs: each is a module of experiments/, beside which configs/ lies.
CHECKOUT_COMMANDS = {
    "train": "train a config, or go on with a run",
    "sample": "make images with a trained run",
    "plan": "show the size and the cost of a config",
    "sweep": "train many variants of a config",
    "report": "write a page about a run",
    "reproduce": "measure the results of a paper again",
}


def main() -> None:
    """Run the command that the first argument names.

    Raises:
        SystemExit: with code 0 after --help or --version, 2 if there is no such command, and
            otherwise with the code of the command.
    """
    name, *arguments = sys.argv[1:] or [""]
    if name in ("--help", "-h", "help"):
        with stop_with_reader():
            print(format_commands())
    elif name == "--version":
        print(f"diffjax {diffjax.__version__}")
    elif name in COMMANDS:
        run_command(name, arguments)
    else:
        print(explain_name(name), file=sys.stderr)
        sys.exit(2)


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Run a command of `COMMANDS` as if it had been started by itself.

    Args:
        name: of the command.
        arguments: what follows the name on the command line.

    Raises:
        SystemExit: with the exit code of the command, if it is not 0.
    """
    sys.argv = [f"diffjax {name}", *arguments]
    from diffjax.cli.command_line import run  # imports JAX

    module = importlib.import_module(f"diffjax.cli.{name}_command")
    if uses := getattr(module, "USES", ()):  # flags of runs
        from diffjax.cli.run_flags import run as run_with_flags

        run_with_flags(module.main, uses)
    else:
        run(module.main)


def format_commands() -> str:
    """Format the help of `diffjax`: every command with a line about it."""

    def list_commands(commands: dict[str, str]) -> list[str]:
        return [f"  {name:<11}{text}" for name, text in commands.items()]

    return "\n".join([
        f"diffjax {diffjax.__version__}: diffusion models in JAX.",
        "",
        "    diffjax COMMAND --help",
        "",
        "Commands:",
        *list_commands(COMMANDS),
        "Commands that run from a checkout, as python -m experiments.COMMAND:",
        *list_commands(CHECKOUT_COMMANDS),
    ])  # fmt: skip


def explain_name(name: str) -> str:
    """Explain why a name is no command of the package, and what to type instead."""
    if name in CHECKOUT_COMMANDS:
        return (
            f"error: diffjax {name} needs the configs of the repository: run from a checkout. Type "
            "git clone and the address of the repository, make venv in its folder, and there "
            f".venv/bin/python -m experiments.{name} --help"
        )
    if not name:
        return format_commands()
    from diffjax.types import suggest  # imports JAX

    near = suggest(name, [*COMMANDS, *CHECKOUT_COMMANDS])
    return f"error: diffjax has no command {name!r}; diffjax --help lists the commands{near}"


if __name__ == "__main__":
    main()
