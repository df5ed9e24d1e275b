"""Links between the pages: files, pictures and headings that they name are there."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.M | re.S)


def list_anchors(text):
    """Names that the headings of a page can be linked at, as forges and MyST make them."""
    found = []
    for heading in re.findall(r"^#{1,6} +(.+)$", FENCE.sub("", text), re.M):
        words = re.sub(r"[`*$]|\]\([^)]*\)|\[", "", heading).strip().lower()
        found.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return set(found)


def find_broken(path, text):
    """Links of a page that lead nowhere."""
    for address in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", address):
            continue
        name, _, anchor = unquote(address).partition("#")
        target = path.parent / name if name else path
        is_page = target.exists() and target.suffix == ".md"
        anchors = list_anchors(target.read_text("utf-8")) if is_page else {anchor}
        if not target.exists() or anchor not in {"", *anchors}:
            yield address


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(path):
    assert list(find_broken(path, path.read_text("utf-8"))) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "b.md").write_text("# Two words, `code`\n\n```sh\n# no heading\n```\n")
    page = (
        "# Here\n[a](b.md) [b](b.md#two-words-code) [c](#here) [d](https://example.org/x)\n"
        "[e](c.md) [f](b.md#no-heading) ![g](h.png) [i](#there)\n```\n[j](k.md)\n```\n"
    )
    (tmp_path / "a.md").write_text(page)
    broken = ["c.md", "b.md#no-heading", "h.png", "#there"]
    assert list(find_broken(tmp_path / "a.md", page)) == broken
