"""Training steps beside the papers' own code, if DIFFJAX_RELEASES is a folder of checkouts.

    git clone https://github.com/NVlabs/edm RELEASES/edm     # and so on: see `release_cases.CASES`
    DIFFJAX_RELEASES=RELEASES python -m pytest -m parity tests/parity/test_releases.py

`python -m tests.parity.release_record RELEASES` writes the figures for docs/published.md.
"""

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.parity import cases, ncsn_cases, release_cases, release_steps

pytestmark = pytest.mark.parity


def folders(names):
    """The checkouts of some repositories.

    A folder may have the owner's name in front, with a plus between.
    """
    root = Path(os.environ.get("DIFFJAX_RELEASES", ""))
    found = [next(iter([root / n, *root.glob(f"*+{n}")][::-1]), None) for n in names]
    if not os.environ.get("DIFFJAX_RELEASES") or not all(f and f.is_dir() for f in found):
        pytest.skip(f"DIFFJAX_RELEASES is no folder with {', '.join(names)}")
    return [f.resolve() for f in found]


@pytest.mark.parametrize("name", release_cases.CASES)
def test_two_steps_of_training_are_those_of_the_release(name):
    run, names = release_cases.CASES[name]
    rows = run(*folders(names))
    assert len(rows) == release_steps.STEPS
    for row in rows:
        assert row["ours"] == pytest.approx(row["release"], rel=1e-4)
        assert row["gradient"] < 1e-4


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
def test_the_recorded_output_is_that_of_the_release(name):
    found = ncsn_cases.forward(name, *folders((name,)))
    with np.load(Path(__file__).parents[1] / "golden" / "refinenet.npz") as recorded:
        assert cases.relative_error(recorded[name], found) < 1e-6


@pytest.mark.parametrize("sides", [(50, 37), (24, 41), (16, 16)])
@pytest.mark.parametrize("draws", [(0.0, 0.0, 0.0), (0.5, 0.3, 0.9), (0.99, 0.99, 0.2)])
def test_crops_after_resizing_are_those_of_the_release(sides, draws):
    found, wanted = release_cases.crop_after(*folders(("guided-diffusion",)), sides, draws)
    assert np.array_equal(found, wanted)


def test_augmented_images_are_those_of_the_release():
    errors = release_cases.augment_images(*folders(("edm",)))
    assert errors.max() < 1e-4
