"""The stored results of the mutation tests, and the parts that make them."""

import json

import pytest

from tests.mutation import page, server


def _mutant(module="diffjax/a.py", verdict="killed", **values):
    kept = dict(line=3, operator="NumberReplacer", before="x = 1", after="x = 2", test=None)
    return {"module": module, "verdict": verdict, **kept, **values}


RUN = dict(seed=4, machine="2 cores", minutes=3.2, seconds=300, mutants=3, only="")


def test_the_stored_page_is_made_of_its_files():
    stored = json.loads(page.RESULTS.read_text())
    assert page.PAGE.read_text() == page.make_page(stored, page.read_reasons())


def test_mutants_are_killed_or_explained():
    mutants, reasons = json.loads(page.RESULTS.read_text())["mutants"], page.read_reasons()
    survivors = [one for one in mutants if one["verdict"] == "survived"]
    assert len(mutants) >= 200 and len(survivors) <= 0.05 * len(mutants)
    assert [one for one in survivors if page.find_reason(one, reasons) == page.NOT_EXPLAINED] == []
    # A reason is of a survivor: one that a test kills by now is not kept.
    assert set(reasons) <= {page.key_of(one) for one in survivors}


def test_the_page_counts_by_module_and_names_survivors():
    mutants = [
        _mutant(),
        _mutant("diffjax/b.py", "timeout"),
        _mutant(verdict="survived", after="y"),
    ]
    text = page.make_page({"runs": [RUN], "mutants": mutants}, {})
    assert "| `diffjax/a.py` | 2 | 1 | 1 | 0 |" in text
    assert "| all | 3 | 1 | 1 | 1 |" in text
    assert "66.7% are killed" in text and "`--seed=4`, 3 times: 3.2 minutes" in text
    assert text.count(page.NOT_EXPLAINED) == 1 and "    + y\n" in text
    reasons = {("diffjax/a.py", "x = 1", "y"): "It is the same."}
    assert page.NOT_EXPLAINED not in page.make_page({"runs": [RUN], "mutants": mutants}, reasons)


def test_a_run_that_stopped_goes_on_and_forgets_code_that_has_changed(tmp_path):
    module, file = tmp_path / "a.py", tmp_path / "results.json"
    module.write_text("x = 1\ny =  2\n")
    one, other = _mutant(str(module)), _mutant(str(module), before="y = 2", after="y = 3")
    first = page.Results(file, 1, "2 cores", 300)
    for mutant in (one, other):
        assert not first.knows(mutant)
        first.add(mutant, 30.0)
    stopped = page.Results(file, 1, "2 cores", 300)
    assert stopped.knows(one) and stopped.knows(other)
    assert stopped.run["mutants"] == 2 and stopped.runs == []
    assert not page.Results(file, 1, "2 cores", 300, again=True).knows(one)
    module.write_text("x = 7\ny = 2\n")
    later = page.Results(file, 2, "2 cores", 300)
    assert later.knows(other) and not later.knows(one)
    later.add({**other, "verdict": "survived"}, 60.0)
    stored = json.loads(file.read_text())
    assert [(run["seed"], run["mutants"], run["minutes"]) for run in stored["runs"]] == [
        (1, 2, 1.0), (2, 1, 1.0)
    ]  # fmt: skip
    assert [(m["before"], m["verdict"]) for m in stored["mutants"]] == [("y = 2", "survived")]


def test_tests_are_chosen_by_the_changed_line(monkeypatch, tmp_path):
    path = str(tmp_path / "a.py")
    lines = {
        server.IMPORT: {"seconds": 0.0, "lines": [[path, 1], [path, 2]]},
        "slow": {"seconds": 2.0, "lines": [[path, 5], [path, 7]]},
        "fast": {"seconds": 1.0, "lines": [[path, 5]]},
        "other": {"seconds": 0.5, "lines": [["b.py", 5]]},
    }
    assert server.choose_tests(lines, path, 5, 6) == ["fast", "slow"]
    assert server.choose_tests(lines, path, 6, 7) == ["slow"]
    assert server.choose_tests(lines, path, 9, 9) == ["fast", "slow"]  # inside of a constant
    assert server.choose_tests(lines, "c.py", 9, 9) == []
    assert server.choose_tests(lines, path, 1, 1) == ["fast", "slow"]  # a default, for instance


SOURCE = '''def double(x: int = 3) -> int | None:
    """Twice x."""
    if x < 0:
        raise ValueError(f"x must be at least {0 + 0}")
    return x * 2
'''


def test_mutants_change_the_program_and_nothing_else(tmp_path):
    mutants = pytest.importorskip("tests.mutation.mutants", reason="cosmic-ray is not installed")
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    drawn = list(mutants.sample_mutants(1, 50, (str(path),)))
    assert drawn == list(mutants.sample_mutants(1, 50, (str(path),)))
    # The default; the condition, its comparison and its 0; the product and its 2. No annotation
    # and no message.
    assert sorted(one.line for one in drawn) == [1, 3, 3, 3, 5, 5]
    for one in drawn:
        compile(one.source, "a.py", "exec")
        assert one.before in " ".join(SOURCE.split()) and one.before != one.after
        assert one.source != SOURCE
