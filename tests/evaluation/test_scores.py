"""Scores of sets of images, with the classifier of the digits in Inception's place."""

from pathlib import Path

import jax
import numpy as np
import pytest

from diffjax import data, metrics
from diffjax.data import shapes
from diffjax.evaluation import FeatureStore, ImageSet, Reference, evaluate
from diffjax.evaluation.feature_distance import (
    draw_gaussian_images,
    measure_baselines,
    measure_distance,
)
from diffjax.evaluation.feature_store import load_inception
from diffjax.evaluation.pair_scores import measure_diversity, measure_psnr, measure_ssim
from diffjax.evaluation.references import read_reference
from diffjax.evaluation.text_scores import (
    TextScorer,
    measure_captions,
    measure_clip_score,
    read_prompts,
)
from diffjax.pretrained.clip import CLIP
from diffjax.pretrained.tokenizers import Tokenizer, build
from diffjax.types import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(network, tmp_path):
    return FeatureStore(network, tmp_path / "features", spatial=True)


@pytest.fixture
def measure(store):
    """``measure(images, reference, names) -> scores`` of features in the store."""

    def run(images, reference, *names):
        return evaluate(images, reference, names, inception=store)["inception"]

    return run


def test_a_set_against_itself(measure, image_set, digits):
    same = image_set(digits[:300])
    found = measure(same, same, "fid", "sfid", "kid", "is", "prdc")
    assert found["fid"] == pytest.approx(0, abs=1e-8)
    assert found["sfid"] == pytest.approx(0, abs=1e-8)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["inception_score"] > 5  # ten digits
    assert (found["num"], found["num_reference"], found["kid_subset"]) == (300, 300, 300)


def test_few_images_warn(measure, store, image_set, network, digits, caplog):
    whole = store.summarize(image_set(digits, "all"))
    with caplog.at_level("WARNING"):
        measure(image_set(digits[: network.dim]), whole, "fid")
    assert f"{network.dim} images do not determine the covariance" in caplog.text


def test_worse_images_are_worse_and_statistics_do_instead_of_images(
    measure, store, image_set, digits, tmp_path
):
    rng = np.random.default_rng(0)
    noisy = np.clip(digits[:300] + rng.normal(0, 90, digits[:300].shape), 0, 255).astype(np.uint8)
    names = ("fid", "sfid", "kid")
    real, fakes = image_set(digits[600:900], "real"), (digits[300:600], noisy)
    good, bad = (measure(image_set(fake, str(k)), real, *names) for k, fake in enumerate(fakes))
    assert all(bad[name] > 1.5 * good[name] for name in names)
    path = tmp_path / "statistics.npz"
    metrics.save_statistics(path, store.summarize(real))
    again = measure(image_set(noisy, "1"), path, "fid")
    assert again["fid"] == pytest.approx(bad["fid"], rel=1e-9)
    assert "num_reference" not in again
    with pytest.raises(ConfigError, match=r"metric 'kid': .* needs images, not only their stat"):
        measure(image_set(noisy), path, "fid", "kid")
    with pytest.raises(ConfigError, match=r"num=5 .* holds only their statistics"):
        read_reference(path, 5)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"statistics\.npz is not a complete npz file"):
        read_reference(path)
    assert any((tmp_path / "features").iterdir())
    store.clear()
    assert not (tmp_path / "features").exists()


def test_features_of_somebody_else_stay(store, image_set, digits, tmp_path):
    (tmp_path / "features" / "mine").mkdir(parents=True)
    store.collect(image_set(digits[:100]))
    assert len(list((tmp_path / "features").iterdir())) == 2
    store.clear()
    assert [p.name for p in (tmp_path / "features").iterdir()] == ["mine"]


@pytest.mark.parametrize("kept", [True, False], ids=["folder", "memory"])
def test_a_store_looks_at_every_set_once(network, digits, tmp_path, kept):
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return digits[start:stop]

    store = FeatureStore(network, tmp_path / "features" if kept else None, spatial=True)
    images = ImageSet("counted", 200, read)
    evaluate(images, images.first(100), ["fid", "sfid", "is", "kid", "prdc"], inception=store)
    assert sorted(reads) == [(0, 100), (0, 200)]


def test_an_interrupted_collection_goes_on_where_it_stopped(network, digits, tmp_path):
    whole = FeatureStore(network).collect(ImageSet("twice", 1500, lambda a, b: digits[a:b]))
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        if start == 1000 and len(reads) == 2:
            raise KeyboardInterrupt
        return digits[start:stop]

    images = ImageSet("twice", 1500, read)
    with pytest.raises(KeyboardInterrupt):
        FeatureStore(network, tmp_path / "features").collect(images)
    found = FeatureStore(network, tmp_path / "features").collect(images)
    assert reads == [(0, 1000), (1000, 1500), (1000, 1500)]
    np.testing.assert_array_equal(found.features, whole.features)


def test_sfid_needs_spatial_statistics_before_any_work(measure, store, image_set, digits):
    flat = store.summarize(image_set(digits[:100]))._replace(spatial=None)
    unread = ImageSet("unread", 100, lambda a, b: pytest.fail("features were computed"))
    with pytest.raises(ConfigError, match="mu_s"):
        measure(unread, flat, "sfid")
    with pytest.raises(ConfigError, match=r"metric 'prdc': .*needs images"):
        measure(unread, flat, "fid", "prdc")


def test_a_file_of_adm_gives_statistics_and_images(measure, store, image_set, digits, tmp_path):
    path = tmp_path / "VIRTUAL.npz"  # mu and sigma of all the images, of which it holds some
    whole = store.summarize(image_set(digits[:900])).features
    np.savez(path, arr_0=digits[:300], mu=whole.mean, sigma=whole.covariance)
    fake = image_set(digits[900:1200], "fake")
    names = ("fid", "sfid", "kid", "prdc")
    found = measure(fake, path, *names)
    expected = measure(fake, image_set(digits[:300], "some"), *names)
    assert {k for k in found if found[k] != expected[k]} == {"fid"}
    ours = store.summarize(fake).features
    assert found["fid"] == pytest.approx(metrics.frechet_distance(ours, whole), rel=1e-9)
    chosen = read_reference(path, 200)  # not what the statistics are of
    assert chosen.images.num == 200 and chosen.statistics is None


def test_inception_says_what_is_wrong_with_a_file():
    golden = ROOT / "tests/golden/new.pth"
    with pytest.raises(ValueError, match="allow_legacy_pickle=True"):
        load_inception(golden)
    with pytest.raises(ValueError, match=r"keys are missing: Conv2d_1a_3x3\.bn\.bias"):
        load_inception(golden, allow_legacy_pickle=True)


# ---- the distance on our features ---------------------------------------------------------------


def test_the_distance_is_of_images_as_files_hold_them(digits):
    network = metrics.feature_network("digits")
    x = data.to_float(digits[:200], 256)
    real = data.to_float(digits[200:400], 256)
    nudged = np.clip(x + 0.4 / 255, -1, 1)  # rounds to the same levels
    expected = measure_distance(network, digits[:200], real)
    assert measure_distance(network, nudged, real) == expected
    assert measure_distance(network, x, digits[200:400]) == expected
    grey_as_rgb = digits[:200].repeat(3, -1)
    assert measure_distance(network, grey_as_rgb, real) == expected
    assert (expected["num"], expected["num_reference"]) == (200, 200)


def test_class_accuracy_is_that_of_classes_in_turn(digits):
    network = metrics.feature_network("digits")
    source = data.load("digits")
    order = np.concatenate([np.flatnonzero(source.labels == k)[:20] for k in range(10)])
    in_turn = digits[order.reshape(10, 20).T.ravel()]  # 0, 1, ..., 9, 0, 1, ...
    right = measure_distance(network, in_turn, digits, 10)
    wrong = measure_distance(network, np.roll(in_turn, 1, 0), digits, 10)
    assert right["class_accuracy"] > 0.9 > 0.1 > wrong["class_accuracy"]
    assert "class_accuracy" not in measure_distance(network, in_turn, digits)


def test_gaussian_images_have_the_moments_of_the_real_ones():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((4000, 1, 1, 1)) * 0.1
    real = np.concatenate([base, 0.5 * base, 0.3 + 0 * base, -base], 2).reshape(-1, 2, 2, 1)
    drawn = draw_gaussian_images(real, 4000).reshape(4000, -1)
    np.testing.assert_allclose(drawn.mean(0), [0, 0, 0.3, 0], atol=0.01)
    cov = np.cov(real.reshape(4000, -1), rowvar=False)
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), cov, atol=1e-3)
    assert np.abs(draw_gaussian_images(20 * real, 100)).max() == 1


def test_baselines_give_the_scale(image_set, digits):
    network = metrics.feature_network("digits")
    asked = []

    def untrained(num):
        asked.append(num)
        return np.random.default_rng(0).uniform(-1, 1, (num, 8, 8, 1)).astype(np.float32)

    found = measure_baselines(network, image_set(digits[:1000]), 300, untrained)
    assert found["real_floor"] < found["matched_gaussian"] < found["untrained_network"]
    assert found["real_floor_num"] == 300 and asked == [300]
    few = measure_baselines(network, image_set(digits[:401]), 300, untrained)
    assert few["real_floor_num"] == 200  # disjoint halves of what is there


# ---- pairs, prompts and captions ----------------------------------------------------------------


def test_pairs_are_compared_in_their_order(image_set):
    images = np.random.default_rng(0).integers(0, 240, (4, 16, 16, 3), np.uint8)
    originals = Reference(image_set(images))
    found = measure_psnr(image_set(images + 10), originals)
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / 10), rel=1e-5)
    assert 0.9 < measure_ssim(image_set(images + 10), originals)["ssim"] < 1
    assert measure_psnr(image_set(images), originals) == {"psnr": 100}
    assert measure_psnr(image_set(images[::-1]), originals)["psnr"] < 15
    with pytest.raises(ConfigError, match=r"4 images need as many originals, not 3 images"):
        measure_psnr(image_set(images), Reference(image_set(images[:3])))


def test_diversity_is_the_mean_distance_of_pairs(image_set):
    levels = np.array([0, 255], np.uint8).repeat(2)[:, None, None, None]
    images = np.broadcast_to(levels, (4, 4, 4, 3))

    def distance(x, y):
        return np.abs(x - y).mean((1, 2, 3)) / 2  # 1 between black and white

    found = measure_diversity(image_set(images), distance, 2000)
    assert found["lpips_diversity"] == pytest.approx(2 / 3, abs=0.05)
    assert found["lpips_pairs"] == 2000
    assert measure_diversity(image_set(images[:2]), distance, 5)["lpips_diversity"] == 0


def test_prompts_stand_a_line_each(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a\nb\n\n")
    assert read_prompts(file) == ["a", "b"]
    file.write_text("a\n\na\n")
    with pytest.raises(ConfigError, match=r"line 2 of .*prompts\.txt is empty"):
        read_prompts(file)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no text"):
        read_prompts(file)


def test_clip_score_is_of_image_and_prompt_in_turn(image_set):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    vocabulary = {"a": 0, "a</w>": 1, "b": 2, "b</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}
    directions = np.zeros((6, 3))
    directions[1, 0] = directions[3, 2] = 1  # "a" asks for red, "b" for blue
    by_mean = CLIP(
        lambda x: jax.numpy.asarray(x).mean((1, 2)) + 1,
        lambda ids: jax.numpy.asarray(directions[ids[:, 1]]),
    )
    scorer = TextScorer(by_mean, Tokenizer(build(vocabulary, []), 77, 4, 5, 5))
    found = measure_clip_score(image_set(images), scorer, ["a", "b"])
    means = data.to_float(images, 256).mean((1, 2)) + 1
    cosines = means[range(5), [0, 2, 0, 2, 0]] / np.linalg.norm(means, axis=1)
    assert found["clip_score"] == pytest.approx(100 * cosines.mean(), rel=1e-4)
    error = 100 * cosines.std(ddof=1) / np.sqrt(5)
    assert found["clip_score_se"] == pytest.approx(error, rel=1e-3)


def test_captions_are_checked_by_a_program(image_set):
    drawn = [shapes.make_scene("test", k) for k in range(6)]
    pictures = np.stack([shapes.draw(scene)[0] for scene in drawn])
    scenes = [scene.things for scene in drawn]
    found = measure_captions(image_set(pictures), scenes)
    assert found == {"colour": 1, "shape": 1, "size": 1, "place": 1, "all": 1, "num": 6}
    half = np.concatenate([pictures[:3], np.full_like(pictures[:3], 50)])
    assert measure_captions(image_set(half), scenes)["all"] == 0.5
    with pytest.raises(ValueError, match="shorter"):
        measure_captions(image_set(pictures), scenes[:5])
