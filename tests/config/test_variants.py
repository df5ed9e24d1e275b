"""Config files by name."""

from pathlib import Path

import pytest

from diffjax.config import load_config, make, variants
from diffjax.config.ranges import check_list
from diffjax.types import ConfigError

DDPM = str(Path(__file__).parents[2] / "configs/ddpm.py")


def test_a_variant_by_name_and_the_default_one():
    assert load_config(f"{DDPM}:cifar10").data.name == "cifar10"
    assert load_config(DDPM).to_dict() == load_config(f"{DDPM}:digits").to_dict()


def test_a_file_of_ones_own_may_lack_keys(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(variant):\n    return ConfigDict({'seed': 5, 'mine': variant})\n"
    )
    found = load_config(f"{tmp_path}/mine.py:x")
    assert (found.seed, found.mine, found.data.to_dict()) == (5, "x", make().data.to_dict())


@pytest.mark.parametrize("name, message", [
    (DDPM.replace("ddpm", "dpm"), r"there is no config file .*Did you mean '.*/configs/\w+\.py'"),
    ("nowhere.py:x", "there is no config file 'nowhere.py'; a config is FILE.py:VARIANT"),
    ("", "there is no config file ''"),
])  # fmt: skip
def test_a_file_that_is_not_there_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        load_config(name)


def test_a_variant_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        load_config(f"{DDPM}:digts")


def test_away_from_a_checkout_that_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="has no folder configs: run from a checkout of diffjax"):
        load_config("configs/ddpm.py:digits")


@pytest.mark.parametrize("before, value, message", [
    ((1, 2), ("abc",), r"takes whole numbers such as 1,2, got 'abc'"),
    ((1, 2), (1.5, 2), r"takes whole numbers such as 1,2, got '1.5,2'"),
    ((0.5, 1), (True, 1), r"takes numbers such as 0.5,1, got 'True,1'"),
])  # fmt: skip
def test_lists_of_numbers_stay_so(before, value, message):
    with pytest.raises(ConfigError, match=rf"^config\.network\.multipliers {message}"):
        check_list("network.multipliers", before, value)


def test_lists_of_anything_else_may_hold_anything():
    check_list("cond.empty", (), ("x",))
    check_list("lora.targets", ("to_q",), ("to_k", "to_v"))
    check_list("network.multipliers", (0.5, 1), (1, 2.5))


def test_a_workdir_remembers_the_file_of_its_config(tmp_path, monkeypatch, caplog):
    """What the file registers is there when the workdir is used later."""
    monkeypatch.chdir(tmp_path)
    run, seen = tmp_path / "run", []
    run.mkdir()
    monkeypatch.setattr("builtins.registered", seen, raising=False)
    (tmp_path / "configs").mkdir()
    for folder in ("configs", "run"):
        (tmp_path / folder / "mine.py").write_text(f"registered.append('{folder}')\n")
    variants.keep_file("configs/mine.py:small,smoke", run)
    variants.load_kept_file(run)
    assert seen == ["configs"]
    # Nothing to remember: a config that was stored by another run.
    variants.keep_file(f"{variants.__file__.replace('variants', 'store')}:x/config.json", run)
    assert (run / variants.KEPT).read_text() == "configs/mine.py\n"
    # A workdir of a stranger names a file that came with it, or one elsewhere.
    for name in ("run/mine.py", "configs/../run/mine.py", str(run / "mine.py")):
        (run / variants.KEPT).write_text(name)
        with caplog.at_level("INFO"):
            variants.load_kept_file(run)
        assert seen == ["configs"] and "is not run, since" in caplog.text
    variants.load_kept_file(tmp_path)  # which remembers nothing
