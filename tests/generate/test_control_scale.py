"""The scale of ControlNets that diffusers' pipelines take by default."""

import pytest

from diffjax.generate import Control, Image
from diffjax.generate.program import _find_scale

PIXELS = object()


@pytest.mark.parametrize(
    ("image", "xl", "scale"),
    [
        (None, False, 1.0),
        (Image(PIXELS), False, 0.8),
        (Image(PIXELS), True, 0.8),
        (Image(PIXELS, mask=PIXELS), False, 0.5),
        (Image(PIXELS, mask=PIXELS), True, 1.0),
    ],
)
def test_the_scale_of_diffusers_is_a_choice(image, xl, scale):
    assert _find_scale(Control(None, PIXELS, scale="diffusers"), image, xl=xl) == scale
    assert _find_scale(Control(None, PIXELS), image, xl=xl) == 1.0
    assert _find_scale(Control(None, PIXELS, scale=0.3), image, xl=xl) == 0.3
