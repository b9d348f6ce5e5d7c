"""Mining a train split: counts of queries and prefixes, and related queries (PAPER.md 2, step 1).

`mined` describes the tables; this file computes them.

Text is compared and sorted by UTF-8 bytes, which is code point order. `clicks`, `item_clicks` and
`orders` count rows whose searched query has exactly that level. The score of a prefix -> query pair

  count / (count + support)  *  count / sqrt(count of the prefix * count of the query)

is the cosine between prefix and query times its reliability, which grows with the count.
`query_query` is described in `pairs`: source "visitor" relates queries of one visitor, "item"
queries after which one item was clicked; `users` counts the visitors or items in common. A pool
holds the candidates of a prefix: all queries searched after it and all that start with it, most
searched first.

`schema.visitor_of` defines the visitors. As in the as-of counts, only the first `max_repeats`
searches of one query by one visitor on one day (UTC) count, and only the first of a nameless
visitor (all, if the log names nobody). So a robot or a reloading page cannot make a query popular.
**Privacy:** queries and prefixes of fewer than `min_users` visitors are in no table.

It reads no shown lists and no dev or test rows, and embeds nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from typing import Any

import ibis
import pyarrow.parquet as pq
from ibis import _

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_files, write_json
from onesug_jax.logs.engines import DEFAULT, Engine, LogEngineConfig, check_log, open_engine
from onesug_jax.logs.mined import REPORT, TABLES, MiningReport, file_of
from onesug_jax.logs.pairs import Caps, first, mine_pairs, real, rounded
from onesug_jax.logs.schema import NAMELESS
from onesug_jax.logs.times import DAY_MS
from onesug_jax.progress import Progress

_READ = (  # columns used
    *("request_id", "user_id", "session_id", "timestamp_ms", "prefix", "query"),
    *("clicked_items", "ordered_items"),
)


def mine(
    train: str,
    out: str,
    *,
    engine: LogEngineConfig = DEFAULT,
    min_users: int = 1,
    max_repeats: int = 3,
    per_prefix: int = 64,
    per_query: int = 32,
    pool_size: int = 64,
    support: float = 5.0,
    swing_alpha: float = 1.0,
    max_queries_per_visitor: int = 50,
    max_visitors_per_query: int = 50,
    min_common_visitors: int = 2,
    max_queries_per_item: int = 100,
    max_items_per_query: int = 50,
    min_common_items: int = 1,
) -> MiningReport:
    """Mine the train split: writes all tables of `mined` and `report.json` to `out`, or none.

    Args:
      train: Parquet file in the schema, as `ingest` writes it.
      out: folder, created if missing; other files in it stay.
      engine: the engine; all give the same rows.
      min_users: least number of visitors of a query or prefix.
      max_repeats: most searches of one query by one visitor on one day that count.
      per_prefix: best queries of a prefix in prefix_query.
      per_query: best related queries of a query and source in query_query.
      pool_size: candidates of a prefix in pools.
      support: the count at which the score of a prefix -> query pair is half of its cosine.
      swing_alpha: Swing's smoothing.
      max_queries_per_visitor, max_queries_per_item: latest queries used of each.
      max_visitors_per_query, max_items_per_query: latest visitors and items that Swing uses of each
        query.
      min_common_visitors, min_common_items: least number that two queries of a pair have in common.

    Raises:
      UserError: a setting out of range, an engine that cannot start or has too little memory, a
      file that is missing, is not Parquet, lacks a column or has no rows.
    """
    at_least_1 = dict(
        min_users=min_users,
        max_repeats=max_repeats,
        per_prefix=per_prefix,
        per_query=per_query,
        pool_size=pool_size,
        max_queries_per_visitor=max_queries_per_visitor,
        max_visitors_per_query=max_visitors_per_query,
        min_common_visitors=min_common_visitors,
        max_queries_per_item=max_queries_per_item,
        max_items_per_query=max_items_per_query,
        min_common_items=min_common_items,
    )
    for name, value in at_least_1.items():
        if value < 1:
            raise UserError(f"mine {name}: expected at least 1, found {value}")
    for name, weight in (("support", support), ("swing_alpha", swing_alpha)):
        if not 0 <= weight < float("inf"):
            raise UserError(f"mine {name}: expected a number from 0 up, found {weight}")
    check_log(train, _READ)
    with contextlib.ExitStack() as stack:
        if engine.scratch is not None:
            os.makedirs(engine.scratch, exist_ok=True)
        new = stack.enter_context(atomic_files(out, REPORT))
        work = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="mining-", dir=engine.scratch)
        )
        running = open_engine(engine, work)
        stack.enter_context(running)
        mining = _Mining(running, new)
        mining.read(train)
        mining.without_repeats(max_repeats)
        mining.frequent_texts(min_users)
        mining.prefix_to_query(per_prefix, support)
        visitors = Caps(
            max_queries_per_visitor, max_visitors_per_query, min_common_visitors, per_query
        )
        items = Caps(max_queries_per_item, max_items_per_query, min_common_items, per_query)
        mining.query_to_query(visitors, items, swing_alpha)
        mining.pools(pool_size)
        report = MiningReport(**mining.counts)
        write_json(os.path.join(new, REPORT), dataclasses.asdict(report))
    return report


class _Mining:
    """The steps, in order; each stores tables for later steps and records its counts."""

    def __init__(self, engine: Engine, folder: str):
        self.engine, self.folder = engine, folder
        self.counts: dict[str, int] = {}
        self._say = Progress("mine").step

    def read(self, train: str) -> None:
        """Number the texts (in byte order) and the visitors."""
        log = self.engine.read(train)
        user, session = _text(log.user_id), _text(log.session_id)
        day = log.timestamp_ms // DAY_MS
        rows = log.select(
            "query",
            "prefix",
            "clicked_items",
            time=_.timestamp_ms,
            # The letter distinguishes a session from a user of the same name.
            visitor=ibis.cases(
                (user != "", ibis.literal("u") + user),
                (session != "", ibis.literal("s") + session),
                else_=ibis.literal(NAMELESS) + day.cast("string"),
            ),
            nameless=((user == "") & (session == "")).ifelse(1, 0).cast("int8"),
            day=day,
            ordered=log.ordered_items.length() > 0,
            clicked=log.clicked_items.length() > 0,
        )
        self.query = self._numbered(rows, "query", "q")
        self.prefix = self._numbered(rows, "prefix", "p")
        visitor = self._numbered(rows, "visitor", "v")
        self.events = self.engine.keep(
            "events",
            rows.join(self.query, "query")
            .join(self.prefix, "prefix")
            .join(visitor, "visitor")
            .select(
                "q",
                "p",
                "v",
                "time",
                "day",
                "nameless",
                orders=_.ordered.ifelse(1, 0).cast("int8"),
                item_clicks=(_.clicked & ~_.ordered).ifelse(1, 0).cast("int8"),
            ),
        )
        clicks = rows.filter(_.clicked).select("query", "time", item=_.clicked_items.unnest())
        item = self._numbered(clicks, "item", "owner")
        self.clicks = self.engine.keep(
            "clicks",
            clicks.join(self.query, "query")
            .join(item, "item")
            .group_by("owner", "q")
            .aggregate(last=_.time.max()),
        )
        self.counts["rows"] = self.engine.count(self.events)
        self.counts["visitors"] = self.engine.count(visitor)
        self.engine.drop("visitor", "item")
        self._say(f"read {self.counts['rows']:,} rows of {self.counts['visitors']:,} visitors")

    def without_repeats(self, most: int) -> None:
        """Retain the first `most` rows of each visitor, query and day."""
        key = ["v", "q", "day"]
        rows = self.counts["rows"]
        named = self.engine.total(self.events, "nameless") < rows
        most_nameless = 1 if named else rows  # if nobody is named, all count
        repeated = self.engine.keep(
            "repeated",
            self.events.group_by(key)
            .aggregate(n=_.count(), nameless=_.nameless.max())
            .mutate(counted=(_.nameless == 1).ifelse(most_nameless, most))
            .filter(_.n > _.counted),
        )
        left_out = self.engine.total(repeated, "n") - self.engine.total(repeated, "counted")
        self.counts["repeats_left_out"] = left_out
        if left_out:
            # Rows equal in all of these columns are interchangeable.
            order = [_.time, _.p, _.orders.desc(), _.item_clicks.desc()]
            earliest = first(self.events.semi_join(repeated, key), most, of=key, by=order)
            earliest = earliest.filter((_.nameless == 0) | (_.place == 0))
            counted = self.events.anti_join(repeated, key).union(earliest.drop("place"))
            self.events = self.engine.keep("counted", counted)
            self.engine.drop("events")
            self._say(f"left out {left_out:,} rows: a visitor's beyond {most:,} of one query a day")
        self.engine.drop("repeated")

    def frequent_texts(self, min_users: int) -> None:
        """Tables queries and prefixes: those of enough visitors."""
        self.searches = self.engine.keep(
            "searches",
            self.events.group_by("v", "q").aggregate(
                n=_.count(),
                item_clicks=_.item_clicks.sum(),
                orders=_.orders.sum(),
                last=_.time.max(),
            ),
        )
        queries = self.searches.group_by("q").aggregate(
            count=_.n.sum().cast("int64"),
            users=_.count(),
            item_clicks=_.item_clicks.sum().cast("int64"),
            orders=_.orders.sum().cast("int64"),
            last_ms=_["last"].max(),
        )
        queries = queries.mutate(clicks=_["count"] - _.item_clicks - _.orders)
        self.queries = self._frequent("queries", queries, self.query, "q", min_users)
        self.typed = self.engine.keep(
            "typed", self.events.group_by("p", "q", "v").aggregate(n=_.count())
        )
        self.engine.drop("counted" if self.counts["repeats_left_out"] else "events")
        prefixes = (
            self.typed.group_by("p", "v")
            .aggregate(n=_.n.sum())
            .group_by("p")
            .aggregate(count=_.n.sum().cast("int64"), users=_.count())
        )
        self.prefixes = self._frequent("prefixes", prefixes, self.prefix, "p", min_users)
        self._say(f"{self.counts['queries']:,} queries, {self.counts['prefixes']:,} prefixes")

    def prefix_to_query(self, per_prefix: int, support: float) -> None:
        """Table prefix_query: the queries searched after each prefix that is not empty."""
        self.followed = self.engine.keep(
            "followed",
            self.typed.group_by("p", "q")
            .aggregate(count=_.n.sum().cast("int64"), users=_.count())
            .join(self.prefixes.select("p", "prefix", p_count=_["count"]), "p")
            .join(self.queries.select("q", "query", q_count=_["count"]), "q"),
        )
        count = real(_["count"])
        cosine = count / (real(_.p_count) * real(_.q_count)).sqrt()
        pairs = self.followed.filter(_.prefix != "").mutate(
            score=rounded(count / (count + real(support)) * cosine)
        )
        best = first(pairs, per_prefix, of="p", by=[_.score.desc(), _.q])
        self._write("prefix_query", best, [_.p, _.place])
        self.engine.drop("typed")

    def query_to_query(self, visitors: Caps, items: Caps, alpha: float) -> None:
        """Table query_query: pairs of the frequent queries, by items and by visitors."""
        queries = self.queries.select("q")
        searches = self.searches.select("q", "last", owner=_.v).semi_join(queries, "q")
        parts = []
        for source, relation, caps in (
            ("item", self.clicks.semi_join(queries, "q"), items),
            ("visitor", searches, visitors),
        ):
            best = mine_pairs(self.engine, f"{source}_pairs", relation, caps, alpha)
            parts.append(best.mutate(source=ibis.literal(source)))
            self.counts[f"query_query_{source}"] = self.engine.count(best)
            self._say(f"{self.counts[f'query_query_{source}']:,} query -> query pairs by {source}")
        text = self.queries.select("q", "query")
        pairs = parts[0].union(parts[1]).join(text, "q")
        pairs = pairs.join(text.select(other=_.q, text=_.query), "other")
        pairs = pairs.rename(o="other").rename(other="text")
        self._write("query_query", pairs, [_.q, _.source, _.place], counted=False)
        self.engine.drop("item_pairs", "visitor_pairs", "searches", "clicks")

    def pools(self, pool_size: int) -> None:
        """Table pools: queries searched after a prefix or starting with it, most searched first."""
        queries = self.queries.select("q", "query", "count")
        # The beginnings of every query are joined with the typed prefixes by equality, which needs
        # no scan for each prefix.
        beginnings = queries.mutate(size=ibis.range(0, queries.query.length() + 1).unnest())
        beginnings = beginnings.select("q", "count", prefix=_.query.left(_["size"]))
        completions = beginnings.join(self.prefixes.select("p", "prefix"), "prefix")
        candidates = completions.select("p", "q", "count").union(
            self.followed.select("p", "q", count=_.q_count), distinct=True
        )
        best = first(candidates, pool_size, of="p", by=[_["count"].desc(), _.q])
        best = best.join(self.prefixes.select("p", "prefix"), "p")
        best = best.join(queries.select("q", "query"), "q").mutate(rank=_.place)
        self._write("pools", best, [_.p, _.place])

    def _numbered(self, rows: Any, column: str, number: str) -> Any:
        """The distinct texts of a column, numbered from 0 in byte order."""
        place = ibis.row_number().over(ibis.window(order_by=column)).cast("int32")
        distinct = rows.select(column).distinct()
        return self.engine.keep(column, distinct.mutate(place.name(number)))

    def _frequent(self, name: str, counted: Any, texts: Any, number: str, min_users: int) -> Any:
        """Store and write the texts of `min_users` visitors; count the others."""
        frequent = self.engine.keep(name, counted.filter(_.users >= min_users).join(texts, number))
        rows = self._write(name, frequent, [_[number]])
        used = self.engine.total(frequent, "count")
        singular = {"queries": "query", "prefixes": "prefix"}[name]
        self.counts[f"{name}_left_out"] = self.engine.count(texts) - rows
        all_rows = self.counts["rows"] - self.counts["repeats_left_out"]
        self.counts[f"{singular}_rows_left_out"] = all_rows - used
        return frequent

    def _write(self, name: str, table: Any, order: list[Any], *, counted: bool = True) -> int:
        schema = TABLES[name]
        path = os.path.join(self.folder, file_of(name))
        self.engine.write(table, order, schema, path)
        rows = pq.ParquetFile(path).metadata.num_rows
        if counted:
            self.counts[name] = rows
        self._say(f"wrote {rows:,} rows of {name}")
        return rows


def _text(column: Any) -> Any:
    return ibis.coalesce(column, "")
