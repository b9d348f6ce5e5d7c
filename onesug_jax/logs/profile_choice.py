"""The choice of the profile columns: those that describe the person and are inputs of the model.

The setting names them; without it, columns of few values are chosen. A column that reveals the
searched query is never chosen, because the model would learn to copy the answer from its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from ibis import _

from onesug_jax.errors import UserError
from onesug_jax.logs.engines import Engine
from onesug_jax.logs.staging import Staged

MOST_VALUES = 256
SAMPLE_ROWS = 50_000
FEW_ROWS = 20  # too few to conclude anything
_DIGITS = 8  # hexadecimal, of the digests that draw the sample

# One column reveals another if it corrects at least this share of the errors made by always
# predicting the commonest value.
_EXPLAINED = 0.8


@dataclass(frozen=True)
class Verdict:
    """The decision on a column: `reason` says why it is not a profile column, "" if it is one."""

    name: str
    values: int  # distinct, not empty; of a sample if there are many
    reason: str = ""
    leaks: bool = False  # it reveals the query


def choose_profile(
    engine: Engine, log: Any, staged: Staged, wanted: Sequence[str] | None
) -> list[Verdict]:
    """A verdict on each column of the Ibis table `log`; with `wanted`, on those columns alone.

    Columns are judged by a sample of the rows, drawn by their request ids, so that every engine
    draws the same one.

    Raises:
      UserError: a wanted column is missing or reveals the query.
    """
    names = sorted(staged.profile)
    missing = [name for name in wanted or () if name not in names]
    if missing:
        raise UserError(
            f"ingest.profile: the log has no column {missing[0]!r}; it has "
            f"{', '.join(names) or 'none beside those of the schema'}."
        )
    chosen = [name for name in names if wanted is None or name in wanted]
    if not chosen:
        return []
    rows = log
    if staged.rows > SAMPLE_ROWS:
        largest = 16**_DIGITS * SAMPLE_ROWS // staged.rows
        rows = log.filter(_.request_id.hexdigest("md5").left(_DIGITS) < f"{largest:0{_DIGITS}x}")
    sample = engine.fetch(rows.select("user_id", "session_id", "query", *chosen))
    values = {name: _distinct(sample[name]) for name in chosen}
    if sample.num_rows < staged.rows:
        few = [name for name in chosen if values[name] < 4 * MOST_VALUES]
        counts = {name: log[name].nunique(where=log[name] != "") for name in few}
        if few:
            values |= engine.fetch(log.aggregate(**counts)).to_pylist()[0]
    verdicts = judge(sample, values)
    if wanted is not None:
        for verdict in verdicts:
            if verdict.leaks:
                raise UserError(
                    f"ingest.profile: column {verdict.name!r} {verdict.reason}, so the model would "
                    "copy the answer from its input. Leave it out of ingest.profile."
                )
        return [Verdict(verdict.name, verdict.values) for verdict in verdicts]
    return verdicts


def _distinct(column: pa.ChunkedArray) -> int:
    return len(pc.unique(column.filter(pc.not_equal(column, ""))))


def judge(sample: pa.Table, values: Mapping[str, int]) -> list[Verdict]:
    """Verdicts by a sample: columns user_id, session_id, query and those that `values` names, each
    with the number of its distinct values in the log.
    """
    with duckdb.connect() as database:
        verdicts = []
        for name, distinct in values.items():
            column = pc.utf8_trim(sample[name], " ")
            people = sample.select(["user_id", "session_id", "query"])
            database.register("sampled", people.append_column("value", column))
            database.execute(
                "CREATE OR REPLACE TEMP TABLE judged AS SELECT *, "
                "trim(regexp_replace(lower(value), '\\s+', ' ', 'g')) AS folded "
                "FROM sampled WHERE value <> ''"
            )
            verdicts.append(_judge(database, name, distinct))
    return verdicts


def _judge(database: duckdb.DuckDBPyConnection, name: str, values: int) -> Verdict:
    """The verdict on the column `value` of table `judged`."""
    [(rows, distinct, repeats, holds, ids, decimals, dates)] = database.execute(
        """SELECT count(*), count(DISTINCT value), avg((folded = query)::INT),
             avg((length(query) > 1 AND contains(folded, query))::INT),
             avg((value = user_id OR value = session_id)::INT),
             avg(regexp_full_match(value, '[-+]?\\d*[.,]\\d+')::INT),
             avg(regexp_matches(value, '^\\d{4}-\\d\\d-\\d\\d|^\\d\\d?[./]\\d\\d?[./]\\d{4}')::INT)
           FROM judged"""
    ).fetchall()
    if rows < FEW_ROWS:
        return Verdict(name, values)
    # In a log of a single query there is nothing to reveal.
    [(queries,)] = database.execute("SELECT count(DISTINCT query) FROM judged").fetchall()
    if queries > 1:
        if repeats > 0.5:
            return Verdict(name, values, "repeats the query", leaks=True)
        if holds > 0.5:
            return Verdict(name, values, "holds the text of the query", leaks=True)
        if _explained(database, "value", "query") > 0.9:
            return Verdict(name, values, "predicts the query", leaks=True)
        if distinct > 1 and _explained(database, "query", "value", users=True) > 0.9:
            return Verdict(name, values, "follows from the query", leaks=True)
    reason = ""
    if ids > 0.9:
        reason = "repeats user_id or session_id"
    elif distinct > 0.9 * rows or (distinct > 50 and distinct > 0.5 * rows):
        reason = "has nearly a value of its own in every row (ids, free text, prices)"
    elif values > MOST_VALUES:
        reason = f"has more than {MOST_VALUES} values (ids, free text, prices)"
    elif distinct > FEW_ROWS and decimals > 0.5:
        reason = "holds decimal numbers (prices)"
    elif distinct > 1 and dates > 0.5:
        reason = "holds dates"
    return Verdict(name, values, reason)


def _explained(
    database: duckdb.DuckDBPyConnection, source: str, target: str, *, users: bool = False
) -> float:
    """The share of rows, 0 to 1, in which column `source` predicts column `target`; 0 where this is
    little better than the commonest value (`_EXPLAINED`).

    The prediction is the commonest `target` of the rows with the same `source`, so a value that
    occurs once predicts nothing. With `users` each (user, query, value) counts once, and queries of
    a single user do not count: they cannot show whether a value belongs to the query or the user.
    """
    pairs = "SELECT query, value FROM judged"
    if users:
        pairs = (
            "SELECT DISTINCT user_id, query, value FROM judged WHERE user_id <> '' QUALIFY "
            "count(DISTINCT user_id) OVER (PARTITION BY query) > 1"
        )
    [(rows, right, commonest)] = database.execute(
        f"""WITH pairs AS ({pairs}),
            counts AS (SELECT {source} AS a, {target} AS b, count(*) AS n FROM pairs GROUP BY ALL)
          SELECT (SELECT sum(n) FROM counts),
            (SELECT sum(CASE WHEN most > 1 THEN most ELSE 0 END)
               FROM (SELECT max(n) AS most FROM counts GROUP BY a)),
            (SELECT max(n) FROM (SELECT sum(n) AS n FROM counts GROUP BY b))"""
    ).fetchall()
    if not rows or rows < FEW_ROWS or commonest == rows:
        return 0.0
    share, guess = right / rows, commonest / rows
    return float(share) if share - guess >= _EXPLAINED * (1 - guess) else 0.0
