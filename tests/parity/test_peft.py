"""Adapters that peft saves, merged as peft merges them: its folders, its kinds, its settings."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from diffjax.pretrained import load_model, merge_lora  # noqa: E402
from diffjax.pretrained.state_dict import to_state_dict  # noqa: E402
from tests.parity import generate_cases as g  # noqa: E402

ATTENTION = ["to_q", "attn2.to_out.0", "ff.net.2"]
CONVOLUTIONS = [*ATTENTION, "conv1", "proj_in", "downsamplers.0.conv"]
KINDS = {
    "lora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=CONVOLUTIONS),
    "rslora": peft.LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=ATTENTION),
    "patterns": peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=ATTENTION,
        rank_pattern={"attn1.to_q": 2, "ff.net.2": 5},
        alpha_pattern={"attn1.to_q": 1, "to_q": 3},
    ),
    "dora": peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=CONVOLUTIONS),
    "fan in": peft.LoraConfig(r=2, lora_alpha=3, fan_in_fan_out=True, target_modules=ATTENTION),
    "lora bias": peft.LoraConfig(
        r=2, lora_alpha=3, lora_bias=True, target_modules=["to_out.0", "conv1"]
    ),
    "all biases": peft.LoraConfig(r=2, lora_alpha=3, bias="all", target_modules=["to_q", "conv1"]),
    "own biases": peft.LoraConfig(
        r=2, lora_alpha=3, bias="lora_only", target_modules=["to_q", "conv1"]
    ),
    "saved": peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=ATTENTION, modules_to_save=["conv_out", "time_embedding"]
    ),
    "loha": peft.LoHaConfig(r=3, alpha=2, target_modules=CONVOLUTIONS),
    "loha cores": peft.LoHaConfig(
        r=3, alpha=2, target_modules=CONVOLUTIONS, use_effective_conv2d=True
    ),
    "lokr": peft.LoKrConfig(r=2, alpha=3, target_modules=CONVOLUTIONS, decompose_factor=2),
    "lokr cores": peft.LoKrConfig(
        r=1, alpha=3, target_modules=CONVOLUTIONS, use_effective_conv2d=True, decompose_both=True
    ),
    "lokr whole": peft.LoKrConfig(r=64, alpha=16, target_modules=CONVOLUTIONS),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    g.pipeline("sd1").save(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["default", "cats"])
def test_merged_as_by_peft(folder, tmp_path, kind, name):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    before = {key: value.numpy().copy() for key, value in unet.state_dict().items()}
    model = peft.get_peft_model(unet, KINDS[kind], adapter_name=name)
    draw = torch.Generator().manual_seed(0)
    for _, value in sorted(model.named_parameters()):
        if value.requires_grad:
            value.data += 0.2 * torch.randn(value.shape, generator=draw)
    model.save_pretrained(tmp_path)
    wanted = model.merge_and_unload().state_dict()
    ours = {"unet": load_model(folder / "unet")}
    where = tmp_path if name == "default" else tmp_path / name
    found = to_state_dict(merge_lora(ours, where)["unet"].params)
    changed = 0
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value.numpy(), rtol=2e-5, atol=2e-5, err_msg=key)
        changed += not np.allclose(before[key], value.numpy(), atol=1e-3)
    assert changed >= 5
    half = to_state_dict(merge_lora(ours, where, scale=0.5)["unet"].params)
    for key, value in found.items():
        np.testing.assert_allclose(half[key], (before[key] + value) / 2, rtol=1e-5, atol=1e-5)


def test_merged_as_by_peft_in_a_text_encoder(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    targets = ["q_proj", "fc1", "token_embedding"]
    model = peft.get_peft_model(
        text, peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets), adapter_name="default"
    )
    draw = torch.Generator().manual_seed(0)
    for name, value in sorted(model.named_parameters()):
        if "lora_" in name:
            value.data += 0.2 * torch.randn(value.shape, generator=draw)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    wanted = model.merge_and_unload().state_dict()
    ours = {"text_encoder": load_model(folder / "text_encoder")}
    found = to_state_dict(merge_lora(ours, tmp_path)["text_encoder"].params)
    for key, value in wanted.items():
        key = key if key.startswith("text_model.") else f"text_model.{key}"
        if key in found:
            np.testing.assert_allclose(found[key], value.numpy(), rtol=2e-5, atol=2e-5, err_msg=key)
