"""Whole generations against images recorded by tests/parity/generate_record.py."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity import generate_cases as g

GOLDEN = Path(__file__).parent / "golden" / "generate.npz"


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN) as file:
        return dict(file)


# Each compiles a network or two. Those of `make test` differ in more than the solver.
QUICK = (
    *("sd1-text-euler_ancestral", "sd1-inpainting-mask-euler", "xl-refined-euler"),
    "double-double-euler",
)
CASES = [
    pytest.param(case, id=case.name, marks=[] if case.name in QUICK else [pytest.mark.slow])
    for case in g.GOLDEN
]


@pytest.mark.parametrize("case", CASES)
def test_images(recorded, case):
    # Recorded in half precision: 2^-11 at most.
    np.testing.assert_allclose(g.ours(case), recorded[case.name], rtol=0, atol=1e-3)
