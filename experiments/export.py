"""The command `diffjax export` in a checkout: python -m experiments.export."""

from diffjax.cli.export_command import USES, main
from diffjax.cli.run_flags import run

if __name__ == "__main__":
    run(main, USES)
