"""Times: units by magnitude, the plausible range, and rows that lie far from all others."""

import collections

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs import times

DAY = 86_400_000
NOW = 1_750_000_000_000
SPAN = times.plausible_span("1995-01-01", "2030-01-01")


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("milliseconds", NOW),
        ("seconds", NOW // 1000),
        ("microseconds", NOW * 1000),
        ("nanoseconds", NOW * 1_000_000),
    ],
)
def test_a_number_is_of_the_unit_that_makes_it_plausible(unit, value):
    units = collections.Counter()
    found = times.to_millis(np.array([value, value]), SPAN, units)
    assert found.tolist() == [NOW, NOW]
    assert units == ({} if unit == "milliseconds" else {unit: 2})


def test_what_is_plausible_in_no_unit_stays():
    units = collections.Counter()
    values = [0, 5, -NOW, 10**12 // 2, 4_070_908_800_000]
    assert times.to_millis(np.array(values), SPAN, units).tolist() == values and not units


def test_the_range_by_default_ends_a_day_from_now():
    first, last = times.plausible_span("1995-01-01")
    assert times.day(first) == "1995-01-01 00:00"
    assert last - times.plausible_span("1995-01-01", "2020-01-01")[1] > 365 * DAY


@pytest.mark.parametrize(
    ("earliest", "latest"), [("soon", ""), ("2020-01-01", "2019-01-01"), ("", "later")]
)
def test_a_range_that_is_none_is_refused(earliest, latest):
    with pytest.raises(UserError, match=r"ingest\.(earliest|latest)="):
        times.plausible_span(earliest, latest)


def main_span(stamps):
    values, counts = np.unique(stamps, return_counts=True)
    return times.main_span(values, values, counts)


@pytest.mark.parametrize("lone", [[-400 * DAY], [500 * DAY], [-9_000 * DAY, 900 * DAY]])
def test_rows_beyond_a_gap_longer_than_the_rest_are_outside(lone):
    week = (np.arange(700) * (DAY // 100)).tolist()
    assert main_span(week + lone) == (0, week[-1])


@pytest.mark.parametrize(
    "stamps",
    [
        np.arange(19) ** 5 * DAY,  # few rows show nothing
        [*range(50), *range(20 * DAY, 20 * DAY + 50)],  # two busy hours, neither is an exception
        [*(np.arange(300) * DAY // 9), 45 * DAY],  # a gap, but shorter than the log
        [*range(500), DAY // 2],  # half a day after a burst
    ],
)
def test_other_gaps_isolate_nothing(stamps):
    stamps = np.asarray(stamps)
    assert main_span(stamps) == (stamps.min(), stamps.max())
