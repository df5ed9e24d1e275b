"""Bounds of the web page, which need no gradio."""

import asyncio

import pytest

from diffjax.cli import web_limits
from diffjax.cli.web_limits import (
    BodyLimit,
    Limits,
    check_number,
    check_text,
    check_work,
    list_hosts,
    measure_folder,
)


@pytest.mark.parametrize("value", [None, True, "7", float("nan"), float("inf"), [1], 1j])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ValueError, match=r"^steps (is empty|must be a number)"):
        check_number("steps", value)


def test_numbers_and_texts_within_bounds_pass():
    limits = Limits(pixels=64, steps=4, characters=3)
    check_number("seed", 0), check_number("guidance", 7.5), check_text("prompt", "cat", limits)
    check_work(8, 8, 4, limits)


@pytest.mark.parametrize("height, width, steps", [
    (9, 8, 4), (8, 8, 5), (0, 8, 4), (-8, -8, 4), (8, 8, 0), (1e300, 1e300, 1),
])  # fmt: skip
def test_work_beyond_the_bounds_is_refused(height, width, steps):
    with pytest.raises(ValueError, match=r"at most 64, such as 8 x 8|must lie in 1 .. 4"):
        check_work(height, width, steps, Limits(pixels=64, steps=4))


def test_long_texts_are_refused():
    with pytest.raises(ValueError, match="has 4 characters; this page takes at most 3"):
        check_text("the prompt", "cats", Limits(characters=3))


def test_hosts_are_those_of_this_machine_and_those_named():
    assert list_hosts("127.0.0.1", ()) == ["127.0.0.1", "localhost", "::1"]
    assert list_hosts("0.0.0.0", ["gpu.example"]) == [*web_limits.LOCAL, "gpu.example"]
    assert "*" not in list_hosts("::", ())
    for bad in ("", "a b", "http://a", "a:80"):
        with pytest.raises(ValueError, match="is no host name"):
            list_hosts("127.0.0.1", [bad])


def _ask(path, chunks, *, length=None, full=False, careless=False):
    """The status of a request's answer, and how many bytes the application read of it."""
    sent, read = [], 0

    async def app(scope, receive, send):
        nonlocal read
        more = True
        while more:
            try:
                message = await receive()
            except OverflowError:
                if not careless:
                    raise
                break  # an application that answers for itself
            read += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run():
        left = list(chunks)

        async def receive():
            chunk = left.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(left)}

        async def send(message):
            sent.append(message)

        headers = [] if length is None else [(b"content-length", length)]
        scope = {"type": "http", "path": path, "headers": headers}
        await BodyLimit(app, 2**21, lambda: full)(scope, receive, send)

    asyncio.run(run())
    statuses = [m["status"] for m in sent if m["type"] == "http.response.start"]
    assert len(statuses) == 1 and sent[-1]["type"] == "http.response.body"
    return statuses[0], read


def test_requests_within_the_bounds_are_passed_on():
    assert _ask("/gradio_api/call/make", [bytes(2**19)] * 2) == (200, 2**20)
    assert _ask("/gradio_api/upload", [bytes(2**20)] * 2, length=b"2097152") == (200, 2**21)
    assert _ask("/config", [b""], full=True) == (200, 0)


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("length", [None, b"1", b"x", b"-5", b"9" * 30])
def test_large_bodies_are_cut_whatever_they_say_of_themselves(length, careless):
    for path, limit in (("/gradio_api/queue/join", 2**20), ("/gradio_api/upload/", 2**21 + 2**16)):
        status, read = _ask(path, [bytes(2**18)] * 100, length=length, careless=careless)
        assert status == 413 and read <= limit


def test_a_large_body_that_says_so_is_not_read():
    assert _ask("/gradio_api/queue/join", [b"a"], length=b"1048577") == (413, 0)


def test_uploads_wait_for_room(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(bytes(5000))
    (tmp_path / "gone").symlink_to("nowhere")
    assert 5000 <= measure_folder(tmp_path) < 20_000
    assert _ask("/gradio_api/upload", [b"a"], full=True) == (507, 0)


def test_errors_of_the_application_stay():
    async def app(scope, receive, send):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        scope = {"type": "http", "path": "/", "headers": []}
        asyncio.run(BodyLimit(app, 1, lambda: False)(scope, None, None))
