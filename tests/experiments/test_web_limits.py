"""Bounds of the web page, which need no gradio."""

import pytest

from experiments import web_limits
from experiments.web_limits import Limits, check_number, check_text, check_work, list_hosts


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
