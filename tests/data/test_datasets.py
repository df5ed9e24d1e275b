"""Files written here, read back; and every kind of damage named."""

import gzip
import io
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.data import datasets, formats, tfds_builders

TRAIN, TEST = (tfds_builders.FASHION_FILES[s] for s in ("train", "test"))


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(path, raw, packed):
    path = path.with_name(path.name + ".gz") if packed else path
    path.write_bytes(gzip.compress(raw) if packed else raw)
    return path


def make_fashion(folder, *, packed=False, counts=(30, 12)):
    rng = np.random.default_rng(0)
    arrays = {}
    folder.mkdir(exist_ok=True)
    for files, n, split in zip((TRAIN, TEST), counts, ("train", "test"), strict=True):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        labels = rng.integers(0, 10, n, np.uint8)
        write(folder / files["images"], idx_bytes(images), packed)
        write(folder / files["labels"], idx_bytes(labels), packed)
        arrays[split] = images[..., None], labels
    return arrays


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """No test sees the data of this machine, nor downloads."""
    monkeypatch.delenv(datasets.ENV_DIR, raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_tfds"))
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", tmp_path / "no_debian")

    def no_download(url):
        raise FileNotFoundError(f"no network for {url}")

    monkeypatch.setattr(tfds_builders, "_check_reachable", no_download)


def test_digits():
    every = data.load("digits", split="all")
    assert (len(every), every.shape, every.num_classes, every.levels) == (1797, (8, 8, 1), 10, 17)
    assert every.images.max() == 16 and every.images.min() == 0
    assert len(np.unique(every.images)) == 17
    counts = np.bincount(every.labels)  # as scikit-learn's description of the data has it
    np.testing.assert_array_equal(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    train, test = data.load("digits"), data.load("digits", split="test")
    assert (len(train), len(test)) == (1500, 297)
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), every.images)
    np.testing.assert_array_equal(every[0]["image"][0, :, 0], [0, 0, 5, 13, 9, 1, 0, 0])


def test_source_access():
    images = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3, 1)
    source = data.from_arrays(images, np.array([0, 1, 2, 0, 1]), num_classes=3)
    assert (len(source), source.shape) == (5, (2, 3, 1))
    row = source[-1]
    np.testing.assert_array_equal(row["image"], images[4])
    assert row["label"] == 1 and row["label"].dtype == np.int32
    np.testing.assert_array_equal(source.take([3, 0])["image"], images[[3, 0]])
    assert len(list(source)) == 5  # the sequence protocol stops at IndexError
    for index in (5, -6):
        with pytest.raises(IndexError, match="out of range"):
            source[index]
    with pytest.raises(ValueError, match="read-only"):
        source.images[0] = 0
    images[0] = 7  # the caller's own array stays writable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(images=np.zeros((4, 2, 2, 1))), "float64"),
        (dict(images=np.zeros((4, 2, 2), np.uint8)), r"\(4, 2, 2\)"),
        (dict(levels=16), "reach 16"),
        (dict(levels=1), "levels=1"),
        (dict(labels=np.zeros(3)), r"\(3,\)"),
        (dict(labels=np.full(4, 2)), "num_classes=2"),
    ],
)
def test_from_arrays_rejects(change, message):
    good = dict(images=np.full((4, 2, 2, 1), 16, np.uint8), labels=np.zeros(4), num_classes=2)
    with pytest.raises(ValueError, match=message):
        data.from_arrays(**(good | change))


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match=r"'emnist'.*digits.*fashion_mnist.*image_folder"):
        data.load("emnist")
    with pytest.raises(ValueError, match=r"'valid'.*train, test, all"):
        data.load("digits", split="valid")
    with pytest.raises(ValueError, match="image_size=0"):
        data.load("digits", image_size=0)


def test_resized_digits_stay_in_their_levels():
    source = data.load("digits", image_size=12)
    assert source.shape == (12, 12, 1) and source.images.max() == 16


@pytest.mark.parametrize("packed", [False, True])
def test_idx_round_trip(tmp_path, packed):
    written = make_fashion(tmp_path, packed=packed)
    for split, (images, labels) in written.items():
        source = data.load("fashion_mnist", split=split, data_dir=str(tmp_path))
        np.testing.assert_array_equal(source.images, images)
        np.testing.assert_array_equal(source.labels, labels)
        assert (source.num_classes, source.levels) == (10, 256)
    every = data.load("fashion_mnist", split="all", data_dir=str(tmp_path))
    np.testing.assert_array_equal(every.images[:30], written["train"][0])
    np.testing.assert_array_equal(every.labels[30:], written["test"][1])


def test_pooled_pixels_are_means_of_four(tmp_path):
    images, labels = make_fashion(tmp_path, packed=False)["test"]
    pooled = data.load("fashion_mnist14", split="test", data_dir=str(tmp_path))
    assert pooled.shape == (14, 14, 1)
    corner = images[0, 2:4, 4:6, 0].astype(float).mean()
    assert pooled.images[0, 1, 2, 0] == np.rint(corner)
    np.testing.assert_array_equal(pooled.labels, labels)


def spoil_image(folder, change):
    path = folder / TRAIN["images"]
    path.write_bytes(change(path.read_bytes()))


def promise_much(folder):
    """A gigabyte by the header, in a file of some bytes: refused before memory is reserved."""
    head = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**10, 2**10, 2**10)
    (folder / TRAIN["images"]).write_bytes(gzip.compress(head + bytes(1000)))


def cut_gzip(folder):
    raw = (folder / TRAIN["images"]).read_bytes()
    (folder / TRAIN["images"]).write_bytes(gzip.compress(raw)[:-100])


def damage_gzip(folder):
    packed = bytearray(gzip.compress((folder / TRAIN["images"]).read_bytes()))
    packed[-6] ^= 1  # in the checksum
    (folder / TRAIN["images"]).write_bytes(bytes(packed))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: spoil_image(f, lambda raw: raw[:-1]), r"23519 bytes.*\(30, 28, 28\).*23520"),
        (lambda f: spoil_image(f, lambda raw: raw + b"\0"), "23521 bytes"),
        (lambda f: spoil_image(f, lambda raw: raw[:10]), "inside its header"),
        (lambda f: spoil_image(f, lambda raw: b""), "magic number 0x,"),
        (lambda f: spoil_image(f, lambda raw: b"\0\0\x0d\x03" + raw[4:]), "0x00000d03.*0x00000803"),
        (lambda f: spoil_image(f, lambda raw: raw[:4] + b"\xff" * 12), "truncated or damaged"),
        (promise_much, "more than the .* that it can hold"),
        (cut_gzip, "truncated or damaged gzip"),
        (damage_gzip, "truncated or damaged gzip"),
        (
            lambda f: write(f / TRAIN["labels"], idx_bytes(np.zeros(29, np.uint8)), False),
            "30 images but.*29 labels",
        ),
        (
            lambda f: write(f / TRAIN["labels"], idx_bytes(np.full(30, 10, np.uint8)), False),
            "label 10, expected 0 to 9",
        ),
    ],
)
def test_damaged_idx_is_named(tmp_path, spoil, message):
    make_fashion(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        data.load("fashion_mnist", data_dir=str(tmp_path))
    assert TRAIN["images"] in str(error.value) or TRAIN["labels"] in str(error.value)
    assert "apt-get install dataset-fashion-mnist" in str(error.value)


def test_missing_files_say_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_dir=.*nowhere is not a folder"):
        data.load("fashion_mnist", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"holds no fashion_mnist.*apt-get install"):
        data.load("fashion_mnist", data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"not on this machine; no network.*apt-get"):
        data.load("fashion_mnist")
    with pytest.raises(FileNotFoundError, match=r"no network.*cifar-10-binary.tar.gz"):
        data.load("cifar10")
    make_fashion(tmp_path)
    (tmp_path / TRAIN["labels"]).unlink()
    with pytest.raises(FileNotFoundError, match=TRAIN["labels"] + ".*apt-get install"):
        data.load("fashion_mnist", data_dir=str(tmp_path))


def test_search_order(tmp_path, monkeypatch):
    """data_dir, then the environment, then Debian's folder, then TFDS's."""
    sizes = {"given": 1, "env": 2, "debian": 3, "no_tfds": 4}
    for place, n in sizes.items():
        make_fashion(tmp_path / place, counts=(n, n))
    monkeypatch.setenv(datasets.ENV_DIR, str(tmp_path / "env"))
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", tmp_path / "debian")
    assert len(data.load("fashion_mnist", data_dir=str(tmp_path / "given"))) == 1
    assert len(data.load("fashion_mnist")) == 2
    monkeypatch.delenv(datasets.ENV_DIR)
    assert len(data.load("fashion_mnist")) == 3
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", tmp_path / "none")
    assert len(data.load("fashion_mnist")) == 4
    monkeypatch.setenv(datasets.ENV_DIR, str(tmp_path / "typo"))
    with pytest.raises(FileNotFoundError, match=f"{datasets.ENV_DIR}=.*typo is not a folder"):
        data.load("fashion_mnist")


def test_environment_folder_without_this_set_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "others").mkdir()
    make_fashion(tmp_path / "debian")
    monkeypatch.setenv(datasets.ENV_DIR, str(tmp_path / "others"))
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", tmp_path / "debian")
    assert len(data.load("fashion_mnist")) == 30


def test_fashion_mnist_as_debian_packs_it(monkeypatch):
    monkeypatch.undo()
    if not datasets.DEBIAN_FASHION.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    folder = str(datasets.DEBIAN_FASHION)
    for split, n in (("train", 60_000), ("test", 10_000)):
        source = data.load("fashion_mnist", split=split, data_dir=folder)
        assert source.images.shape == (n, 28, 28, 1)
        np.testing.assert_array_equal(np.bincount(source.labels), np.full(10, n // 10))


# --- TFDS ---


def prepare_fashion(tmp_path, counts):
    written = make_fashion(tmp_path / "raw", counts=counts)
    read = datasets._find_idx_reader(tmp_path / "raw")
    folder = tfds_builders.prepare("fashion_mnist", tmp_path / "tfds", read=read)
    assert folder == tmp_path / "tfds" / "fashion_mnist" / "3.0.1"
    return written


def same_rows(source, images, labels):
    """Equal as multisets: TFDS shuffles what it writes."""

    def rows(x, y):
        return sorted(image.tobytes() + bytes([label]) for image, label in zip(x, y, strict=True))

    return rows(source.images, source.labels) == rows(images, labels)


def test_tfds_without_tensorflow(tmp_path, monkeypatch):
    written = prepare_fashion(tmp_path, (100, 20))
    source = data.load("fashion_mnist", data_dir=str(tmp_path / "tfds"))
    assert same_rows(source, *written["train"])
    every = data.load("fashion_mnist", split="all", data_dir=str(tmp_path / "tfds"))
    assert len(every) == 120
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert same_rows(data.load("fashion_mnist", split="test"), *written["test"])
    assert "tensorflow" not in sys.modules


def test_prepared_rows_on_demand(tmp_path, monkeypatch):
    """The path of the large sets: rows decoded when asked for."""
    written = prepare_fashion(tmp_path, (40, 8))
    folder = str(tmp_path / "tfds")
    monkeypatch.setitem(datasets._TFDS, "big", "fashion_mnist")
    source = data.load("big", data_dir=folder)
    assert source.images is None and len(source) == 40
    got = source.take(np.arange(40))
    whole = data.from_arrays(got["image"], got["label"], num_classes=10)
    assert same_rows(whole, *written["train"])
    np.testing.assert_array_equal(source[7]["image"], got["image"][7])
    assert data.load("big", data_dir=folder, image_size=14)[0]["image"].shape == (14, 14, 1)
    with pytest.raises(ValueError, match=r"'validation'.*train.*test"):
        data.load("big", split="validation", data_dir=folder)


@pytest.mark.slow
def test_tfds_of_the_whole_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.undo()
    read = datasets._find_idx_reader(datasets.DEBIAN_FASHION)
    if read is None:
        pytest.skip("dataset-fashion-mnist is not installed")
    tfds_builders.prepare("fashion_mnist", tmp_path, read=read)
    for split in ("train", "test"):
        assert same_rows(
            data.load("fashion_mnist", split=split, data_dir=str(tmp_path)), *read(split)
        )


def test_large_sets_say_how_to_prepare_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="tfds build lsun/bedroom --file_format=array_rec"):
        data.load("lsun_bedroom", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"'lsun'.*cifar10.*fashion_mnist"):
        tfds_builders.prepare("lsun", tmp_path)


def test_newest_prepared_version_wins(tmp_path):
    for version in ("3.9.0", "3.10.0", "incomplete.X_3.11.0"):
        folder = tmp_path / "lsun" / "cat" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    assert tfds_builders.find_prepared("lsun/cat", tmp_path).name == "3.10.0"
    assert tfds_builders.find_prepared("lsun/dog", tmp_path) is None


def test_import_is_light():
    slow = "{'tensorflow', 'tensorflow_datasets', 'sklearn'}"
    code = f"import sys, diffjax.data; sys.exit(bool({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- CIFAR-10 ---


def cifar_files(per_file=3):
    rng = np.random.default_rng(1)
    names = [*formats._CIFAR_FILES["train"], *formats._CIFAR_FILES["test"]]
    images = rng.integers(0, 256, (len(names) * per_file, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, len(images), np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    records = np.concatenate([labels[:, None], planes], axis=1)
    parts = np.split(records, len(names))
    return {n: p.tobytes() for n, p in zip(names, parts, strict=True)}, images, labels


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))


def test_cifar10_round_trip(tmp_path):
    files, images, labels = cifar_files()
    archive = tmp_path / tfds_builders.CIFAR10_ARCHIVE
    write_tar(archive, files)
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    for path in (archive, tmp_path):
        x, y = formats.read_cifar10(path, "train", per_file=3)
        np.testing.assert_array_equal(x, images[:15])
        np.testing.assert_array_equal(y, labels[:15])
        np.testing.assert_array_equal(
            formats.read_cifar10(path, "test", per_file=3)[0], images[15:]
        )


def test_cifar10_damage_is_named(tmp_path):
    files, _, _ = cifar_files()
    archive = tmp_path / tfds_builders.CIFAR10_ARCHIVE
    write_tar(archive, files)
    with pytest.raises(ValueError, match=r"data_batch_1.bin.*9219 bytes, expected 30730000"):
        data.load("cifar10", data_dir=str(tmp_path))
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz.*truncated"):
        formats.read_cifar10(archive, "test", per_file=3)
    write_tar(archive, {k: v for k, v in files.items() if k != "test_batch.bin"})
    with pytest.raises(ValueError, match=r"no test_batch\.bin"):
        formats.read_cifar10(archive, "test", per_file=3)
    write_tar(archive, files | {"test_batch.bin": b"\x0a" + files["test_batch.bin"][1:]})
    with pytest.raises(ValueError, match="label 10"):
        formats.read_cifar10(archive, "test", per_file=3)


# --- image folder ---


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_image_folder_with_classes(tmp_path):
    rng = np.random.default_rng(2)
    pictures = {
        "cats/a.png": rng.integers(0, 256, (6, 6, 3), np.uint8),
        "cats/deep/b.PNG": rng.integers(0, 256, (6, 6, 3), np.uint8),
        "dogs/c.png": rng.integers(0, 256, (6, 6), np.uint8),
    }
    for name, array in pictures.items():
        save(tmp_path / name, array)
    (tmp_path / "dogs" / "notes.txt").write_text("no image")
    source = data.load("image_folder", data_dir=str(tmp_path))
    assert (len(source), source.shape, source.num_classes) == (3, (6, 6, 3), 2)
    batch = source.take([0, 1, 2])
    np.testing.assert_array_equal(batch["label"], [0, 0, 1])
    np.testing.assert_array_equal(batch["image"][1], pictures["cats/deep/b.PNG"])
    np.testing.assert_array_equal(batch["image"][2, ..., 1], pictures["dogs/c.png"])


def test_image_folder_crops_the_centre_and_averages(tmp_path):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200  # the central square, and nothing else
    save(tmp_path / "wide.png", wide)
    checker = np.indices((64, 64)).sum(0) % 2 * 200  # aliasing would keep 0 or 200
    save(tmp_path / "z.png", checker.astype(np.uint8))
    source = data.load("image_folder", data_dir=str(tmp_path), image_size=8)
    assert source.num_classes == 0 and source.shape == (8, 8, 3)
    np.testing.assert_array_equal(source[0]["image"], np.full((8, 8, 3), 200))
    np.testing.assert_allclose(source[1]["image"].astype(int), 100, atol=3)


def test_image_folder_splits(tmp_path):
    for name in ("train/a.png", "train/b.png", "test/c.png"):
        save(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    assert len(data.load("image_folder", data_dir=str(tmp_path))) == 2
    assert len(data.load("image_folder", split="test", data_dir=str(tmp_path))) == 1
    with pytest.raises(ValueError, match="'validation'"):
        data.load("image_folder", split="validation", data_dir=str(tmp_path))


def test_image_folder_bad_input(tmp_path):
    with pytest.raises(ValueError, match="pass data_dir"):
        data.load("image_folder")
    with pytest.raises(FileNotFoundError, match="holds no image"):
        data.load("image_folder", data_dir=str(tmp_path))
    save(tmp_path / "a" / "1.png", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "a" / "2.png", np.zeros((4, 5, 3), np.uint8))
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "3.png").write_bytes(whole[: len(whole) // 2])
    source = data.load("image_folder", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"2\.png is \(4, 5, 3\).*image_size is needed"):
        source[1]
    with pytest.raises(ValueError, match=r"3\.png cannot be read"):
        source[2]
    save(tmp_path / "loose.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"in sub-folders.*loose\.png"):
        data.load("image_folder", data_dir=str(tmp_path))
