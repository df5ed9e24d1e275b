"""Sets of images and their measures, with the classifier of the digits in Inception's place."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax import data, metrics
from diffjax.data import latents
from diffjax.evaluation import image_sets as judging
from diffjax.pretrained.clip import CLIP
from diffjax.pretrained.tokenizers import Tokenizer, build, save_tokenizer
from experiments import common, generation
from tests.parity import inception_cases

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def network():
    """Features and spatial features, of the classifier with the digits' levels spread to 256."""
    net = metrics.feature_network("digits")

    def apply(images):
        found = net.apply(images / np.float32(127.5) - 1)
        spatial = images[:, ::4, :, 0].reshape(len(images), -1) / np.float32(255)
        return found._replace(spatial=jax.numpy.asarray(spatial))

    return net._replace(apply=apply, levels=256, batch_size=100)


@pytest.fixture(scope="module")
def digits():
    return generation.to_uint8(data.to_float(data.load("digits").images, 17))


def image_set(images, name="set"):
    return judging.ImageSet(name, len(images), lambda a, b: images[a:b])


@pytest.fixture
def collector(network, tmp_path):
    return judging.Collector(network, tmp_path / "features", spatial=True)


def test_a_set_against_itself(collector, digits):
    same = image_set(digits[:300])
    found = judging.inception_metrics(
        collector, same, judging.Reference(same), {"fid", "sfid", "kid", "is", "prdc"}
    )
    assert found["fid"] == pytest.approx(0, abs=1e-8)
    assert found["sfid"] == pytest.approx(0, abs=1e-8)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["inception_score"] > 5  # ten digits
    assert (found["num"], found["num_reference"], found["kid_subset"]) == (300, 300, 300)


def test_few_images_warn(collector, network, digits, caplog):
    fake, wanted = image_set(digits[: network.dim]), {"fid"}
    whole = metrics.statistics_of(collector(image_set(digits, "all")))
    with caplog.at_level("WARNING"):
        judging.inception_metrics(collector, fake, judging.Reference(statistics=whole), wanted)
    assert f"{network.dim} images do not determine the covariance" in caplog.text


def test_worse_images_are_worse_and_statistics_do_instead_of_images(collector, digits, tmp_path):
    rng = np.random.default_rng(0)
    noisy = np.clip(digits[:300] + rng.normal(0, 90, digits[:300].shape), 0, 255).astype(np.uint8)
    wanted = {"fid", "sfid", "kid"}
    real, fakes = image_set(digits[600:900], "real"), (digits[300:600], noisy)
    good, bad = (
        judging.inception_metrics(
            collector, image_set(fake, str(k)), judging.Reference(real), wanted
        )
        for k, fake in enumerate(fakes)
    )
    assert all(bad[name] > 1.5 * good[name] for name in wanted)
    path = tmp_path / "statistics.npz"
    metrics.save_statistics(path, metrics.statistics_of(collector(real)))
    again = judging.inception_metrics(
        collector, image_set(noisy, "1"), judging.read_reference(str(path), None, None), {"fid"}
    )
    assert again["fid"] == pytest.approx(bad["fid"], rel=1e-9)
    with pytest.raises(common.UsageError, match="need reference images, not only their stat"):
        judging.inception_metrics(
            collector,
            image_set(noisy),
            judging.read_reference(str(path), None, None),
            {"kid", "fid"},
        )
    with pytest.raises(common.UsageError, match=r"reference_num=5 .* holds only their statistics"):
        judging.read_reference(str(path), None, 5)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"statistics\.npz is no complete npz file"):
        judging.read_reference(str(path), None, None)
    assert any((tmp_path / "features").iterdir())
    collector.clear()
    assert not (tmp_path / "features").exists()


def test_features_of_somebody_else_stay(collector, digits, tmp_path):
    (tmp_path / "features" / "mine").mkdir(parents=True)
    collector(image_set(digits[:100]))
    assert len(list((tmp_path / "features").iterdir())) == 2
    collector.clear()
    assert [p.name for p in (tmp_path / "features").iterdir()] == ["mine"]


def test_sfid_needs_spatial_statistics_before_any_work(collector, digits):
    flat = metrics.statistics_of(collector(image_set(digits[:100])))._replace(spatial=None)
    unread = judging.ImageSet("unread", 100, lambda a, b: pytest.fail("features were computed"))
    with pytest.raises(common.UsageError, match="mu_s"):
        judging.inception_metrics(collector, unread, judging.Reference(statistics=flat), {"sfid"})


def test_a_file_of_adm_gives_statistics_and_images(collector, digits, tmp_path):
    path = tmp_path / "VIRTUAL.npz"  # mu and sigma of all the images, of which it holds some
    whole = metrics.statistics_of(collector(image_set(digits[:900]))).features
    np.savez(path, arr_0=digits[:300], mu=whole.mean, sigma=whole.covariance)
    real, fake = judging.read_reference(str(path), None, None), image_set(digits[900:1200], "fake")
    wanted = {"fid", "sfid", "kid", "prdc"}
    found = judging.inception_metrics(collector, fake, real, wanted)
    of_images = judging.Reference(image_set(digits[:300], "some"))
    expected = judging.inception_metrics(collector, fake, of_images, wanted)
    assert {k for k in found if found[k] != expected[k]} == {"fid"}
    ours = metrics.statistics_of(collector(fake)).features
    assert found["fid"] == pytest.approx(metrics.frechet_distance(ours, whole), rel=1e-9)
    chosen = judging.read_reference(str(path), None, 200)  # not what the statistics are of
    assert chosen.images.num == 200 and chosen.statistics is None


def test_images_of_files_and_folders(digits, tmp_path):
    np.savez(tmp_path / "ours.npz", images=digits[:5])
    np.savez_compressed(tmp_path / "adm.npz", arr_0=digits[:5])
    for name in ("ours.npz", "adm.npz"):
        found = judging.from_file(str(tmp_path / name))
        assert found.num == 5
        np.testing.assert_array_equal(found.read(1, 3), digits[1:3])
        assert found.first(3).num == 3
    folder = tmp_path / "folder"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(digits[k, ..., 0]).save(folder / f"{k}.png")
    found = judging.from_file(str(folder))
    np.testing.assert_array_equal(found.read(0, 3), digits[:3].repeat(3, -1))
    Image.fromarray(digits[3, ..., 0]).save(folder / "2.png")
    assert judging.from_file(str(folder)).name != found.name  # kept features are of other images
    np.savez(tmp_path / "bad.npz", images=digits[0])
    for bad, message in (("bad.npz", "must hold uint8 images"), ("none.npz", "none.npz")):
        with pytest.raises(common.UsageError, match=message):
            judging.from_file(str(tmp_path / bad))


def test_a_folder_holds_images_of_one_size(digits, tmp_path):
    for k, size in enumerate((8, 8, 6)):
        Image.fromarray(digits[k, :size, ..., 0]).save(tmp_path / f"{k}.png")
    with pytest.raises(
        common.UsageError, match=r"0\.png is 8x8 .* and .*2\.png 6x8 \(height x width"
    ):
        judging.from_file(str(tmp_path))


def test_grey_images_are_judged_by_the_channels_of_the_network(digits):
    grey, rgb = digits[:4], digits[:4].repeat(3, -1)
    for images in (grey, rgb):
        np.testing.assert_array_equal(judging.with_channels(images, 1), grey)
        np.testing.assert_array_equal(judging.with_channels(images, 3), rgb)
    with pytest.raises(
        common.UsageError, match="in colour cannot be judged as images of 1 channel"
    ):
        judging.with_channels(np.stack([rgb[..., 0], 0 * rgb[..., 0], rgb[..., 0]], -1), 1)


def test_data_come_in_a_fixed_random_order():
    cfg = common.load_config(f"{ROOT}/configs/ddpm.py:digits")
    found = judging.from_data(cfg, "train")
    np.testing.assert_array_equal(found.read(3, 9), judging.reference_images(cfg, 9)[3:])
    assert found.num == 1500
    assert common.source_of(cfg) is common.source_of(cfg)  # read once


def test_stored_latents_are_compared_with_the_images_behind_them(tmp_path):
    cfg = common.load_config(f"{ROOT}/configs/ddpm.py:digits")
    expected = judging.reference(cfg, 5)
    cfg.data.update(name="latents", dir=str(tmp_path))
    rows = {"moments": np.zeros((2, 4, 4, 2), np.float32), "label": np.zeros(2, np.int32)}
    about = dict(count=2, image_shape=(8, 8, 1), num_classes=10, levels=17, encoder="x")
    latents.write(tmp_path / "train", [rows], **about)
    with pytest.raises(
        common.UsageError, match=r"do not say .* --config\.data\.name=.* --reference"
    ):
        judging.from_data(cfg, "train")
    latents.write(tmp_path / "train", [rows], **about, images={"name": "digits", "dir": ""})
    for found, wanted in zip(judging.reference(cfg, 5), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(judging.from_data(cfg, "train").read(0, 5), expected[0])


def test_pairs_are_compared_in_their_order():
    images = np.random.default_rng(0).integers(0, 240, (4, 16, 16, 3), np.uint8)
    originals = judging.Reference(image_set(images))
    found = judging.paired_metrics(image_set(images + 10), originals, {"psnr", "ssim"})
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / 10), rel=1e-5)
    assert 0.9 < found["ssim"] < 1
    assert judging.paired_metrics(image_set(images), originals, {"psnr"}) == {"psnr": 100}
    with pytest.raises(common.UsageError, match=r"4 images need as many .* which has 3 images"):
        judging.paired_metrics(
            image_set(images), judging.Reference(image_set(images[:3])), {"psnr"}
        )


def test_inception_says_where_its_weights_are():
    with pytest.raises(common.UsageError, match=r"pt_inception-2015-12-05-6726825d\.pth"):
        judging.inception(None, allow_legacy_pickle=False, resize="tensorflow")
    golden = ROOT / "tests/golden/new.pth"
    with pytest.raises(ValueError, match="--allow_legacy_pickle"):
        judging.inception(str(golden), allow_legacy_pickle=False, resize="tensorflow")
    with pytest.raises(ValueError, match=r"keys are missing: Conv2d_1a_3x3\.bn\.bias"):
        judging.inception(str(golden), allow_legacy_pickle=True, resize="tensorflow")


def test_clip_score_of_prompts_and_lpips_of_pairs(tmp_path, monkeypatch):
    images = inception_cases.images(5, height=16, width=16)
    folder = tmp_path / "clip"
    folder.mkdir()
    vocabulary = {"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
    save_tokenizer(folder, Tokenizer(build(vocabulary, []), 77, 2, 3, 3))
    by_mean = CLIP(  # the mean colour, and the direction that a prompt's first letter asks for
        lambda x: jax.numpy.asarray(x).mean((1, 2)),
        lambda ids: jax.numpy.asarray(ids[:, 1:2] * np.array([[1.0, 0.0, 0.0]])),
    )
    monkeypatch.setattr(judging, "load_clip", lambda _: by_mean)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\na\n\n")
    found = judging.clip_metrics(image_set(images), str(folder), str(prompts))
    means = data.to_float(images, 256).mean((1, 2))
    cosines = means[:, 0] / np.linalg.norm(means, axis=1)
    assert found["clip_score"] == pytest.approx(100 * np.maximum(cosines, 0).mean(), rel=1e-4)
    prompts.write_text("a\n\na\n")
    with pytest.raises(common.UsageError, match=r"line 2 of .*prompts\.txt is empty"):
        judging.clip_metrics(image_set(images), str(folder), str(prompts))
    prompts.write_text("\n")
    with pytest.raises(common.UsageError, match="holds no text"):
        judging.clip_metrics(image_set(images), str(folder), str(prompts))
