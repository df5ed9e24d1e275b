"""The documentation site: formulas, docstrings with tables, and a walk over pages."""

import importlib.util
import pkgutil
import sys
from pathlib import Path

import pytest

import diffjax

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"


def load(name, monkeypatch):
    """Import a module of docs/site, which is no package."""
    monkeypatch.syspath_prepend(str(SITE))
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, **pages):
    for name, body in pages.items():
        (folder / f"{name}.html").write_text(f"<html><body>{body}</body></html>")


def test_a_page_in_order_has_no_faults(tmp_path, monkeypatch):
    check = load("check_pages", monkeypatch)
    write(tmp_path, a='<a href="b.html#x">b</a> <code>\\frac</code>', b='<p id="x">$5 to $6</p>')
    assert check.find_faults(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("see \\frac{1}{2}", "raw formula '\\\\frac'"),
        ("see $$x$$", "raw formula '$$'"),
        ('<img src="absent.png">', "absent.png is missing"),
        ('<img src="https://example.org/a.png">', "from a network"),
        ('<script src="https://example.org/a.js"></script>', "from a network"),
        ('<a href="absent.html">a</a>', "absent.html leads nowhere"),
        ('<a href="b.html#absent">a</a>', "there is no #absent in b.html"),
        ('<a href="#absent">a</a>', "there is no #absent in a.html"),
    ],
)
def test_faults_are_found(body, fault, tmp_path, monkeypatch):
    check = load("check_pages", monkeypatch)
    write(tmp_path, a=body, b="")
    (found,) = set(check.find_faults(tmp_path))
    assert found.startswith("a.html") and fault in found


def test_tables_in_docstrings_become_tables(monkeypatch):
    pytest.importorskip("sphinx")
    reference = load("reference", monkeypatch)
    lines = ["Text.", "", "| kind | what |", "|---|---|", "| a | ``|W|`` |", "", "More."]
    reference.mend_docstring(None, "module", "m", None, None, lines)
    table = [line.strip() for line in lines if line.strip()]
    assert table == [
        *("Text.", ".. list-table::", ":header-rows: 1", "* - kind", "- what", "* - a"),
        *("- ``|W|``", "More."),
    ]


def test_every_public_module_is_in_the_reference(monkeypatch):
    pytest.importorskip("sphinx")
    names = load("reference", monkeypatch).list_modules()
    assert {"diffjax", "diffjax.guidance", "diffjax.samplers.loop"} <= set(names)
    missing = {
        name
        for path in (ROOT / "diffjax").rglob("*.py")
        if (name := ".".join(path.relative_to(ROOT).with_suffix("").parts)) not in names
        and path.stem not in ("__init__", "__main__")
        and not path.stem.endswith(("_command", "_flags"))
    }
    assert missing == set()


def list_importable():
    """Public modules whose packages are installed."""
    for module in pkgutil.walk_packages(diffjax.__path__, "diffjax."):
        if "._" in module.name or module.name.endswith(("_command", "_flags")):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # of another extra
            assert not error.name.startswith("diffjax"), module.name
            continue
        yield module.name


def test_every_public_name_has_a_docstring(monkeypatch):
    names = list(list_importable())
    assert len(names) > 100
    assert load("docstrings", monkeypatch).find_undocumented(names) == []


def test_names_without_a_docstring_are_found(tmp_path, monkeypatch):
    (tmp_path / "bare.py").write_text(
        "from typing import NamedTuple\n"
        "class Pair(NamedTuple):\n    a: int\n"
        "class Good:\n    'It is.'\n    def bad(self): pass\n    def _hidden(self): pass\n"
        "class Child(Good):\n    'It is.'\n    def setup(self): pass\n"
        "def f(): pass\ndef _g(): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = load("docstrings", monkeypatch).find_undocumented(["bare"])
    assert found == ["bare", "bare.Pair", "bare.Good.bad", "bare.f"]


def test_formulas_become_mathml_and_unknown_ones_are_warned_of(monkeypatch):
    pytest.importorskip("sphinx")
    pytest.importorskip("latex2mathml")
    mathml = load("mathml", monkeypatch)
    said = []
    monkeypatch.setattr(mathml.logger, "warning", lambda *args, **kw: said.append(args[0]))
    done = mathml._convert(r"\sqrt{\bar\alpha_t} x_0 + \epsilon", "block", None)
    assert done.startswith("<math") and "<msqrt>" in done and said == []
    mathml._convert(r"\frac", "inline", None)
    mathml._convert(r"\nosuchcommand x", "inline", None)
    assert len(said) == 2, "each is said"


def test_the_navigation_names_every_page():
    """A strict build fails if a page is in no table of contents; this says so without one."""
    index = (SITE.parent / "index.md").read_text("utf-8")
    pages = {str(p.relative_to(SITE.parent).with_suffix("")) for p in SITE.parent.rglob("*.md")}
    others = ("index", "site/", "reference/", "results/")  # results are found by a pattern
    assert "\nresults/*\n" in index
    absent = {p for p in pages if not p.startswith(others) and f"\n{p}\n" not in index}
    assert absent == set()


@pytest.mark.slow
def test_the_site_builds_strictly_and_its_pages_are_in_order(tmp_path, monkeypatch):
    build = pytest.importorskip("sphinx.cmd.build")
    for extra in ("myst_parser", "furo", "latex2mathml"):
        pytest.importorskip(extra)
    options = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(SITE)]
    folders = [str(SITE.parent), str(tmp_path / "site")]
    assert build.main([*options, "-d", str(tmp_path / "doctrees"), *folders]) == 0
    assert load("check_pages", monkeypatch).find_faults(tmp_path / "site") == []
    page = (tmp_path / "site" / "reference" / "diffjax.guidance.html").read_text()
    assert 'id="diffjax.guidance.cfg"' in page and sys.modules["sphinx"]
