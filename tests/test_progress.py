"""Progress lines: their times, their text, and the process that prints them."""

import subprocess
import sys

import pytest

from onesug_jax.progress import Progress
from onesug_jax.train import distributed


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_line_comes_every_ten_seconds_and_one_at_the_end(clock, capsys):
    with Progress("examples", total=50_000, unit="rows", clock=clock) as progress:
        for _ in range(5):
            clock.now += 4
            progress.add(10_000)
    assert capsys.readouterr().out.splitlines() == [
        "examples: 30,000 of 50,000 rows, 2,500/s, 8 s left",
        "examples: 50,000 rows in 20.0 s, 2,500/s",
    ]


def test_without_a_total_nothing_is_left_and_a_note_ends_the_line(clock, capsys):
    progress = Progress("ingest", clock=clock)
    clock.now += 20
    progress.add(30, "3 set aside")
    assert capsys.readouterr().out == "ingest: 30 rows, 1.5/s, 3 set aside\n"


@pytest.mark.parametrize(
    "left, words", [(59, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")]
)
def test_the_time_left_is_in_words(clock, capsys, left, words):
    progress = Progress("a", total=left + 10, clock=clock)
    clock.now += 10
    progress.add(10)
    assert capsys.readouterr().out.endswith(f", {words} left\n")


def test_a_terminal_gets_one_line_in_place_each_second(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with Progress("a", total=9, clock=clock) as progress:
        for step in (0.5, 0.5, 1):
            clock.now += step
            progress.add(3)
    first, second, last = capsys.readouterr().out.replace("\r", "\n").splitlines()
    assert first == "a: 6 of 9 rows, 6.0/s, 0 s left" and second.strip() == "a: 9 of 9 rows, 4.5/s"
    assert last.strip() == "a: 9 rows in 2.0 s, 4.5/s" and len(second) == len(first)


def test_an_error_has_its_own_line_and_no_total(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(RuntimeError), Progress("a", clock=clock) as progress:
        clock.now += 2
        progress.add()
        raise RuntimeError
    assert capsys.readouterr().out == "a: 1 rows, 0.5/s\r\n"


def test_items_are_counted_as_they_pass(clock, capsys):
    assert list(Progress("a", clock=clock).over("xyz")) == ["x", "y", "z"]
    assert capsys.readouterr().out.startswith("a: 3 rows in 0.0 s")


def test_steps_say_how_long_they_took(clock, capsys):
    progress = Progress("mine", clock=clock)
    for seconds, what in ((1, "read"), (2.5, "wrote")):
        clock.now += seconds
        progress.step(what)
    assert capsys.readouterr().out.splitlines() == [
        "mine: read (1.0 s, 1.0 s in all)",
        "mine: wrote (2.5 s, 3.5 s in all)",
    ]


def test_only_the_primary_process_prints(clock, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "place_among", lambda: (1, 2))
    for quiet in (False, True):
        with Progress("a", quiet=quiet, clock=clock) as progress:
            clock.now += 20
            progress.add()
            progress.step("b")
        monkeypatch.setattr(distributed, "place_among", lambda: (0, 2))
    assert capsys.readouterr().out == ""


def test_it_does_not_import_jax():
    code = "import sys; from onesug_jax.progress import Progress; Progress('a').close()\n"
    code += "print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
