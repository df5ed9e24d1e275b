import numpy as np
import pytest
from scipy import ndimage

from diffjax.data import batch_at, batch_of, from_arrays, make_degradation
from diffjax.data import degradation as of


class Fixed:
    """Draws that a test chooses."""

    def __init__(self, *, uniform=(), whole=(), seed=0):
        self.uniforms, self.wholes = iter(uniform), iter(whole)
        self.rng = np.random.default_rng(seed)

    def random(self, size=None):
        return self.rng.random(size) if size else next(self.uniforms)

    def integers(self, *args, **options):
        return next(self.wholes)

    def __getattr__(self, name):
        return getattr(self.rng, name)


PICTURE = np.random.default_rng(0).random((12, 16, 3))


@pytest.mark.parametrize("name", ["linear", "cubic", "area", "matlab"])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (12, 16), (24, 32), (3, 4)])
def test_a_flat_picture_stays_flat(name, size):
    flat = np.full((12, 16, 3), 0.3)
    assert of.resize(flat, size, name) == pytest.approx(np.full((*size, 3), 0.3), abs=1e-12)


@pytest.mark.parametrize("name", ["linear", "cubic", "area", "matlab"])
def test_the_same_size_is_the_same_picture(name):
    assert of.resize(PICTURE, (12, 16), name) == pytest.approx(PICTURE, abs=1e-12)


def test_half_of_a_picture():
    blocks = PICTURE.reshape(6, 2, 8, 2, 3)
    # The middle between two pixels, whatever the filter's width; cubic: (-3, 19, 19, -3) / 32.
    for name in ("linear", "area"):
        assert of.resize(PICTURE, (6, 8), name) == pytest.approx(blocks.mean((1, 3)), abs=1e-12)
    line = np.arange(16.0)[:, None, None] ** 3
    cubic = of.resize(line, (8, 1), "cubic")[1:-1, 0, 0]
    taps = np.stack([line[k : k + 12 : 2, 0, 0] for k in (1, 2, 3, 4)])
    assert cubic == pytest.approx(np.array([-3, 19, 19, -3]) / 32 @ taps)


def test_areas_of_a_size_that_does_not_divide():
    line = np.arange(5.0)[:, None, None]
    # Each new pixel covers 5/2 old ones: (0 + 1 + 2 / 2) / 2.5 and (2 / 2 + 3 + 4) / 2.5.
    assert of.resize(line, (2, 1), "area")[:, 0, 0] == pytest.approx([0.8, 3.2])


def test_matlabs_filter_keeps_lines_straight():
    line = np.arange(32.0)[:, None, None]
    made = of.resize(line, (16, 1), "matlab")[:, 0, 0]
    assert made[3:-3] == pytest.approx(np.arange(16)[3:-3] * 2 + 0.5)


@pytest.mark.parametrize("size", [5, 6, 7, 14])
def test_blur_is_scipys_convolution(size):
    kernel = of.make_kernel(size, np.array([1.7, 0.4]), 0.6)
    expected = ndimage.convolve(PICTURE, kernel[..., None], mode="mirror")
    assert of.blur(PICTURE, kernel) == pytest.approx(expected, abs=1e-12)


def test_a_kernel_has_the_covariance_that_it_is_made_of():
    angle, variances = 0.5, np.array([2.0, 0.8])
    kernel = of.make_kernel(21, variances, angle)
    y, x = np.indices((21, 21)) - 10
    found = [(kernel * m).sum() for m in (x * x, x * y, y * y)]
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [s, -c]])
    expected = turn @ np.diag(variances) @ turn.T
    assert found == pytest.approx([expected[0, 0], expected[0, 1], expected[1, 1]], rel=1e-3)
    for narrow in (5, 6):
        assert of.make_kernel(narrow, np.zeros(2)).sum() == pytest.approx(1)


def test_a_shifted_kernel_takes_the_middle_of_its_block():
    # Of every 4x4 pixels, the first is read where their middle is.
    ramp = np.arange(64.0)[:, None, None] + np.zeros((1, 64, 3))
    kernel = of.shift_kernel(of.make_kernel(25, np.full(2, 1.0)), 1.5)
    made = of.blur(ramp, kernel)[::4, ::4, 0]
    assert made[4:-4] == pytest.approx(np.arange(0, 64, 4)[4:-4, None] + 1.5 + np.zeros((1, 16)))


@pytest.mark.parametrize(("kind", "between"), [(0.9, 0.0), (0.1, 1.0)])
def test_noise_of_own_channels_or_of_all(kind, between):
    noise = of.draw_noise((200, 200, 3), Fixed(uniform=[kind], whole=[2]))
    noise = np.broadcast_to(noise, (200, 200, 3)).reshape(-1, 3)
    assert noise.std() * 255 == pytest.approx(2, rel=0.02)
    assert np.corrcoef(noise.T)[0, 1] == pytest.approx(between, abs=0.02)


def test_noise_between_channels_has_at_most_the_larger_deviation():
    spread = [
        of.draw_noise((50, 50, 3), Fixed(uniform=[0.5], whole=[1], seed=k)).std((0, 1))
        for k in range(20)
    ]
    assert 0.1 < np.min(spread) * 255 and np.max(spread) * 255 < 2.5


def test_qualities_and_shares_of_what_happens(monkeypatch):
    # With small pictures in which nothing can be seen, what is called is what counts.
    counts = {"compress": [], "resize": [], "kernels": []}
    resize, kernel = of.resize, of.make_kernel
    monkeypatch.setattr(of, "compress", lambda x, rng: counts["compress"].append(x.shape[0]) or x)
    monkeypatch.setattr(
        of, "resize", lambda x, size, name: counts["resize"].append(name) or resize(x, size, name)
    )
    monkeypatch.setattr(
        of, "make_kernel", lambda size, *a: counts["kernels"].append(size) or kernel(size, *a)
    )
    rng = np.random.default_rng(0)
    made = [of.degrade_lightly(np.full((16, 8, 3), 77, np.uint8), 4, rng) for _ in range(400)]
    assert {m.shape for m in made} == {(4, 2, 3)}
    assert np.mean([m.mean() for m in made]) == pytest.approx(77, abs=0.2)
    assert len(counts["compress"]) / 400 == pytest.approx(1.9, abs=0.05)
    assert counts["compress"].count(4) > 400  # the last one, and those that come late
    assert len(counts["resize"]) / 400 == pytest.approx(0.25 + 0.8 + 1, abs=0.07)
    assert counts["resize"].count("matlab") / 400 == pytest.approx(0.125, abs=0.05)
    own = [k for k in counts["kernels"] if k < 25]
    assert len(own) == 400 and set(own) == set(range(5, 15))
    assert counts["kernels"].count(25) / 400 == pytest.approx(0.2, abs=0.06)


def test_a_picture_by_seed_and_position():
    images = np.random.default_rng(1).integers(0, 256, (6, 16, 16, 3), np.uint8)
    degradation, source = make_degradation("bsrgan_light", 4), from_arrays(images)
    options = dict(batch_size=4, seed=3, degradation=degradation)
    batch = batch_at(source, 2, **options)
    assert batch["low"].shape == (4, 4, 4, 3) and batch["low"].dtype == np.float32
    half = batch_at(source, 2, **options, process_index=1, process_count=2)
    np.testing.assert_array_equal(half["low"], batch["low"][2:])
    assert not np.array_equal(batch_at(source, 5, **options)["low"], batch["low"])
    shown = batch_of(source, np.array([4, 1]), degradation)["low"]
    np.testing.assert_array_equal(shown[1:], batch_of(source, np.array([1]), degradation)["low"])
    # It is a picture of its image.
    smooth = np.add.outer(np.arange(32), np.arange(32))[..., None].repeat(3, -1) * 4
    low = degradation(smooth[None].astype(np.uint8), 0, np.array([0]))[0].astype(float)
    assert np.abs(low - smooth.reshape(8, 4, 8, 4, 3).mean((1, 3))).mean() < 12


def test_bad_input():
    assert make_degradation("none", 4) is None
    with pytest.raises(ValueError, match=r"unknown data.degradation 'bsrgan'.*bsrgan_light"):
        make_degradation("bsrgan", 4)
    with pytest.raises(ValueError, match=r"got 1 channels: set data.channels=3"):
        make_degradation("bsrgan_light", 4)(np.zeros((1, 8, 8, 1), np.uint8), 0, np.array([0]))
