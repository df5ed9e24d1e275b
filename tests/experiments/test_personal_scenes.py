"""Pictures of one's own: what a program reads in them, and the sheet that shows them."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments.reproductions import personal_scenes as scenes


def draw(folder, columns, wrong=0):
    """Pictures of the plain requests, of which the last ones of each show what the first asks."""
    folder.mkdir(exist_ok=True)
    rng, requests = np.random.default_rng(0), scenes.list_requests("plain")
    shown = [
        requests[0].thing if k >= columns - wrong and j else one.thing
        for j, one in enumerate(requests)
        for k in range(columns)
    ]
    for k, thing in enumerate(shown):
        Image.fromarray(scenes.draw_thing(thing, rng)).save(folder / f"{k:05d}.png")
    return len(requests)


def test_shares_count_all_pictures_and_the_sheet_shows_the_first(tmp_path):
    few, many = (tmp_path / f"{n}.json" for n in ("few", "many"))
    count = draw(tmp_path / "few", 4)
    scenes.read_pictures(tmp_path / "few", "plain", few)
    assert json.loads(few.read_text())["all"] == 1
    draw(tmp_path / "many", 6, wrong=2)
    scenes.read_pictures(tmp_path / "many", "plain", many)
    found = json.loads(many.read_text())
    assert found["pictures"] == 6 * count
    assert found["all"] == pytest.approx(1 - 2 * (count - 1) / (6 * count))
    assert Image.open(few.with_suffix(".png")).size == Image.open(many.with_suffix(".png")).size


def test_requests_have_equally_many_pictures(tmp_path):
    draw(tmp_path / "in", 4)
    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "99999.png")
    with pytest.raises(ValueError, match="has 25 pictures of 6 requests; each needs as many"):
        scenes.read_pictures(tmp_path / "in", "plain", tmp_path / "out.json")
    draw(tmp_path / "less", 3)
    with pytest.raises(ValueError, match="at least 4"):
        scenes.read_pictures(tmp_path / "less", "plain", tmp_path / "out.json")


def test_pictures_as_prompts_say_what_their_words_do_not(tmp_path):
    requests, (first, *rest) = scenes.list_requests("given"), scenes.make_examples("given")
    assert {one.prompt for one in requests} == {scenes.ANY}
    assert scenes.shapes.check_picture(first.picture, [requests[0].thing]).all == 1
    assert len(rest) == len(requests) - 1
    assert {one.caption for one in scenes.make_examples("any")} == {scenes.ANY}
    assert len({one.thing[1:3] for one in requests}) == len(requests) == 24
    (tmp_path / "in").mkdir()
    for k, one in enumerate(requests):
        for j in range(4):  # one picture of the first request shows something else
            thing = requests[-1].thing if (k, j) == (0, 2) else one.thing
            shown = scenes.draw_thing(thing, np.random.default_rng(j))
            Image.fromarray(shown).save(tmp_path / "in" / f"{k:02d}-{j}.png")
    scenes.read_pictures(tmp_path / "in", "given", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["colour"] == pytest.approx(95 / 96)
    assert found["whole"]["colour"] == 23 and found["requests"] == 24
