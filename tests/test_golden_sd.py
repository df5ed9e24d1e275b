"""Networks of Stable Diffusion against outputs recorded by tests/parity/sd_record.py."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity import cases, sd_cases

GOLDEN = Path(__file__).parent / "golden" / "sd.npz"


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("name", sd_cases.UNETS)
def test_unet(recorded, name):
    ours = sd_cases.our_unet(sd_cases.UNETS[name])
    assert cases.relative_error(ours, recorded[f"unet.{name}"]) < 1e-5


def test_masked_tokens(recorded):
    ours = sd_cases.our_unet(sd_cases.UNETS["sd1"], masked=True)
    assert cases.relative_error(ours, recorded["unet.masked"]) < 1e-5


def test_control_residuals(recorded):
    ours = sd_cases.our_unet(sd_cases.UNETS["xl"], controlled=True)
    assert cases.relative_error(ours, recorded["unet.controlled"]) < 1e-5


@pytest.mark.parametrize("name", sd_cases.TEXTS)
def test_text(recorded, name):
    ours = sd_cases.our_text(sd_cases.TEXTS[name])
    ours["hidden"] = ours["hidden"][:-1]
    for key, value in ours.items():
        assert cases.relative_error(value, recorded[f"text.{name}.{key}"]) < 1e-5, key
