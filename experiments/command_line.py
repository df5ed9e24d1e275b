"""Moved to `diffjax.cli.command_line`."""

from diffjax.cli.command_line import *  # noqa: F403
