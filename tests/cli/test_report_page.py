"""The page about a run: what it says of figures, and that it is a page."""

import html.parser
import json
import math
import shlex

import numpy as np
import pytest

from configs import ddpm
from diffjax.cli import figures, page_parts, report_page, run_flags
from diffjax.evaluation.image_grids import FILM, arrange_film, save_png

EVALUATION = {
    "distance": 5.0,
    "num": 750,
    "num_reference": 750,
    "features": "digits-v1",
    "baselines": {
        "real_floor": 2.5,
        "real_floor_num": 750,
        "matched_gaussian": 30.0,
        "untrained_network": 80.0,
    },
    "sampler": {"steps": 100},
}
SUMMARY = {
    "steps": 800,
    "images": 102400,
    "parameters": 701345,
    "wall_seconds": 252.0,
    "devices": ["cpu"],
    "machine": "x86_64",
    "jax": "0.10.2",
    "python": "3.11.7",
    "sessions": [{"cpu_cores": 2}],
}


def test_the_bar_is_logarithmic_and_ends_at_the_floor():
    assert page_parts.Scale(2.5, 2.5, 80.0).done == 1.0
    assert page_parts.Scale(80.0, 2.5, 80.0).done == 0.0
    assert page_parts.Scale(math.sqrt(2.5 * 80), 2.5, 80.0).done == pytest.approx(0.5)
    assert page_parts.Scale(2.0, 2.5, 80.0).done == 1.0  # it stays on the bar
    assert "width:80.0%" in page_parts.format_bar(page_parts.Scale(5.0, 2.5, 80.0))


def test_a_sentence_says_how_good_the_model_is():
    scale = figures.read_scale(EVALUATION)
    said = figures.describe_quality(scale)
    assert "2.0 times as far" in said and "before training it was 32 times" in said
    assert "as close" in figures.describe_quality(scale._replace(distance=2.4))
    assert "no closer" in figures.describe_quality(scale._replace(distance=81.0))


@pytest.mark.parametrize("change", [{"baselines": {}}, {"distance": 0.0}, {"distance": "much"}])
def test_without_all_three_distances_there_is_no_bar(change):
    assert figures.read_scale({**EVALUATION, **change}) is None


def test_sets_of_different_sizes_are_said_to_compare_roughly():
    assert "between sets of 750 pictures" in figures.describe_sizes(EVALUATION)
    assert "only rough" in figures.describe_sizes({**EVALUATION, "num": 1000})


def test_every_figure_of_an_evaluation_and_of_the_log_is_explained():
    logged = ("step", "loss", "grad_norm", "lr", "steps_per_second")
    found = {**EVALUATION, **EVALUATION["baselines"], **dict.fromkeys(logged, 1.0)}
    rows = figures.explain(found)
    assert "sampler" not in rows and "baselines" not in rows  # tables are no figures
    assert all(about for _, about in rows.values())


def test_machine_and_minutes_are_said():
    said = figures.describe_training(SUMMARY)
    assert said.startswith("800 steps, 102,400 pictures, 701,345 parameters: 4.2 minutes on 2 CPU")
    pod = {**SUMMARY, "devices": ["TPU v4"] * 8, "sessions": [{}, {}]}
    assert "in 2 sessions on 8 x TPU v4" in figures.describe_training(pod)
    assert "unknown" in figures.describe_training({})  # an older or damaged file


class _Page(html.parser.HTMLParser):
    """The images of a page and the tags that are open at its end."""

    def __init__(self, text):
        super().__init__()
        self.images, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make_run(folder):
    picture = np.zeros((8, 8, 3), np.uint8)
    for name in ("00000400", "ddpm-100-step800-seed0", "ddpm-100-step800-seed0-film"):
        save_png(picture, folder / "samples" / f"{name}.png")
    save_png(picture, folder / "real.png")
    rows = [{"step": k, "loss": 1 / k, "grad_norm": 1.0, "lr": 1e-8} for k in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))


def test_the_page_of_a_run_shows_what_the_run_wrote(tmp_path):
    make_run(tmp_path)
    text = report_page.format_run(ddpm.digits(), tmp_path)
    page = _Page(text)
    assert page.open == []  # every tag is closed
    captions = [image["alt"] for image in page.images]
    assert [caption.split()[0] for caption in captions] == [
        *("Samples,", "Real", "From", "Drawn", "The"),
    ]
    assert "100 steps of ddpm after 800 steps of training, with seed 0" in captions[0]
    assert text.index("times as far") < text.index("<img") < text.index("The papers&#x27; figures")
    assert text.count("<details>") == 3 and "http" not in text.replace("https://arxiv.org", "")


def test_the_page_of_a_run_that_has_just_begun_says_what_to_do(tmp_path):
    text = report_page.format_run(ddpm.digits(), tmp_path)
    assert "Not evaluated yet" in text and f"--workdir={tmp_path}" in text
    assert "<img" not in text


def test_the_commands_to_try_can_be_typed(tmp_path):
    """Each is an entry point with flags that it has, and the config's keys exist."""
    cfg = ddpm.digits()
    commands = report_page.list_commands(cfg, tmp_path / "a run")
    assert len(commands) == 3
    for line in commands.values():
        python, dash, module, *given = shlex.split(line)
        assert dash == "-m" and module.startswith("experiments.") and python.endswith("python")
        for flag in given:
            name, _, value = flag.removeprefix("--").partition("=")
            if name.startswith("config."):
                section, key = name.split(".")[1:]
                assert key in cfg[section] and value != cfg[section][key]
            elif name not in ("rows", "num", "config", "workdir", "sweep"):
                assert name in run_flags.SAMPLING_FLAGS
        assert f"--workdir={tmp_path / 'a run'}" in given or "train" in module


def test_a_film_has_two_rows_for_each_image():
    frames = np.zeros((2, 5, 3, 4, 4, 1), np.float32)
    frames[0, :, 1], frames[1, :, 1] = -1, 1  # the second image: states black, predictions white
    picture = arrange_film(frames)
    side = picture.shape[1] // 5
    rows = [int(picture[k * side + side // 2, side // 2, 0]) for k in range(6)]
    assert rows == [128, 128, 0, 255, 128, 128] and FILM.endswith(".png")
