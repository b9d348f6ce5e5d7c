"""The forecast: a bound, the sum without overlap, and a range that holds what was measured."""

import pytest

from onesug_jax.train.forecast import MEASURED, Forecast


@pytest.mark.parametrize("one", MEASURED, ids=lambda one: one.name)
def test_the_estimate_holds_what_was_measured(one):
    time = Forecast(one.compute_ms, one.memory_ms, 0.0)
    assert time.fast - 1e-9 <= one.measured_ms <= time.slow + 1e-9


def test_bound_sum_and_what_the_bound_is():
    time = Forecast(0.002, 0.005, 0.001)
    assert time.bound == 0.005 and time.largest == "memory" and time.sum == pytest.approx(0.008)
    assert time.bound < time.fast < time.slow


def test_links_that_hide_behind_nothing_make_it_slower():
    """The three as large as each other: the sum counts, not one of them."""
    alone, together = Forecast(0.01, 0.0, 0.0), Forecast(0.01, 0.01, 0.01)
    assert together.fast == alone.fast
    assert together.slow > 1.5 * alone.slow
