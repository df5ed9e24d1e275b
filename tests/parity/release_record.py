"""Write the figures of the comparison with the releases: ``python -m ... FOLDER``."""

import json
import os
import sys
from pathlib import Path

from tests.parity.release_cases import CASES

OUT = Path("docs/results/data/releases.json")


def main(root: str) -> None:
    os.environ["DIFFJAX_RELEASES"] = root
    from tests.parity.test_releases import folders

    rows = {}
    for name, (run, names) in CASES.items():
        rows[name] = run(*folders(names))
        OUT.write_text(json.dumps(rows, indent=1) + "\n")  # so that what is done is kept


if __name__ == "__main__":
    main(sys.argv[1])
