"""Folders of numbered images, and the options that the images store."""

import dataclasses
import json
import random

import PIL.Image
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from diffjax import generate
from diffjax.cli import generate_flags, image_options
from diffjax.cli.image_folder import find_missing, group_numbers, list_images, make_image_path
from diffjax.cli.image_options import DEFAULTS, ImageOptions, make_options, read_png, save_png
from diffjax.types import ConfigError

PICTURE = PIL.Image.new("RGB", (4, 4))


def test_every_option_has_a_flag_of_its_default_and_choices():
    assert generate_flags  # defines them
    for name in image_options.OPTION_NAMES:
        flag = flags.FLAGS[name]
        default = tuple(flag.default) if isinstance(flag.default, list) else flag.default
        assert default == getattr(DEFAULTS, name), name
        choices = getattr(flag.parser, "enum_values", None)
        assert tuple(choices or ()) == image_options.CHOICES.get(name, ()), name


def test_images_have_one_prompt_and_their_own_seed():
    images = list_images(ImageOptions(prompt=("a", "b"), seed=7, steps=3), 2)
    assert [(one.prompt, one.seed) for one in images] == [
        (("a",), 7), (("a",), 8), (("b",), 9), (("b",), 10),
    ]  # fmt: skip
    assert {one.steps for one in images} == {3}


def test_what_is_missing_is_found_and_others_are_not_overwritten(tmp_path):
    images = list_images(ImageOptions(model="m", prompt=("a",)), 5)
    assert find_missing(images, tmp_path) == [0, 1, 2, 3, 4]
    for number in (0, 3):
        save_png(PICTURE, make_image_path(tmp_path, number), images[number])
    assert find_missing(images, tmp_path) == [1, 2, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "00003.png"]
    other = [dataclasses.replace(one, steps=9) for one in images]
    with pytest.raises(ConfigError, match=r"00000.png has other settings"):
        find_missing(other, tmp_path)
    PICTURE.save(make_image_path(tmp_path, 1))
    with pytest.raises(ConfigError, match=r"00001.png holds no settings"):
        find_missing(images, tmp_path)


@given(st.integers(0, 40), st.integers(1, 9))
def test_groups_have_one_size_and_cover_all_numbers_in_order(count, size):
    numbers = random.Random(count).sample(range(100), count)
    groups = list(group_numbers(numbers, size))
    assert all(len(group) == size for group in groups)
    assert list(dict.fromkeys(k for group in groups for k in group)) == numbers
    assert len(groups) == -(-count // size)


_TABLES = {"sampler": generate.SAMPLERS, "grid": generate.GRIDS}
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_VALUES = {
    str: _TEXT,
    int: st.integers(1, 10_000),
    float: st.floats(0.001, 0.999),  # what every option takes
    bool: st.booleans(),
    tuple[str, ...]: st.lists(_TEXT, max_size=3).map(tuple),
}
# Options that take few values.
_GIVEN: dict = {"timesteps": "999,749.5,0", "sigmas": "14.6,3.1,0", "freeu": "1.5,1.6,0.9,0.2"}
_GIVEN |= {"pag_layers": "mid_block,up_blocks.0", "image_guidance": 1.5}
_GIVEN |= {
    f"{sign}{name}": "8,9"
    for sign in ("", "negative_")
    for name in ("original_size", "crop", "target_size")
}


@st.composite
def _options(draw):
    values = {}
    for name, kind in image_options._TYPES.items():
        value = _VALUES[kind]
        if name in image_options.CHOICES:
            value = st.sampled_from(image_options.CHOICES[name])
        if name == "variant":
            value = st.sampled_from(["fp16", "non_ema", "a.b-c"])
        if name in ("sampler", "grid"):
            value = st.sampled_from(
                sorted(generate.SAMPLERS if name == "sampler" else generate.GRIDS)
            )
        if name in _GIVEN:
            value = st.just(_GIVEN[name])
        if getattr(DEFAULTS, name) is None:
            value |= st.none()
        values[name] = draw(value)
    return ImageOptions(**values)


@given(_options())
def test_a_picture_gives_back_its_options(tmp_path_factory, options):
    path = tmp_path_factory.mktemp("round") / "x.png"
    save_png(PICTURE, path, options)
    assert read_png(path) == options
    stored = PIL.Image.open(path).text["diffjax"]
    assert list(json.loads(stored))[:-1] == list(image_options.OPTION_NAMES)


def test_options_that_a_picture_lacks_have_their_defaults():
    assert make_options({"steps": 3, "prompt": ["a"], "unknown": 1}) == ImageOptions(
        steps=3, prompt=("a",)
    )
