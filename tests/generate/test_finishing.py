"""Post-processing of pictures: a safety checker, and an invisible watermark."""

import sys
import types

import numpy as np
import pytest

from diffjax.generate import finishing
from diffjax.pretrained.safety import SafetyChecker


def checker(cosine, special):
    """A checker whose images have these cosines with its one concept and its one special one."""
    rest = np.sqrt(1 - cosine**2 - special**2)
    vector = np.array([cosine, special, rest], "f4")
    return SafetyChecker(
        lambda images: np.tile(3 * vector, (len(images), 1)),
        concepts=np.array([[2.0, 0, 0]], "f4"),
        thresholds=np.array([0.3], "f4"),
        special=np.array([[0, 5.0, 0]], "f4"),
        special_thresholds=np.array([0.2], "f4"),
    )


@pytest.mark.parametrize(
    ("cosine", "special", "found"),
    [
        (0.31, 0.0, True),
        (0.299, 0.0, False),
        (0.3004, 0.0, False),  # less than half a thousandth above
        (0.299, 0.25, True),  # a special concept lowers the threshold by 0.01
        (0.285, 0.25, False),
    ],
)
def test_an_image_is_black_if_it_resembles_a_concept(cosine, special, found):
    images = np.full((2, 4, 4, 3), 0.5, "f4")
    check = checker(cosine, special)
    assert check.find(images).tolist() == [found, found]
    assert check(images).max() == (0 if found else 0.5)


@pytest.fixture
def package(monkeypatch):
    """A stand-in for invisible-watermark, which notes what it is given."""
    seen = {}

    class WatermarkEncoder:
        def set_watermark(self, kind, bits):
            seen.update(kind=kind, bits=bits)

        def encode(self, image, method):
            seen.update(image=image, method=method)
            return image + np.array([255.0, 0, 0])  # the first channel, which is blue there

    module = types.ModuleType("imwatermark")
    module.WatermarkEncoder = WatermarkEncoder
    monkeypatch.setitem(sys.modules, "imwatermark", module)
    return seen


def test_a_watermark_is_written_by_the_package(package):
    mark = finishing.make_watermark()
    images = np.full((1, 256, 256, 3), 0.5, "f4")
    images[..., 0] = 0.25
    out = mark(images)
    assert package["kind"] == "bits"
    assert "".join(map(str, package["bits"])) == (
        "101100111110110010010000011110111011000110011110"
    )
    assert package["method"] == "dwtDct"
    assert np.allclose(package["image"][0, 0], [127.5, 127.5, 63.75])  # blue, green, red
    assert np.allclose(out[0, 0, 0], [0.25, 0.5, 1.0])
    assert out.dtype == np.float32


def test_small_images_have_no_room_for_a_watermark(package):
    images = np.zeros((1, 64, 256, 3), "f4")
    assert finishing.make_watermark()(images) is images


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "imwatermark", None)
    with pytest.raises(ImportError, match="pip install invisible-watermark"):
        finishing.make_watermark()


def test_functions_are_called_in_turn():
    both = finishing.chain(lambda images: images + 1, lambda images: images * 2)
    assert both(np.ones(1)).tolist() == [4]
