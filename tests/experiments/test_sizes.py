"""Models of pictures that are no squares, from the command line to measures."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import ddpm
from diffjax import runs
from diffjax.cli import run_flags
from diffjax.config import read_config
from diffjax.types import ConfigError
from tests.cheap import SGD

SIZE = (40, 56)
FLAG = "--config.data.image_size=(40,56)"


@pytest.fixture
def folder(tmp_path):
    """Four pictures of 40x56 pixels in each split."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in range(4):
            picture = rng.integers(0, 256, (*SIZE, 3), np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / split / f"{i}.png")
    return tmp_path / "data"


def test_a_folder_trains_samples_and_is_measured(execute, folder, tmp_path):
    run = tmp_path / "run"
    execute(
        "train", "--config=configs/ddpm.py:digits,smoke", f"--workdir={run}", FLAG,
        "--config.data.name=image_folder", f"--config.data.dir={folder}",
        "--config.data.channels=3", "--config.data.num_classes=0",
        "--config.data.levels=256", "--config.schedule.steps=10", *SGD,
    )  # fmt: skip
    out = run / "images"
    execute("sample", f"--workdir={run}", "--num=3", "--sampler=heun", f"--out={out}")
    images = np.load(out.with_suffix(".npz"))["images"]
    assert images.shape == (3, *SIZE, 3)
    execute("evaluate", f"--workdir={run}", "--metrics=bits", "--num=4")
    found = json.loads((run / "evaluation.json").read_text())
    assert found["bits_per_dim"] > 0
    execute(
        "evaluate", f"--workdir={run}", f"--images={folder / 'train'}", "--metrics=psnr,ssim",
        f"--reference={folder / 'train'}",
    )  # fmt: skip
    assert json.loads((run / "evaluation.json").read_text())["ssim"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24", 24), ("(40,56)", SIZE), ("(40, 56)", SIZE), ("40x56", SIZE), ("40,56", SIZE)],
)
def test_the_command_line_takes_one_number_or_two(execute, text, size):
    config = ("--config=configs/ddpm.py:cifar10", f"--config.data.image_size={text}")
    out = execute("train", *config, "--dry_run")
    shown = json.loads(out[out.index("{") : out.rindex("}") + 1])["data"]["image_size"]
    assert shown == (size if isinstance(size, int) else list(size))


@pytest.mark.parametrize("text", ["big", "4.5", "1,2,3", ""])
def test_other_sizes_are_refused_with_the_choices(execute, text):
    config = ("--config=configs/ddpm.py:cifar10", f"--config.data.image_size={text}")
    out = execute("train", *config, "--dry_run", code=2)
    assert "is no size; give a number of pixels, such as 64, or height and width" in out
    assert "Traceback" not in out


def test_a_stored_size_can_become_another(tmp_path):
    cfg = ddpm.get_config("digits")
    cfg.data.image_size = SIZE
    path = tmp_path / "config.json"
    path.write_text(run_flags.format_config(cfg))
    stored = read_config(path)
    assert runs.read_image_shape(stored) == (*SIZE, 1)
    for size, shape in ((32, (32, 32, 1)), ([8, 16], (8, 16, 1))):
        stored.data.image_size = size
        assert runs.read_image_shape(stored) == shape


def test_a_config_with_another_size_names_the_key():
    cfg = ddpm.get_config("digits")
    cfg.data.image_size = (8, 0)
    with pytest.raises(ConfigError, match=r"config\.data\.image_size=\(8, 0\)"):
        runs.read_image_shape(cfg)
