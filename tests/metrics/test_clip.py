"""CLIP's image encoder against a record of transformers, its input against PIL, and the score."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax.metrics import clip_score
from diffjax.nets.vision import MEAN, STD, CLIPVision, clip_input
from tests.parity import cases, inception_cases

GOLDEN = Path(__file__).parents[1] / "golden" / "clip_vision.npz"


def test_embeddings_are_the_recorded_ones():
    with np.load(GOLDEN) as file:
        assert cases.relative_error(inception_cases.our_clip_vision(), file["image_embeds"]) < 1e-5


@pytest.mark.parametrize("shape", [(40, 56), (90, 20), (16, 16), (49, 98)])
def test_the_input_is_pil_s_bicubic_centre(shape):
    images = inception_cases.images(1, height=shape[0], width=shape[1])
    found = np.asarray(clip_input(images / np.float32(127.5) - 1, 16))[0] * STD + MEAN
    height, width = (int(16 * side / min(shape)) for side in shape)  # as transformers has it
    resized = np.asarray(Image.fromarray(images[0]).resize((width, height), Image.BICUBIC))
    top, left = (height - 16) // 2, (width - 16) // 2
    expected = resized[top : top + 16, left : left + 16] / 255
    assert np.abs(found - expected).max() < 1.5 / 255  # theirs is rounded to 8 bits, twice


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="takes images of 8 pixels"):
        CLIPVision(size=8, patch=4).init(jax.random.key(0), np.zeros((1, 9, 9, 3)))


def test_score_by_hand():
    images = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    texts = np.array([[3.0, 0.0], [1.0, 0.0], [-1.0, -1.0]])
    mean, error = clip_score(images, texts)  # cosines 1, 0, -1; the last counts as 0
    assert mean == pytest.approx(100 / 3)
    assert error == pytest.approx(np.std([100, 0, 0], ddof=1) / 3**0.5)
    assert clip_score(images, texts, scale=2.5)[0] == pytest.approx(2.5 / 3)
    with pytest.raises(ValueError, match="at least 2 pairs"):
        clip_score(images, texts[:2])
    with pytest.raises(ValueError, match="pair 1 is 0"):
        clip_score(images * [[1], [0], [1]], texts)
