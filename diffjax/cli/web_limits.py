"""What strangers may ask of the web page: bounds on a request, and the hosts that it answers to.

Everything here is checked before memory is reserved or the model is called.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

# As ASGI has them.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# The largest number that a field may hold.
LARGEST = 2**63
# The most bytes of a request that is no upload.
BODY = 2**20
# The most bytes of an upload besides the file.
FORM = 2**16
# Names of this machine that are always answered.
LOCAL = ("127.0.0.1", "localhost", "::1")


class Limits(NamedTuple):
    """The most that one request may ask for.

    Attributes:
        pixels: of the image that is made, height times width.
        steps: of the sampler.
        characters: of the prompt, and of the negative prompt.
        upload_pixels: of each image that is uploaded.
        seconds: that a request may run; it is stopped at its next step.
        sizes: image sizes that stay compiled at a time.
        images: pictures of one request.
    """

    pixels: int = 2**20
    steps: int = 150
    characters: int = 2000
    upload_pixels: int = 2**24
    seconds: float = 600.0
    sizes: int = 8
    images: int = 4


def check_number(name: str, value: object) -> float:
    """Check that the value of a field is a finite number, and return it.

    Args:
        name: of the field, for the message.

    Raises:
        ValueError: the value is missing, no number, or not finite.
    """
    if value is None:
        raise ValueError(f"{name} is empty")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {str(value)[:40]!r}")
    if not -LARGEST < value < LARGEST:  # as NaN does not
        raise ValueError(f"{name} must be a number, got {str(value)[:40]!r}")
    return value


def check_text(name: str, value: object, limits: Limits) -> None:
    """Check that the value of a field is a text that is not too long.

    Raises:
        ValueError: it is no text, or longer than the page takes.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {type(value).__name__}")
    if len(value) > limits.characters:
        raise ValueError(
            f"{name} has {len(value)} characters; this page takes at most {limits.characters}"
        )


def check_work(height: float, width: float, steps: float, limits: Limits) -> None:
    """Check what a request costs against what the page allows, before anything is allocated.

    Args:
        height, width: of the image to make, in pixels.
        steps: of the sampler.

    Raises:
        ValueError: a value is too large or not positive; the message names it and the bound.
    """
    if not 1 <= steps <= limits.steps:
        raise ValueError(f"steps must lie in 1 .. {limits.steps} on this page, got {steps:g}")
    if height < 1 or width < 1 or height * width > limits.pixels:
        side = math.isqrt(limits.pixels)
        raise ValueError(
            f"the image would have {height:.0f} x {width:.0f} pixels; this page makes at most "
            f"{limits.pixels}, such as {side} x {side}"
        )


def list_hosts(host: str, more: Iterable[str]) -> list[str]:
    """List the values of the Host header that the page answers to.

    Args:
        host: the address that it listens on; 0.0.0.0 and :: are every address, and no name.
        more: other names of this machine that users type.

    Raises:
        ValueError: a name is empty or no host name.
    """
    own = () if host in ("0.0.0.0", "::", "") else (host,)
    names = list(dict.fromkeys((*LOCAL, *own, *more)))
    for name in names:
        if not name or any(c in name for c in " /@") or (":" in name and name not in LOCAL):
            raise ValueError(
                f"{name!r} is no host name; give names without a port, such as a.b.org"
            )
    return names


def measure_folder(folder: Path) -> int:
    """Sum the bytes of the files below a folder; files that go away meanwhile are skipped."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total


class BodyLimit:
    """ASGI middleware that refuses large requests before they are held in memory."""

    def __init__(self, app: App, upload: int, is_full: Callable[[], bool]):
        """Put a limit in front of an application.

        Args:
            app: the ASGI application.
            upload: bytes that the files of one upload may have.
            is_full: returns whether there is no room for more uploads.
        """
        self._app, self._upload, self._is_full = app, upload, is_full

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with status 413 (too large) or 507 (no room).

        Bytes are counted as they arrive, since a client need not say how many it sends.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Only uploads may be large, and only while there is room.
        upload = scope["path"].rstrip("/").endswith("/upload")
        limit = self._upload + FORM if upload else BODY
        if upload and self._is_full():
            await _refuse(send, 507, "there is no room for uploads; try again in an hour")
            return
        too_large = f"a request may have at most {limit} bytes here"
        if _read_content_length(scope) > limit:
            await _refuse(send, 413, too_large)
            return
        read, begun = 0, False

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise OverflowError(too_large)
            return message

        async def send_watched(message: Message) -> None:
            nonlocal begun
            if read <= limit or begun:  # what the application says of the error is not sent
                begun = True
                await send(message)

        try:
            await self._app(scope, receive_counted, send_watched)
        except Exception:
            if read <= limit:
                raise
        if read > limit and not begun:
            await _refuse(send, 413, too_large)


def _read_content_length(scope: Message) -> int:
    """Read the Content-Length of a request; 0 if it has none, or none that is a number."""
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() and len(value) < 20 else 0


async def _refuse(send: Send, status: int, text: str) -> None:
    """Answer a request with a status and a text, and close the connection."""
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
