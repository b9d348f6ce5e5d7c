"""The log: its columns, the six behaviour levels, and the one definition of normalised text.

One row is one suggestion request and its outcome: the text in the box (`prefix`), the list
the user saw (`shown`), the query searched in the end (`query`), and the items clicked and bought.
Every other folder reads logs in this shape; `adapters` and `ingest` convert foreign logs to it.

The levels are those of the paper's preference alignment (section 4). The searched query of a
request is ORDER, ITEM_CLICK or CLICK. A query that was shown and not chosen is SHOW. A candidate
of the prefix that was not shown is NOT_SHOW. Any other query is RAND.

`validate` checks every row of a log once. The serving path imports this file, so it reads no files
and imports only numpy and pyarrow.
"""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from onesug_jax.logs.times import DAY_MS


class Level(enum.IntEnum):
    """Behaviour level of a (request, query) pair, worst to best (paper, section 4)."""

    RAND = 0
    NOT_SHOW = 1
    SHOW = 2
    CLICK = 3
    ITEM_CLICK = 4
    ORDER = 5


_WIDE = 0x2E7F  # characters above it belong to scripts without spaces between words
SPLITS = ("train", "dev", "test")  # in the order of time

# Optional column, list<string>, oldest first: the user's earlier queries as the log's owner
# recorded them. A row that has it (not null) uses it instead of the history derived from earlier
# rows. `history_minutes`, list<double>, is the age of each query at the time of the request; null
# means unknown, and such queries count as searched just now.
HISTORY = "history"
HISTORY_MINUTES = "history_minutes"

# Columns added by `history.with_history`, newest first, never profile columns: the queries,
# list<string>, and their ages in minutes at the time of the request, list<float>.
RECENT = "recent"
RECENT_MINUTES = "recent_minutes"

LOG_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("user_id", pa.string()),
        ("session_id", pa.string()),
        ("timestamp_ms", pa.int64()),
        ("prefix", pa.string()),
        ("shown", pa.list_(pa.string())),
        ("query", pa.string()),
        ("clicked_position", pa.int32()),
        ("clicked_items", pa.list_(pa.string())),
        ("ordered_items", pa.list_(pa.string())),
    ]
)
REQUIRED = tuple(LOG_SCHEMA.names)


def normalise_query(text: str) -> str:
    """The form in which all texts are compared: NFKC, lower case, single spaces, stripped.

    Lower-casing can leave a string outside NFKC (Turkish dotted capital I does), so NFKC is applied
    once more; the result is a fixed point of this function.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    return " ".join(unicodedata.normalize("NFKC", text).split())


def normalise_prefix(text: str) -> str:
    """`normalise_query`, except that white space at the end becomes one space.

    "watch " is followed by a further word, and "watch" may still become "watchdog". White space
    alone is the empty prefix.
    """
    body = normalise_query(text)
    return body + " " if body and text[-1].isspace() else body


def is_wide(text: str) -> bool:
    """Whether most of a text is in scripts without spaces between words (Chinese, Japanese)."""
    return sum(ord(character) > _WIDE for character in text) * 2 > len(text)


def split_words(text: str) -> list[str]:
    """The words of a text; for a wide text, its character bigrams."""
    if not is_wide(text):
        return text.split()
    compact = text.replace(" ", "")
    return [compact[i : i + 2] for i in range(max(1, len(compact) - 1))]


def profile_columns(schema: pa.Schema) -> list[str]:
    """The static profile columns of a log, in their order: all that the schema does not name."""
    reserved = {*REQUIRED, HISTORY, HISTORY_MINUTES, RECENT, RECENT_MINUTES}
    return [name for name in schema.names if name not in reserved]


NAMELESS = "n"  # first character of the visitors of rows without user and session


def visitor_of(user: str, session: str, time_ms: int) -> str:
    """The visitor of a row: its user, else its session. All rows of one day (UTC) with neither are
    one visitor, because anybody can send any number of them.
    """
    if user:
        return f"u{user}"
    return f"s{session}" if session else f"{NAMELESS}{time_ms // DAY_MS}"


def visitors_of(rows: pa.RecordBatch | pa.Table) -> list[str]:
    """The visitor of each row (`visitor_of`)."""
    columns = (rows[name].to_pylist() for name in ("user_id", "session_id", "timestamp_ms"))
    return [visitor_of(*row) for row in zip(*columns, strict=True)]


def request_level(clicked_items: Sequence[str], ordered_items: Sequence[str]) -> Level:
    """Level of the searched query: ORDER after a purchase, ITEM_CLICK after a click, else CLICK."""
    if len(ordered_items):
        return Level.ORDER
    return Level.ITEM_CLICK if len(clicked_items) else Level.CLICK


UNTIMELY = "implausible time:"  # start of the reasons that concern only the time
LATEST_MS = 253_402_300_799_999  # the last millisecond of year 9999: beyond it the unit is wrong


def validate(
    table: pa.Table, *, max_prefix: int, max_query: int, plausible: tuple[int, int] | None = None
) -> tuple[pa.Table, np.ndarray, dict[int, str]]:
    """Normalise the rows of `table` and separate valid rows from invalid ones.

    Args:
      table: the columns of LOG_SCHEMA with exactly its types, optionally `history`
        (list<string>), `history_minutes` (list<double>) and profile columns (string). Missing
        values are null.
      max_prefix: longest prefix, in characters after normalisation.
      max_query: the same of queries, shown suggestions and history queries.
      plausible: earliest and latest time accepted, milliseconds since 1970; None: any time up to
        the year 9999.

    Returns:
      the accepted rows in order, their row numbers in `table` (int64 [accepted]), and {row number:
      reason} of the others. In accepted rows text is normalised. Missing user ids, session ids and
      profile values are "", missing lists are empty. `shown` has no empty or repeated entries, and
      `clicked_position` points at the same suggestion as before. `history` and `history_minutes`
      may be null (unknown); otherwise they have equal lengths.
    """
    table = table.combine_chunks()
    reasons: dict[int, str] = {}

    def flag(bad: np.ndarray, reason: str) -> None:
        for row in np.flatnonzero(bad).tolist():
            reasons.setdefault(row, reason)

    columns = {name: table[name].combine_chunks() for name in table.column_names}
    flag(_is_blank(columns["request_id"]), "missing request_id")
    times = columns["timestamp_ms"]
    flag(_mask(times.is_null()), "missing timestamp_ms")
    millis = times.fill_null(0).to_numpy()
    flag((millis < 0) | (millis > LATEST_MS), "timestamp_ms out of range (milliseconds since 1970)")
    if plausible is not None:
        flag(millis < plausible[0], f"{UNTIMELY} before ingest.earliest")
        flag(millis > plausible[1], f"{UNTIMELY} after ingest.latest, in the future")

    flag(_mask(columns["prefix"].is_null()), "missing prefix")
    columns["prefix"] = _map_text(columns["prefix"], normalise_prefix)
    flag(_longer(columns["prefix"], max_prefix), f"prefix over {max_prefix} characters")
    columns["query"] = _map_text(columns["query"], normalise_query)
    flag(_is_blank(columns["query"]), "missing query")
    flag(_longer(columns["query"], max_query), f"query over {max_query} characters")

    clicked = columns["clicked_position"]
    has_click = _mask(clicked.is_valid())
    position = clicked.fill_null(0).to_numpy().astype(np.int64)
    count = pc.list_value_length(columns["shown"]).fill_null(0).to_numpy()
    outside = has_click & ((position < 0) | (position >= count))
    flag(outside, "clicked_position outside the shown list")
    columns["shown"], too_long, moved = _clean_lists(
        columns["shown"],
        normalise_query,
        max_query,
        position=np.where(has_click & ~outside, position, -1),
    )
    flag(too_long, f"shown entry over {max_query} characters")
    assert moved is not None  # positions were given
    flag(has_click & ~outside & (moved < 0), "clicked_position at an empty entry")
    columns["clicked_position"] = pa.array(
        np.maximum(moved, 0).astype(np.int32), mask=~has_click | (moved < 0)
    )
    for name in ("clicked_items", "ordered_items"):
        columns[name], _, _ = _clean_lists(columns[name], str.strip, None)
    if HISTORY_MINUTES in columns:
        columns[HISTORY_MINUTES], invalid = _clean_minutes(
            columns[HISTORY_MINUTES], columns.get(HISTORY), len(millis)
        )
        flag(invalid, "history_minutes is not one number from 0 up for each entry of history")
    if HISTORY in columns:
        valid = columns[HISTORY].is_valid()
        cleaned, too_long, _ = _clean_lists(columns[HISTORY], normalise_query, max_query)
        columns[HISTORY] = pc.if_else(valid, cleaned, pa.scalar(None, cleaned.type))
        flag(too_long, f"history entry over {max_query} characters")
    for name in ("user_id", "session_id", *profile_columns(table.schema)):
        columns[name] = columns[name].fill_null("")

    accepted = np.setdiff1d(np.arange(table.num_rows), np.fromiter(reasons, np.int64, len(reasons)))
    clean = pa.table(columns)
    return (clean.take(pa.array(accepted)) if reasons else clean), accepted, reasons


def _clean_minutes(
    minutes: pa.Array, history: pa.Array | None, rows: int
) -> tuple[pa.Array, np.ndarray]:
    """The ages of the `history` entries that are not empty after normalisation, and a mask (bool
    [rows]) of rows with another number of ages than entries, or with a value that is not an age.
    """
    invalid = np.zeros(rows, bool)
    out: list[list[float] | None] = []
    histories = [None] * rows if history is None else history.to_pylist()
    for row, (ages, texts) in enumerate(zip(minutes.to_pylist(), histories, strict=True)):
        if ages is None:
            out.append(None)
            continue
        matches = texts is not None and len(texts) == len(ages)
        invalid[row] = not matches or not all(age is not None and age >= 0 for age in ages)
        pairs = zip(ages, texts or (), strict=False)
        out.append([age for age, text in pairs if normalise_query(text or "")])
    return pa.array(out, minutes.type), invalid


def _mask(booleans: pa.Array) -> np.ndarray:
    return booleans.to_numpy(zero_copy_only=False).astype(bool)


def _is_blank(text: pa.Array) -> np.ndarray:
    return _mask(pc.equal(pc.utf8_length(text.fill_null("")), 0))


def _longer(text: pa.Array, limit: int) -> np.ndarray:
    return _mask(pc.greater(pc.utf8_length(text.fill_null("")), limit))


def _map_text(text: pa.Array, function: Callable[[str], str]) -> pa.Array:
    """`function` of every string, called once for each distinct one, as most strings repeat."""
    coded = text.dictionary_encode()
    mapped = [function(entry) for entry in coded.dictionary.to_pylist()]
    return pa.array(mapped, pa.string()).take(coded.indices)


def _clean_lists(
    lists: pa.Array,
    function: Callable[[str], str],
    limit: int | None,
    *,
    position: np.ndarray | None = None,
) -> tuple[pa.Array, np.ndarray, np.ndarray | None]:
    """`function` of every entry; empty results are dropped, and null lists become empty ones.

    With `position` (int64 [rows], an index into each list, -1 for none), repeats inside a list are
    dropped too, and each position becomes the new index of its entry, or -1 if the entry was
    empty. Also returns a mask (bool [rows]) of the rows that hold an entry longer than `limit`.
    """
    rows = len(lists)
    values = lists.flatten()
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy().astype(np.int64)
    row_of = np.repeat(np.arange(rows), lengths)
    coded = values.fill_null("").dictionary_encode()
    mapped = [function(entry) for entry in coded.dictionary.to_pylist()]
    distinct: dict[str, int] = {"": 0}
    code_of = np.array([distinct.setdefault(text, len(distinct)) for text in mapped], np.int64)
    codes = code_of[coded.indices.to_numpy()] if len(values) else np.zeros(0, np.int64)

    too_long = np.zeros(rows, bool)
    if limit is not None:
        over = np.fromiter((len(text) > limit for text in distinct), bool, len(distinct))
        too_long[row_of[over[codes]]] = True
    keep = codes != 0
    first = np.arange(len(codes))
    if position is not None and len(codes):
        _, seen, inverse = np.unique(
            row_of * len(distinct) + codes, return_index=True, return_inverse=True
        )
        first = seen[inverse]
        keep &= first == np.arange(len(codes))
    new_lengths = np.bincount(row_of[keep], minlength=rows)
    ends = np.cumsum(new_lengths)
    cleaned = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]), pa.int32()),
        pa.array(list(distinct), pa.string()).take(pa.array(codes[keep])),
    )
    if position is not None:
        clicked = np.flatnonzero(position >= 0)
        target = first[np.cumsum(lengths)[clicked] - lengths[clicked] + position[clicked]]
        moved = np.cumsum(keep)[target] - 1 - (ends[clicked] - new_lengths[clicked])
        position = np.full(rows, -1, np.int64)
        position[clicked] = np.where(codes[target] != 0, moved, -1)
    return cleaned, too_long, position
