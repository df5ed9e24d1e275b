"""How every entry point starts and ends: flags, messages without a traceback, exit codes.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | an error; the message says which |
| 2 | wrong flags or config |
| 130, 140, 143 | stopped by Ctrl-C, SIGUSR2, SIGTERM |

`run` calls an entry point's ``main``. Errors that a user can mend are `types.ConfigError` and exit
with 2; other expected errors (ValueError, OSError, RuntimeError) exit with 1. Both print one
message. The environment variable ``DIFFJAX_TRACEBACK`` shows the traceback as well.
"""

from __future__ import annotations

import contextlib
import logging as std_logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from diffjax.cli.help_pages import (
    FULL,
    Command,
    describe_command,
    find_help,
    format_full_help,
    format_help,
)
from diffjax.cli.output import stop_with_reader
from diffjax.types import ConfigError, refuse_config, suggest

__all__ = [
    "WANTED",
    "UsageError",
    "find_flag",
    "is_ours",
    "name_keys",
    "refuse_config",
    "run",
]

# What a value has to be, by absl's name of the type.
WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "values with commas between them",
}


class UsageError(ConfigError):
    """Flags are wrong. The message is shown without a traceback, and the exit code is 2."""


@contextlib.contextmanager
def name_keys(keys: Mapping[str, str]) -> Iterator[None]:
    """Replace names of arguments in messages of the library by the flags that a user typed.

    Args:
        keys: what to write in the place of each argument, such as ``{"num": "--num"}``.

    Raises:
        ValueError, OSError: those of the context, with the names replaced.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error)
        for argument, key in keys.items():
            text = re.sub(rf"(?<![\w.-]){argument}\b", key, text)
        if len(error.args) != 1 or text == str(error):
            raise
        raise type(error)(text) from error


def run(
    main: Callable[[], None],
    takes: Sequence[str] = (),
    *,
    prepare: Callable[[list[str]], list[str]] = lambda argv: argv,
    explain: Callable[[Exception], str] = str,
) -> None:
    """Run an entry point: read the flags, call ``main``, and print expected errors as one message.

    With --help or --helpfull the help is printed instead. The module of ``main`` may order its
    flags in ``FLAG_GROUPS``, see `help_pages`.

    Args:
        main: the entry point. It reads its flags itself.
        takes: flags that other modules define and this command uses. All others are refused.
        prepare: changes the arguments before they are read.
        explain: makes the message of an error in the arguments.

    Raises:
        SystemExit: with the exit code, see the table above.
    """
    command = describe_command(Path(sys.argv[0]).stem, main, takes)
    if asked := find_help(sys.argv):
        with stop_with_reader():
            print(format_full_help(command) if asked in FULL else format_help(command))
        sys.exit(0)

    def run_main(argv: list[str]) -> None:
        _quiet_libraries()
        try:
            _refuse_unused(argv, command)
            with stop_with_reader():
                main()
        except KeyboardInterrupt:
            _fail("stopped by Ctrl-C", 130)
        except Exception as error:
            _report(error)

    try:
        sys.argv = prepare(sys.argv)
        app.run(run_main, flags_parser=lambda argv: _parse(argv, explain))
    except (OSError, AttributeError, KeyError, ValueError, TypeError) as error:  # in flag parsing
        if os.environ.get("DIFFJAX_TRACEBACK"):
            raise
        _fail(f"error: {explain(error)}", 2)


def find_flag(argv: Sequence[str], name: str) -> str | None:
    """Find the value of a flag among arguments that have not been parsed yet.

    Args:
        argv: arguments, such as ``sys.argv``.
        name: of the flag, which is written --name=VALUE or --name VALUE.

    Returns:
        The value; None if the flag is not there.
    """
    for argument, after in zip(argv, [*argv[1:], ""], strict=True):
        key, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and key == name:
            return value if equals else after
    return None


def _fail(message: str, code: int) -> None:
    """Print a message to the standard error, and exit with a code."""
    print(message, file=sys.stderr)
    sys.exit(code)


def _report(error: Exception) -> None:
    """Print what went wrong, and exit.

    Expected errors are printed as a sentence, others with their traceback. If JAX has no device,
    that is said instead, since it is what the error came from.
    """
    if os.environ.get("DIFFJAX_TRACEBACK"):
        raise error
    if reason := _explain_backend():
        _fail(f"error: {reason}", 1)
    if isinstance(error, ConfigError):
        _fail(f"error: {error}", 2)
    if isinstance(error, (ValueError, OSError, RuntimeError)):
        _fail(f"error: {error}\n(set DIFFJAX_TRACEBACK=1 to see where)", 1)
    traceback.print_exception(error)  # not expected: the reader of the report needs it
    sys.exit(1)


def _explain_backend() -> str | None:
    """Explain why JAX has no device; None if it has one."""
    try:
        jax.devices()
        return None
    except Exception:  # JAX raises an AssertionError without a message, among others
        wanted = jax.config.jax_platforms  # type: ignore[attr-defined]  # not its `read`, which raises
        return (
            f"JAX finds no device for JAX_PLATFORMS={wanted!r}. Unset it, set it to cpu, or "
            "install the JAX of your accelerator (pip install 'diffjax[cuda]' or 'diffjax[tpu]')"
        )


def _parse(argv: list[str], explain: Callable[[Exception], str]) -> list[str]:
    """Read the flags from the arguments, and return what is no flag; wrong flags exit with 2."""
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        _fail(f"error: {_explain_unknown(error.flagname)}", 2)
    except flags.Error as error:
        _fail(f"error: {_explain_value(error)}", 2)
    raise AssertionError


def _explain_unknown(name: str) -> str:
    """Name the flag that is closest to an unknown one.

    Keys of the config are left out: they have a message of their own.
    """
    known = [n for n in flags.FLAGS if not n.startswith("config.")]
    return f"unknown flag --{name}; --help lists the flags{suggest(name, known)}"


def _explain_value(error: flags.Error) -> str:
    """Explain which values a flag takes, from absl's message about a wrong value."""
    text = str(error)
    found = re.match(r"flag --?([^\s=]+)=(.*?): (.*)", text, re.DOTALL)
    if not found or found[1] not in flags.FLAGS:
        return text
    name, value, reason = found.groups()
    wanted = WANTED.get(flags.FLAGS[name].flag_type())
    if "other than None" in reason:
        return f"--{name} is needed: {flags.FLAGS[name].help}"
    if wanted and any(word in reason for word in ("could not convert", "invalid", "Non-boolean")):
        return f"--{name} takes {wanted}, got {value!r}"
    return f"--{name}={value}: {reason}"


def is_ours(module: str | None) -> bool:
    """Whether a module that defines flags belongs to diffjax or its experiments."""
    return module is not None and (
        module.startswith(("diffjax.", "experiments.")) or module == sys.argv[0]
    )


def _refuse_unused(argv: Sequence[str], command: Command) -> None:
    """Refuse arguments that the command would not use.

    Raises:
        UsageError: arguments that are no flags, or flags of ours that this command does not use.
    """
    if len(argv) > 1:
        raise UsageError(f"unexpected arguments: {' '.join(argv[1:])}; flags are --NAME=VALUE")
    used = set(command.flags)
    for name in flags.FLAGS:
        module = flags.FLAGS.find_module_defining_flag(name)
        root = name.partition(".")[0]
        if flags.FLAGS[name].present and is_ours(module) and not {name, root} & used:
            raise UsageError(
                f"{command.name} does not use --{name}; --help lists the flags that it does"
            )


def _quiet_libraries() -> None:
    """Show our own messages, and only warnings of others: Orbax alone logs dozens of lines."""

    loaded = (sys.modules.get(name) for name in ("diffjax", "experiments"))
    files = [module.__file__ for module in loaded if module]
    ours_are = tuple(str(Path(file).parent) + os.sep for file in files if file)

    def is_shown(record: std_logging.LogRecord) -> bool:
        return record.levelno >= std_logging.WARNING or record.pathname.startswith(ours_are)

    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(is_shown)
