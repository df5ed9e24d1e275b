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


@pytest.mark.parametrize("case", g.GOLDEN, ids=lambda case: case.name)
def test_images(recorded, case):
    # Recorded in half precision: 2^-11 at most.
    np.testing.assert_allclose(g.ours(case), recorded[case.name], rtol=0, atol=1e-3)
