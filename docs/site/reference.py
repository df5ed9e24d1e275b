"""The reference: a page for every public module of diffjax, made of its docstrings.

Pages are written to docs/reference before a build, and are not kept. Docstrings are
reStructuredText with Markdown's tables, which become tables here.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path

from docstrings import find_undocumented
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.mock import mock
from sphinx.util import logging

import diffjax

logger = logging.getLogger(__name__)
FOLDER = "reference"
_CODE_OR_CELL = re.compile(r"``.*?``|`[^`]*`|\||[^|`]+")
_ROW = re.compile(r"^\s*\|.*\|\s*$")


# Modules that define the flags of a command: --help shows them, and no two can be imported.
_OF_COMMANDS = ("_command", "_flags")


def list_modules() -> dict[str, bool]:
    """List the public modules of diffjax in their order: whether each is a package, by name."""
    found = pkgutil.walk_packages(diffjax.__path__, "diffjax.")
    public = {m.name: m.ispkg for m in found if "._" not in m.name}
    return {"diffjax": True} | {k: v for k, v in public.items() if not k.endswith(_OF_COMMANDS)}


def write_pages(app: Sphinx) -> None:
    """Write a page for every module, and their index; pages that have not changed are left.

    Names without a docstring would be left out of them silently: they are warned of.
    """
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    names = list_modules()
    with mock(app.config.autodoc_mock_imports):
        for name in find_undocumented(names):
            logger.warning("%s has no docstring", name)
    pages = {"index.rst": _format_index(names)}
    for name, is_package in names.items():
        inside = [other for other in names if other.rpartition(".")[0] == name]
        pages[f"{name}.rst"] = _format_page(name, is_package, inside if name != "diffjax" else [])
    for name, text in pages.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    for path in folder.glob("*.rst"):
        if path.name not in pages:
            path.unlink()


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


def _format_index(names: Iterable[str]) -> str:
    top = [name for name in names if name.count(".") <= 1]
    listed = "\n".join(f"   {name}" for name in top)
    return _title("Reference") + (
        "Every public module, class and function, from its docstring.\n\n"
        f".. toctree::\n   :maxdepth: 1\n\n{listed}\n"
    )


def _format_page(name: str, is_package: bool, inside: list[str]) -> str:
    """Format a module's page. A package shows its docstring and links to its modules."""
    members = "" if is_package else "   :members:\n"
    text = _title(name) + f".. automodule:: {name}\n{members}"
    if inside:
        text += "\n.. toctree::\n   :maxdepth: 1\n\n" + "\n".join(f"   {n}" for n in inside) + "\n"
    return text


def mend_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Turn Markdown's tables in a docstring into tables of reStructuredText, in place."""
    done: list[str] = []
    table: list[str] = []
    for line in [*lines, ""]:
        if _ROW.match(line):
            table.append(line)
            continue
        if table:
            done += _format_table(table)
            table = []
        done.append(line)
    lines[:] = done[:-1]


def _split_row(row: str) -> list[str]:
    """Split a row at its bars; those inside of code are no bars."""
    cells = [""]
    for part in _CODE_OR_CELL.findall(row):
        if part == "|":
            cells.append("")
        else:
            cells[-1] += part
    return [cell.strip() for cell in cells]


def _format_table(rows: list[str]) -> list[str]:
    indent = " " * (len(rows[0]) - len(rows[0].lstrip()))
    cells = [_split_row(row.strip()[1:-1]) for row in rows]
    ruled = len(cells) > 1 and all(set(cell) <= set("-: ") for cell in cells[1])
    body = [row for k, row in enumerate(cells) if not (ruled and k == 1)]
    header = ruled and any(body[0])
    if ruled and not header:
        body = body[1:]
    out = ["", f"{indent}.. list-table::", *([f"{indent}   :header-rows: 1"] if header else []), ""]
    width = max(map(len, body))
    for row in body:
        for k, cell in enumerate([*row, *[""] * (width - len(row))]):
            out.append(f"{indent}   {'* -' if k == 0 else '  -'} {cell}")
    return [*out, ""]


def skip_tuple_fields(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out the fields of named tuples: the class's docstring lists them."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def resolve_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Node | None:
    """Resolve a name such as `diffjax.model.sample` to where the object is defined.

    A name that begins with `diffjax.` and does not exist is a warning.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("diffjax."):
        return None
    try:
        found = pkgutil.resolve_name(target)
    except (AttributeError, ImportError, ValueError):
        logger.warning("there is no %s", target, location=node)
        return None
    there = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", there, node, content)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the steps."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", mend_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("missing-reference", resolve_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
