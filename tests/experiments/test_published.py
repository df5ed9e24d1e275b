"""The table of what was published, the configs, and the page are one thing."""

from pathlib import Path

import pytest

from configs.published import DECIDED, RELEASES, TABLE
from configs.published.table import FID
from diffjax import data
from diffjax.config import complete, load_config, resolve
from diffjax.config.variants import load_module
from experiments import published

ROOT = Path(__file__).parents[2]
# Variants with settings of our own, for one machine or for pictures of one's own.
SMALL = ("digits", "fashion_mnist", "shapes", "small_")
OURS = ("own", "stable_diffusion")  # files without settings of a paper


def paper_variants():
    for path in sorted((ROOT / "configs").glob("*.py")):
        if "def get_config" in path.read_text() and path.stem not in OURS:
            names = load_module(str(path)).VARIANTS
            papers = (n for n in names if not n.startswith(SMALL) and not n.endswith("_lora"))
            yield from (f"{path.stem}:{n}" for n in papers)


def config_of(name):
    stem, _, variant = name.partition(":")
    return load_config(f"{ROOT}/configs/{stem}.py:{variant}")


def test_every_variant_of_a_paper_is_in_the_table_and_no_other():
    assert set(TABLE) == set(paper_variants())


@pytest.mark.parametrize("name", TABLE)
def test_a_config_has_what_was_published(name):
    found = resolve(config_of(name))
    wrong = {}
    for key, (value, where) in TABLE[name].values.items():
        node = found
        for part in key.split("."):
            node = node[part]
        node = tuple(node) if isinstance(node, list | tuple) else node
        if node != (pytest.approx(value) if isinstance(value, float) else value):
            wrong[key] = (node, value, where)
    assert not wrong


@pytest.mark.parametrize("name", TABLE)
def test_nothing_that_matters_is_inherited_without_being_listed(name):
    assert published.list_undecided(config_of(name), TABLE[name]) == []


def test_a_value_that_nobody_listed_is_found():
    config = complete(config_of("ddpm:cifar10"))
    listed = TABLE["ddpm:cifar10"]
    for key in DECIDED:
        fewer = listed._replace(values={k: v for k, v in listed.values.items() if k != key})
        assert published.list_undecided(config, fewer) == [key]


@pytest.mark.parametrize("name", TABLE)
def test_a_place_is_a_file_of_a_release_or_says_whose_it_is(name):
    for _, where in TABLE[name].values.values():
        release, colon, file = where.partition(": ")
        assert file if colon and release in RELEASES else len(where) > 5


@pytest.mark.parametrize("name", TABLE)
def test_a_figure_that_can_be_measured_says_of_how_many_images_and_beside_what(name):
    one = TABLE[name]
    assert bool(one.measure) == bool(one.against)
    for command in one.measure.splitlines():
        number = command.partition("--num=")[2].split()[0]
        assert f"{int(number):,}" in one.against


def test_commands_give_what_a_training_needs():
    needs = {name: published.list_needs(config_of(name)) for name in TABLE}
    assert needs["ddpm:cifar10"] == {}
    assert needs["adm:imagenet128"] == {"data.dir": "DATA"}
    first_stage = {"data.dir": "DATA", "loss.perceptual_weights": "LPIPS"}
    assert needs["autoencoder:vq_f4"] == first_stage
    assert needs["ldm:cin256"] == {"data.dir": "DATA", "autoencoder.weights": "AUTOENCODER"}
    assert needs["controlnet:sd15_canny"]["model.path"] == "MODEL"
    assert "--config.autoencoder.weights=AUTOENCODER" in published.write_page()


@pytest.mark.parametrize("name", TABLE)
def test_the_data_of_a_paper_are_known(name):
    assert config_of(name).data.name in data.names()


def test_figures_that_other_papers_quote():
    page = published.write_page()
    assert "3.17 on the training set, 5.24 on the test set" in page
    assert f"{FID} --reference=TEST_IMAGES" in page
    assert "19.74 of PITI (PIPT)" in page


def test_the_page_is_the_table():
    assert (ROOT / "docs/published.md").read_text() == published.write_page()
