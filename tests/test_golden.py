"""Networks and samplers against outputs recorded from diffusers by tests/parity/record.py."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity import cases

GOLDEN = Path(__file__).parent / "golden"
KEPT = {case.name: case for case in cases.SAMPLER_CASES if case.steps <= 50}


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN / "samplers.npz") as file:
        return file["abar"], dict(zip(file["names"].tolist(), file["ends"], strict=True))


@pytest.mark.parametrize("name", cases.SMALL_UNETS)
def test_unet_output(name):
    with np.load(GOLDEN / "unet.npz") as file:
        expected = file[name]
    assert cases.relative_error(cases.our_unet(cases.SMALL_UNETS[name]), expected) < 1e-5


def test_every_sampler_case_is_recorded(recorded):
    assert set(recorded[1]) == set(KEPT)


@pytest.mark.parametrize("name", KEPT)
def test_sampler_ends_where_diffusers_does(recorded, name):
    abar, ends = recorded
    ours = cases.our_sample(KEPT[name], cases.linear_schedule(abar))
    assert cases.relative_error(ours, ends[name]) < 2e-5
