"""The entry points as a user runs them, at the smallest size."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffjax import runs
from diffjax.config import load_config
from diffjax.config.variants import load_module
from diffjax.model import make_sampler, sample
from diffjax.tasks import find_task_kind
from diffjax.train import make_optimizer, make_step

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if "def get_config" in p.read_text())
# Parameters of every variant: exact integers, or millions to the digit the papers give.
PARAMETERS = {
    "controlnet:fashion_mnist_edges": 305_664,
    "controlnet:fashion_mnist_base": 687_473,
    "controlnet:shapes_mask": 792_040,
    "controlnet:shapes_edges": 791_752,
    "controlnet:shapes_adapter": 169_560,
    "controlnet:sd15_canny_adapter": 77_369_280,
    "controlnet:sdxl_canny_adapter": 79_028_160,
    "controlnet:sd15_canny": 361_279_120,
    "controlnet:sd15_canny_lora": 18_427_088,
    "controlnet:sd15_canny_unlocked": 872_087_124,
    "controlnet:sd15_seg": 361_279_120,
    "controlnet:sd21_canny": 364_228_240,
    "controlnet:sdxl_canny": 1_251_014_160,
    "ddpm:cifar10": 35_746_307,
    "ddpm:celeba_hq": 113_673_219,
    "ddpm:lsun_bedroom": 113_673_219,
    "ddpm:lsun_bedroom_large": 255_677_955,
    "ddpm:lsun_church": 113_673_219,
    "ddpm:lsun_cat": 113_673_219,
    "ddpm:digits": 701_345,
    "ddpm:fashion_mnist": 686_769,
    "ddpm:fashion_mnist14": 697_604,
    "ddpm:fashion_mnist14_small": 394_180,
    "ddim:cifar10": 35_746_307,
    "ddim:celeba64": 78_700_803,
    "ddim:lsun_bedroom": 113_673_219,
    "ddim:lsun_church": 113_673_219,
    "ddim:digits": 701_345,
    "ddim:fashion_mnist": 686_769,
    "improved_ddpm:digits": 755_298,
    "improved_ddpm:digits_vlb": 755_298,
    "improved_ddpm:fashion_mnist14": 442_232,
    "improved_ddpm:fashion_mnist14_vlb": 442_232,
    "improved_ddpm:fashion_mnist14_simple": 440_500,
    "improved_ddpm:cifar10": 52.5,
    "improved_ddpm:cifar10_vlb": 52.5,
    "improved_ddpm:imagenet64": 121.1,
    "improved_ddpm:imagenet64_vlb": 121.1,
    "improved_ddpm:imagenet64_cond": 273.0,
    "edm:digits": 701_345,
    "edm:fashion_mnist": 686_769,
    "edm:fashion_mnist14": 697_604,
    "edm:cifar10": 55_733_891,
    "edm:cifar10_cond": 55_735_299,
    "edm:cifar10_ncsnpp": 56_395_651,
    "edm:imagenet64": 295.9,
    # Frequencies and phases of Fourier features, of the network and of the log-variance, are fixed.
    "edm2:digits": 406_771 + 2 * (24 + 128),
    "edm2:fashion_mnist14": 406_771 + 2 * (24 + 128),
    "edm2:img512_xxs": 31_309_029 + 2 * (64 + 128),
    "edm2:img512_xs": 124_713_253 + 2 * (128 + 128),
    "edm2:img512_s": 280_212_837 + 2 * (192 + 128),
    "edm2:img512_m": 497_807_781 + 2 * (256 + 128),
    "edm2:img512_l": 777_498_085 + 2 * (320 + 128),
    "edm2:img512_xl": 1_119_283_749 + 2 * (384 + 128),
    "edm2:img512_xxl": 1_523_164_773 + 2 * (448 + 128),
    "edm2:img64_xs": 124_710_949 + 2 * (128 + 128),
    "edm2:img64_s": 280_209_381 + 2 * (192 + 128),
    "edm2:img64_m": 497_803_173 + 2 * (256 + 128),
    "edm2:img64_l": 777_492_325 + 2 * (320 + 128),
    "edm2:img64_xl": 1_119_276_837 + 2 * (384 + 128),
    # The released code counts its fixed position embedding too: 294,912 of XL/2's 675,129,632.
    "dit:digits": 724_232,
    "dit:digits_sit": 723_844,
    "dit:digits_repa": 723_844 + 509_312,
    "dit:fashion_mnist": 727_712,
    "dit:fashion_mnist_sit": 726_160,
    "dit:shapes_sit": 957_968,
    "dit:s_2": 32_865_056,
    "dit:s_4": 32_920_448,
    "dit:s_8": 33_142_016,
    "dit:b_2": 130_315_808,
    "dit:b_4": 130_426_496,
    "dit:b_8": 130_869_248,
    "dit:l_2": 457_840_672,
    "dit:l_4": 457_988_224,
    "dit:l_8": 458_578_432,
    "dit:xl_2": 674_834_720,
    "dit:xl_4": 675_000_704,
    "dit:xl_8": 675_664_640,
    "dit:xl_2_512": 674_834_720,
    # Without the half of the output that SiT does not read, 18,448 of XL/2.
    "dit:sit_s_2": 32_858_896,
    "dit:sit_b_2": 130_303_504,
    "dit:sit_l_2": 457_824_272,
    "dit:sit_xl_2": 674_816_272,
    "dit:repa_xl_2": 674_816_272 + 8_131_328,  # and the projection
    "score_sde:digits": 753_185,
    "score_sde:fashion_mnist": 750_065,
    "score_sde:ncsnpp_ve": 62_758_915,
    "score_sde:ncsnpp_ve_deep": 107_587_075,
    "score_sde:ddpmpp_vp": 61_804_419,
    "score_sde:ddpmpp_subvp": 61_804_419,
    "score_sde:ddpmpp_subvp_deep": 106_632_579,
    "flow:digits": 701_345,
    "flow:digits_reflow": 701_345,
    "flow:fashion_mnist": 686_769,
    "flow:cifar10": 61_804_419,
    "consistency:digits": 701_345,
    "consistency:digits_tuned": 701_345,
    "consistency:digits_distilled": 701_345,
    "consistency:fashion_mnist14": 697_604,
    "consistency:fashion_mnist14_tuned": 697_604,
    "consistency:cifar10_ct": 56_395_651,
    "consistency:cifar10_cd": 56_395_651,
    "consistency:cifar10_ict": 56_395_651,
    "consistency:cifar10_ect": 55_733_891,
    "mean_flow:digits": 726_177,
    "mean_flow:digits_shortcut": 726_177,
    "mean_flow:digits_transformer": 751_684,
    "mean_flow:fashion_mnist14": 796_420,
    "mean_flow:fashion_mnist14_shortcut": 796_420,
    "mean_flow:cifar10": 55_932_419,
    "progressive:digits": 701_345,
    "progressive:digits_8": 701_345,
    "progressive:digits_4": 701_345,
    "progressive:digits_2": 701_345,
    "progressive:digits_1": 701_345,
    "smld:digits": 701_345,
    "smld:fashion_mnist": 686_769,
    "smld:ncsn": 30_117_635,
    "smld:ncsn_celeba": 30_117_635,
    "smld:ncsn_mnist": 7_638_657,
    "smld:ncsn_printed": 30_117_635,
    "smld:ncsnv2": 29_694_083,
    "autoencoder:fashion_mnist": 201_254,
    "autoencoder:fashion_mnist_f4": 275_622,
    "autoencoder:fashion_mnist_vq": 275_438,
    "autoencoder:shapes": 276_712,
    "autoencoder:shapes_vq": 276_528,
    # Of these, 2,765,633 (with 2 layers 663,361) are the discriminator's.
    "autoencoder:kl_f4": 55_312_063 + 2_765_633,
    "autoencoder:kl_f8": 83_653_863 + 2_765_633,
    "autoencoder:kl_f16": 69_610_963 + 2_765_633,
    "autoencoder:kl_f32": 103_880_131 + 2_765_633,
    "autoencoder:vq_f4": 55_322_782 + 2_765_633,
    "autoencoder:vq_f4_noattn": 53_219_486 + 2_765_633,
    "autoencoder:vq_f8": 67_717_295 + 663_361,
    "autoencoder:vq_f16": 69_593_371 + 663_361,
    "ldm:fashion_mnist": 704_484,
    "ldm:fashion_mnist_f1": 702_753,
    "ldm:fashion_mnist_f4": 507_940,
    "ldm:shapes": 1_767_636,
    "ldm:celebahq": 274_056_163,
    "ldm:ffhq": 274_056_163,
    "ldm:lsun_churches": 294_966_916,
    "ldm:lsun_beds": 274_056_163,
    # The table of class tokens, of 1000 classes, and one more to drop to, is beside the UNet.
    "ldm:cin256": 400_920_579 + 512_512,
    "ldm:cin_vq8": 394_984_196 + 512_000,
    "ldm:cin_vq8_classifier": 111_604_200,
    "ldm:text2img": 872_300_484 + 542_895_360,
    "ldm:inpainting": 387_245_827,
    "ldm:superres": 113_622_563,
    "cfg:digits": 702_753,
    "cfg:fashion_mnist": 687_473,
    "cfg:fashion_mnist14": 700_420,
    "cfg:imagenet64": 295.9,
    "cfg:imagenet128": 421.5,
    "adm:imagenet64": 295.9,
    "adm:imagenet128": 421_529_606,
    "adm:imagenet256": 553_838_086,
    "adm:imagenet512": 558_997_638,
    "adm:imagenet64_classifier": 65_438_568,
    "adm:imagenet128_classifier": 42_568_040,
    "adm:imagenet256_classifier": 54_096_360,
    "adm:imagenet512_classifier": 54_448_360,
    "adm:fashion_mnist14_classifier": 410_634,
    "adm:digits_classifier": 335_818,
    "stable_diffusion:shapes": 1_665_364,
    "stable_diffusion:shapes_lora": 28_224,
    "stable_diffusion:sd15": 859_520_964,
    "stable_diffusion:shapes_xl": 1_704_084,
    "stable_diffusion:shapes_refiner": 1_704_084,
    "controlnet:small_edges": 791_896,
    "stable_diffusion:shapes_inpainting": 1_667_164,
    "stable_diffusion:sd15_inpainting": 859_535_364,
    "stable_diffusion:sd15_lora": 3_188_736,
    "stable_diffusion:sd15_ip_adapter": 22_319_616,
    "stable_diffusion:sd15_ip_adapter_plus": 49_087_488,
    "stable_diffusion:shapes_ip_adapter": 73_088,
    "stable_diffusion:sd21": 865_910_724,
    "stable_diffusion:sd21_lora": 3_319_808,
    "stable_diffusion:sd21_base": 865_910_724,
    "stable_diffusion:sd21_base_lora": 3_319_808,
    "stable_diffusion:sdxl": 2_567_463_684,
    "stable_diffusion:sd15_edit": 859_520_964 + 4 * 320 * 9,
    "stable_diffusion:shapes_edit": 1_665_364 + 4 * 40 * 9,
    "stable_diffusion:sd15_dreambooth": 859_520_964,
    "stable_diffusion:sd15_dreambooth_lora": 3_188_736,
    "stable_diffusion:sdxl_dreambooth_lora": 23_224_320,
    "stable_diffusion:shapes_dreambooth": 28_224,
    "stable_diffusion:shapes_word": 64,
    "stable_diffusion:sd15_lcm_lora": 4 * 3_188_736,
    "stable_diffusion:sdxl_lcm_lora": 4 * 23_224_320,
    "stable_diffusion:sd15_word": 768,
    "stable_diffusion:sdxl_word": 768 + 1280,
    "stable_diffusion:sd15_text": 859_520_964 + 123_060_480,
    # Rank 16 on four projections of 768 by 768 in 12 layers.
    "stable_diffusion:sd15_text_lora": 3_188_736 + 12 * 4 * 2 * 16 * 768,
    "stable_diffusion:sdxl_lora": 23_224_320,
}


def variants():
    for path in CONFIGS:
        module = load_module(str(path))
        yield from (f"{path.stem}:{name}" for name in module.VARIANTS)


def check_run(folder, *, images=True):
    """Check what a smoke run leaves behind."""
    assert (folder / "checkpoints" / "2").is_dir()
    if images:
        assert Image.open(folder / "samples" / "00000002.png").mode == "RGB"
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2]
    assert all(np.isfinite(x["loss"]) for x in lines)


def smoke(execute, config, folder):
    execute("train", f"--config=configs/{config},smoke", f"--workdir={folder}")
    check_run(folder, images="classifier" not in config)


# Other tests run training on the other files' tasks and networks; `make smoke` runs every variant.
@pytest.mark.parametrize("config", ["adm.py:digits_classifier", "dit.py:digits"])
def test_a_smoke_run(execute, config, tmp_path):
    smoke(execute, config, tmp_path)


# Where it is not the first one: ImageNet's network takes long even at its smallest.
CHEAP = {"adm": "digits_classifier"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_step_and_the_sampler_of_every_config_file_trace(path):
    """Nothing is compiled: shapes go through the training step and the whole sampling loop."""
    first = CHEAP.get(path.stem) or next(iter(load_module(str(path)).VARIANTS))
    cfg = load_config(f"{path}:{first},smoke")
    task, fixed = runs.build_task(cfg), runs.make_abstract_fixed_parts(cfg)
    state = runs.make_abstract_state(cfg, task)
    step = make_step(task, make_optimizer(cfg.optim, cfg.train.steps))
    batch = runs.make_abstract_batch(cfg, 2)
    after, metrics = jax.eval_shape(step, state, fixed, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()
    if find_task_kind(cfg).assemble is None:  # an autoencoder, a classifier
        return

    def draw(state, fixed, batch):
        model = runs.assemble_trained(cfg, state, fixed)
        keys = jax.random.split(jax.random.key(0), 2)
        cond = model.condition.take(batch, keys[0])
        hints = [batch["hint"]] if model.controls else []
        return sample(model, cond, *make_sampler(cfg, model), keys, hints=hints)

    images = jax.eval_shape(draw, state, fixed, batch)
    assert images.shape == (2, *runs.read_image_shape(cfg))


@pytest.mark.smoke_all
@pytest.mark.parametrize("name", list(variants()))
def test_smoke_run_of_every_variant(execute, name, tmp_path):
    stem, _, variant = name.partition(":")
    smoke(execute, f"{stem}.py:{variant}", tmp_path)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_time_embedding_survives_every_norm(name):
    # One channel per group would remove it, wherever it is added before the norm.
    stem, _, variant = name.partition(":")
    net = load_config(f"configs/{stem}.py:{variant}").network
    if stem == "autoencoder" or net.name != "unet":
        pytest.skip("there is no time, or no norm over groups")
    assert net.scale_shift or min(net.multipliers) * net.channels >= 4 * net.norm_groups


def test_every_variant_has_its_parameter_count_below():
    # Networks of own pictures are as large as their folder asks for, see test_own.py.
    assert {name for name in variants() if not name.startswith("own:")} == set(PARAMETERS)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameters_and_shapes_of_every_variant(name):
    from experiments.plan import make_plan

    stem, _, variant = name.partition(":")
    cfg = load_config(f"configs/{stem}.py:{variant}")
    found, expected = make_plan(cfg, flops=False)["parameters"], PARAMETERS[name]
    assert found == expected if isinstance(expected, int) else round(found / 1e6, 1) == expected


def test_sample_evaluate_and_report_from_a_workdir(execute, digits_run):
    check_run(digits_run)
    execute("sample", f"--workdir={digits_run}", "--sampler=ddim", "--steps=3", "--num=5")
    npz = next((digits_run / "samples").glob("ddim-3-*.npz"))
    images = np.load(npz)["images"]
    assert (images.shape[0], images.dtype) == (5, np.uint8)
    assert npz.with_suffix(".png").exists()
    options = ("--rows=steps=2,3", "--num=5", f"--out={digits_run / 'rows'}")
    execute("sample", f"--workdir={digits_run}", "--sampler=ddim", *options)
    by_steps = np.load(digits_run / "rows.npz")["images"]
    assert len(by_steps) == 10
    assert np.array_equal(by_steps[5:], images)  # the same seeds
    execute("evaluate", f"--workdir={digits_run}", "--metrics=bits", "--bits_steps=5,1000")
    result = json.loads((digits_run / "evaluation.json").read_text())
    assert result["bits_per_dim"] > 0
    assert result["bits_by_steps"]["1000"]["bits_per_dim"] == result["bits_per_dim"]
    assert result["bits_by_steps"]["5"]["bits_per_dim"] > 0
    execute("report", f"--workdir={digits_run}")
    page = (digits_run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert "bits_per_dim" in page
    assert "http" not in page.replace("https://arxiv.org", "")


def test_an_exported_model_samples_as_its_run_does(execute, digits_run, tmp_path):
    run, away, file = digits_run, tmp_path / "away", tmp_path / "model.safetensors"
    execute("export", f"--workdir={run}", f"--out={file}")
    options = ("--sampler=ddim", "--steps=3", "--num=5")
    execute("sample", f"--workdir={run}", f"--out={run / 'images'}", *options)
    execute("sample", f"--weights={file}", f"--workdir={away}", *options)
    ours, theirs = run / "images.npz", next((away / "samples").glob("*.npz"))
    assert np.array_equal(np.load(ours)["images"], np.load(theirs)["images"])


def test_weights_that_do_not_fit_are_refused(execute, digits_run, tmp_path):
    file = tmp_path / "model.safetensors"
    execute("export", f"--workdir={digits_run}", f"--out={file}")
    other = ["--config=configs/ddpm.py:digits", f"--workdir={digits_run}"]
    out = execute("sample", *other, f"--weights={file}", code=1)
    assert "50 keys are missing" in out and "10 keys are unexpected" in out
    file.write_bytes(file.read_bytes()[:-50])
    out = execute("sample", f"--workdir={digits_run}", f"--weights={file}", code=2)
    assert "no complete safetensors file" in out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--config.optim.lrr=1"], 2, "unknown config key 'optim.lrr'; config.optim has "),
        (["--config.optimm.lr=1"], 2, "unknown config key 'optimm.lr'; config has "),
        (["--config.schedule.name=foo"], 2, "unknown schedule 'foo'; choose one of cosine"),
        (["--config.data.name=cifar11"], 1, "cifar11"),
        (["--config.data.image_size=9"], 1, "(1, 9, 9, 1)"),
        (["--config.data.name=fashion_mnist", "--config.data.dir=/nowhere/x"], 1, "/nowhere/x"),
        (["--config.train.steps=many"], 2, "many"),
    ],
)
def test_bad_input_is_one_clear_message(execute, arguments, code, message, tmp_path):
    config = "--config=configs/ddpm.py:digits"
    out = execute("train", config, f"--workdir={tmp_path}", *arguments, code=code)
    assert message in out
    assert "Traceback" not in out
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_a_classifier_guides_the_model_whose_noise_it_knows(execute, tmp_path):
    judge, file = tmp_path / "judge", tmp_path / "judge.safetensors"
    model, images = tmp_path / "model", {}
    smoke(execute, "adm.py:digits_classifier", judge)
    execute("export", f"--workdir={judge}", f"--out={file}")
    smoke(execute, "cfg.py:digits", model)
    for scale in (0, 1000):
        out = model / f"images-{scale}"
        options = (f"--config.sample.classifier={file}", f"--guidance={scale}", "--num=4")
        execute("sample", f"--workdir={model}", *options, f"--out={out}")
        images[scale] = np.load(out.with_name(out.name + ".npz"))["images"]
    assert not np.array_equal(images[0], images[1000])
    execute("sample", f"--workdir={model}", "--guidance=1", "--num=4", f"--out={model / 'alone'}")
    assert np.array_equal(np.load(model / "alone.npz")["images"], images[0])
    other = tmp_path / "other"
    smoke(execute, "ddpm.py:digits", other)
    options = (f"--config.sample.classifier={file}", "--num=4")
    out = execute("sample", f"--workdir={other}", *options, code=2)
    assert "was trained with another noise schedule" in out


@pytest.mark.slow
def test_control_cost_prints_ratios(execute, tmp_path):
    config = "--config=configs/controlnet.py:fashion_mnist_edges,smoke"
    file = tmp_path / "cost.json"
    out = execute("benchmarks.control_cost", config, "--batch=2", "--repeats=1", f"--json={file}")
    assert "ControlNet / fine-tuning: time" in out and json.loads(file.read_text())


def test_guidance_cost_prints_ratios(execute):
    config = "--config=configs/cfg.py:digits,smoke"
    out = execute("benchmarks.guidance_cost", config, "--batch=2", "--repeats=1")
    assert "guided_sequential" in out
    out = execute("benchmarks.guidance_cost", "--config=configs/ddpm.py:digits,smoke", code=2)
    assert "needs a model with a condition" in out


def test_unknown_variant_lists_the_choices(execute, tmp_path):
    out = execute("train", "--config=configs/ddpm.py:nope", f"--workdir={tmp_path}", code=2)
    assert "choose one of digits, fashion_mnist, fashion_mnist14" in out
    assert "Traceback" not in out


def test_sampling_without_a_checkpoint_says_what_to_do(execute, tmp_path):
    out = execute("sample", "--config=configs/ddpm.py:digits", f"--workdir={tmp_path}", code=2)
    assert "train first" in out


def test_dry_run_prints_the_resolved_config(execute):
    out = execute(
        "train", "--config=configs/ddpm.py:cifar10,smoke", "--config.optim.lr=0.5", "--dry_run"
    )
    shown = json.loads(out[out.index("{") : out.rindex("}") + 1])
    assert shown["optim"]["lr"] == 0.5
    assert shown["train"]["steps"] == 2


def test_help_names_the_flags(execute):
    out = execute("sample", "--help", code=0)
    assert "--sampler" in out
    assert "--config" in out
