"""The rules by which pictures and masks are read, in closed form."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.data import pictures
from diffjax.generate import Latents, images

RAMP = np.linspace(0, 1, 12).reshape(3, 4)  # from black to white
HALF = np.array([[0, 1], [1, 0]])


def png16(values, kind, transparent=None):
    """A PNG of 16 bits, which Pillow cannot write in colour: kind 0 grey, 2 RGB, 6 RGBA."""

    def chunk(name, body):
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    extra = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def written(path, picture):
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        picture.save(path)
    return path


def three_uses(path, channels=3, split="train"):
    """A file as training, generation and evaluation have it, (H, W, C) in 0 .. 255."""
    trained = data.load("image_folder", data_dir=str(path.parent), channels=channels)
    yield trained[0]["image"]
    generated, _ = images.read_images(pictures.open_image(path), channels=channels)
    yield generated[0] * 255
    from diffjax.evaluation import from_file

    measured = from_file(path.parent).read(0, 1)[0]
    yield measured if channels == 3 else measured[..., :1]


def grey(values, dtype, top):
    return Image.fromarray(np.rint(values * top).astype(dtype))


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("a.png", grey(RAMP, np.uint8, 255)),
        ("a.png", grey(RAMP, np.uint16, 65535)),
        ("a.tif", grey(RAMP, np.uint16, 65535)),
        ("a.pgm", grey(RAMP, np.uint16, 65535)),
        ("a.tif", Image.fromarray(RAMP.astype(np.float32))),
        ("a.png", png16(np.rint(RAMP * 65535)[..., None].repeat(3, -1), 2)),
    ],
    ids=["8", "16 png", "16 tiff", "16 pgm", "float tiff", "16 rgb"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_depths_are_scaled(tmp_path, name, picture, channels):
    path = written(tmp_path / name, picture)
    for found in three_uses(path, channels):
        assert found.shape == (3, 4, channels)
        np.testing.assert_allclose(found[..., 0], RAMP * 255, atol=1)


def test_one_bit_is_black_and_white(tmp_path):
    path = written(tmp_path / "a.png", Image.fromarray(HALF.astype(bool)))
    assert pictures.open_image(path).mode == "1"
    for found in three_uses(path):
        np.testing.assert_allclose(found[..., 2], HALF * 255, atol=1e-4)


def test_twelve_bits_of_a_tiff_are_scaled():
    picture = Image.fromarray(np.full((2, 2), 4095, np.uint16))
    assert (pictures.to_bytes(picture, 1) == 16).all()
    picture.tag_v2 = {258: (12,)}  # as Pillow reads such a file
    assert (pictures.to_bytes(picture, 1) == 255).all()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.fromarray(np.full((2, 2), 70_000, np.int32)), "integers of 32 bits"),
        (Image.fromarray(np.full((2, 2), 200, np.float32)), r"must lie in \[0, 1\].*200"),
        (Image.fromarray(np.full((2, 2), np.nan, np.float32)), r"must lie in \[0, 1\].*nan"),
    ],
)
def test_values_without_a_known_white_are_refused(tmp_path, picture, message):
    path = written(tmp_path / "a.tif", picture)
    with pytest.raises(ValueError, match=f"a.tif.*{message}"):
        data.load("image_folder", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        images.read_images(pictures.open_image(path))


def hidden(mode):
    """Red pixels, of which the second is transparent and the third half so, as far as it can be."""
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    if mode == "RGBA":
        image.putpixel((2, 0), (255, 0, 0, 128))
    elif mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        image = Image.new("P", (3, 1))
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.putpixel((1, 0), 1)
        image.info["transparency"] = b"\xff\x00"
    else:
        image = Image.new("RGB", (3, 1), (255, 0, 0))
        image.putpixel((1, 0), (0, 255, 0))
        image.info["transparency"] = (0, 255, 0)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_show_the_background(tmp_path, mode):
    path = tmp_path / "a.png"
    picture = hidden(mode)
    picture.save(path, **{k: v for k, v in picture.info.items() if k == "transparency"})
    for found in three_uses(path):
        np.testing.assert_allclose(found[0, 1], 255, atol=1e-4)
        assert found[0, 0, 1] < 100
        if mode == "RGBA":
            np.testing.assert_allclose(found[0, 2], (255, 127, 127), atol=1)


def test_the_background_of_a_folder_is_chosen(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "a.png")
    for background, expected in (("black", (0, 0, 0)), ("#102030", (16, 32, 48))):
        source = data.load("image_folder", data_dir=str(tmp_path), background=background)
        assert (source[0]["image"] == expected).all()
    with pytest.raises(ValueError, match=r"background='blakc' is not a colour.*mean black"):
        data.load("image_folder", data_dir=str(tmp_path), background="blakc")


def test_a_value_of_sixteen_bits_can_be_transparent(tmp_path):
    path = written(tmp_path / "a.png", png16(np.array([[[300], [65535], [0]]]), 0, 300))
    assert pictures.read_image(path, 1)[0, :, 0].tolist() == [255, 255, 0]


@pytest.mark.parametrize("kind", ["CMYK", "P", "exif", "YCbCr"])
def test_other_colours_and_turned_pictures(tmp_path, kind):
    picture = Image.new("RGB", (4, 2), (200, 40, 40))
    path, options = tmp_path / "a.tif", {}
    if kind == "exif":
        picture.putpixel((0, 0), (0, 0, 0))
        exif = Image.Exif()
        exif[274] = 6  # is shown turned by 90 degrees, clockwise
        path, options = tmp_path / "a.png", {"exif": exif}
    elif kind == "P":
        picture = picture.quantize(4)
    else:
        picture = picture.convert(kind)
    picture.save(path, **options)
    for found in three_uses(path):
        assert found.shape == ((4, 2, 3) if kind == "exif" else (2, 4, 3))
        if kind == "exif":
            np.testing.assert_array_equal(found[0, 1], (0, 0, 0))
        np.testing.assert_allclose(found[-1, 0], (200, 40, 40), atol=4)


# ---- files --------------------------------------------------------------------------------------


def eps():
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def cut(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        buffer, kind
    )
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize(
    "content",
    [eps(), b"", b"no picture", *map(cut, ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "GIF"))],
    ids=["eps", "empty", "text", "png", "jpeg", "tiff", "webp", "bmp", "ppm", "gif"],
)
def test_what_is_no_whole_picture_is_named(tmp_path, content, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("started"))
    path = written(tmp_path / "a.png", content)
    for read in (
        lambda: data.load("image_folder", data_dir=str(tmp_path)),
        lambda: pictures.open_image(path),
    ):
        with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
            read()


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        pictures.open_image(tmp_path / "a.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = written(tmp_path / "a.png", Image.new("1", (13_000, 13_000)))
    message = r"a\.png .*13000x13000 pixels.*134,217,728.*DIFFJAX_MAX_PIXELS"
    for read in (pictures.open_image, pictures.read_size, pictures.read_image):
        with pytest.raises(ValueError, match=message):
            read(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back later
    monkeypatch.setenv("DIFFJAX_MAX_PIXELS", "200000000")
    assert pictures.read_size(path) == (13_000, 13_000)
    monkeypatch.setenv("DIFFJAX_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="DIFFJAX_MAX_PIXELS=many must be a number"):
        pictures.read_size(path)


def test_bombs_are_named(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    raw = bytearray(png16(np.zeros((1, 1, 3)), 2))
    raw[16:29] = header
    raw[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path = written(tmp_path / "a.png", bytes(raw))
    with pytest.raises(ValueError, match=r"a\.png cannot be read.*3600000000 pixels"):
        pictures.open_image(path)


# ---- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 3), (1, 3, 4, 3), (1, 3, 4, 1)])
@pytest.mark.parametrize(
    ("dtype", "top"),
    [("u1", 255), ("u2", 65535), ("f2", 1), ("f4", 1), ("f8", 1)],
)
def test_arrays_are_scaled_by_their_type(shape, dtype, top):
    ramp = np.rint(RAMP * top) if top > 1 else RAMP
    ramp = ramp.reshape(3, 4, 1) if len(shape) > 2 else ramp
    found, is_latents = images.read_images(np.broadcast_to(ramp, shape).astype(dtype))
    assert not is_latents and found.shape == (1, 3, 4, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[0, ..., 1], RAMP, atol=2e-3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 2, 3), 200), r"int64, whose white is not known.*astype\(np\.uint8\)"),
        (np.full((2, 2, 3), 200.0), r"must lie in \[0, 1\], where 1 is white, got 200\.0"),
        (np.full((2, 2, 3), -0.5), r"must lie in \[0, 1\]"),
        (np.full((2, 2, 3), np.nan), "nan"),
        (np.zeros((3, 8, 8)), "channels last; got an array of float64 .3, 8, 8"),
        (np.zeros((0, 2, 3), np.uint8), "got an array of uint8 .1, 0, 2, 3"),
        (np.full((2, 2, 3), "a"), "whose white is not known"),
        (np.zeros((2, 2, 3), complex), "whose white is not known"),
    ],
)
def test_other_arrays_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        images.read_images(array)


def test_arrays_with_alpha_are_composited():
    red = np.zeros((1, 3, 4), np.uint8)
    red[..., 0], red[0, :, 3] = 255, (255, 0, 128)
    expected = np.array([(255, 0, 0), (255, 255, 255), (255, 127, 127)])
    for array in (red, red.astype(np.uint16) * 257):
        found, _ = images.read_images(array)
        np.testing.assert_allclose(found[0, 0] * 255, expected, atol=1)
    hint, _ = images.read_images(red, latents=0, low=-1)
    np.testing.assert_allclose(hint[0, 0, 1], 0)


def test_floats_of_four_channels_are_latents_only_beyond_doubt():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, 4, 4, 4)).astype(np.float32)
    found, is_latents = images.read_images(latents)
    assert is_latents and np.array_equal(found, latents)
    picture = rng.random((4, 4, 4))
    for array in (picture, 2 * picture - 1, 255 * picture):
        with pytest.raises(ValueError, match=r"latents or a picture with alpha.*Latents\(array\)"):
            images.read_images(array)
        found, is_latents = images.read_images(Latents(array))
        assert is_latents and found.shape == (1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"latents must be .*got an array of float64 \(4, 4, 3\)"):
        images.read_images(Latents(np.zeros((4, 4, 3))))
    with pytest.raises(ValueError, match="latents must be finite"):
        images.read_images(Latents(np.full((4, 4, 4), np.inf)))


def test_lists_hold_pictures_of_one_size_of_any_kind():
    array = np.full((2, 2, 3), 255, np.uint8)
    found, _ = images.read_images([array, Image.fromarray(array), array / 255.0, array[..., 0]])
    assert found.shape == (4, 2, 2, 3) and (found == 1).all()
    with pytest.raises(ValueError, match="images differ in size"):
        images.read_images([array, array[:1]])
    with pytest.raises(ValueError, match="no image in the list"):
        images.read_images([])
    with pytest.raises(ValueError, match="cannot be mixed"):
        images.read_images([array, 3 * np.random.default_rng(0).standard_normal((2, 2, 4))])


# ---- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        HALF.astype(bool),
        HALF,
        HALF.astype(np.uint8),
        HALF.astype(np.uint8) * 255,
        HALF * 255,
        HALF.astype(np.uint16) * 65535,
        HALF.astype(np.uint16) * 255,
        HALF.astype(np.float64),
        HALF.astype(np.uint8)[..., None],
        HALF.astype(np.uint8)[None] * 255,
        (HALF * 255).astype(np.uint8)[..., None].repeat(3, -1),
        HALF[..., None].repeat(3, -1),
        Image.fromarray(HALF.astype(np.uint8)),
        Image.fromarray((HALF * 255).astype(np.uint8)),
        Image.fromarray((HALF * 255).astype(np.uint8)).convert("RGB"),
        Image.fromarray((HALF * 255).astype(np.uint8)).convert("RGBA"),
        Image.fromarray((HALF * 65535).astype(np.uint16)),
        Image.fromarray(HALF.astype(bool)),
        Image.fromarray(HALF.astype(np.float32)),
        [Image.fromarray(HALF.astype(bool))],
    ],
)
def test_masks_are_what_they_say(mask):
    found = images.read_mask(mask)
    assert found.shape == (1, 2, 2, 1)
    np.testing.assert_array_equal(found[0, ..., 0], HALF)


def test_a_mask_of_ones_is_all_white_and_greys_are_split_at_one_half():
    assert (images.read_mask(np.ones((2, 2), np.uint8)) == 1).all()
    assert (images.read_mask(np.zeros((2, 2), np.uint8)) == 0).all()
    found = images.read_mask(np.array([[100, 127, 128, 200]], np.uint8))
    assert found.ravel().tolist() == [0, 0, 1, 1]


def test_colours_of_a_mask_count_by_luminance():
    colours = np.array([[(255, 0, 0), (0, 255, 0), (255, 255, 0)]], np.uint8)
    for mask in (colours, Image.fromarray(colours), colours / 255.0):
        assert images.read_mask(mask).ravel().tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("RGBA", (2, 2), (255, 255, 255, 0)), "transparent pixels.*without alpha"),
        (np.full((2, 2), 200), "int64, whose white is not known"),
        (np.full((2, 2), 255.0), r"mask must lie in \[0, 1\]"),
        (np.full((2, 2), np.nan), "nan"),
        (np.zeros((2, 2, 2, 4), np.uint8), "mask must be a PIL image or an array"),
        (np.zeros(4), "mask must be a PIL image or an array"),
    ],
)
def test_other_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        images.read_mask(mask)


# ---- hints --------------------------------------------------------------------------------------


def paired_folder(root, image, hint):
    for name, picture in (("images", image), ("hints", hint)):
        (root / name).mkdir()
        picture.save(root / name / "a.png")
    return str(root)


def left_white(height, width):
    values = np.zeros((height, width), np.uint8)
    values[:, : width // 2] = 255
    return Image.fromarray(values)


def test_hints_of_another_resolution_are_cropped_alike(tmp_path):
    root = paired_folder(tmp_path, left_white(40, 60), left_white(20, 30))
    batch = data.load("paired_folder", data_dir=root, image_size=16).take([0])
    image, hint = batch["image"][0] / 255, batch["hint"][0]
    assert image.shape == hint.shape == (16, 16, 3)
    np.testing.assert_allclose(hint[:, 2:6], image[:, 2:6], atol=0.02)
    np.testing.assert_allclose(hint[:, 10:14], image[:, 10:14], atol=0.02)


def test_hints_of_another_shape_are_refused_by_name(tmp_path):
    root = paired_folder(tmp_path, left_white(40, 60), left_white(40, 40))
    source = data.load("paired_folder", data_dir=root, image_size=16)
    message = r"hint .*a\.png is 40x40 .*image .*a\.png 40x60: .* ratio of height to width"
    with pytest.raises(ValueError, match=message):
        source.take([0])


def test_hints_as_they_are_have_the_size_of_their_images(tmp_path):
    root = paired_folder(tmp_path, left_white(40, 60), left_white(20, 30))
    source = data.load("paired_folder", data_dir=root)
    with pytest.raises(ValueError, match="a hint needs the size of its image"):
        source.take([0])


def test_transparent_pixels_of_hints_are_black_and_of_images_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    batch = data.load("paired_folder", data_dir=paired_folder(tmp_path, clear, clear)).take([0])
    assert (batch["image"] == 255).all()
    assert (batch["hint"] == 0).all()
