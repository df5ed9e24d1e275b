"""Run the code of the chapters of the tour: check its prints, draw its pictures, make notebooks.

    python -m experiments.tour.run
    python -m experiments.tour.run --chapters=guidance --write
    python -m experiments.tour.run --notebooks=build/notebooks --execute

A chapter is a page of docs/tour. Its blocks of Python run in order, as one program; a block of text
after one is what it prints. The command stops where a print differs from the page; with --write it
writes prints and pictures into docs/tour instead. Notebooks are made by jupytext from the same
pages (`notebooks`); with --execute they are run, and hold what their cells print and draw.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags, logging

from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.types import suggest
from experiments.tour import notebooks

PAGES = Path(__file__).parents[2] / "docs" / "tour"

CHAPTERS = flags.DEFINE_list("chapters", [], "Names of chapters, such as guidance; all if not set.")
WRITE = flags.DEFINE_bool("write", False, "Write prints and pictures into docs/tour.")
NOTEBOOKS = flags.DEFINE_string("notebooks", None, "Folder that notebooks are written to.")
EXECUTE = flags.DEFINE_bool("execute", False, "Run the notebooks, and keep what they show.")

FLAG_GROUPS = {"Tour": ("chapters", "write", "notebooks", "execute")}
USES = ()

# A block of Python, and the block of text that follows it, if there is one.
_BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.S)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


class Block(NamedTuple):
    """A block of code of a chapter.

    Attributes:
        code: the code.
        prints: what the page says that it prints.
        start, end: where the block stands in the page, with its print.
    """

    code: str
    prints: str
    start: int
    end: int


def list_chapters() -> list[str]:
    """List the names of the chapters that have code."""
    return sorted(p.stem for p in PAGES.glob("*.md") if "```python" in p.read_text("utf-8"))


def read_blocks(page: str) -> list[Block]:
    """Read the blocks of code of a page."""
    return [Block(m[1], m[2] or "", *m.span()) for m in _BLOCK.finditer(page)]


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_blocks(blocks: list[Block], folder: Path) -> list[str]:
    """Run blocks as one program, and return what each prints.

    Args:
        folder: current while they run, so that pictures are written there.
    """
    import matplotlib

    matplotlib.use("Agg")
    names: dict[str, object] = {"__name__": "chapter"}
    printed = []
    with _in_folder(folder):
        for number, block in enumerate(blocks):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(block.code, f"block {number + 1}", "exec"), names)
            printed.append(said.getvalue())
    return printed


def is_same_print(said: str, page: str) -> bool:
    """Whether two prints are the same text with the same numbers.

    Numbers may differ by 2 % or 0.002, as they do between processors.
    """
    same_text = _NUMBER.sub("0", said) == _NUMBER.sub("0", page)
    found, expected = _NUMBER.findall(said), _NUMBER.findall(page)
    return same_text and all(
        math.isclose(float(a), float(b), rel_tol=0.02, abs_tol=0.002)
        for a, b in zip(found, expected, strict=True)
    )


def insert_prints(page: str, blocks: list[Block], printed: list[str]) -> str:
    """Return the page with what its blocks print now."""
    for block, said in reversed(list(zip(blocks, printed, strict=True))):
        text = f"\n```text\n{said}```\n" if said else ""
        page = f"{page[: block.start]}```python\n{block.code}```\n{text}{page[block.end :]}"
    return page


def run_chapter(name: str, folder: Path, *, write: bool = False) -> None:
    """Run a chapter, and compare what it prints with its page.

    Args:
        name: of the page, without suffix.
        folder: for its pictures.
        write: whether the page gets what it prints, instead.

    Raises:
        UsageError: a block prints something else than the page says.
    """
    path = PAGES / f"{name}.md"
    page = path.read_text("utf-8")
    blocks = read_blocks(page)
    printed = run_blocks(blocks, folder)
    if write:
        path.write_text(insert_prints(page, blocks, printed), "utf-8")
        return
    for number, (block, said) in enumerate(zip(blocks, printed, strict=True), 1):
        if not is_same_print(said, block.prints):
            raise UsageError(
                f"block {number} of {path.name} prints\n{said}but the page says\n{block.prints}"
                "If that is meant, run it with --write"
            )


def main() -> None:
    """Run the chapters of the flags, or write their notebooks.

    Raises:
        UsageError: there is no such chapter, a print differs from its page, --execute has no
            notebooks, or a package is missing.
    """
    known = list_chapters()
    for name in CHAPTERS.value:
        if name not in known:
            near = suggest(name, known)
            raise UsageError(f"--chapters: no {name!r}; there are {', '.join(known)}{near}")
    if EXECUTE.value and not NOTEBOOKS.value:
        raise UsageError("--execute runs notebooks: say with --notebooks where they are written")
    for name in CHAPTERS.value or known:
        if NOTEBOOKS.value:
            out = Path(NOTEBOOKS.value) / f"{name}.ipynb"
            notebooks.write_notebook(PAGES / f"{name}.md", out, execute=EXECUTE.value)
        elif WRITE.value:
            run_chapter(name, PAGES, write=True)
        else:
            with tempfile.TemporaryDirectory() as folder:
                run_chapter(name, Path(folder))
        logging.info("%s is done", name)


if __name__ == "__main__":
    run_flags.run(main, USES)
