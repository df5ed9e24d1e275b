"""What every entry point says of wrong flags, and the exit codes of docs/scaling.md."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import ddpm
from diffjax.config import read_config

ROOT = Path(__file__).parents[2]
DIGITS = "--config=configs/ddpm.py:digits"


@pytest.mark.parametrize("entry, arguments, message", [
    ("train", [DIGITS, "--config.optim.lr=abc"], "--config.optim.lr takes a number, got 'abc'"),
    ("train", [DIGITS, "--config.train.steps=1.5"], "takes a whole number, got '1.5'"),
    ("train", [DIGITS, "--config.schedule.zero_snr=maybe"], "takes true or false, got 'maybe'"),
    ("train", [DIGITS, "--config.network.multipliers=abc"], "takes whole numbers such as 1,2"),
    ("train", [DIGITS, "--config.network.multipliers=1.5,2"], "takes whole numbers such as 1,2"),
    ("train", ["--config=configs/ddpm.py:digts"], "Did you mean 'digits'?"),
    ("train", ["--config=configs/dpm.py:digits"], "Did you mean 'configs/ddpm.py'?"),
    ("train", [DIGITS, "--config.optm.lr=1"], "Did you mean 'optim'?"),
    ("train", [DIGITS, "--config.optim.lrr=1"], "Did you mean 'lr'?"),
    ("train", [DIGITS, "--config.train.steps.x=1"], "config.train.steps is a value"),
    ("train", [DIGITS, "--workdr=x"], "Did you mean 'workdir'?"),
    ("train", [DIGITS, "--dry_run", "--config.sample.eta=0.5"],
     "--config.sample.eta is not used: sample.sampler is 'ddpm'"),
    ("train", [DIGITS, "--dry_run", "--config.loss.gamma=2"], "--config.loss.gamma is not used"),
    ("train", [DIGITS, "--dry_run", "--config.optim.weight_decay=.1"], "belongs to acprop"),
    ("train", [DIGITS, "--dry_run", "--config.schedule.name=lineer"], "Did you mean 'linear'?"),
    ("train", [DIGITS, "--dry_run", "--config.data.batch_size=0"],
     "config.data.batch_size must be a whole number in 1 .. 16777216, got 0"),
    ("train", [DIGITS, "--dry_run", "--config.optim.lr=nan"], "config.optim.lr is not a number"),
    ("train", ["--config=configs/own.py:plain", "--dry_run"],
     "error: --config.data.dir=FOLDER is needed: image_folder needs a folder: pass --config"),
    ("train", ["--config=configs/stable_diffusion.py:sd15", "--dry_run",
               "--config.data.image_size=0"], "error: --config.data.dir=FOLDER is needed"),
    ("train", [DIGITS, "--workdir=x", "--config.data.channels=3"],
     "set --config.data.image_size and --config.data.channels"),
    ("train", [DIGITS, "--best"], "train does not use --best"),
    ("train", [DIGITS, "extra"], "unexpected arguments: extra"),
    ("sample", [DIGITS, "--sampler=heun", "--eta=0.7", "--workdir=x"],
     "--eta is not used: sample.sampler is 'heun'"),
    ("sample", ["--steps=0"], "--steps=0: 0 is not a positive integer"),
    ("sample", ["--num=0"], "--num=0"),
    ("sample", ["--workdir=no-such-run"], "no-such-run holds no run"),
    ("generate", ["--model=x", "--workdir=y"], "generate does not use --workdir"),
    ("generate", ["--model=x", "--best"], "generate does not use --best"),
    ("plan", [DIGITS, "--best"], "plan does not use --best"),
    ("encode", [DIGITS, "--best"], "encode does not use --best"),
    ("evaluate", ["--images=x", "--steps=5"], "--steps has no effect beside --images"),
    ("evaluate", ["--sweep=steps=1", "--seed=3"], "--seed has no effect beside --sweep"),
    ("evaluate", [DIGITS, "--workdir=x", "--clip=y"], "--clip has no effect without --images"),
    ("evaluate", ["--workdir=x", "--inception=y"], "--inception has no effect on --metrics"),
    ("evaluate", ["--workdir=x", "--metrics=bits", "--lpips=y"], "it is for diversity"),
    ("export", ["--num=3"], "unknown flag --num"),
])  # fmt: skip
def test_wrong_flags(execute, entry, arguments, message, tmp_path):
    """Exit code 2, a message that names what was typed, and no traceback."""
    arguments = [a.replace("--workdir=x", f"--workdir={tmp_path / 'x'}") for a in arguments]
    output = execute(entry, *arguments, code=2)
    assert message in output and "Traceback" not in output
    assert output.count("error:") == 1


@pytest.mark.parametrize("value, message", [
    ("", "needs a folder: pass config.data.dir or set DIFFJAX_DATA_DIR"),
    ("no-such-folder", "config.data.dir=no-such-folder"),
])  # fmt: skip
def test_messages_of_the_library_name_keys_of_the_config(execute, tmp_path, value, message):
    config = ("--config.data.name=image_folder", f"--config.data.dir={value}")
    output = execute("train", DIGITS, f"--workdir={tmp_path}", *config, code=1)
    assert message in output and "data_dir" not in output.replace("DIFFJAX_DATA_DIR", "")


def test_help_exits_with_0(execute):
    assert "--workdir" in execute("train", "--help")


def test_an_option_that_the_choice_takes_is_used(execute):
    output = execute("train", DIGITS, "--dry_run", "--config.loss.weight=p2", "--config.loss.k=2")
    assert '"k": 2.0' in output


def test_a_stored_config_can_be_overridden_where_it_is_open(execute, digits_run):
    """config.json holds null for what is open; flags know the types all the same."""
    workdir = f"--workdir={digits_run}"
    execute("sample", workdir, "--sampler=ddim", "--eta=0.5", "--num=2", "--steps=2")
    execute("sample", workdir, "--sampler=pc", "--config.sample.snr=0.1", "--num=2", "--steps=2")
    bad = execute("sample", workdir, "--prompt=a red circle", code=2)
    assert "--prompt has no effect" in bad
    bad = execute("sample", workdir, "--rows=eta=0,1", "--sampler=heun", code=2)
    assert "sample.eta is not used" in bad
    bad = execute("sample", workdir, "--config.sample.snr=x", "--sampler=pc", code=2)
    assert "--config.sample.snr takes a number, got 'x'" in bad


def test_a_section_in_place_of_a_value_is_named(tmp_path):
    stored = ddpm.digits().to_dict()
    stored["cond"]["concat"] = {"x": 1}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(
        ValueError, match=r"config\.json: config\.cond\.concat must be a value, but is a section"
    ):
        read_config(tmp_path / "config.json")


@pytest.mark.skipif(
    any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="this machine may have a CUDA device",
)
@pytest.mark.parametrize("command", [
    ("diffjax.cli", "generate", "--model", "none", "--prompt", "a"),
    ("experiments.train", f"{DIGITS},smoke", "--workdir=none"),
])  # fmt: skip
def test_no_device_is_one_sentence(command, tmp_path):
    """JAX's own errors are an assertion without a message, or a page of a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", *(part.replace("=configs", f"={ROOT}/configs") for part in command)],
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cuda", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    said = done.stderr.strip()
    assert done.returncode == 1 and not done.stdout
    assert said.startswith("error: JAX finds no device for JAX_PLATFORMS='cuda'. Unset it, set it")
    assert "\n" not in said
