"""IP-Adapters: the same file by diffusers and by us, the same images."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffjax import generate  # noqa: E402
from diffjax.nets.image_prompts import embed_images, join_layers  # noqa: E402
from diffjax.nets.vision import clip_input  # noqa: E402
from diffjax.types import IMAGE_PROMPTS  # noqa: E402
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


def test_the_training_loss_and_its_gradient_are_theirs(tmp_path):
    """What a row of a batch costs, and the slope of the new layers."""
    pipe, case = g.pipeline("sd1"), g.Case("ddim")
    adapter = pipe.load_image_adapter(write_adapter(tmp_path, pipe.parts.unet, "base"))
    rng = np.random.default_rng(0)
    z, eps = rng.normal(size=(2, 2, 8, 8, 4)).astype("f4")
    images = rng.uniform(-1, 1, (2, 8, 8, 3)).astype("f4")
    context = rng.normal(size=(2, g.LENGTH, 6)).astype("f4")
    t, seen = np.array([700.0, 40.0], "f4"), np.array([1.0, 0.0], "f4")

    def loss(layers):
        given = (adapter.encoder.params, adapter.params, images, seen)
        tokens = embed_images(adapter.encoder.net, adapter.projection, *given)
        prompts = ({"tokens": tokens, "scale": jnp.ones(2)},)
        params = join_layers(pipe.parts.unet.params, layers)
        cond = {"context": context, IMAGE_PROMPTS: prompts}
        raw = pipe.parts.unet.net.apply({"params": params}, z, t, cond)
        return ((raw - eps) ** 2).mean()

    value, slope = jax.jit(jax.value_and_grad(loss))(adapter.layers)
    made = record.pipeline(case.family, case.mode)
    try:
        made.load_ip_adapter(str(tmp_path), subfolder="", weight_name="base.safetensors")
        pixels = torch.from_numpy(np.asarray(clip_input(images, 8)).transpose(0, 3, 1, 2).copy())
        embeds = made.image_encoder(pixels).image_embeds * torch.from_numpy(seen)[:, None]
        found = made.unet(
            torch.from_numpy(z.transpose(0, 3, 1, 2).copy()),
            torch.from_numpy(t),
            torch.from_numpy(context),
            added_cond_kwargs={"image_embeds": [embeds[:, None]]},
        ).sample
        wanted = torch.nn.functional.mse_loss(found, torch.from_numpy(eps.transpose(0, 3, 1, 2)))
        wanted.backward()
        np.testing.assert_allclose(value, wanted.item(), rtol=1e-4)
        name = "mid_block.attentions.0"
        processor = made.unet.attn_processors[f"{name}.transformer_blocks.0.attn2.processor"]
        theirs = processor.to_v_ip[0].weight.grad.numpy()
        ours = slope[name]["transformer_blocks"]["attn2"]["processor.to_v_ip.0"]["kernel"][0].T
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
    finally:  # the networks are shared
        made.unet.zero_grad()
        made.unload_ip_adapter()
