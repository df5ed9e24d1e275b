"""IP-Adapters: the same file by diffusers and by us, the same images."""

import numpy as np
import PIL.Image
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffjax import generate  # noqa: E402
from tests.parity import generate_cases as g  # noqa: E402
from tests.parity import generate_record as record  # noqa: E402
from tests.parity.test_generate import LIMIT, one_thread  # noqa: E402, F401
from tests.pretrained.image_adapters import write_adapter  # noqa: E402

SCALES = (0.8, 0.5)
CASES = {
    "base": ("sd1", "text", ("base",)),
    "plus": ("sd1", "text", ("plus",)),
    "full": ("sd1", "text", ("full",)),
    "two": ("sd1", "text", ("base", "plus")),
    "control": ("sd1", "control", ("base",)),
    "xl": ("xl", "text", ("base",)),
    "unguided": ("sd1", "text", ("plus",)),
}


def picture():
    return PIL.Image.fromarray(g.picture()).resize((12, 10))


def run_theirs(case, folder, kinds):
    made = record.pipeline(case.family, case.mode)
    names = [f"{kind}.safetensors" for kind in kinds]
    try:
        made.load_ip_adapter(str(folder), subfolder="", weight_name=names)
        side = made.image_encoder.config.image_size
        assert made.feature_extractor.crop_size["height"] == side
        made.set_ip_adapter_scale(list(SCALES[: len(kinds)]))
        options = record._options(case)
        options |= dict(prompt=g.PROMPTS[0], num_images_per_prompt=2)
        options["ip_adapter_image"] = [picture()] * len(kinds)
        return record._run(case, made, case.mode, options)
    finally:  # the networks are shared
        made.unload_ip_adapter()


@pytest.mark.parametrize("name", CASES)
def test_images_are_the_same(name, tmp_path):
    family, mode, kinds = CASES[name]
    case = g.Case("ddim", family, mode, (("guidance", 1.0),) if name == "unguided" else ())
    pipe = g.pipeline(family)
    for kind in kinds:
        write_adapter(tmp_path, pipe.parts.unet, kind)
    adapters = [pipe.load_image_adapter(str(tmp_path / f"{kind}.safetensors")) for kind in kinds]
    asked = g.request(case)
    fields = {k: getattr(asked, k) for k in asked.__dataclass_fields__}
    prompts = [
        generate.ImagePrompt(adapter, picture(), scale)
        for adapter, scale in zip(adapters, SCALES, strict=False)
    ]
    fields |= dict(prompt=g.PROMPTS[0], num=2, image_prompt=prompts)
    ours = pipe(fields.pop("prompt"), **fields, output="np")
    theirs = run_theirs(case, tmp_path, kinds)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=LIMIT)
    fields["image_prompt"] = [one._replace(scale=0.0) for one in prompts]
    without = pipe(g.PROMPTS[0], **fields, output="np")
    assert np.abs(without - theirs).max() > 10 * np.abs(ours - theirs).max()
