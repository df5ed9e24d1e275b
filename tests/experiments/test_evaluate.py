"""The commands of docs/metrics.md as a user runs them."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from configs import ddpm
from diffjax import metrics, runs
from diffjax.runs import measuring
from tests.parity import inception_cases


def folder(path, images):
    path.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image).save(path / f"{k:03d}.png")
    return path


@pytest.fixture
def images(tmp_path):
    """Originals and worse copies, as folders."""
    originals = inception_cases.images(4, height=16, width=16)
    copies = np.clip(originals.astype(int) + 10, 0, 255).astype(np.uint8)
    return folder(tmp_path / "originals", originals), folder(tmp_path / "copies", copies)


def result(path):
    return json.loads((path / "evaluation.json").read_text())


def test_pairs_in_folders_need_no_config(execute, images, tmp_path):
    originals, copies = images
    execute(
        "evaluate",
        *(f"--workdir={tmp_path}", "--metrics=psnr,ssim"),
        *(f"--images={copies}", f"--reference={originals}"),
    )
    found = result(tmp_path)
    assert 20 * np.log10(255 / 10) <= found["psnr"] < 35  # a little better where white is white
    assert 0.9 < found["ssim"] < 1


def test_an_autoencoder_says_what_it_is_measured_by(execute, tmp_path):
    stage = ("--config=configs/autoencoder.py:fashion_mnist,smoke", f"--workdir={tmp_path}")
    out = execute("evaluate", *stage, "--metrics=fid,rfid", code=2)
    assert "fid: an autoencoder is measured by distance, rfid, psnr, ssim of test" in out
    out = execute("evaluate", *stage, "--metrics=rfid", f"--reference={tmp_path}", code=2)
    assert "reconstructions are compared with the test images, no --reference" in out
    model = ("--config=configs/ddpm.py:digits,smoke", f"--workdir={tmp_path}")
    out = execute("evaluate", *model, f"--save_reconstructions={tmp_path / 'x'}", code=2)
    assert "a diffusion model reconstructs nothing" in out


def test_sweeps_say_what_they_measure(execute, tmp_path):
    axis = ("--sweep=steps=2", "--metrics=fid")
    out = execute("evaluate", f"--workdir={tmp_path}", *axis, code=2)
    assert "--sweep measures --metrics=distance or --metrics=captions" in out
    axis = ("--sweep=steps=2", "--reference=somewhere")
    out = execute("evaluate", f"--workdir={tmp_path}", *axis, code=2)
    assert "--sweep compares with the config's training images" in out


def test_what_a_config_leaves_open_is_stored_as_it_was_used():
    cfg = runs.replace_sample(ddpm.digits(), sampler="heun")
    stored = measuring.list_sampler_options(cfg)
    assert stored["s_churn"] == 0.0 and stored["s_tmax"] is None and stored["eta"] is None
    json.dumps(stored, allow_nan=False)
    cfg = runs.replace_sample(ddpm.digits(), sampler="ddim")
    assert measuring.list_sampler_options(cfg)["eta"] == 0.0


def test_the_report_shows_inceptions_figures(execute, digits_run):
    found = {"distance": 3.0, "inception": {"fid": 7.5, "precision": 0.6}}
    (digits_run / "evaluation.json").write_text(json.dumps(found))
    execute("report", f"--workdir={digits_run}")
    assert "<td>fid</td>" in (digits_run / "report.html").read_text()


def test_the_bound_is_that_of_the_model_that_is_sampled(execute, digits_run):
    for clip in (True, False):
        where = f"--workdir={digits_run}", f"--out={digits_run / str(clip)}.json"
        execute("evaluate", *where, "--metrics=bits", f"--config.sample.clip={clip}")
    bound, loose = (json.loads((digits_run / f"{c}.json").read_text()) for c in (True, False))
    assert bound["bits_clip"] and not loose["bits_clip"]
    # Near pure noise the x of an untrained network is far out of bounds.
    assert 0 < bound["bits_per_dim"] < loose["bits_per_dim"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--metrics=fid"],
            "--metrics=fid needs Inception: the Inception weights of FID are not part of",
        ),
        (["--metrics=fid,foo"], "unknown metric 'foo'; choose from distance"),
        (["--metrics=psnr", "--num=3"], "3 images need as many originals"),
        (["--metrics=clip"], "clip needs --clip=FOLDER, a CLIPModel"),
        (["--metrics=bits,distance"], "bits are of a model, not of --images"),
        (["--metrics=distance"], "--reference is for texture, fid, sfid"),
        (["--metrics=psnr", "--reference="], "--metrics=psnr needs --reference, the originals"),
        (["--metrics=diversity"], "diversity needs --lpips=FILE"),
        (["--metrics=fid", "--inception=nowhere.pth"], "there is no file nowhere.pth"),
    ],
)
def test_wrong_use_is_one_clear_message(execute, images, tmp_path, arguments, message):
    given = [f"--workdir={tmp_path}", f"--images={images[1]}", f"--reference={images[0]}"]
    missing = any("nowhere" in argument for argument in arguments)  # no flag is wrong
    out = execute("evaluate", *given, *arguments, code=1 if missing else 2)
    assert message in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_inception_on_folders_and_statistics(execute, images, tmp_path):
    weights, stats = tmp_path / "inception.safetensors", tmp_path / "stats.npz"
    save_file(inception_cases.state(), weights)
    given = [f"--workdir={tmp_path}", f"--inception={weights}"]
    execute("evaluate", *given, f"--reference={images[0]}", f"--save_reference={stats}")
    assert set(np.load(stats)) == {"mu", "sigma", "mu_s", "sigma_s"}
    chosen = [*given, f"--images={images[1]}", "--metrics=fid,sfid,is"]
    found = {}
    for reference in (images[0], stats):
        execute("evaluate", *chosen, f"--reference={reference}")
        found[reference] = result(tmp_path)["inception"]
    a, b = found.values()
    assert a["fid"] == pytest.approx(b["fid"], rel=1e-6)
    assert a["fid"] > 0 and a["sfid"] == pytest.approx(b["sfid"], rel=1e-6)
    assert (a["num"], a["num_reference"], a["resize"]) == (4, 4, "tensorflow")
    assert not (tmp_path / "features").exists()
    theirs = metrics.load_statistics(stats)
    assert metrics.frechet_distance(theirs.spatial, theirs.spatial) < 1e-6
