"""The table of metrics: what each needs, and metrics from outside of the package."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from diffjax import data, evaluation, metrics
from diffjax.evaluation import METRICS, Metric, metric_table
from diffjax.types import ConfigError


def test_three_lines_evaluate_images(digits, tmp_path):
    np.savez(tmp_path / "samples.npz", images=digits[:200])
    network = metrics.feature_network("digits")
    scores = evaluation.evaluate(tmp_path / "samples.npz", digits[200:400], network=network)
    direct = evaluation.measure_distance(network, digits[:200], digits[200:400])
    assert scores == direct and 0 < scores["distance"] < 50


def test_metrics_of_inception_stand_apart(digits, network):
    scores = evaluation.evaluate(
        digits[:100],
        digits[100:300],
        ["distance", "fid", "sfid", "is", "psnr"],
        originals=digits[:100],
        network=metrics.feature_network("digits"),
        inception=network,
    )
    assert scores["psnr"] == 100
    assert scores["num"] == 100 and scores["inception"]["num_reference"] == 200
    assert set(scores["inception"]) >= {"fid", "sfid", "inception_score"}
    assert "fid" not in scores


def test_a_metric_from_outside_is_one_function_and_one_entry(monkeypatch, digits):
    def measure_brightness(images, threshold=0):
        return {"brightness": float((images.read_all() > threshold).mean())}

    monkeypatch.setitem(METRICS, "brightness", Metric(measure_brightness))
    found = evaluation.evaluate(digits, metrics=["brightness"], threshold=100)
    assert found == {"brightness": pytest.approx((digits > 100).mean())}
    assert metric_table.find_metrics_of(["threshold"]) == ["brightness"]
    with pytest.raises(ConfigError, match="'brightness' needs images: the images that are"):
        evaluation.evaluate(metrics=["brightness"])


def test_the_table_says_which_metrics_take_an_input(monkeypatch):
    find = metric_table.find_metrics_of
    assert find(["inception"]) == ["fid", "sfid", "is", "kid", "prdc", "rfid"]
    assert find(["originals"]) == ["rfid", "psnr", "ssim"]
    assert find(["prompts"]) == find(["clip"]) == ["clip"]
    assert find(["lpips"]) == find(["pairs"]) == ["diversity"]
    assert find(["bits_steps"]) == ["bits"]
    monkeypatch.setitem(METRICS, "mine", Metric(lambda images, inception: {}, spatial=True))
    assert find(["inception"])[-1] == "mine"
    assert METRICS["diversity"].needs == ["images", "lpips"]  # pairs has a default
    assert metric_table.needs_spatial(["is", "mine"]) and not metric_table.needs_spatial(["fid"])


def test_every_input_of_the_table_is_described():
    taken = {name for metric in METRICS.values() for name in metric.inputs}
    assert taken == set(metric_table.INPUTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(metrics=["fidd"]), "unknown metric 'fidd'; choose from distance, .* mean 'fid'"),
        (dict(metrics="distance"), "'distance' needs reference: real images"),
        (dict(metrics=["fid"], reference=np.zeros((2, 8, 8, 1))), "'fid' needs inception: Incep"),
        (dict(metrics=["bits"], images=None), "'bits' needs model: a diffjax.evaluation.Pixel"),
        (dict(metrics=["clip"], prompts=["a"]), "'clip' needs clip: CLIP of"),
        (dict(metrics=["clip"], promts=["a"]), "no metric takes the input 'promts'. Did you"),
        (
            dict(metrics=["psnr"], reference=np.zeros((2, 8, 8, 1))),
            "'psnr': image k is compared with original k: 3 images need as many originals, not 2",
        ),
    ],
)
def test_what_is_missing_is_named_before_anything_is_read(options, message):
    unread = evaluation.ImageSet("unread", 3, lambda a, b: pytest.fail("images were read"))
    with pytest.raises(ConfigError, match=message):
        evaluation.evaluate(**{"images": unread, **options})


def test_the_examples_of_the_page_run(monkeypatch, tmp_path):
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text("utf-8")
    section = page.partition("## From Python")[2].partition("\n## ")[0]
    rng = np.random.default_rng(0)
    samples, test_images = (rng.integers(0, 256, (40, 28, 28, 1), np.uint8) for _ in range(2))
    np.savez(tmp_path / "samples.npz", images=samples)
    monkeypatch.chdir(tmp_path)
    names = {"test_images": test_images}
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2
    assert names["scores"]["distance"] > 0
    again = evaluation.evaluate(samples, metrics=["brightness"], threshold=200)
    assert again == {"brightness": pytest.approx((samples > 200).mean())}
    del METRICS["brightness"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.where(x > 0.9, np.nan, x), r"finite and lie in \[-1, 1\], got nan"),
        (lambda x: 127.5 * x + 127.5, r"got 0 \.\. 255; levels 0\.\.255 are given as uint8"),
        (lambda x: (100 * x).astype(np.int32), "uint8 or float in"),
        (lambda x: x[:0], "there is no image"),
        (lambda x: x[0], r"images must be \(N, H, W, C\)"),
    ],
)
@pytest.mark.parametrize("metric", ["psnr", "distance"])
def test_images_that_rounding_would_hide_are_refused(digits, change, message, metric):
    x = digits[:40] / np.float32(127.5) - 1
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(change(x), x, [metric], network="digits")
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(x, change(x), [metric], network="digits")


def test_what_stands_for_images_and_networks(digits, tmp_path):
    network = metrics.feature_network("digits")
    x, real = digits[:60], digits[60:120]
    expected = evaluation.evaluate(x, real, network=network)
    np.savez(tmp_path / "x.npz", images=x)
    np.savez(tmp_path / "real.npz", arr_0=real)
    for images in (x / 127.5 - 1, jax.numpy.asarray(x), tmp_path / "x.npz"):
        for reference in (real, str(tmp_path / "real.npz"), evaluation.from_array(real)):
            assert evaluation.evaluate(images, reference, network="digits") == expected
    with pytest.raises(ConfigError, match="give from_source"):
        evaluation.evaluate(x, data.load("digits"), network="digits")
    with pytest.raises(ValueError, match="no feature network for 'digit'"):
        evaluation.evaluate(x, real, network="digit")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluation.evaluate(x, real, ["fid"], inception=tmp_path / "nowhere.safetensors")
