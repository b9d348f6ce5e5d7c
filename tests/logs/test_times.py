"""Times: units by magnitude, the plausible range, and outliers."""

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
def test_the_unit_of_a_number_is_the_plausible_one(unit, value):
    units = collections.Counter()
    millis = times.to_millis(np.array([value, value]), SPAN, units)
    assert millis.tolist() == [NOW, NOW]
    assert units == ({} if unit == "milliseconds" else {unit: 2})


def test_numbers_plausible_in_no_unit_are_unchanged():
    units = collections.Counter()
    values = [0, 5, -NOW, 10**12 // 2, 4_070_908_800_000]
    assert times.to_millis(np.array(values), SPAN, units).tolist() == values and not units


def test_the_default_range_ends_a_day_from_now():
    first, last = times.plausible_span("1995-01-01")
    assert times.day(first) == "1995-01-01 00:00"
    assert last - times.plausible_span("1995-01-01", "2020-01-01")[1] > 365 * DAY


@pytest.mark.parametrize(
    ("earliest", "latest"), [("soon", ""), ("2020-01-01", "2019-01-01"), ("", "later")]
)
def test_an_invalid_range_is_refused(earliest, latest):
    with pytest.raises(UserError, match=r"ingest\.(earliest|latest)="):
        times.plausible_span(earliest, latest)


def main_span(stamps):
    values, counts = np.unique(stamps, return_counts=True)
    return times.main_span(values, values, counts)


@pytest.mark.parametrize("lone", [[-400 * DAY], [500 * DAY], [-9_000 * DAY, 900 * DAY]])
def test_rows_beyond_a_gap_longer_than_the_log_are_outliers(lone):
    week = (np.arange(700) * (DAY // 100)).tolist()
    assert main_span(week + lone) == (0, week[-1])


@pytest.mark.parametrize(
    "stamps",
    [
        np.arange(19) ** 5 * DAY,  # too few rows
        [*range(50), *range(20 * DAY, 20 * DAY + 50)],  # two hours with equally many rows
        [*(np.arange(300) * DAY // 9), 45 * DAY],  # a gap, but shorter than the log
        [*range(500), DAY // 2],  # half a day after a burst
    ],
)
def test_other_gaps_make_no_outliers(stamps):
    stamps = np.asarray(stamps)
    assert main_span(stamps) == (stamps.min(), stamps.max())
