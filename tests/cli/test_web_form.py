"""The fields of the web page, what becomes of them, and their pictures. This needs no gradio."""

import base64
import dataclasses
import io

import numpy as np
import PIL.Image
import pytest

from diffjax import generate
from diffjax.cli import web_form, web_run
from diffjax.cli.web_form import Form, Offered
from diffjax.cli.web_limits import Limits
from tests.parity import generate_cases as g

NET, LORA = object(), generate.Lora({"unet": {}}, 0.5)
OFFERED = Offered({"edges": NET, "many#3": NET}, {"style": LORA, "ink": LORA}, {"many#3": 3})


@pytest.fixture(scope="module")
def pipe():
    return g.pipeline("sd1")


def _run(pipe, shown=(), limits=web_form.DEFAULT_LIMITS, **changes):
    form = Form(**{**dict(prompt="a red cat", steps=3, height=g.SIZE, width=g.SIZE), **changes})
    values = [getattr(form, field.name) for field in dataclasses.fields(form)]
    return list(web_run.generate_images(pipe, OFFERED, list(shown), *values, limits=limits))


def _painted(alpha):
    picture = PIL.Image.fromarray(np.dstack([np.full((*alpha.shape, 3), 90, np.uint8), alpha]))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return web_form.PAINTED + base64.b64encode(stream.getvalue()).decode()


def test_steps_are_shown_and_the_images_are_those_of_the_library(pipe):
    web_run._compiled.clear()
    seen = _run(pipe, [("old", "before")], seed=4, num=2)
    said = [one.status.rsplit(", ", 1)[0].removeprefix("picture 1 of 2: ") for one in seen]
    assert said[0] == "compiling (first picture of this size)"
    assert [s for s in said if s.startswith("step")] == [f"step {k} of 3" for k in (1, 2, 3)]
    assert "picture 2 of 2: preparing" in said and said[-1] == "picture 2 of 2: done"
    assert {one.seed for one in seen} == {4}
    (second, caption), (first, _), old = seen[-1].shown
    assert old == ("old", "before")
    assert caption == "a red cat (seed 5, 3 steps, guidance 7.5)"
    wanted = pipe(["a red cat"] * 2, key=[4, 5], sampler=3, guidance=7.5, size=g.SIZE)
    # A batch of two may round otherwise than one image does.
    for found, other in zip((first, second), wanted, strict=True):
        np.testing.assert_allclose(np.asarray(found), np.asarray(other), atol=1)


def test_a_random_seed_is_drawn_and_shown(pipe):
    seeds = {_run(pipe, random=True, steps=1)[-1].seed for _ in range(2)}
    assert len(seeds) == 2 and all(0 <= seed < 2**32 for seed in seeds)


def test_every_field_reaches_the_request():
    image, mask = PIL.Image.fromarray(g.picture()), PIL.Image.fromarray(g.mask())
    form = Form(
        *("cat", "dog", 2, False, 7, 9, 2.5, "euler", 16, 24, image, 0.3, None, mask),
        *("edges", image, 0.6, ["style"], 0.8),
    )
    asked = form.make_request(OFFERED)
    assert asked.prompt == ["cat"] and asked.key.tolist() == [7]
    assert asked.sampler[:2] == ("euler", 9) and asked.guidance[:2] == (2.5, "dog")
    assert asked.size[:2] == (16, 24) and asked.image == (image, 0.3, mask, *asked.image[3:])
    assert asked.control[0][:3] == (NET, image, 0.6) and asked.control[0].kind is None
    united = dataclasses.replace(form, net="many#3").make_request(OFFERED)
    assert united.control[0].kind == 3
    assert asked.lora == [LORA._replace(scale=0.4)]
    caption = form.format_caption()
    for word in ("cat", "seed 7", "9 steps", "2.5", "euler", "dog", "0.3", "mask", "edges 0.6"):
        assert word in caption
    assert "style 0.8" in caption


def test_a_painted_mask_is_white_where_it_was_painted():
    image, alpha = PIL.Image.fromarray(g.picture()), np.zeros((8, 8), np.uint8)
    alpha[:4] = 255
    mask = Form("cat", image=image, painted=_painted(alpha)).make_request().image.mask
    wanted = np.zeros(g.picture().shape[:2], np.uint8)
    wanted[: len(wanted) // 2] = 255
    np.testing.assert_array_equal(np.asarray(mask), wanted)
    # Nothing was painted, so the whole image is made anew.
    assert Form("cat", image=image, painted=_painted(0 * alpha)).make_request().image.mask is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompt=" "), "prompt is empty"),
        (dict(seed=None), "seed is empty"),
        (dict(seed=-1), "seed must be in .* got -1"),
        (dict(seed=2**32 - 1, num=2), "seed must be in"),
        (dict(num=5), "number of pictures must lie in 1 .. 4 on this page, got 5"),
        (dict(num="2"), "number of pictures must be a number"),
        (dict(height=17), "multiples of"),
        (dict(sampler="best"), "unknown sampler 'best'"),
        (dict(mask=PIL.Image.new("L", (16, 16))), "mask needs an image"),
        (dict(net="edges"), "ControlNet edges needs its image"),
        (dict(net="egdes"), "unknown ControlNet 'egdes'"),
        (dict(net=["edges"]), "ControlNet must be a name"),
        (dict(control=PIL.Image.new("L", (16, 16))), "choose a ControlNet"),
        (dict(loras=["ikn"]), "unknown LoRA 'ikn'"),
        (dict(loras="ink"), "LoRA must be a list"),
        (dict(lora_scale=None), "lora_scale is empty"),
        (dict(painted="data:image/png;base64,AAAA"), "painted mask is no PNG"),
        (dict(painted="/etc/passwd"), "painted mask is no PNG"),
        (dict(painted=_painted(np.full((1025, 1024), 255, np.uint8))), "too many pixels"),
        (dict(height=100_000, width=100_000), "at most 1048576, such as 1024 x 1024"),
        (dict(height=-16, width=-16), "at most 1048576"),
        (dict(height=10**400), "must be a number"),
        (dict(steps=10**6), "steps must lie in 1 .. 150"),
        (dict(steps=0), "steps must lie in 1 .. 150"),
        (dict(steps=float("nan")), "steps must be a number"),
        (dict(guidance=float("inf")), "guidance must be a number"),
        (dict(guidance="7"), "guidance must be a number"),
        (dict(prompt="a" * 10_000), "at most 2000"),
        (dict(prompt=["a"]), "the prompt must be text"),
        (dict(negative=None), "the negative prompt must be text"),
    ],
)
def test_bad_input_is_refused_by_name(pipe, changes, message):
    with pytest.raises(ValueError, match=message):
        _run(pipe, **changes)


def test_an_upload_is_read_within_bounds(pipe, tmp_path):
    large, broken = tmp_path / "large.png", tmp_path / "broken.png"
    PIL.Image.new("L", (5000, 5000)).save(large)
    broken.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(ValueError, match=r"large.png has 5000 x 5000 pixels") as error:
        _run(pipe, image=str(large))
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(ValueError, match=r"broken.png"):
        _run(pipe, image=str(broken))
    # An image that would be made in its own size is bounded too.
    middle = tmp_path / "middle.png"
    PIL.Image.new("L", (2048, 1024)).save(middle)
    with pytest.raises(ValueError, match="1024 x 2048"):
        _run(pipe, image=str(middle), height=0, width=0)


def test_a_request_stops_at_its_next_step_when_its_time_is_over(pipe):
    with pytest.raises(ValueError, match="stopped after 0 seconds"):
        _run(pipe, limits=Limits(seconds=0.0))


def test_a_client_that_leaves_stops_the_run(pipe):
    form = Form("a red cat", steps=100, height=g.SIZE, width=g.SIZE)
    going = web_run.generate_images(pipe, OFFERED, [], *vars(form).values())
    assert "step 2 of 100" in next(one.status for one in going if "step 2" in one.status)
    going.close()
    with pytest.raises(StopIteration):
        next(going)


def test_what_takes_long_is_said_again_every_moment(monkeypatch):
    import threading

    monkeypatch.setattr(web_run, "TICK", 0.01)
    done = threading.Event()
    waiting = web_run._wait("compiling", lambda: done.wait(10))
    assert [next(waiting) for _ in range(3)] == ["compiling"] * 3
    done.set()
    with pytest.raises(StopIteration) as end:
        while True:
            next(waiting)
    assert end.value.value is True


@pytest.mark.parametrize("path, name", [
    ("/srv/models/tiny", "tiny"), ("owner/name@v1", "name@v1"), ("a/b.safetensors", "b"),
])  # fmt: skip
def test_a_model_is_named_without_the_folders_of_the_machine(path, name):
    assert web_form.name_model(path) == name


def test_choices_of_one_name_get_numbers():
    found = web_form.name_choices({"a/edges": 1, "b/edges/": 2, "none": 3})
    assert found == {"edges": 1, "edges (2)": 2, "none (2)": 3}
