"""Files and folders that are something else: what they are, and what to do."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import diffjax
from diffjax.pretrained import configs, load_model, open_safetensors, open_single_file, save_model
from diffjax.pretrained.files import open_folder
from diffjax.pretrained.recognise import describe_keys, name_family
from tests.parity import generate_cases as g
from tests.parity import sd_cases
from tests.pretrained import test_single_file
from tests.pretrained.test_single_file import checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3438167534\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a pointer of Git LFS in place of the weights; .* 'git lfs pull'"),
        (b"\n<!DOCTYPE html><html>", "is a web page in place of the weights; download the file"),
        (b"<html><head>", "is a web page"),
        (b"", "is empty"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "is a pickle"),
        (b"\x80\x02}q\x00", "is a pickle"),
    ],
)
def test_files_that_are_not_weights(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors .*{message}") as error:
        open_safetensors(path)
    assert "--" not in str(error.value) and "allow_legacy_pickle" not in str(error.value)


@pytest.mark.parametrize(("axes", "read"), [(0, True), (16, True), (17, False), (1000, False)])
def test_tensors_of_many_axes(tmp_path, axes, read):
    """NumPy's own error names neither file nor tensor."""
    path = tmp_path / "a.safetensors"
    entry = {"dtype": "F32", "shape": [1] * axes, "data_offsets": [0, 4]}
    head = json.dumps({"scale": entry}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + np.float32(2).tobytes())
    if read:
        assert open_safetensors(path)["scale"].shape == (1,) * axes
    else:
        with pytest.raises(ValueError, match=rf"'scale' in .*a\.safetensors has {axes} axes"):
            open_safetensors(path)


def test_folders_are_no_files(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; a \.safetensors file is needed"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("names", "variant", "message"),
    [
        (["model.fp16.safetensors"], None, r'has no weights of variant None; .*variant="fp16"'),
        (["model.safetensors"], "fp16", "has no weights of variant 'fp16'; .*leave variant out"),
        (
            [f"diffusion_pytorch_model.fp16-0000{k}-of-00004.safetensors" for k in range(1, 5)],
            None,
            r'and 1 more; give variant="fp16"',
        ),
    ],
)
def test_variants_that_are_there_are_offered(tmp_path, names, variant, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=message):
        open_folder(tmp_path, variant=variant)


def test_an_index_without_its_files(tmp_path):
    where = {f"key{k}": f"model-{k:05d}-of-00009.safetensors" for k in range(1, 10)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(FileNotFoundError, match=r"lists 9 files, of which 9 are not .*and 6 more"):
        open_folder(tmp_path)


def test_errors_name_the_folder_of_the_network(tmp_path):
    net, params = sd_cases.random_params(sd_cases.UNETS["sd1"])
    save_model(tmp_path / "unet", net, {k: v for k, v in params.items() if k != "conv_in"})
    with pytest.raises(ValueError, match=r"unet: the weights do not fit .*conv_in\.bias"):
        load_model(tmp_path / "unet")


KEYS = {
    "Flux": "double_blocks.0.img_attn.norm.key_norm.scale",
    "Flux 2": "single_stream_modulation.lin.weight",
    "Chroma": "distilled_guidance_layer.in_proj.bias",
    "Stable Diffusion 3": "joint_blocks.0.context_block.adaLN_modulation.1.bias",
    "AuraFlow": "double_layers.0.attn.w2q.weight",
    "LTX-Video": "patchify_proj.weight",
    "HunyuanVideo": "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",
    "Lumina": "cap_embedder.0.weight",
    "Wan": "head.modulation",
    "Mochi": "blocks.0.attn.qkv_x.weight",
    "PixArt or Sana": "blocks.0.cross_attn.kv_linear.weight",
    "HiDream": "double_stream_blocks.0.block.adaLN_modulation.1.bias",
    "Stable Video Diffusion": "input_blocks.1.0.time_stack.in_layers.0.weight",
}


@pytest.mark.parametrize("family", KEYS)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_checkpoints_of_other_families(tmp_path, family, prefix):
    path = tmp_path / "other.safetensors"
    save_file({prefix + KEYS[family]: np.ones(1, np.float32)}, path)
    with pytest.raises(ValueError, match=rf"other\.safetensors: this is a model of {family}") as e:
        open_single_file(path)
    assert "diffusers has it; here, Stable Diffusion 1, 2 and XL are read" in str(e.value)


def test_stable_cascade_and_animatediff(tmp_path):
    for key, family in (
        ("clip_txt_mapper.weight", "Stable Cascade"),
        ("down_blocks.1.0.channelwise.0.weight", "Stable Cascade"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.bias", "AnimateDiff"),
        ("encoder_hid_proj.image_embeds.weight", "Kandinsky"),
    ):
        assert f"a model of {family}," in describe_keys([key])


def test_checkpoints_that_are_read_are_of_no_other_family():
    for family, unet in test_single_file.CASES:
        described = describe_keys(checkpoint(family, unet)[0])
        assert "not supported" not in described, described


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["lora_unet_mid.lora_down.weight"], "an adapter, which with_lora takes"),
        (["unet.mid.to_q.lora_A.weight"], "an adapter, which with_lora takes"),
        (["lora_unet_mid.hada_w1_a"], "an adapter, which with_lora takes"),
        (["emb_params"], "a word of textual inversion, which with_concept takes"),
        (["<cat>"], "a word of textual inversion, which with_concept takes"),
        (["decoder.conv_in.weight", "quant_conv.bias"], "an autoencoder, which the argument vae"),
        (["first_stage_model.encoder.down.0.block.0.conv1.weight"], "an autoencoder"),
        (["down_blocks.0.resnets.0.norm1.weight"], "a UNet alone"),
        (["text_model.final_layer_norm.bias"], "a text encoder alone"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a UNet without the other parts"),
        (["controlnet_cond_embedding.conv_in.weight"], "a ControlNet"),
        (["something.else"], "a file of unknown kind"),
    ],
)
def test_files_that_are_no_whole_model(tmp_path, keys, message):
    path = tmp_path / "other.safetensors"
    save_file({key: np.ones(1, np.float32) for key in keys}, path)
    with pytest.raises(ValueError, match=rf"other\.safetensors: this is {message}"):
        diffjax.load(path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("FluxPipeline", "Flux"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("PixArtSigmaPipeline", "PixArt"),
        ("StableCascadeCombinedPipeline", "Stable Cascade"),
        ("KandinskyV22CombinedPipeline", "Kandinsky"),
        ("StableVideoDiffusionPipeline", "Stable Video Diffusion"),
        ("WanPipeline", "Wan"),
        ("IFPipeline", "DeepFloyd IF"),
    ],
)
def test_folders_of_other_families(tmp_path, name, family):
    manifest = {"_class_name": name, "transformer": ["diffusers", "T"], "vae": ["diffusers", "V"]}
    (tmp_path / "model_index.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"is a model of {family} \({name}\), which is not supp"):
        diffjax.load(tmp_path)


def test_pipelines_that_are_read_are_of_no_other_family():
    for start in ("StableDiffusion", "StableDiffusionXL", "LatentConsistencyModel"):
        for end in ("", "Img2Img", "Inpaint", "ControlNet"):
            assert name_family(f"{start}{end}Pipeline") is None


def _make_cache(path):
    (path / "blobs").mkdir()
    (path / "snapshots" / "abc").mkdir(parents=True)


def _make_part(path):
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_make_cache, r"Hugging Face cache; give .*snapshots/abc"),
        (_make_part, "is one network, UNet2DConditionModel, not a whole model"),
        (lambda path: (path / "adapter_config.json").touch(), "is an adapter, which with_lora"),
        (lambda path: (path / "sd.safetensors").touch(), r"give the file, as sd\.safetensors"),
        (lambda path: (path / "notes.txt").touch(), r"no diffusers folder; it holds notes\.txt"),
    ],
)
def test_folders_that_are_something_else(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        diffjax.load(tmp_path)


def test_a_folder_of_a_model_is_offered_for_its_part(tmp_path):
    g.pipeline("sd1").save(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"is one network, UNet2D\w+; give .*model$"):
        diffjax.load(tmp_path / "model" / "unet")


def test_a_folder_without_a_tokenizer(tmp_path):
    pipe = g.pipeline("sd1")
    pipe.save(tmp_path / "model")
    (tmp_path / "model" / "tokenizer").rename(tmp_path / "words")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer: .*tokenizer=FOLDER"):
        diffjax.load(tmp_path / "model")
    found = diffjax.load(tmp_path / "model", tokenizer=tmp_path / "words")
    assert found.parts.texts["text_encoder"].tokenizer.ids("a cat") == (
        pipe.parts.texts["text_encoder"].tokenizer.ids("a cat")
    )


@pytest.mark.parametrize(("family", "unet"), [("v1", "sd1"), ("v2", "sd2"), ("xl", "xl")])
def test_the_unused_halves_of_merged_files_are_passed_over(tmp_path, family, unet):
    file, parts = checkpoint(family, unet)
    one = np.ones((2, 2), np.float32)
    text = {
        "v1": "cond_stage_model.transformer.",
        "v2": "cond_stage_model.model.",
        "xl": "conditioner.embedders.1.model.",
    }[family]
    more = {
        f"{text}logit_scale": np.zeros((), np.float32),
        "cond_stage_model.logit_scale": np.zeros((), np.float32),
        "cond_stage_model.text_projection": one,
        "conditioner.embedders.0.logit_scale": np.zeros((), np.float32),
        "first_stage_model.model_ema.decay": np.zeros((), np.float32),
        "first_stage_model.model_ema.encoderconv_inweight": one,
        "first_stage_model.loss.perceptual_loss.lin0.model.1.weight": one,
        "model_ema.decay": np.zeros((), np.float32),
        "denoiser.sigmas": np.ones(3, np.float32),
        "embedding_manager.string_to_param_dict.x": one,
    }
    if family == "v1":
        more |= {
            f"{text}vision_model.post_layernorm.weight": one,
            f"{text}visual_projection.weight": one,
            f"{text}text_projection.weight": one,
            f"{text}text_model.embeddings.position_ids": np.zeros((1, 7), np.int64),
        }
    else:
        more |= {f"{text}visual.proj": one, f"{text}attn_mask": one}
    save_file({**file, **more}, tmp_path / "merged.safetensors")
    keys = ("attention_head_dim", "norm_num_groups", "addition_time_embed_dim")
    given = sd_cases.UNETS[unet]
    overrides = {"unet": {key: given[key] for key in keys if key in given}}
    overrides |= {"vae": {"norm_num_groups": 4}}
    overrides |= {f"text_encoder{i}": {"num_attention_heads": 2} for i in ("", "_2")}
    models = diffjax.pretrained.load_single_file(
        tmp_path / "merged.safetensors", overrides=overrides
    )
    assert set(models) == set(parts)


def test_errors_name_the_part_of_a_file(tmp_path):
    file, _ = checkpoint("v1", "sd1")
    del file["cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    save_file(file, tmp_path / "model.safetensors")
    options = {"text_encoder": {"num_attention_heads": 2}}
    with pytest.raises(
        ValueError, match=r"the text_encoder of .*model\.safetensors: .*final_layer"
    ):
        diffjax.pretrained.load_single_file(
            tmp_path / "model.safetensors", parts=["text_encoder"], overrides=options
        )
    unet = {k: v for k, v in file.items() if not k.endswith("time_embed.0.weight")}
    unet.pop("model.diffusion_model.middle_block.1.proj_in.weight")
    save_file(unet, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: the weights lack middle_block"):
        open_single_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name, family", [
    ("UNetControlNetXSModel", "ControlNet-XS"),
    ("FluxTransformer2DModel", "Flux"),
])  # fmt: skip
def test_a_network_of_another_family_is_recognised(name, family):
    with pytest.raises(ValueError, match=f"{name} is of .*{family}.*, which is not"):
        configs.build({"_class_name": name})
