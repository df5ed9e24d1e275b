"""The command `diffjax evaluate` in a checkout: python -m experiments.evaluate."""

from diffjax.cli.evaluate_command import USES, main
from diffjax.cli.run_flags import run

if __name__ == "__main__":
    run(main, USES)
