"""What docs/stable_diffusion.md says can be typed as it stands there."""

import re
from pathlib import Path

import pytest

from configs import stable_diffusion
from diffjax import generate
from diffjax.cli.generate_command import FLAG_GROUPS
from tests.parity import generate_cases as g

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/stable_diffusion.md").read_text("utf-8")
TRAINING = PAGE[PAGE.index("## Fine-tuning") : PAGE.index("## Differences")]
TEXT = PAGE.replace(TRAINING, "")


def test_flags_exist():
    flags = {name for names in FLAG_GROUPS.values() for name in names}
    used = set(re.findall(r"--(\w+)", TEXT))
    assert used and used <= flags | {"help"}, used - flags


def test_values_of_configs_exist():
    known = stable_diffusion.get_config("sd15_lora")
    keys = set(re.findall(r"--config\.([a-z_.]+)=", TRAINING))
    keys |= set(re.findall(r"`((?:data|cond|lora)\.[a-z_]+)", TRAINING))
    for key in keys:
        section, _, name = key.partition(".")
        assert name in known[section], key
    variants = re.findall(r"configs/stable_diffusion\.py:(\w+)", TRAINING)
    assert variants and set(variants) <= set(stable_diffusion.VARIANTS)


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


def test_the_page_on_personal_models_names_variants_and_values_that_exist():
    page = (ROOT / "docs/personalise.md").read_text("utf-8")
    commands = re.findall(r"configs/stable_diffusion\.py:(\w+)((?:[^`]*?\\\n)*[^`\n]*)", page)
    assert len(commands) >= 3
    for variant, rest in commands:
        config = stable_diffusion.get_config(variant)
        for key in re.findall(r"--config\.([a-z_.]+)=", rest):
            section, _, name = key.partition(".")
            assert name in config[section], (variant, key)
    table = page[: page.index("## A subject")]
    named = set(re.findall(r"`(s\w+_\w+)`", table))
    assert named <= set(stable_diffusion.VARIANTS), named
