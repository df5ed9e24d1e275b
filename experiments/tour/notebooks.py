"""Make Jupyter notebooks of the chapters, with jupytext, and run them, with nbclient.

A page of docs/tour is Markdown, which jupytext reads as it is. Before that, a page is prepared:
functions that the site shows from the source are put in, what the blocks print is left out, because
the cells print it themselves, and a first cell installs diffjax.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

from diffjax.cli.command_line import UsageError
from diffjax.writing import write_atomically

_ROOT = Path(__file__).parents[2]
# A checkout is needed, for the package, for experiments and for the small models.
_INSTALL = """```python
# In Colab, clone diffjax first, and set FOLDER to the clone.
import sys

FOLDER = "../.."
%pip install -q -e $FOLDER
sys.path.insert(0, FOLDER)
```

"""
_PRINTS = re.compile(r"(```python\n.*?```\n)\n```text\n.*?```\n", re.S)
_SHOWN = re.compile(r"```\{literalinclude\} (\S+)\n.*?:pyobject: (\w+)\n```", re.S)
# The cell above draws the picture, and a tag may not begin in one cell and end in another.
_PICTURE = re.compile(r"^!\[([^\]]*)\]\([^)]+\)$", re.M)
_TAGS = re.compile(r"^</?details>\n\n?", re.M)
_CHAPTER = re.compile(r"\]\((\w+)\.md([)#])")


def prepare_page(path: Path) -> str:
    """Return the text of a chapter as a notebook has it, in Markdown.

    Args:
        path: of the page, beside the other chapters.
    """
    text = _PRINTS.sub(r"\1", path.read_text("utf-8"))
    text = _SHOWN.sub(lambda m: _show(path.parent / m[1], m[2]), text)
    text = _PICTURE.sub(r"*\1.*", text)
    text = _TAGS.sub("", text).replace("<summary>Answer</summary>", "**Answer.**")
    return _INSTALL + _CHAPTER.sub(r"](\1.ipynb\2", text).rstrip() + "\n"


def _show(path: Path, name: str) -> str:
    """Show a function of a file as indented code, which is no cell."""
    source = path.read_text("utf-8")
    node = next(n for n in ast.parse(source).body if getattr(n, "name", None) == name)
    code = ast.get_source_segment(source, node) or ""
    return "\n".join(f"    {line}".rstrip() for line in code.splitlines())


def make_notebook(path: Path) -> Any:
    """Make a notebook of a chapter, without outputs.

    Args:
        path: of the page.

    Raises:
        UsageError: jupytext is not installed.
    """
    try:
        import jupytext
    except ImportError as error:
        raise UsageError("notebooks need jupytext: pip install -e '.[docs]'") from error
    made = jupytext.reads(prepare_page(path), fmt="md")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for number, cell in enumerate(made.cells):
        cell.id = f"{path.stem}-{number}"  # jupytext draws them at random
    return made


def write_notebook(path: Path, out: Path, *, execute: bool = False, timeout: int = 600) -> None:
    """Write the notebook of a chapter.

    Args:
        path: of the page.
        out: the file; its folder is made, and cells run in it.
        execute: run the cells but the first, which installs, and keep what they print and draw.
        timeout: seconds that a cell may take.

    Raises:
        UsageError: jupytext, or nbclient to run them, is not installed.
    """
    made = make_notebook(path)
    import nbformat  # which jupytext needs, too

    out.parent.mkdir(parents=True, exist_ok=True)
    if execute:
        try:
            import nbclient
        except ImportError as error:
            raise UsageError("--execute needs nbclient: pip install -e '.[docs]'") from error
        install, *made.cells = made.cells
        resources = {"metadata": {"path": str(out.parent)}}
        client = nbclient.NotebookClient(made, timeout=timeout, resources=resources)
        # In place of what the first cell does.
        paths = filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))
        client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
        made.cells.insert(0, install)
    write_atomically(out, nbformat.writes(made) + "\n")
