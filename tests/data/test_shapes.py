"""Captioned shapes: drawn ones obey their captions, and the program sees when pictures do not."""

import dataclasses

import numpy as np
import pytest

from diffjax import data
from diffjax.data import shapes
from diffjax.data.shapes import Thing, Verdict

COUNT = 60


@pytest.fixture(scope="module")
def drawn():
    scenes = [shapes.make_scene("test", i) for i in range(COUNT)]
    return scenes, [shapes.draw(s)[0] for s in scenes]


def test_every_drawn_picture_obeys_its_caption(drawn):
    for scene, picture in zip(*drawn, strict=True):
        assert shapes.check_picture(picture, scene.things) == Verdict(1, 1, 1, 1, 1), (
            scene.caption()
        )


@pytest.mark.parametrize("field", ["size", "colour", "shape", "place"])
def test_one_wrong_word_is_seen(drawn, field):
    choices = {"size": 2, "colour": 6, "shape": 4, "place": 9}[field]
    for scene, picture in zip(*drawn, strict=True):
        first = scene.things[0]
        wrong = first._replace(**{field: (getattr(first, field) + 1) % choices})
        verdict = shapes.check_picture(picture, (wrong, *scene.things[1:]))
        taken = field == "colour" and wrong.colour in [t.colour for t in scene.things[1:]]
        assert verdict.all == 0
        if not taken:
            assert getattr(verdict, field) == 1 - 1 / len(scene.things)


def test_a_shape_too_many_is_seen(drawn):
    for scene, picture in zip(*drawn, strict=True):
        if len(scene.things) == 2:
            assert shapes.check_picture(picture, scene.things[:1]).all == 0


def test_an_empty_picture_obeys_nothing():
    grey = np.full((32, 32, 3), 60, np.uint8)
    assert shapes.check_picture(grey, (Thing(0, 0, 0, 0),)) == Verdict(0, 0, 0, 0, 0)


def test_captions_are_read_back(drawn):
    assert {len(s.things) for s in drawn[0]} == {1, 2}
    for scene in drawn[0]:
        assert shapes.parse(scene.caption()) == scene.things
        ids = shapes.tokenize([scene.caption()])[0]
        assert " ".join(shapes.VOCABULARY[i] for i in ids[ids > 0]) == scene.caption()
    with pytest.raises(ValueError, match="cannot find what 'a red dog' asks for"):
        shapes.parse("a red dog")
    with pytest.raises(ValueError, match=r"unknown words \['dog'\]"):
        shapes.tokenize(["a red dog"])


def test_edges_are_the_border_of_the_mask():
    mask = np.zeros((6, 6), np.int32)
    mask[1:5, 1:5] = 2
    expected = mask.astype(bool)
    expected[2:4, 2:4] = False
    np.testing.assert_array_equal(shapes.find_edges(mask)[..., 0], expected)


def test_the_source_has_texts_and_masks():
    source = data.load("shapes", split="test", image_size=16)
    batch = data.batch_at(source, 0, batch_size=3, seed=0)
    assert batch["image"].shape == (3, 16, 16, 3) and batch["edges"].shape == (3, 16, 16, 1)
    scene = shapes.make_scene("test", 7)
    row = source[7]
    np.testing.assert_array_equal(row["text"], shapes.tokenize([scene.caption()])[0])
    picture, mask = shapes.draw(scene, 16)
    np.testing.assert_array_equal(row["image"], picture)
    np.testing.assert_array_equal(row["mask"], mask)
    single = data.load("shapes_single", split="test", image_size=16)
    assert single.num_classes == 24
    assert single[7]["label"] == shapes.make_scene("test", 7, single=True).label()


def test_pictures_with_texts_are_not_flipped():
    source = data.load("shapes", split="test", image_size=16)
    with pytest.raises(ValueError, match="flip=True"):
        data.batch_at(source, 0, batch_size=2, seed=0, flip=True)
    plain = dataclasses.replace(source, more=None)
    assert set(data.batch_at(plain, 0, batch_size=2, seed=0, flip=True)) == {"image", "label"}
