"""The fields of the web page, and the request that they make; a value may come from a stranger."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from diffjax import generate
from diffjax.cli.web_limits import Limits, check_number, check_text, check_work
from diffjax.data import pictures
from diffjax.pretrained.models import Component
from diffjax.types import T, choose

# An image as the library has it, or the file that was uploaded.
Picture = PIL.Image.Image | str

DEFAULT_LIMITS = Limits()
# The choice of the sampler that the model names itself.
OWN = "the model's own"
# The choice of no ControlNet.
NONE = "none"
# Steps before the user chooses.
STEPS = 20
# Seeds lie below.
SEEDS = 2**32
# A mask that is painted in the browser arrives as this, with the bytes of a PNG in base64.
PAINTED = "data:image/png;base64,"
# The most pixels of a painted mask; the page sends at most 512 x 512.
PAINTED_PIXELS = 2**20


class Offered(NamedTuple):
    """What a page offers besides the model, by the names that its pickers show.

    Attributes:
        nets: ControlNets and T2I-Adapters.
        loras: adapters, each with the scale that 1 on the page stands for.
        kinds: numbers of the kinds of hints of ControlNets that read several.
    """

    nets: Mapping[str, Component] = {}
    loras: Mapping[str, generate.Lora] = {}
    kinds: Mapping[str, int | None] = {}


NOTHING = Offered()


def name_model(path: str) -> str:
    """Name what lies at a path by the end of it, without the folders of this machine."""
    return Path(path).stem if path.endswith(".safetensors") else Path(path).name or path


def name_choices(found: Mapping[str, T]) -> dict[str, T]:
    """Name what was loaded from paths for a picker; equal names get numbers."""
    named: dict[str, T] = {}
    for path, value in found.items():
        name = base = name_model(path.rstrip("/"))
        count = 1
        while name in named or name == NONE:
            count += 1
            name = f"{base} ({count})"
        named[name] = value
    return named


@dataclasses.dataclass
class Form:
    """The fields of the page, in their order. Values come from the browser and may be anything.

    Attributes:
        prompt, negative: texts.
        num: number of pictures; picture k has the seed ``seed + k``.
        random: whether the page draws the seed.
        seed: of the noise, in [0, 2^32).
        steps: of the sampler.
        guidance: scale ``s = 1 + w``.
        sampler: a name in `generate.SAMPLERS`, or `OWN`.
        height, width: in pixels; 0 for the model's own, or those of ``image``.
        image, strength: the image to start from, and the share of the steps that are run.
        painted, mask: where the image is filled in: what was painted, as a PNG in a data address,
            or an image that is white there.
        net, control, control_scale: the ControlNet by its name, its image and its scale.
        loras, lora_scale: adapters by their names, and the factor of their scales.
    """

    prompt: str = ""
    negative: str = ""
    num: float | None = 1
    random: bool = False
    seed: float | None = 0
    steps: float | None = STEPS
    guidance: float | None = 7.5
    sampler: str = OWN
    height: float | None = 0
    width: float | None = 0
    image: Picture | None = None
    strength: float = 0.8
    painted: str | None = None
    mask: Picture | None = None
    net: str = NONE
    control: Picture | None = None
    control_scale: float = 1.0
    loras: Sequence[str] = ()
    lora_scale: float = 1.0

    def format_caption(self) -> str:
        """Format the settings as the caption of their image."""
        parts = [
            f"seed {self.seed:.0f}",
            f"{self.steps:.0f} steps",
            f"guidance {self.guidance:g}",
            *([self.sampler] if self.sampler != OWN else []),
            *([f"image at strength {self.strength:g}"] if self.image else []),
            *(["mask"] if self.mask or self.painted else []),
            *([f"{self.net} {self.control_scale:g}"] if self.net != NONE else []),
            *([f"{' + '.join(self.loras)} {self.lora_scale:g}"] if self.loras else []),
            *([f"without {self.negative}"] if self.negative else []),
        ]
        return f"{self.prompt} ({', '.join(parts)})"

    def read_counts(self, limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
        """Read the number of pictures and the seed of the first one.

        Raises:
            ValueError: one of them is no number or out of range.
        """
        num, seed = check_number("the number of pictures", self.num), 0.0
        if not 1 <= num <= limits.images:
            raise ValueError(
                f"the number of pictures must lie in 1 .. {limits.images} on this page, got {num:g}"
            )
        if not self.random:
            seed = check_number("seed", self.seed)
        if not 0 <= seed <= SEEDS - num:
            raise ValueError(f"seed must be in [0, 2^32), got {seed:.0f}")
        return int(num), int(seed)

    def make_request(
        self,
        offered: Offered = NOTHING,
        limits: Limits = DEFAULT_LIMITS,
        native: tuple[int, int] = (0, 0),
    ) -> generate.Request:
        """Make the request of one picture of the fields, all of which are checked.

        Args:
            offered: the ControlNets and adapters of the page.
            limits: the most that the page allows.
            native: (height, width) of the model's own images.

        Raises:
            ValueError: a field is empty, does not fit or is too large; the message names it.
        """
        check_text("the prompt", self.prompt, limits)
        check_text("the negative prompt", self.negative, limits)
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")
        _, seed = self.read_counts(limits)
        names = ("steps", "guidance", "height", "width", "strength")
        # The browser may send anything in place of a number.
        numbers = {name: check_number(name, getattr(self, name)) for name in names}
        steps = numbers["steps"]
        start = _open_upload(self.image, limits)
        own_height, own_width = start.size[::-1] if start else native
        height, width = numbers["height"] or own_height, numbers["width"] or own_width
        # The cost is known now, and nothing has been reserved.
        check_work(height or 1, width or 1, steps, limits)
        return generate.Request(
            [self.prompt],
            key=np.array([seed]),
            sampler=generate.Sampling(None if self.sampler == OWN else self.sampler, int(steps)),
            guidance=generate.Guidance(numbers["guidance"], self.negative or None),
            image=self._read_image(start, numbers["strength"], limits),
            control=self._list_controls(offered, limits),
            lora=self._list_loras(offered),
            size=generate.Size(int(numbers["height"]), int(numbers["width"])),
        )

    def _read_image(
        self, start: PIL.Image.Image | None, strength: float, limits: Limits
    ) -> generate.Image | None:
        """The image to start from with its mask; an uploaded mask comes before a painted one."""
        mask = _open_upload(self.mask, limits) or _open_painted(self.painted)
        if start is None:
            if mask is not None:
                raise ValueError("a mask needs an image")
            return None
        if mask is not None and mask.size != start.size:
            mask = mask.resize(start.size, PIL.Image.Resampling.NEAREST)
        return generate.Image(start, strength, mask)

    def _list_controls(self, offered: Offered, limits: Limits) -> list[generate.Control]:
        """The ControlNet that was chosen, with its image."""
        scale = check_number("control_scale", self.control_scale)
        hint = _open_upload(self.control, limits)
        if self.net == NONE:
            if hint is not None:
                raise ValueError("there is a control image: choose a ControlNet for it")
            return []
        net = choose("ControlNet", _read_name("ControlNet", self.net), offered.nets)
        if hint is None:
            raise ValueError(f"the ControlNet {self.net} needs its image")
        return [generate.Control(net, hint, scale, kind=offered.kinds.get(self.net))]

    def _list_loras(self, offered: Offered) -> list[generate.Lora]:
        """The adapters that were chosen."""
        factor = check_number("lora_scale", self.lora_scale)
        if not isinstance(self.loras, list | tuple):
            raise ValueError(f"LoRA must be a list of names, got {type(self.loras).__name__}")
        names = dict.fromkeys(_read_name("LoRA", name) for name in self.loras)
        chosen = [choose("LoRA", name, offered.loras) for name in names]
        return [one._replace(scale=one.scale * factor) for one in chosen]


def _read_name(what: str, value: object) -> str:
    """Read the name of a choice, which the browser may have replaced by anything."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a name, got {type(value).__name__}")
    return value


def _open_upload(picture: Picture | None, limits: Limits) -> PIL.Image.Image | None:
    """Open an uploaded file as an image.

    Raises:
        ValueError: it is no picture that we read, or has too many pixels. The message does not show
            the folder, which is this machine's.
    """
    if not isinstance(picture, str):
        return picture
    try:
        height, width = pictures.read_size(picture)
        if height * width > limits.upload_pixels:
            raise ValueError(
                f"{picture} has {height} x {width} pixels; this page reads at most "
                f"{limits.upload_pixels}"
            )
        return pictures.open_image(picture)
    except ValueError as error:  # without the folder, which is this machine's
        raise ValueError(str(error).replace(picture, Path(picture).name)) from error


def _open_painted(value: str | None) -> PIL.Image.Image | None:
    """Open a mask that was painted: white where a pixel is not transparent; None if none is.

    Raises:
        ValueError: the text holds no PNG, or too large a one.
    """
    if not value:
        return None
    if not isinstance(value, str) or not value.startswith(PAINTED):
        raise ValueError("the painted mask is no PNG")
    try:
        content = base64.b64decode(value[len(PAINTED) :], validate=True)
        with PIL.Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.width * picture.height > PAINTED_PIXELS:
                raise ValueError("the painted mask has too many pixels")
            alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    except (binascii.Error, OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError("the painted mask is no PNG") from error
    return (
        PIL.Image.fromarray(np.where(alpha >= 128, 255, 0).astype(np.uint8))
        if alpha.any()
        else None
    )
