"""The page under load, and its figures in the docs."""

import json

import pytest

from tests import web_load


def test_everyone_is_answered_within_the_memory():
    pytest.importorskip("gradio")
    assert web_load.check(web_load.measure(24)) == []


def test_the_docs_show_the_stored_figures():
    found = json.loads((web_load.ROOT / "docs/results/data/web.json").read_text())
    assert web_load.check(found) == [] and found["requests"] == 200
    assert web_load.table(found) in (web_load.ROOT / "docs/web.md").read_text()


@pytest.mark.parametrize("change, said", [
    (dict(answers_afterwards=False), "no answer"), (dict(peak_mib=10_000.0), "MiB more"),
    (dict(results=[["ordinary", "refused", 1]]), "1 of ordinary: refused"),
    (dict(results=[["no JSON", "done", 2]]), "2 of no JSON: done"),
])  # fmt: skip
def test_what_is_wrong_is_found(change, said):
    found = json.loads((web_load.ROOT / "docs/results/data/web.json").read_text())
    assert said in " ".join(web_load.check(found | change))
