"""The safety checker beside that of diffusers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from diffjax.pretrained import load_safety_checker  # noqa: E402

pytestmark = pytest.mark.parity


def test_the_same_images_are_found(tmp_path):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    rng = np.random.default_rng(0)
    with torch.no_grad():
        theirs.concept_embeds.copy_(torch.from_numpy(rng.standard_normal((17, 16))))
        theirs.special_care_embeds.copy_(torch.from_numpy(rng.standard_normal((3, 16))))
    images = rng.uniform(0, 1, (40, 32, 32, 3)).astype("f4")
    images *= rng.uniform(0, 1, (40, 1, 1, 3)).astype("f4")
    process = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pixels = process(list((images * 255).round().astype("u1")), return_tensors="pt").pixel_values
    # Thresholds that some of the images reach.
    with torch.no_grad():
        embedded = theirs.eval().visual_projection(theirs.vision_model(pixels)[1])
        for name, share in (("concept_embeds", 0.97), ("special_care_embeds", 0.9)):
            cosines = torch.cosine_similarity(embedded[:, None], getattr(theirs, name), dim=-1)
            getattr(theirs, f"{name}_weights").copy_(cosines.quantile(share, dim=0))
    theirs.save_pretrained(tmp_path)
    _, wanted = theirs(images=images.copy(), clip_input=pixels)
    found = load_safety_checker(tmp_path).find((images * 255).round() / np.float32(255))
    assert found.tolist() == list(map(bool, wanted))
    assert 0 < found.sum() < len(found)
