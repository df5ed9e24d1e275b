"""What is shown of a training: that it compiles, and the time from when steps take turns."""

import pytest

from diffjax.train import progress, window
from diffjax.train.progress import StepBar, say_compiling


class Bar:
    """In place of tqdm's: counts."""

    made: "Bar | None" = None

    def __init__(self, *, total, initial, **options):
        self.total, self.n, self.shown = total, initial, None
        Bar.made = self

    def update(self):
        self.n += 1

    def set_postfix(self, *, loss, refresh):
        self.shown = loss

    def close(self):
        self.total = None


@pytest.fixture
def bar(monkeypatch):
    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", None)
    return Bar


def test_the_clock_begins_when_steps_wait_for_each_other(bar):
    shown = StepBar(100, 40)
    begins = [shown.update() for _ in range(6)]
    first = 1 + window.LOOK_AHEAD
    assert begins == [n == first for n in range(1, 7)]
    assert (bar.made.total, bar.made.n) == (100, 46)
    shown.show_loss(0.25)
    assert bar.made.shown == "0.2500"
    shown.close()
    assert bar.made.total is None


def test_a_short_run_has_a_full_bar_at_its_end(bar):
    shown = StepBar(2, 0)
    shown.show_loss(1.0)  # before there is a bar
    assert [shown.update(), shown.update()] == [False, True]
    assert bar.made.n == bar.made.total == 2


@pytest.mark.parametrize("first", [True, False])
def test_compiling_is_said_of_the_first_call_alone(first, monkeypatch):
    said = []
    monkeypatch.setattr(progress.logging, "info", lambda text, *values: said.append(text % values))
    with say_compiling("the training step", first=first):
        assert len(said) == first
    assert [text.partition(" after")[0] for text in said] == first * [
        "compiling the training step", "the training step is ready"
    ]  # fmt: skip
