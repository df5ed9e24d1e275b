"""Record outputs of the released RefineNets: ``python -m ... FOLDER_OF_CHECKOUTS``."""

import os
import sys
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[1] / "golden" / "refinenet.npz"


def main(root: str) -> None:
    os.environ["DIFFJAX_RELEASES"] = root
    from tests.parity import ncsn_cases
    from tests.parity.test_releases import folders

    run = {name: ncsn_cases.forward(name, *folders((name,))) for name in ("ncsn", "ncsnv2")}
    np.savez_compressed(OUT, **run)


if __name__ == "__main__":
    main(sys.argv[1])
