"""Walk the pages of a built site: broken links, missing pictures, raw formulas, use of a network.

python docs/site/check_pages.py build/site
"""

from __future__ import annotations

import html.parser
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Marks of LaTeX that was not read: a command, or a pair of dollar signs.
RAW = re.compile(r"\\(?:frac|sqrt|alpha|sigma|beta|epsilon|mathbb|mathcal|left|bar)\b|\$\$|\\\(")
# Elements that load what they name.
LOADED = {"img": "src", "script": "src", "link": "href", "source": "src", "video": "src"}
_AS_IT_STANDS = {"code", "pre", "script", "style", "title"}


class Page(html.parser.HTMLParser):
    """What a page links to, loads, can be linked at, and says outside of code.

    Attributes:
        links, loads: addresses as they stand in the page.
        anchors: values of id.
        text: its words outside of code and formulas.
        formulas: number of formulas.
    """

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.text, self.formulas, self._inside = "", 0, 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the addresses of an element."""
        found = {name: value or "" for name, value in attrs}
        self._inside += tag in _AS_IT_STANDS
        self.formulas += tag == "math"
        self.anchors |= {found["id"]} if "id" in found else set()
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADED and LOADED[tag] in found and found.get("rel") != "canonical":
            self.loads.append(found[LOADED[tag]])

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        self._inside -= tag in _AS_IT_STANDS

    def handle_data(self, data: str) -> None:
        """Keep words outside of code."""
        if not self._inside:
            self.text += data


def find_faults(folder: Path) -> list[str]:
    """Find what is wrong with the pages of a site, one line each.

    Args:
        folder: of the built site.
    """
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in folder.rglob("*.html")}
    anchors = {path: page.anchors | {""} for path, page in pages.items()}
    faults = []
    for path, page in sorted(pages.items()):
        name = path.relative_to(folder.resolve())
        faults += [f"{name}: raw formula {m.group()!r}" for m in RAW.finditer(page.text)]
        for address in page.loads:
            if urlsplit(address).netloc:
                faults.append(f"{name}: loads {address} from a network")
            elif not address.startswith("data:") and not _resolve(path, address).exists():
                faults.append(f"{name}: {address} is missing")
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = _resolve(path, address)
            if not target.exists():
                faults.append(f"{name}: the link {address} leads nowhere")
            elif unquote(parts.fragment) not in anchors.get(target, {unquote(parts.fragment)}):
                faults.append(f"{name}: there is no #{parts.fragment} in {target.name}")
    return faults


def _resolve(page: Path, address: str) -> Path:
    """The file that an address of a page names."""
    path = unquote(urlsplit(address).path)
    return (page.parent / path).resolve() if path else page


if __name__ == "__main__":
    found = find_faults(Path(sys.argv[1]))
    print("\n".join(found) or "every link, picture and formula of the site is in order")
    sys.exit(bool(found))
