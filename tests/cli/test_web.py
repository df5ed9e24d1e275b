"""The web page as gradio builds it: its server against strangers, and the whole in a browser."""

import os
import re
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from diffjax import generate, lora
from diffjax.cli.web_form import Offered
from tests.parity import generate_cases as g

gr = pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def web():
    from diffjax.cli import web_page as web

    return web


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


@pytest.fixture
def served(web, tmp_path, monkeypatch):
    """A function that serves a page of the small pipeline, and returns its address."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "private"))
    os.makedirs(tmp_path / "private")
    pages = []

    def serve(offered, **options):
        pages.append(web.build_page(g.pipeline("sd1"), offered, **options))
        _, url, _ = web.serve(pages[-1], "127.0.0.1", None, ["127.0.0.1", "localhost"], 1)
        return url

    yield serve
    for page in pages:
        page.close()


@pytest.fixture
def client(served):
    import httpx

    with httpx.Client(base_url=served(Offered()), timeout=60) as client:
        yield client


def test_other_hosts_and_the_monitoring_page_are_refused(client):
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/config", headers={"Host": "evil.example"}).status_code == 400
    for path in ("/monitoring", "/monitoring/summary"):
        assert client.get(path).status_code in (403, 404)


def test_files_of_this_machine_are_not_served(client, tmp_path):
    for path in ("/etc/passwd", __file__, str(tmp_path.parent)):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)
    large = {"files": ("x.png", b"0" * (2 * 2**20))}
    assert client.post("/gradio_api/upload", files=large).status_code in (400, 413)


# ---- in a browser -------------------------------------------------------------------------------

# Pairs of visible controls that overlap, and what is wider than the window.
OVERLAPS = """() => {
  const all = [...document.querySelectorAll('input, textarea, button, h1, .caption-label')]
    .filter((e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true }))
    .map((e) => [e, e.getBoundingClientRect()]).filter(([e, r]) => r.width > 4 && r.height > 4);
  const found = [];
  for (const [e, r] of all) {
    if (r.right > innerWidth + 1 || r.left < -1) found.push(`${e.outerHTML.slice(0, 90)} is cut`);
    for (const [f, s] of all) {
      const wide = Math.min(r.right, s.right) - Math.max(r.left, s.left);
      const high = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
      if (e !== f && !e.contains(f) && !f.contains(e) && wide > 2 && high > 2
          && !(e.closest('#pictures') && f.closest('#pictures')))
        found.push(`${e.outerHTML.slice(0, 90)} over ${f.outerHTML.slice(0, 90)}`);
    }
  }
  return found;
}"""

# Whether both pictures of the gallery can be seen.
SHOWN = """() => {
  const found = [...document.querySelectorAll("#pictures img")].filter(
    e => e.naturalWidth > 0 && e.clientWidth > 20 && e.clientHeight > 20);
  return found.length >= 2;
}"""


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def _offer():
    """A ControlNet and an adapter of the small pipeline."""
    params = g.pipeline("sd1").parts.unet.params
    adapters = lora.init(jax.random.key(0), params, rank=1)
    return Offered({"edges": g.controls("sd1")[0]}, {"ink": generate.Lora({"unet": adapters})})


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(served, browser, tmp_path, width):
    url = served(_offer(), name="tiny model", examples=("a red cat", "the dog !"))
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(url)
    page.get_by_role("heading", name="tiny model").wait_for()
    assert page.evaluate(OVERLAPS) == []
    for name in ("Steps, guidance and size", "Image to start from", "ControlNet", "LoRA"):
        page.get_by_role("button", name=re.compile(f"^{name}")).first.click()
    page.wait_for_timeout(500)
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    _refuse_and_begin_again(page)
    _make_two(page, tmp_path / f"page-{width}.png")
    _paint_a_mask(page, tmp_path)
    _stop(page)


def _wait(page, pattern):
    from playwright.sync_api import expect

    expect(page.get_by_label("Status")).to_have_value(re.compile(pattern), timeout=90_000)


def _refuse_and_begin_again(page):
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("the prompt is empty").wait_for(timeout=30_000)
    _wait(page, "^ready$")
    page.get_by_test_id("toast-close").click()


def _make_two(page, picture):
    page.get_by_role("button", name="a red cat").click()
    for name in ("Height", "Width"):
        page.get_by_label(re.compile(f"^{name}")).fill(str(g.SIZE))
    page.get_by_label("number input for Steps").fill("4")
    page.get_by_label("number input for Pictures").fill("2")
    page.get_by_label("Prompt", exact=True).press("Enter")
    _wait(page, r"compiling \(first picture of this size\), \d+ s|step|decoding")
    _wait(page, "picture 2 of 2: done")
    seed = int(page.get_by_label("Seed", exact=True).input_value())
    for k in (0, 1):  # the seed that was drawn is shown, and captions can be read
        caption = page.locator("#pictures .caption-label", has_text=f"seed {seed + k}, 4 steps")
        caption.wait_for()
        box = caption.evaluate(
            "e => [e.scrollWidth - e.clientWidth, e.scrollHeight - e.clientHeight]"
        )
        assert max(box) <= 1
    assert page.evaluate(OVERLAPS) == []
    page.locator("#pictures").scroll_into_view_if_needed()  # what is out of sight loads later
    page.wait_for_function(SHOWN, timeout=30_000)
    page.screenshot(path=picture, full_page=True)


def _paint_a_mask(page, folder):
    PIL.Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(folder / "start.png")
    page.locator("#start-image input[type=file]").set_input_files(folder / "start.png")
    board = page.locator(".brush canvas")
    board.wait_for()
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40, steps=3)
    page.mouse.up()
    page.get_by_label("number input for Pictures").fill("1")
    page.get_by_role("button", name="Generate").click()
    page.locator("#pictures .caption-label", has_text=", mask").wait_for(timeout=90_000)


def _stop(page):
    for name in ("Height", "Width"):  # so that there is time to stop
        page.get_by_label(re.compile(f"^{name}")).fill("64")
    page.get_by_label("number input for Steps").fill("150")
    page.get_by_role("button", name="Generate").click()
    _wait(page, r"step \d+ of")
    page.get_by_role("button", name="Stop").click()
    _wait(page, "^stopped$")
    page.wait_for_timeout(2000)
    _wait(page, "^stopped$")
    assert page.get_by_text("150 steps").count() == 0
