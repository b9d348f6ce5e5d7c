"""The forecast: a bound, the sum without overlap, and a range that contains the measurements."""

import pytest

from onesug_jax.train.forecast import MEASURED, Forecast


@pytest.mark.parametrize("one", MEASURED, ids=lambda one: one.name)
def test_the_estimate_contains_the_measurements(one):
    time = Forecast(one.compute_ms, one.memory_ms, 0.0)
    assert time.fast - 1e-9 <= one.measured_ms <= time.slow + 1e-9


def test_bound_its_name_and_sum():
    time = Forecast(0.002, 0.005, 0.001)
    assert time.bound == 0.005 and time.largest == "memory" and time.sum == pytest.approx(0.008)
    assert time.bound < time.fast < time.slow


def test_links_without_overlap_increase_the_upper_end():
    """With three equal times, the sum determines the upper end."""
    alone, together = Forecast(0.01, 0.0, 0.0), Forecast(0.01, 0.01, 0.01)
    assert together.fast == alone.fast
    assert together.slow > 1.5 * alone.slow
