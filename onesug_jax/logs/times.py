"""Times of requests: their units, the plausible range, and outliers far from all other rows.

One row of a wrong year would decay all counts as of the newest row.
"""

from __future__ import annotations

import collections
import datetime
import time

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from onesug_jax.errors import UserError
from onesug_jax.logs import columns as to
from onesug_jax.logs.asof.config import DAY_MS

Span = tuple[int, int]  # first and last millisecond since 1970, both included

NO_TIME = (
    "{} is not a time (a number or ISO 8601; other forms: --gin.clicks.time_format='%d/%m/%Y')"
)

# Milliseconds of one unit, tried in this order. Plausible times of different units do not overlap,
# as the units differ by a factor of 1000.
UNITS = {"milliseconds": 1.0, "seconds": 1e3, "microseconds": 1e-3, "nanoseconds": 1e-6}


def plausible_span(earliest: str, latest: str = "") -> Span:
    """The range of plausible times; a time outside is an error of the log.

    Args:
      earliest, latest: ISO 8601 dates or times, UTC where no zone is given; latest "" is a day from
      now.

    Raises:
      UserError: they are not times, or `earliest` is not before `latest`.
    """
    ends = []
    for name, value in (("earliest", earliest), ("latest", latest)):
        try:
            ends.append(to.parse_time(value, name))
        except ValueError:
            raise UserError(
                f"ingest.{name}={value!r}: expected a date or time such as '1995-01-01'."
            ) from None
    first, last = ends
    first = 0 if first is None else first
    last = int(time.time() * 1000) + DAY_MS if last is None else last
    if not first < last:
        raise UserError(
            f"ingest.earliest={earliest!r} is not before ingest.latest={latest!r} ({day(last)})."
        )
    return first, last


def to_millis(numbers: np.ndarray, plausible: Span, units: collections.Counter[str]) -> np.ndarray:
    """int64 [rows], milliseconds since 1970: each number is read in the unit that makes it
    plausible.

    A number that is plausible in no unit is unchanged. `units` counts the converted values.
    """
    numbers = np.clip(np.nan_to_num(numbers), -(2**62), 2**62)
    millis = numbers.astype(np.int64)
    undecided = np.ones(len(numbers), bool)
    for unit, size in UNITS.items():
        scaled = numbers * size
        fits = undecided & (scaled >= plausible[0]) & (scaled <= plausible[1])
        if fits.any() and unit != "milliseconds":
            millis[fits] = scaled[fits].astype(np.int64)
            units[unit] += int(fits.sum())
        undecided &= ~fits
    return millis


def moments(
    column: to.Column, name: str, plausible: Span, units: collections.Counter[str]
) -> to.Converted:
    """int64 [rows], milliseconds since 1970, of whole numbers in any unit, or of timestamps."""
    values, faults = to.whole_numbers(column, name)
    if isinstance(column, pa.Array) and pt.is_timestamp(column.type):
        return values, faults
    numbers = values.fill_null(0).to_numpy()
    if len(numbers) and not ((numbers >= plausible[0]) & (numbers <= plausible[1])).all():
        numbers = to_millis(numbers, plausible, units)
        values = pa.array(numbers, pa.int64(), mask=np.asarray(values.is_null()))
    return values, faults


def any_moments(
    column: to.Column, name: str, form: str, plausible: Span, units: collections.Counter[str]
) -> to.Converted:
    """int64 [rows]: as `moments`, also of fractions, ISO 8601 text, or text in format `form`."""
    if isinstance(column, pa.Array) and pt.is_timestamp(column.type):
        return to.whole_numbers(column, name)
    texts, faults = to.profile_text(column, name)
    try:
        if form:
            raise ValueError
        numbers = texts.cast(pa.float64())
    except ValueError:  # pyarrow's errors are ValueErrors
        return _each_moment(texts.to_pylist(), name, form, plausible, units, faults)
    millis = to_millis(numbers.fill_null(0).to_numpy(), plausible, units)
    return pa.array(millis, pa.int64(), mask=np.asarray(numbers.is_null())), faults


def _each_moment(
    texts: list[str | None],
    name: str,
    form: str,
    plausible: Span,
    units: collections.Counter[str],
    faults: dict[int, str],
) -> to.Converted:
    millis: list[int | None] = []
    for row, text in enumerate(texts):
        moment = None
        try:
            if text and form:
                parsed = datetime.datetime.strptime(text.strip(), form)
                moment = to.parse_time(parsed.isoformat(), name)
            elif text and text.strip().lstrip("+-").replace(".", "", 1).isdigit():
                moment = int(to_millis(np.array([float(text)]), plausible, units)[0])
            else:
                moment = to.parse_time(text and text.replace(" UTC", "Z"), name)
        except ValueError:
            faults.setdefault(
                row, f"{name} is not a time of format {form!r}" if form else NO_TIME.format(name)
            )
        millis.append(moment)
    return pa.array(millis, pa.int64()), faults


def main_span(first: np.ndarray, last: np.ndarray, counts: np.ndarray) -> Span:
    """The time span of a log without its outliers.

    It starts as the middle of the log, which leaves out one row in a hundred at each end (in a
    short log one in twenty, up to five). It then grows over every gap that is at most as long as
    the span so far, or as a day. A log of fewer than 20 rows has no outliers.

    Args:
      first, last, counts: int64 [buckets], of buckets in order of time (hours, for example): the
      first and last millisecond and the number of rows.
    """
    rows = int(counts.sum())
    spare = max(rows // 100, min(rows // 20, 5))
    before = np.cumsum(counts)
    low = int(np.searchsorted(before, spare, side="right"))
    high = int(np.searchsorted(before, rows - spare, side="left"))
    grew = True
    while grew:
        reach = max(int(last[high] - first[low]), DAY_MS)
        grew = False
        if low and first[low] - last[low - 1] <= reach:
            low, grew = low - 1, True
        if high + 1 < len(counts) and first[high + 1] - last[high] <= reach:
            high, grew = high + 1, True
    return int(first[low]), int(last[high])


def day(millis: int) -> str:
    """A time as text: UTC, to the minute."""
    epoch = datetime.datetime(1970, 1, 1)
    try:
        return (epoch + datetime.timedelta(milliseconds=millis)).strftime("%Y-%m-%d %H:%M")
    except OverflowError:
        return f"{millis} ms"
