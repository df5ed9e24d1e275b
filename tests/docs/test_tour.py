"""The chapters of the tour: their code runs and prints what they say."""

import json
import pkgutil
import re
import sys

import numpy as np
import pytest

from diffjax import grids, samplers, schedules
from diffjax.cli.command_line import UsageError
from diffjax.types import Level
from experiments.tour import notebooks, run, toy

PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")


QUICK = ("forward", "prediction")  # the others take some seconds


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in run.list_chapters()
    ],
)
def test_a_chapter_prints_what_it_says_and_makes_its_pictures(name, tmp_path, monkeypatch):
    monkeypatch.setattr(schedules, "SCHEDULES", dict(schedules.SCHEDULES))  # one adds to them
    run.run_chapter(name, tmp_path)
    page = (run.PAGES / f"{name}.md").read_text("utf-8")
    shown = {path for _, path in PICTURE.findall(page) if not path.startswith("..")}
    assert shown == {path.name for path in tmp_path.iterdir()}
    assert all((run.PAGES / path).exists() for path in shown), "run it with --write"


@pytest.mark.parametrize("path", sorted(run.PAGES.glob("*.md")), ids=lambda p: p.stem)
def test_a_chapter_has_an_exercise_with_an_answer_and_what_people_get_wrong(path):
    page = path.read_text("utf-8")
    assert "**Exercise.**" in page and "<summary>Answer</summary>" in page
    assert "## What people get wrong" in page and "$$" in page
    assert all(caption for caption, _ in PICTURE.findall(page)), "for those who do not see it"


@pytest.mark.parametrize("path", sorted(run.PAGES.glob("*.md")), ids=lambda p: p.stem)
def test_the_functions_that_a_chapter_names_exist(path):
    tables = re.findall(r"^## In the code\n\n(.*?)\n\n", path.read_text("utf-8"), re.M | re.S)
    names = re.findall(r"(?<!config )`([a-z_]+(?:\.\w+)+)`", "\n".join(tables))
    assert names or path.stem in ("own_paper", "reproducing"), "it ends with such a table"
    for name in names:
        pkgutil.resolve_name(f"diffjax.{name}")


def test_another_print_is_refused_and_can_be_written(tmp_path, monkeypatch):
    page = (
        "# T\n\n```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n\nThen:\n\n```python\nx = 1\n```\n"
    )
    (tmp_path / "sums.md").write_text(page)
    monkeypatch.setattr(run, "PAGES", tmp_path)
    with pytest.raises(UsageError, match=r"block 1 of sums\.md prints\n2\nbut the page says\n3"):
        run.run_chapter("sums", tmp_path)
    run.run_chapter("sums", tmp_path, write=True)
    assert (tmp_path / "sums.md").read_text() == page.replace("\n3\n", "\n2\n")
    run.run_chapter("sums", tmp_path)


@pytest.mark.parametrize(
    ("said", "page", "same"),
    [
        ("a 0.500\n", "a 0.501\n", True),  # another processor rounds differently
        ("a 0.500\n", "a 0.550\n", False),
        ("[47 72]\n", "[47 73]\n", True),
        ("a 0.5\n", "b 0.5\n", False),
        ("a 0.5 0.6\n", "a 0.5\n", False),
        ("-0.5", "0.5", False),
    ],
)
def test_prints_are_compared_up_to_rounding(said, page, same):
    assert run.is_same_print(said, page) == same


PAGE = """# T

```{literalinclude} ../code.py
:language: python
:pyobject: double
```

Then:

```python
print(2)
```

```text
2
```

![A curve](curve.png)

See [next](next.md#why) and [more](../more.md).

<details>
<summary>Answer</summary>

```python
x = 1
```

</details>
"""


@pytest.fixture
def page(tmp_path):
    (tmp_path / "tour").mkdir()
    (tmp_path / "code.py").write_text(
        "def one():\n    return 1\n\n\ndef double(x):\n    return 2 * x\n"
    )
    (tmp_path / "tour" / "sums.md").write_text(PAGE)
    return tmp_path / "tour" / "sums.md"


def test_a_page_is_prepared_for_a_notebook(page):
    install, text = notebooks.prepare_page(page).split("# T\n")
    assert "pip install" in install
    assert "\n    def double(x):\n        return 2 * x\n" in text and "one" not in text
    assert "```text" not in text and "details" not in text and "**Answer.**" in text
    assert "*A curve.*\n\nSee [next](next.ipynb#why) and [more](../more.md)." in text
    assert re.findall(r"```python\n(.*?)\n```", text, re.S) == ["print(2)", "x = 1"]


def test_a_notebook_has_the_texts_and_the_code_of_its_page(page, tmp_path):
    pytest.importorskip("jupytext")
    out = tmp_path / "out" / "sums.ipynb"
    notebooks.write_notebook(page, out)
    cells = json.loads(out.read_text())["cells"]
    assert [c["cell_type"] for c in cells] == ["code", *["markdown", "code"] * 2]
    assert "".join(cells[2]["source"]) == "print(2)"
    notebooks.write_notebook(page, tmp_path / "again.ipynb")
    assert (tmp_path / "again.ipynb").read_bytes() == out.read_bytes()


@pytest.mark.slow
def test_a_notebook_runs(page, tmp_path):
    for package in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(package)
    out = tmp_path / "sums.ipynb"
    page.write_text(PAGE.replace("print(2)", "import experiments.tour.toy\nprint(2)"))
    notebooks.write_notebook(page, out, execute=True)
    cells = json.loads(out.read_text())["cells"]
    assert cells[0]["outputs"] == [] and cells[2]["outputs"][0]["text"] == ["2\n"]


def test_notebooks_without_jupytext_are_refused(page, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jupytext", None)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[docs\]'"):
        notebooks.write_notebook(page, tmp_path / "sums.ipynb")


def test_the_toy_denoiser_is_the_mean_of_what_could_have_been():
    """Compared with an average over many points, weighed by how likely each made z."""
    ring = toy.make_ring()
    x = ring.draw(200_000)
    z, level = np.array([[0.3, -0.2]], np.float32), Level(0.0, 0.6, 0.8, 0)
    weight = np.exp(-((z - 0.6 * x) ** 2).sum(-1) / (2 * 0.8**2))
    expected = (weight[:, None] * x).sum(0) / weight.sum()
    found = ring.denoise(z, level)
    assert np.asarray(found.x)[0] == pytest.approx(expected, abs=0.01)
    assert np.asarray(0.6 * found.x + 0.8 * found.eps) == pytest.approx(z, abs=1e-5)


def test_paths_begin_with_noise_and_end_on_the_ring():
    ring = toy.make_ring()
    grid = grids.trailing(schedules.linear(1000), 30)
    paths = toy.draw_paths(ring.denoise, samplers.ddim(), grid, 400)
    assert paths.shape == (31, 400, 2) and abs(paths[0].std() - 1) < 0.1
    assert toy.compare(paths[-1], ring.draw(400)) < 0.1 < toy.compare(paths[0], ring.draw(400))
