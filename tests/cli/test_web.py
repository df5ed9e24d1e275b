"""The web page: what its fields become, what it says to bad input, and the whole in a browser."""

import shutil

import numpy as np
import PIL.Image
import pytest

from tests.parity import generate_cases as g

gr = pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def web():
    from diffjax.cli import web_page as web

    return web


@pytest.fixture(scope="module")
def pipe():
    return g.pipeline("sd1")


def _fields(web, **changes):
    import dataclasses

    form = web.Form(prompt="a red cat", steps=3, height=g.SIZE, width=g.SIZE)
    return list(vars(dataclasses.replace(form, **changes)).values())


def _run(web, pipe, shown=(), net=None, **changes):
    return list(web.generate_image(pipe, net, list(shown), *_fields(web, **changes)))


def test_steps_are_shown_and_the_image_is_that_of_the_library(web, pipe):
    seen = _run(web, pipe, [("old", "before")], seed=4)
    assert [s for s, _ in seen] == ["preparing", *(f"step {k} of 3" for k in (1, 2, 3)), "done"]
    (picture, caption), old = seen[-1][1]
    assert old == ("old", "before")
    assert caption.startswith("a red cat | seed 4, 3 steps, guidance 7.5")
    wanted = pipe("a red cat", key=np.array([4]), sampler=3, guidance=7.5, size=g.SIZE)[0]
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(wanted))


def test_every_field_reaches_the_request(web):
    image = PIL.Image.fromarray(g.picture())
    mask, net = PIL.Image.fromarray(g.mask()), object()
    form = web.Form(
        *("cat", "dog", 7, 9, 2.5, "euler", 16, 24, image, 0.3, mask, image, 0.6),
    )
    asked = form.make_request(net)
    assert asked.prompt == ["cat"] and asked.key.tolist() == [7]
    assert asked.sampler[:2] == ("euler", 9) and asked.guidance[:2] == (2.5, "dog")
    assert asked.size[:2] == (16, 24) and asked.image == (image, 0.3, mask)
    assert asked.control[0][:3] == (net, image, 0.6)
    for word in ("cat", "seed 7", "9 steps", "2.5", "euler", "dog", "0.3", "mask", "0.6"):
        assert word in form.format_caption()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompt=" "), "prompt is empty"),
        (dict(seed=None), "seed is empty"),
        (dict(seed=-1), "seed must be in .* got -1"),
        (dict(height=17), "multiples of"),
        (dict(sampler="best"), "unknown sampler 'best'"),
        (dict(mask=PIL.Image.new("L", (16, 16))), "mask needs an image"),
        (dict(net=object()), "ControlNet needs its image"),
    ],
)
def test_bad_input_is_said(web, pipe, changes, message):
    with pytest.raises(gr.Error, match=message):
        _run(web, pipe, **changes)


@pytest.mark.parametrize("address", ["http://example.com/x.png", "HTTPS://example.com/x.png"])
def test_no_address_is_fetched(web, monkeypatch, address):
    import asyncio

    from gradio import processing_utils

    monkeypatch.setattr(
        processing_utils, "async_ssrf_protected_download", lambda *a: pytest.fail("fetched")
    )
    field, file = web.make_upload("Image"), {"path": address, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(ValueError, match="an image must be uploaded; this page fetches no address"):
        asyncio.run(
            processing_utils.async_move_files_to_cache(file, field, check_in_upload_folder=True)
        )


def _wait(find, text):
    from playwright.sync_api import expect

    expect(find).to_have_value(text, timeout=60_000)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_in_a_browser(web, pipe, tmp_path, monkeypatch):
    (tmp_path / "private").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "private"))
    playwright = pytest.importorskip("playwright.sync_api")
    pipe.save(tmp_path / "model")
    page_of = web.build_page(web.generate.load(tmp_path / "model"))
    _, url, _ = page_of.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        with playwright.sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1300, "height": 900})
            page.goto(url)
            _drive(page, tmp_path)
            browser.close()
    finally:
        page_of.close()


def _drive(page, folder):
    status, start = page.get_by_label("Status"), page.get_by_role("button", name="Generate")
    start.click()
    page.get_by_text("the prompt is empty").wait_for(timeout=30_000)
    page.get_by_label("Prompt", exact=True).fill("a red cat")
    for name in ("Height", "Width"):
        page.get_by_label(name).fill(str(g.SIZE))
    page.get_by_label("number input for Steps").fill("4")
    start.click()
    _wait(status, "done")
    page.get_by_text("seed 0, 4 steps").first.wait_for(timeout=30_000)
    page.screenshot(path=folder / "page.png")
    for name in ("Height", "Width"):  # so that there is time to stop
        page.get_by_label(name).fill("64")
    page.get_by_label("number input for Steps").fill("150")
    start.click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('textarea,input')].some(e => /^step /.test(e.value))",
        timeout=60_000,
    )
    page.get_by_role("button", name="Stop").click()
    _wait(status, "stopped")
    page.wait_for_timeout(2000)
    assert status.input_value() == "stopped"
    assert page.get_by_text("150 steps").count() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
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
def test_requests_that_cost_too_much_are_refused(web, pipe, changes, message):
    with pytest.raises(gr.Error, match=message):
        _run(web, pipe, **changes)


def test_an_upload_is_read_within_bounds(web, pipe, tmp_path):
    large, broken = tmp_path / "large.png", tmp_path / "broken.png"
    PIL.Image.new("L", (5000, 5000)).save(large)
    broken.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(gr.Error, match=r"large.png has 5000 x 5000 pixels") as error:
        _run(web, pipe, image=str(large))
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(gr.Error, match=r"broken.png"):
        _run(web, pipe, image=str(broken))
    # An image that would be made in its own size is bounded too.
    middle = tmp_path / "middle.png"
    PIL.Image.new("L", (2048, 1024)).save(middle)
    with pytest.raises(gr.Error, match="1024 x 2048"):
        _run(web, pipe, image=str(middle), height=0, width=0)


def test_a_request_stops_at_its_next_step_when_its_time_is_over(web, pipe):
    from diffjax.cli.web_limits import Limits

    with pytest.raises(gr.Error, match="stopped after 0 seconds"):
        list(web.generate_image(pipe, None, [], *_fields(web), limits=Limits(seconds=0.0)))


def test_a_client_that_leaves_stops_the_run(web, pipe):
    going = web.generate_image(pipe, None, [], *_fields(web, steps=100))
    assert [next(going)[0] for _ in range(2)] == ["preparing", "step 1 of 100"]
    going.close()
    with pytest.raises(StopIteration):
        next(going)


@pytest.fixture
def served(web, pipe, tmp_path, monkeypatch):
    """The page on a port of this machine, and an HTTP client."""
    import httpx

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = web.build_page(pipe)
    _, url, _ = web.serve(page, "127.0.0.1", None, ["127.0.0.1", "localhost"], 1)
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
    page.close()


def test_other_hosts_and_the_monitoring_page_are_refused(served):
    assert served.get("/").status_code == 200
    assert served.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert served.get("/config", headers={"Host": "evil.example"}).status_code == 400
    for path in ("/monitoring", "/monitoring/summary"):
        assert served.get(path).status_code in (403, 404)


def test_files_of_this_machine_are_not_served(served, tmp_path):
    for path in ("/etc/passwd", __file__, str(tmp_path.parent)):
        assert served.get(f"/gradio_api/file={path}").status_code in (403, 404)
    large = {"files": ("x.png", b"0" * (2 * 2**20))}
    assert served.post("/gradio_api/upload", files=large).status_code in (400, 413)
