"""Published statistics in and out, and the spread of a collection over chunks and runs."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import data, metrics
from diffjax.metrics.statistics import BLOCK

FEATURES = np.random.default_rng(0).normal(size=(50, 6))


def statistics(spatial=True):
    other = metrics.moments(FEATURES[:, :4] ** 2) if spatial else None
    return metrics.Statistics(metrics.moments(FEATURES), other)


@pytest.mark.parametrize("spatial", [False, True])
def test_statistics_come_back(spatial, tmp_path):
    path = tmp_path / "reference.npz"
    metrics.save_statistics(path, statistics(spatial))
    with np.load(path) as file:
        keys = ["mu", "sigma", *(["mu_s", "sigma_s"] if spatial else [])]
        assert sorted(file) == sorted(keys)
        np.testing.assert_allclose(file["sigma"], np.cov(FEATURES.T), rtol=1e-12)
    found = metrics.load_statistics(path)
    np.testing.assert_array_equal(found.features.mean, statistics().features.mean)
    assert (found.spatial is not None) == spatial
    assert metrics.frechet_distance(found.features, metrics.moments(FEATURES)) < 1e-12
    assert [p.name for p in tmp_path.iterdir()] == ["reference.npz"]


def test_bad_statistics(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="not a complete npz"):
        metrics.load_statistics(path)
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(ValueError, match="needs the arrays mu and sigma"):
        metrics.load_statistics(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"a mean \(3,\) with a covariance \(4, 4\)"):
        metrics.load_statistics(path)
    with pytest.raises(FileNotFoundError):
        metrics.load_statistics(tmp_path / "none.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_npz_are_mapped_if_they_can_be(save, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), np.uint8)
    save(tmp_path / "a.npz", mu=np.zeros(2), arr_0=images)
    found = metrics.load_array(tmp_path / "a.npz", ("images", "arr_0"))
    np.testing.assert_array_equal(found, images)
    assert isinstance(found, np.memmap) == (save is np.savez)
    with pytest.raises(ValueError, match="it has mu, arr_0, none of images"):
        metrics.load_array(tmp_path / "a.npz", ("images",))


def test_moments_in_blocks_are_the_moments():
    x = np.random.default_rng(0).normal(size=(BLOCK + 17, 3)) * [1, 10, 0.1] + [5, 0, -3]
    found = metrics.moments(x)
    assert found.count == len(x)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-11)


# ---- collection -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").images[:70]


def reader(images, *, stop_at=None):
    calls = []

    def read(start, stop):
        if stop_at is not None and start >= stop_at:
            raise KeyboardInterrupt
        calls.append((start, stop))
        return images[start:stop]

    return read, calls


def same(a, b):
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        assert x is None or np.array_equal(x, y)


def test_collecting_is_extracting(digits, capsys):
    network = metrics.feature_network("digits")._replace(batch_size=16)
    read, calls = reader(digits)
    same(metrics.collect(network, read, 70, chunk=32), metrics.extract(network, digits))
    assert calls == [(0, 32), (32, 64), (64, 70)]
    assert "digits-v1:" in capsys.readouterr().err  # a bar shows how far it is


def test_an_interrupted_collection_goes_on(digits, tmp_path):
    network = metrics.feature_network("digits")._replace(batch_size=16)
    spatial = network._replace(
        apply=lambda x: network.apply(x)._replace(spatial=x[:, :, 0, 0].astype(np.float32))
    )
    whole = metrics.collect(spatial, reader(digits)[0], 70, chunk=20)
    assert whole.spatial.shape == (70, 8)
    read, _ = reader(digits, stop_at=40)
    with pytest.raises(KeyboardInterrupt):
        metrics.collect(spatial, read, 70, folder=tmp_path / "f", source="x", chunk=20)
    read, calls = reader(digits)
    for _ in range(2):  # the second time, everything is there
        found = metrics.collect(spatial, read, 70, folder=tmp_path / "f", source="x", chunk=20)
        same(found, whole)
    assert calls == [(40, 60), (60, 70)]
    a, b = metrics.compute_statistics(found), metrics.compute_statistics(whole)
    assert np.array_equal(a.features.scatter, b.features.scatter)
    with pytest.raises(ValueError, match=r"holds the features of .*'source': 'x'.*, not of .*'y'"):
        metrics.collect(spatial, read, 70, folder=tmp_path / "f", source="y")


def test_nothing_to_collect(digits):
    with pytest.raises(ValueError, match="features of 0 images"):
        metrics.collect(metrics.feature_network("digits"), reader(digits)[0], 0)


PIXELS = 512


def numbered(start, stop):
    """Images whose pixels are a hash of their number."""
    k = np.arange(start, stop, dtype=np.uint64)[:, None] * np.uint64(PIXELS)
    k = k + np.arange(PIXELS, dtype=np.uint64)
    k = (k * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return ((k ^ (k >> np.uint64(9))) % np.uint64(256)).astype(np.uint8).reshape(-1, 8, 8, 8)


@pytest.mark.slow
def test_fifty_thousand_images_in_bounded_memory_with_exact_sums(tmp_path):
    num, chunk = 50_000, 1000
    pixels = jax.jit(lambda x: metrics.Features(x.reshape(len(x), -1).astype(jnp.float32), x[:, 0]))
    network = metrics.FeatureNetwork("pixels", "v1", PIXELS, pixels, (8, 8, 8), None, 256)
    read, seen = numbered, []

    def broken(start, stop):
        if start in (17_000, 32_000) and start not in seen:
            seen.append(start)
            raise KeyboardInterrupt
        seen.append(start)
        return read(start, stop)

    tracemalloc.start()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            metrics.collect(network, broken, num, folder=tmp_path, source="n", chunk=chunk)
    found = metrics.collect(network, broken, num, folder=tmp_path, source="n", chunk=chunk)
    moments = metrics.moments(found.features)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(seen) == num // chunk + 2  # nothing was made twice
    assert peak < 64e6 < found.features.nbytes == 102_400_000
    total, products = np.zeros(PIXELS, np.int64), np.zeros((PIXELS, PIXELS), np.int64)
    for start in range(0, num, chunk):  # integers: sums without rounding
        x = read(start, start + chunk).reshape(chunk, -1)
        total += x.sum(0, dtype=np.int64)
        floats = x.astype(np.float64)
        products += (floats.T @ floats).astype(np.int64)  # below 2^53: exact
    assert moments.count == num
    np.testing.assert_allclose(moments.mean, total / num, rtol=1e-14)
    scatter = products - np.outer(total, total) / num
    np.testing.assert_allclose(moments.scatter, scatter, rtol=1e-12, atol=1e-9 * scatter.max())
