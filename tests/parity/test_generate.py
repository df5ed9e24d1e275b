"""Whole generations by diffusers' pipelines and ours: same weights, same noise, same images."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffjax  # noqa: E402
from tests.parity import generate_cases as g  # noqa: E402
from tests.parity import generate_record as record  # noqa: E402

# How the pipelines of special models are called.
MODES = {
    "sd1-inpainting": "mask",
    "refiner": "image",
    **{name: name for name in ("edit", "depth", "upscale", "double")},
}
LIMIT = 2e-3  # of images in [0, 1]; measured: 3e-6 at most


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """``family -> pipeline`` that we load from a folder that diffusers wrote."""
    made = {}

    def load(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            mode = MODES.get(family, "text")
            record.pipeline(family, mode).save_pretrained(folder)
            made[family] = diffjax.load(folder)
        return made[family]

    return load


@pytest.mark.parametrize("case", g.CASES, ids=lambda case: case.name)
def test_images_are_the_same(case, loaded, monkeypatch):
    monkeypatch.setattr(g, "pipeline", loaded)
    rounding = 1.1 / 255 if case.option("padding", None) else 0.0  # of crops, which are uint8
    np.testing.assert_allclose(g.ours(case), record.images(case), rtol=0, atol=LIMIT + rounding)


# Models with depth need an estimator of it there, which is not ours to write.
@pytest.mark.parametrize("family", [name for name in g.FAMILIES if name != "depth"])
def test_diffusers_runs_what_we_save(family, tmp_path, monkeypatch):
    mode = MODES.get(family, "text")
    case = g.Case("euler" if family == "double" else "ddim", family, mode)
    theirs = record.images(case)
    g.pipeline(family).save(tmp_path)
    again = record.diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is type(record.pipeline(family, mode))
    monkeypatch.setattr(record, "pipeline", lambda *_: again)
    np.testing.assert_array_equal(record.images(case), theirs)
