"""What docs/stable_diffusion.md says can be typed as it stands there."""

import re
from pathlib import Path

import pytest

from diffjax import generate
from tests.parity import generate_cases as g

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/stable_diffusion.md").read_text("utf-8")


def test_flags_exist():
    source = (ROOT / "experiments/generate.py").read_text("utf-8")
    flags = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source))
    used = set(re.findall(r"--(\w+)", TEXT))
    assert used and used <= flags, used - flags


def test_names_exist():
    listed = TEXT[TEXT.index("Samplers:") : TEXT.index("All that")]
    names = set(re.findall(r"`(\w+)`", listed))
    assert names == set(generate.SAMPLERS) | set(generate.GRIDS)


@pytest.mark.slow
def test_snippets_run(monkeypatch):
    monkeypatch.setattr(generate, "load", lambda path: g.pipeline("sd1"))
    scope = {}
    for snippet in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        exec(snippet, scope)
    assert scope["step"].i == 10
    assert len(scope["images"]) == 2
