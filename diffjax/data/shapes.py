"""Captioned coloured shapes, drawn by a program, and the program that checks pictures of them.

A picture is one or two shapes on dark grey. Its caption states size, colour, shape and place of
each: "a small red circle at the top left and a large blue square at the right". Image i is a
function of (split, i), so that nothing is stored. Since the caption is known, a text-to-image model
can be measured without a person: `check_picture`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SIZE = 32  # default pixels on a side
COUNTS = {"train": 20_000, "test": 5_000}
SIZES = ("small", "large")
COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 240),
    "yellow": (235, 215, 40),
    "purple": (190, 50, 220),
    "cyan": (40, 210, 220),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom",
          "bottom right")  # fmt: skip
RADII = ((0.13, 0.15), (0.20, 0.23))  # of small and large, in sides of the picture
CENTRES = (0.26, 0.5, 0.74)
JITTER = 0.02
GREY = (20, 80)
VOCABULARY = ("", "a", "and", "at", "the", *SIZES, *COLOURS, *SHAPES,
              "top", "bottom", "left", "right", "center")  # fmt: skip
LENGTH = 18  # tokens of a caption, padded with 0
CLASSES = len(SHAPES) * len(COLOURS)
_FINE = 4  # subpixels along a side
_LEAST = 12 / SIZE**2  # share of the picture that counts as a shape
_OBJECT = re.compile(
    rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) at the "
    rf"({'|'.join(sorted(PLACES, key=len, reverse=True))})"
)


class Thing(NamedTuple):
    """One shape of a picture, by the indices of its words in the lists above.

    Attributes:
        size: index in `SIZES`.
        colour: index in `COLOURS`.
        shape: index in `SHAPES`.
        place: index in `PLACES`.
    """

    size: int
    colour: int
    shape: int
    place: int

    def describe(self) -> str:
        """Return the thing's part of the caption."""
        names = SIZES[self.size], list(COLOURS)[self.colour], SHAPES[self.shape]
        return f"a {' '.join(names)} at the {PLACES[self.place]}"


class Scene(NamedTuple):
    """What a picture shows.

    Attributes:
        things: the shapes.
        centres: (things, 2), the exact centres (y, x) in sides of the picture.
        radii: (things,), in sides of the picture.
        grey: level of the background, 0 to 255.
    """

    things: tuple[Thing, ...]
    centres: np.ndarray
    radii: np.ndarray
    grey: int

    def caption(self) -> str:
        """Return the caption of the picture."""
        return " and ".join(thing.describe() for thing in self.things)

    def label(self) -> int:
        """Return the class of the first shape, which is its colour and kind, 0 .. CLASSES - 1."""
        return self.things[0].shape * len(COLOURS) + self.things[0].colour


def make_scene(split: str, index: int, *, single: bool = False) -> Scene:
    """Make scene number ``index`` of a split.

    Args:
        split: ``train`` or ``test``.
        index: number of the image.
        single: draw one shape only.
    """
    rng = np.random.default_rng([list(COUNTS).index(split), index])
    first = int(rng.integers(len(PLACES)))
    far = [p for p in range(len(PLACES)) if _are_apart(first, p)]
    places = [first]
    if far and not single and rng.random() < 0.5:
        places.append(int(rng.choice(far)))
    name_colours = rng.permutation(len(COLOURS))  # two shapes differ in colour
    kinds = rng.integers((len(SIZES), len(SHAPES)), size=(2, 2))
    things = tuple(
        Thing(int(kinds[i, 0]), int(name_colours[i]), int(kinds[i, 1]), place)
        for i, place in enumerate(places)
    )
    centres = np.array([_locate_centre(p) for p in places]) + rng.uniform(
        -JITTER, JITTER, (len(places), 2)
    )
    radii = np.array([rng.uniform(*RADII[t.size]) for t in things])
    return Scene(things, centres, radii, int(rng.integers(*GREY)))


def _locate_centre(place: int) -> tuple[float, float]:
    """Return the centre (y, x) of a place, in sides of the picture."""
    return CENTRES[place // 3], CENTRES[place % 3]


def _are_apart(a: int, b: int) -> bool:
    """Return whether shapes at both places cannot touch."""
    return max(abs(a // 3 - b // 3), abs(a % 3 - b % 3)) == 2


def is_inside(shape: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return whether points lie in a shape.

    Args:
        shape: index in `SHAPES`.
        y, x: distances from the centre in radii; y points down.
    """
    if SHAPES[shape] == "circle":
        return x**2 + y**2 < 1
    if SHAPES[shape] == "square":
        return np.maximum(abs(x), abs(y)) < 0.88
    if SHAPES[shape] == "triangle":
        return (y < 0.8) & (abs(x) < 0.55 * (y + 1.0))
    return (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1)


def compute_coverage(shape: int, centre: Sequence[float], radius: float, size: int) -> np.ndarray:
    """Return the share (size, size) in [0, 1] of every pixel that a shape covers.

    Args:
        shape: index in `SHAPES`.
        centre: (y, x), in sides of the picture.
        radius: in sides of the picture.
        size: pixels on a side.
    """
    u = (np.arange(size * _FINE) + 0.5) / (size * _FINE)
    y, x = (u[:, None] - centre[0]) / radius, (u[None] - centre[1]) / radius
    fine = is_inside(shape, y, x).reshape(size, _FINE, size, _FINE)
    return fine.mean((1, 3))


def draw(drawn: Scene, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Returns:
        The picture (size, size, 3) uint8, and a mask (size, size) int32: 0 for the background,
        1 + the shape's kind elsewhere.
    """
    picture = np.full((size, size, 3), float(drawn.grey))
    mask = np.zeros((size, size), np.int32)
    palette = np.array(list(COLOURS.values()), float)
    for thing, centre, radius in zip(drawn.things, drawn.centres, drawn.radii, strict=True):
        share = compute_coverage(thing.shape, centre, radius, size)[..., None]
        picture = (1 - share) * picture + share * palette[thing.colour]
        mask[share[..., 0] >= 0.5] = 1 + thing.shape
    return np.rint(picture).astype(np.uint8), mask


def find_edges(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of shapes that touch something else, (..., H, W, 1) float32, 0 or 1."""
    padded = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 1)] * 2)
    inner = padded[..., 1:-1, 1:-1]
    beside = [padded[..., 2:, 1:-1], padded[..., :-2, 1:-1], padded[..., 1:-1, 2:],
              padded[..., 1:-1, :-2]]  # fmt: skip
    edge = np.any([inner != other for other in beside], axis=0) & (inner > 0)
    return edge[..., None].astype(np.float32)


def tokenize(captions: Sequence[str]) -> np.ndarray:
    """Return token ids (N, LENGTH) int32, one per word; the empty caption is all zeros.

    Raises:
        ValueError: a word is not in the vocabulary, or there are too many.
    """
    ids = np.zeros((len(captions), LENGTH), np.int32)
    known = {word: i for i, word in enumerate(VOCABULARY)}
    for row, caption in zip(ids, captions, strict=True):
        words = caption.lower().replace(",", " ").replace(".", " ").split()
        if unknown := [word for word in words if word not in known]:
            raise ValueError(f"unknown words {unknown}; known are {', '.join(VOCABULARY[1:])}")
        if len(words) > LENGTH:
            raise ValueError(
                f"a caption has at most {LENGTH} words, but this one has {len(words)}: {caption!r}"
            )
        row[: len(words)] = [known[word] for word in words]
    return ids


def parse(caption: str) -> tuple[Thing, ...]:
    """Return the shapes that a caption asks for.

    Raises:
        ValueError: it is not of the form that `Scene.caption` writes.
    """
    found = [m.groups() for m in _OBJECT.finditer(caption)]
    things = tuple(
        Thing(SIZES.index(s), list(COLOURS).index(c), SHAPES.index(k), PLACES.index(p))
        for s, c, k, p in found
    )
    if not things or " and ".join(thing.describe() for thing in things) != caption:
        example = Thing(0, 0, 0, 0).describe()
        raise ValueError(f"cannot find what {caption!r} asks for; captions are like {example!r}")
    return things


# ---- checking ----------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """How far a picture obeys its caption: shares in [0, 1] of the shapes that it asks for.

    Attributes:
        colour: there is enough of the colour.
        shape, size, place: the pixels of that colour have that shape, size and place.
        all: 1 if everything is right and no other colour is there, else 0.
    """

    colour: float
    shape: float
    size: float
    place: float
    all: float


def name_colours(picture: np.ndarray) -> np.ndarray:
    """Return the index in `COLOURS` of each pixel, (H, W); -1 is none, or near grey.

    Args:
        picture: (H, W, 3) uint8.
    """
    values = picture.astype(float)
    palette = np.array(list(COLOURS.values()), float)
    # Directions in the plane of hues: mixing with grey changes their length only.
    hue, wanted = values - values.mean(-1, keepdims=True), palette - palette.mean(-1, keepdims=True)
    norms = np.linalg.norm(wanted, axis=-1)
    along = hue @ (wanted / norms[:, None]).T
    best = along.argmax(-1)
    return np.where(along.max(-1) > 0.5 * norms[best], best, -1)


def check_picture(picture: np.ndarray, things: Sequence[Thing]) -> Verdict:
    """Measure how well a picture (H, W, 3) uint8 shows the things that are asked for."""
    found = name_colours(picture)
    least = _LEAST * found.size
    checks = [_check(found == thing.colour, thing, least) for thing in things]
    asked = {thing.colour for thing in things}
    others = [k for k in range(len(COLOURS)) if k not in asked and (found == k).sum() >= least]
    means = np.mean(checks, axis=0)
    colour, shape, size, place = map(float, means)
    return Verdict(colour, shape, size, place, float(means.min() == 1 and not others))


def _check(pixels: np.ndarray, thing: Thing, least: float) -> tuple[bool, bool, bool, bool]:
    """Return whether (colour, shape, size, place) of one thing are right.

    Args:
        pixels: (H, W) bool, where the picture has its colour.
        thing: what is asked for.
        least: number of pixels that counts as a shape.
    """
    if pixels.sum() < least:
        return False, False, False, False
    side = len(pixels)
    fits = [_fit(pixels, shape) for shape in range(len(SHAPES))]
    best = int(np.argmax([overlap for overlap, _, _ in fits]))
    _, centre, radius = fits[thing.shape]
    nearest = [int(np.argmin(np.abs(np.array(CENTRES) - c / side))) for c in centre]
    place = nearest[0] * 3 + nearest[1] == thing.place
    large = radius / side > (RADII[0][1] + RADII[1][0]) / 2
    return True, best == thing.shape, large == bool(thing.size), place


# Area in square radii and offset of the centroid below the centre, of every shape.
_GRID = np.linspace(-1.2, 1.2, 481)
_MASKS = [is_inside(k, _GRID[:, None], _GRID[None]) for k in range(len(SHAPES))]
_AREAS = [mask.sum() * (_GRID[1] - _GRID[0]) ** 2 for mask in _MASKS]
_OFFSETS = [(_GRID[:, None] * mask).sum() / mask.sum() for mask in _MASKS]


def _fit(pixels: np.ndarray, shape: int) -> tuple[float, tuple[float, float], float]:
    """Fit a shape to pixels by area and centroid: (overlap, centre, radius) in pixels.

    The overlap is intersection over union, in [0, 1].
    """
    radius = float(np.sqrt(pixels.sum() / _AREAS[shape]))
    y, x = (axis.mean() + 0.5 for axis in np.nonzero(pixels))
    centre = (y - radius * _OFFSETS[shape], x)
    side = len(pixels)
    share = compute_coverage(shape, (centre[0] / side, centre[1] / side), radius / side, side)
    return float(np.minimum(share, pixels).sum() / np.maximum(share, pixels).sum()), centre, radius
