"""Both stages from the command line: train, encode once, train on that, export, sample."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.slow


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def first(execute, tmp_path_factory):
    """The workdir of an autoencoder."""
    folder = tmp_path_factory.mktemp("first")
    execute("train", "--config=configs/autoencoder.py:fashion_mnist,smoke", f"--workdir={folder}")
    return folder


def test_two_stages(execute, first, tmp_path):
    direct, stored, latents = tmp_path / "direct", tmp_path / "stored", tmp_path / "latents"
    config = "--config=configs/ldm.py:fashion_mnist,smoke"
    weights = f"--config.autoencoder.weights={first}"
    execute("train", config, weights, f"--workdir={direct}")
    execute("encode", config, weights, f"--out={latents}")
    data = ["--config.data.name=latents", f"--config.data.dir={latents}"]
    execute("train", config, weights, *data, f"--workdir={stored}")
    np.testing.assert_allclose(losses(direct), losses(stored), rtol=1e-4)
    ours = ("--metrics=distance", "--config.eval.features=digits", "--num=16")
    execute("evaluate", f"--workdir={stored}", *ours)  # against the images behind the latents
    assert json.loads((stored / "evaluation.json").read_text())["num_reference"] == 16

    # Sampling needs the workdir alone, and an exported file nothing else.
    (first / "config.json").rename(first / "moved.json")
    execute("sample", f"--workdir={direct}", "--num=3")
    file = tmp_path / "model.safetensors"
    execute("export", f"--workdir={direct}", f"--out={file}")
    (first / "moved.json").rename(first / "config.json")
    execute("sample", f"--weights={file}", f"--workdir={tmp_path / 'new'}", "--num=3")
    made = [np.load(next(f.glob("samples/*.npz")))["images"] for f in (direct, tmp_path / "new")]
    np.testing.assert_array_equal(*made)

    other = tmp_path / "other"
    message = execute(
        "train", config, weights, "--config.autoencoder.latent_channels=5", f"--workdir={other}",
        code=2,
    )  # fmt: skip
    assert "is not the one of config.autoencoder" in message and "has shape" in message


def test_measuring_an_autoencoder(execute, first):
    execute("evaluate", f"--workdir={first}", "--num=8", "--config.eval.features=digits")
    found = json.loads((first / "evaluation.json").read_text())
    assert found["psnr"] > 0 and found["images"] == found["num"] == found["floor_num"] == 8
    saved = first / "again.npz"
    options = ("--metrics=psnr", f"--save_reconstructions={saved}", "--num=8")
    execute("evaluate", f"--workdir={first}", *options)
    images, originals = (np.load(first / f"again{k}.npz")["images"] for k in ("", "-originals"))
    assert images.shape == originals.shape and images.dtype == np.uint8 and len(images) == 8
    error = np.square((images.astype(float) - originals) / 127.5).mean((1, 2, 3))
    assert (10 * np.log10(4 / error)).mean() == pytest.approx(found["psnr"], rel=0.01)


def test_captions_are_judged_for_every_scale(execute, tmp_path):
    shapes = ("--config.data.name=shapes", "--config.data.image_size=32")
    execute("train", "--config=configs/ldm.py:shapes,smoke", *shapes, f"--workdir={tmp_path}")
    options = ("--metrics=captions", "--sweep=guidance=1,2", "--num=4")
    execute("evaluate", f"--workdir={tmp_path}", *options)
    file = tmp_path / "sweeps/sweep.jsonl"
    first = file.read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    assert [row["guidance"] for row in rows] == [1, 2]
    assert all(0 <= row["all"] <= row["colour"] <= 1 for row in rows)
    assert (tmp_path / "sweeps/sweep.png").exists()
    again = ("evaluate", f"--workdir={tmp_path}", *options)
    assert "2 of 2 rows" in execute(*again, "--steps=3", code=2)  # of other settings: not reused
    execute(*again)
    assert file.read_text() == first
