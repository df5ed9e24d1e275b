"""A batch is a function of (seed, step): whichever way it is asked for."""

import gc
import itertools
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffjax import data
from diffjax.data import batching


def make_source(n=10, width=3, num_classes=None):
    """Image i has grey levels that tell i, and no symmetry; its label is i."""
    images = np.zeros((n, 2, width, 1), np.uint8)
    images[:, :, 0] = np.arange(n, dtype=np.uint8)[:, None, None]
    return data.from_arrays(images, np.arange(n), num_classes=num_classes or n)


def take(iterator, n):
    got = list(itertools.islice(iterator, n))
    iterator.close()
    return got


def labels(batches):
    return np.concatenate([b["label"] for b in batches])


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_grey_levels_round_trip():
    for levels in (2, 17, 256):
        u = np.arange(levels, dtype=np.uint8)
        x = data.to_float(u, levels)
        assert x.dtype == np.float32 and (x[0], x[-1]) == (-1, 1)
        np.testing.assert_array_equal(x, -x[::-1])
        np.testing.assert_array_equal(data.to_levels(x, levels), u)
    np.testing.assert_array_equal(data.to_levels(np.array([-3.0, 3.0]), 17), [0, 16])


def test_batch_contents():
    source = data.load("digits")
    batch = data.batch_at(source, 0, batch_size=8, seed=0)
    assert batch["image"].shape == (8, 8, 8, 1) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    assert batch["image"].min() == -1 and batch["image"].max() == 1
    for image, label in zip(batch["image"], batch["label"], strict=True):
        same = np.all(source.images == data.to_levels(image, 17), axis=(1, 2, 3))
        assert same.any() and label in source.labels[same]


@pytest.mark.parametrize("batch_size", [2, 4, 10, 25])  # 4 carries over, 25 spans epochs
def test_every_epoch_is_a_new_permutation(batch_size):
    n, epochs = 10, 4
    steps = -(-n * epochs // batch_size)
    seen = labels(take(data.batches(make_source(n), batch_size=batch_size, seed=1), steps))
    order = seen[: n * epochs].reshape(epochs, n)
    for epoch in order:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
    assert len({tuple(epoch) for epoch in order}) == epochs


def test_order_does_not_depend_on_batch_size_but_on_seed():
    source = make_source(50)
    orders = {
        (b, s): tuple(labels(take(data.batches(source, batch_size=b, seed=s), 60 // b)))
        for b in (4, 6)
        for s in (0, 1)
    }
    assert orders[4, 0] == orders[6, 0] and orders[4, 1] == orders[6, 1]
    assert orders[4, 0] != orders[4, 1]


@pytest.mark.parametrize(("num_threads", "prefetch"), [(2, 3), (0, 2), (2, 0)])
def test_batch_is_a_function_of_seed_and_step(num_threads, prefetch):
    options = dict(batch_size=4, seed=5, flip=True)
    threads = dict(num_threads=num_threads, prefetch=prefetch)
    source = make_source()
    first = take(data.batches(source, **options, **threads), 12)
    for k in (0, 1, 7):
        (resumed,) = take(data.batches(source, step=k, **options, **threads), 1)
        assert_same(resumed, first[k])
        assert_same(data.batch_at(source, k, **options), first[k])
    assert_same(data.dataset(source, **options)[11], first[11])


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_batch_of_one(process_count):
    options = dict(batch_size=8, seed=2, flip=True)
    source = make_source(30)
    for step in (0, 3, 4):
        whole = data.batch_at(source, step, **options)
        parts = [
            data.batch_at(source, step, process_index=i, process_count=process_count, **options)
            for i in range(process_count)
        ]
        resumed = data.batches(
            source, step=step, process_index=1, process_count=process_count, **options
        )
        assert_same(next(resumed), parts[1])
        assert len(parts[0]["label"]) == 8 // process_count
        assert_same(
            {k: np.concatenate([p[k] for p in parts]) for k in whole},
            whole,
        )


def test_flip_is_fair_and_by_position():
    n, width = 200, 3
    source = make_source(n, width)
    plain = data.batch_at(source, 0, batch_size=2 * n, seed=3)
    flipped = data.batch_at(source, 0, batch_size=2 * n, seed=3, flip=True)
    np.testing.assert_array_equal(plain["label"], flipped["label"])
    visible = plain["label"] > 0  # image 0 is blank
    mirrored = np.all(flipped["image"] == plain["image"][:, :, ::-1], axis=(1, 2, 3))[visible]
    kept = np.all(flipped["image"] == plain["image"], axis=(1, 2, 3))[visible]
    assert np.all(mirrored ^ kept)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(mirrored))
    by_epoch = {
        e: dict(zip(plain["label"][visible][p], mirrored[p], strict=True))
        for e, p in ((0, slice(n - 1)), (1, slice(n - 1, None)))
    }
    agree = np.mean([by_epoch[0][label] == by_epoch[1][label] for label in by_epoch[0]])
    assert abs(agree - 0.5) < 4 * 0.5 / np.sqrt(n)  # each epoch throws again
    other = data.batch_at(source, 0, batch_size=2 * n, seed=4, flip=True)
    assert not np.array_equal(other["image"], flipped["image"])


def test_fair_bits_have_no_short_correlations():
    n = 1 << 16
    bits = {s: batching._draw_fair_bits(s, np.arange(n)) * 2 - 1 for s in (0, 1)}
    bound = 5 / np.sqrt(n)
    assert abs(bits[0].mean()) < bound
    for lag in range(1, 40):
        assert abs(np.mean(bits[0][lag:] * bits[0][:-lag])) < bound
        assert abs(np.mean(bits[0][lag:] * bits[1][:-lag])) < bound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(batch_size=0), "batch_size=0"),
        (dict(batch_size=6, process_count=4), "batch_size=6.*process_count=4"),
        (dict(process_index=2, process_count=2), "process_index=2"),
        (dict(process_count=0), "process_count=0"),
        (dict(seed=-1), "seed=-1"),
        (dict(seed=2**32), "seed="),
        (dict(step=-1), "step=-1"),
    ],
)
def test_bad_input(change, message):
    options = dict(batch_size=4, seed=0, step=0) | change
    with pytest.raises(ValueError, match=message):
        data.batches(make_source(), **options)  # at the call, before the first batch
    with pytest.raises(ValueError, match=message):
        data.batch_at(make_source(), options.pop("step"), **options)


def test_empty_source_and_negative_threads():
    empty = data.from_arrays(np.zeros((0, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match="empty"):
        data.batches(empty, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="num_threads=-1"):
        data.batches(make_source(), batch_size=1, seed=0, num_threads=-1)


def test_one_image_and_far_steps():
    batch = data.batch_at(make_source(1), 10**9, batch_size=3, seed=0)
    np.testing.assert_array_equal(batch["label"], [0, 0, 0])


def test_reader_errors_arrive():
    def read(indices):
        raise ValueError("picture.png cannot be read")

    source = data.Source((2, 2, 1), 0, 256, 4, read)
    with pytest.raises(ValueError, match=r"picture\.png"):
        next(data.batches(source, batch_size=2, seed=0))


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


def assert_readers_end():
    gc.collect()
    deadline = time.monotonic() + 300  # so that a thread that stays fails the test
    while readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not readers()


@pytest.mark.parametrize("how", ["close", "drop", "unused"])
def test_no_threads_are_left(how):
    assert_readers_end()
    iterator = data.batches(make_source(), batch_size=4, seed=0)
    if how != "unused":
        next(iterator)
        assert readers()
    if how == "close":
        iterator.close()
    del iterator
    assert_readers_end()


def test_device_prefetch_keeps_order_and_closes():
    source = make_source()
    iterator = data.device_prefetch(data.batches(source, batch_size=4, seed=0), size=2)
    for k in range(5):
        batch = next(iterator)
        assert all(isinstance(x, jax.Array) for x in batch.values())
        assert_same(batch, data.batch_at(source, k, batch_size=4, seed=0))
    iterator.close()
    assert_readers_end()


def test_device_prefetch_runs_ahead_and_drains():
    pulled = []

    def count():
        for i in range(5):
            pulled.append(i)
            yield {"image": np.full(2, i)}

    iterator = data.device_prefetch(count(), size=2)
    assert int(next(iterator)["image"][0]) == 0 and len(pulled) == 3
    assert [int(b["image"][0]) for b in iterator] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="size=0"):
        data.device_prefetch(iter([]), size=0)


def test_device_prefetch_shards():
    mesh = Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    rows = 4 * len(jax.devices())
    options = dict(batch_size=rows, seed=0)
    iterator = data.device_prefetch(data.batches(make_source(), **options), sharding)
    batch = next(iterator)
    iterator.close()
    assert batch["image"].sharding == sharding and batch["label"].sharding == sharding
    assert_same(batch, data.batch_at(make_source(), 0, **options))


@pytest.fixture
def large():
    """A source of pictures of 12x9 pixels, cropped to 6x6; pixels say where they are from."""
    y, x = np.meshgrid(np.arange(12), np.arange(9), indexing="ij")
    picture = (20 * y + x).astype(np.uint8)[..., None]
    labels = np.arange(5, dtype=np.int32)

    def read(indices):
        return np.stack([picture[3:9, 1:7]] * len(indices)), labels[indices]

    return data.Source(
        (6, 6, 1), 5, 256, 5, read,
        originals=lambda indices: ([picture] * len(indices), labels[indices]),
    )  # fmt: skip


def test_random_crops_are_a_function_of_seed_and_position(large):
    options = dict(batch_size=64, seed=3)
    crop = data.make_crop("random", (6 / 9, 6 / 9))  # as large as the result: nothing is resized
    one, again = (data.batch_at(large, 2, crop=crop, **options) for _ in range(2))
    assert np.array_equal(one["image"], again["image"])
    assert np.array_equal(one["label"], data.batch_at(large, 2, **options)["label"])
    corners = {(int(k) // 20, int(k) % 20) for k in data.to_levels(one["image"][:, 0, 0, 0], 256)}
    assert {y for y, _ in corners} == set(range(7))
    assert {x for _, x in corners} == set(range(4))
    halves = [
        data.batch_at(large, 2, crop=crop, process_index=k, process_count=2, **options)
        for k in (0, 1)
    ]
    joined = np.concatenate([half["image"] for half in halves])
    assert np.array_equal(joined, one["image"])


def test_the_share_of_random_crops_varies(large):
    crops = [data.make_crop("random", share) for share in ((1.0, 1.0), (0.3, 1.0))]
    whole, some = (data.batch_at(large, 0, batch_size=64, seed=0, crop=crop) for crop in crops)
    widths = data.to_levels(whole["image"], 256)[:, 0, -1, 0].astype(int)
    assert len({int(k) % 20 for k in widths}) == 1  # 9 columns are all there are
    spread = np.ptp(data.to_levels(some["image"], 256)[..., 0].astype(int), axis=(1, 2))
    assert spread.min() < 0.6 * spread.max()


@pytest.mark.parametrize("share", [(0.0, 1.0), (0.9, 0.5), (0.5,), (0.5, 1.2)])
def test_bad_shares_and_names_of_crops(share):
    with pytest.raises(ValueError, match=r"data\.crop_share"):
        data.make_crop("random", share)
    with pytest.raises(ValueError, match=r"data\.crop 'middle'"):
        data.make_crop("middle", (1.0, 1.0))
    assert data.make_crop("center", share) is None
    with pytest.raises(ValueError, match=r"set data\.resize=halves"):
        data.make_crop("random_after", (0.8, 1.0))


def test_two_sources_take_turns_and_the_second_counts_as_much_as_its_weight():
    first, second = make_source(3, num_classes=20), make_source(5, num_classes=20)
    joined = data.join_alternating(first, second, 0.5)
    assert len(joined) == 8
    batches = [data.batch_at(joined, step, batch_size=4, seed=0) for step in range(15)]
    rows, weights = labels(batches), np.concatenate([b["weight"] for b in batches])
    np.testing.assert_array_equal(weights[0::2], 2.0)
    np.testing.assert_array_equal(weights[1::2], 1.0)
    assert sorted(rows[0:6:2]) == [0, 1, 2] and sorted(rows[1:10:2]) == [0, 1, 2, 3, 4]
    assert [rows[k : k + 6 : 2].tolist() for k in (0, 6, 12)] != [rows[:6:2].tolist()] * 3
    losses = np.random.default_rng(0).uniform(size=4)
    wanted = losses[0::2].mean() + 0.5 * losses[1::2].mean()  # instance + weight * prior
    np.testing.assert_allclose((losses * batches[0]["weight"]).mean(), wanted)
    shares = [
        data.batch_at(joined, 3, batch_size=4, seed=0, process_index=k, process_count=2)["label"]
        for k in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(shares), batches[3]["label"])


def test_sources_that_cannot_take_turns_are_refused():
    with pytest.raises(ValueError, match=r"need one shape, got \(2, 3, 1\) and \(2, 4, 1\)"):
        data.join_alternating(make_source(), make_source(width=4), 1.0)
