"""The log of the next version: rows of the version in use, fresh rows, and the held-out rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_path
from onesug_jax.logs.asof.config import DAY_MS
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import Manifest, split_files

if TYPE_CHECKING:
    import numpy as np

    from onesug_jax.serve.forgotten import Forgotten


def join(
    base: Context,
    new: str,
    window_days: float,
    holdout: float,
    forgotten: Forgotten | None = None,
) -> dict[str, int]:
    """Writes new/log: train (old rows of the window and fresh rows), dev (the newest fresh rows)
    and test (the unchanged dev rows of the version in use, which score the update).

    A request in both logs counts once, with the values of the fresh log: an order may come days
    after its search. The columns are those of the old rows, empty if the fresh log lacks them, and
    the histories of either log. Rows of users who were deleted since then are left out.
    """
    from onesug_jax.logs.database import connect, quoted
    from onesug_jax.logs.database import files as in_sql
    from onesug_jax.logs.schema import HISTORY, HISTORY_MINUTES

    log = os.path.join(new, "log")
    made = Manifest.read(log)
    os.makedirs(log, exist_ok=True)
    fresh = list(split_files(os.path.join(new, "fresh")).values())
    old = split_files(base.work.log)
    with connect(new, base.configured("LogEngineConfig")().memory_limit) as database:

        def value(query: str):
            return database.sql(query).fetchall()[0][0]

        without = ""
        if forgotten is not None:
            database.sql("CREATE TABLE forgotten (person VARCHAR, at_ms BIGINT)")
            database.executemany("INSERT INTO forgotten VALUES (?, ?)", forgotten.people)
            person = f"sha256({quoted(forgotten.salt)} || user_id)"
            without = f" ANTI JOIN forgotten ON person = {person} AND timestamp_ms <= at_ms"
        database.sql(
            "CREATE VIEW present AS SELECT * FROM "
            f"read_parquet({in_sql(list(old.values()))}, union_by_name=true){without}; "
            f"CREATE VIEW reported AS SELECT * FROM read_parquet({in_sql(fresh)}){without}; "
            f"CREATE VIEW held AS SELECT request_id FROM read_parquet({in_sql([old['dev']])}); "
            "CREATE VIEW judge AS FROM present SEMI JOIN held USING (request_id); "
            "CREATE VIEW old AS FROM present ANTI JOIN reported USING (request_id) "
            "ANTI JOIN held USING (request_id); "
            "CREATE VIEW again AS FROM reported SEMI JOIN present USING (request_id) "
            "ANTI JOIN held USING (request_id); "
            "CREATE VIEW fresh AS FROM reported ANTI JOIN present USING (request_id)"
        )
        count = value("SELECT count(*) FROM fresh")
        if count < 2:
            raise UserError(
                f"{base.log}: {count} rows that the current version does not hold yet; an update "
                "needs some for training and some for evaluation"
            )
        cut = value(f"SELECT quantile_disc(timestamp_ms, {1 - holdout}) FROM fresh")
        start = value("SELECT max(timestamp_ms) FROM fresh") - int(window_days * DAY_MS)
        columns = {view: database.sql(f"FROM {view} LIMIT 0").columns for view in ("old", "fresh")}
        either = (*columns["old"], *columns["fresh"])
        histories = [name for name in (HISTORY, HISTORY_MINUTES) if name in either]
        names = list(dict.fromkeys((*columns["old"], *histories)))
        for name in names:
            if name not in (*columns["fresh"], *histories):
                print(f"update: {base.log} has no column {name!r}: its rows count without a value")
        of = {
            view: ", ".join(_column(name, have, name in histories) for name in names)
            for view, have in columns.items()
        }
        again = value("SELECT count(*) FROM again")
        parts = {
            "train": f"SELECT {of['old']} FROM old WHERE timestamp_ms >= {start} UNION ALL "
            f"SELECT {of['fresh']} FROM again WHERE timestamp_ms >= {start} UNION ALL "
            f"SELECT {of['fresh']} FROM fresh WHERE timestamp_ms <= {cut}",
            "dev": f"SELECT {of['fresh']} FROM fresh WHERE timestamp_ms > {cut}",
            "test": f"SELECT {of['old']} FROM judge",
        }
        for split, query in parts.items():
            path = os.path.join(log, f"{split}.parquet")
            if made is None:
                with atomic_path(path) as part:
                    database.sql(
                        f"COPY ({query} ORDER BY timestamp_ms, request_id) "
                        f"TO {quoted(part)} (FORMAT parquet)"
                    )
        counts = {
            name: value(f"SELECT count(*) FROM read_parquet({in_sql([f'{log}/{split}.parquet'])})")
            for name, split in (("train", "train"), ("held", "dev"), ("judged", "test"))
        }
    if made is None:
        Manifest("update", 1, {}, {}).write(log, finished=True)
    if not counts["held"]:
        raise UserError(
            f"{base.log}: all fresh rows carry one time, so none can be held out as the newest"
        )
    return {"fresh": count, "again": again, "learnt": count + again - counts["held"], **counts}


def times_of(new: str) -> np.ndarray:
    """The times of the rows of train, in milliseconds since 1970, in order."""
    import pyarrow.parquet as pq

    path = os.path.join(new, "log", "train.parquet")
    return pq.read_table(path, columns=["timestamp_ms"])["timestamp_ms"].to_numpy()


def _column(name: str, have: Sequence[str], history: bool) -> str:
    """SQL for a column of a view that may lack it."""
    if name in have:
        return f'"{name}"'
    return f'NULL AS "{name}"' if history else f"'' AS \"{name}\""
