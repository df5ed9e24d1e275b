"""The command `diffjax generate` in a checkout: python -m experiments.generate."""

from diffjax.cli.command_line import run
from diffjax.cli.generate_command import main

if __name__ == "__main__":
    run(main)
