"""The command `diffjax web` in a checkout: python -m experiments.web."""

from diffjax.cli.command_line import run
from diffjax.cli.web_command import main

if __name__ == "__main__":
    run(main)
