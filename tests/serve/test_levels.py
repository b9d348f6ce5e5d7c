"""Degradation levels by the time that is left."""

import pytest

from onesug_jax.serve.levels import Pace, choose, crowded, in_time

LEVELS = ("full", "beam", "popular")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock):
    """A batch of up to eight takes 40 ms at level "full", 10 ms at "beam"."""
    pace = Pace((1, 8), clock)
    for size in (1, 8):
        pace.note("full", size, 0.040)
        pace.note("beam", size, 0.010)
    return pace


def chosen(pace, waiting, waited=0.0, levels=LEVELS):
    return choose(levels, pace, waiting, batch=8, waited=waited, target=0.1)


def test_without_a_backlog_the_best_level_is_taken_however_slow(pace):
    for _ in range(50):
        pace.note("full", 1, 60.0)
    assert chosen(pace, 1) == chosen(pace, 8) == "full"


def test_a_backlog_steps_down_as_far_as_it_must(pace):
    assert chosen(pace, 20) == "full", "two and a half batches of 40 ms fit 100 ms"
    assert chosen(pace, 21) == "beam"
    assert chosen(pace, 80) == "beam"
    assert chosen(pace, 81) == "popular"


def test_a_request_that_has_waited_long_gets_a_cheaper_level(pace):
    assert chosen(pace, 2, waited=0.055) == "full"
    assert chosen(pace, 2, waited=0.07) == "beam"
    assert chosen(pace, 2, waited=0.095) == "popular"


def test_the_last_level_takes_what_is_left(pace):
    assert chosen(pace, 500, levels=("full",)) == "full"
    assert chosen(pace, 500, levels=("full", "beam")) == "beam"
    assert chosen(pace, 1, levels=("popular",)) == "popular"


def test_estimates_follow_what_was_measured_and_fade(pace, clock):
    for _ in range(50):
        pace.note("beam", 3, 0.5)
    assert pace.of("beam", 8) == pytest.approx(0.5, rel=0.01), "padded to eight"
    assert pace.of("beam", 1) == pytest.approx(0.010), "another size is another program"
    assert pace.to_clear("beam", 16) == pytest.approx(0.16), "one by one is faster now"
    for _ in range(50):
        pace.note("beam", 1, 0.5)
    assert pace.to_clear("beam", 16) == pytest.approx(1.0, rel=0.01)
    assert chosen(pace, 21) == "popular"
    clock.now = 60.0
    assert pace.of("beam", 8) < 0.01
    assert chosen(pace, 21) == "full", "so a level that was slow once is tried again"


def test_batches_are_as_large_as_pays(pace):
    """Eight at a time if they take the time of one, as on a GPU; else one by one, as on a CPU."""
    assert [pace.next_batch("full", waiting) for waiting in (1, 2, 7, 8, 30)] == [1, 2, 7, 8, 8]
    for _ in range(50):
        pace.note("full", 8, 0.24)
    assert [pace.next_batch("full", waiting) for waiting in (1, 2, 5, 7, 8, 30)] == [
        1,
        1,
        1,
        7,
        8,
        8,
    ]
    for _ in range(50):
        pace.note("full", 8, 0.4)
    assert pace.next_batch("full", 30) == 1
    assert Pace((1, 8)).next_batch("full", 30) == 8, "no measurements"


def test_a_deadline_is_met_by_the_best_level_that_can(pace):
    assert in_time(LEVELS, pace, "full", 0.05, 4) == "full"
    assert in_time(LEVELS, pace, "full", 0.02, 4) == "beam"
    assert in_time(LEVELS, pace, "full", 0.005, 4) == "popular"
    assert in_time(LEVELS, pace, "beam", 0.05, 4) == "beam", "never back up"
    assert in_time(("full", "beam"), pace, "full", 0.001, 4) == "beam"


def test_a_level_that_saves_no_time_is_left_out_for_a_while(pace, clock):
    assert pace.quicker(LEVELS) == LEVELS
    for _ in range(50):
        pace.note("beam", 1, 0.039)
        pace.note("beam", 8, 0.039)
    assert pace.quicker(LEVELS) == ("full", "popular")
    assert pace.quicker(("beam", "popular")) == ("beam", "popular")
    clock.now = 20.0
    assert pace.quicker(LEVELS) == LEVELS, "it is tried again"
    assert Pace((1, 8)).quicker(LEVELS) == LEVELS, "no measurements"


def refused(pace, waiting, busy=0.0, levels=("full", "beam"), most=0.05, within=10.0):
    return crowded(levels, pace, waiting, busy, most, within)


def test_a_wait_that_is_too_long_has_its_length_in_the_answer(pace):
    """At the cheapest level, eight requests take 10 ms and forty take 50 ms."""
    assert refused(pace, 40) == 0.0 and refused(pace, 41) == pytest.approx(41 * 0.010 / 8)
    assert refused(pace, 39, busy=0.01) == pytest.approx(0.01 + 39 * 0.010 / 8)
    assert refused(pace, 41, most=0.06) == 0.0
    assert refused(pace, 1, busy=0.045, within=0.05), "its answer would come too late"


def test_a_slow_model_alone_refuses_nobody(pace, clock):
    for size in (1, 8):
        pace.note("full", size, 60.0)
    assert refused(pace, 0, busy=60.0, levels=("full",)) == 0.0
    assert refused(pace, 8, levels=("full",), within=1e6) == 0.0, "two batches may be waited for"
    assert refused(pace, 17, levels=("full",), within=1e6)


def test_an_unknown_pace_refuses_nobody(clock):
    assert refused(Pace((1, 8), clock), 1000) == 0.0


def test_popular_lists_count_as_fast_as_they_are(pace):
    assert refused(pace, 1000, levels=LEVELS) == 0.0
    for size in (1, 8):
        pace.note("popular", size, size / 800)
    assert pace.of("popular", 8) == pytest.approx(0.01)
    assert pace.of("popular", 80) == pytest.approx(0.1)
    assert refused(pace, 39, levels=LEVELS) == 0.0 and refused(pace, 41, levels=LEVELS)
