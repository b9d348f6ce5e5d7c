"""Every mined table against a reference in plain Python, the caps, privacy, and errors."""

import collections
import itertools
import json
import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs import engines, mining
from onesug_jax.logs.mined import TABLES, read_table
from onesug_jax.logs.mining import mine
from onesug_jax.logs.pairs import UNIT
from onesug_jax.logs.schema import LOG_SCHEMA, Level, request_level
from onesug_jax.logs.simulate import simulate
from onesug_jax.logs.times import DAY_MS
from tests.log_rows import log_row, write_log

DEFAULTS = {
    "min_users": 1,
    "max_repeats": 3,
    "per_prefix": 64,
    "per_query": 32,
    "pool_size": 64,
    "support": 5.0,
    "swing_alpha": 1.0,
    "max_queries_per_visitor": 50,
    "max_visitors_per_query": 50,
    "min_common_visitors": 2,
    "max_queries_per_item": 100,
    "max_items_per_query": 50,
    "min_common_items": 1,
}
# Characters of one to four bytes; in UTF-16 the last two would be in reverse order.
LETTERS = ["a", "b", "手", "机", "e\u0301", "\uffee", "\U0001f600"]


# ------------------------------------------------------------------ the reference


def by_text(text: str) -> bytes:
    return text.encode("utf-8")


def visitor_of(row: dict) -> tuple[int, str]:
    """User, else session, else day; the number sorts them as the letters u, s, n do."""
    if row["user_id"]:
        return 2, row["user_id"]
    if row["session_id"]:
        return 1, row["session_id"]
    return 0, str(row["timestamp_ms"] // DAY_MS)


def oldest_first(row: dict) -> tuple:
    """By time, then by prefix, then by level, highest first."""
    level = request_level(row["clicked_items"], row["ordered_items"])
    return row["timestamp_ms"], by_text(row["prefix"]), -level


def reference(rows: list[dict], **changed) -> dict[str, list[tuple]]:
    """All tables as lists of rows."""
    s = {**DEFAULTS, **changed}
    everything, repeats = rows, collections.Counter()
    rows = []
    for row in sorted(everything, key=oldest_first):
        key = visitor_of(row), row["query"], row["timestamp_ms"] // DAY_MS
        repeats[key] += 1
        if repeats[key] <= (s["max_repeats"] if row["user_id"] or row["session_id"] else 1):
            rows.append(row)
    searches, typed = collections.defaultdict(list), collections.defaultdict(list)
    for row in rows:
        searches[row["query"]].append(row)
        typed[row["prefix"]].append(row)

    def enough(those):
        return len({visitor_of(row) for row in those}) >= s["min_users"]

    searches = {
        query: searches[query] for query in sorted(searches, key=by_text) if enough(searches[query])
    }
    typed = {text: typed[text] for text in sorted(typed, key=by_text) if enough(typed[text])}
    tables = {"queries": [], "prefixes": [], "prefix_query": [], "query_query": [], "pools": []}
    for query, those in searches.items():
        levels = collections.Counter(
            request_level(row["clicked_items"], row["ordered_items"]) for row in those
        )
        counts = (levels[Level.CLICK], levels[Level.ITEM_CLICK], levels[Level.ORDER])
        users = len({visitor_of(row) for row in those})
        last = max(row["timestamp_ms"] for row in those)
        tables["queries"].append((query, len(those), users, *counts, last))
    for prefix, those in typed.items():
        users = len({visitor_of(row) for row in those})
        tables["prefixes"].append((prefix, len(those), users))
        after = collections.defaultdict(list)
        for row in those:
            if row["query"] in searches:
                after[row["query"]].append(row)
        pairs = []
        for query, seen in after.items():
            n = len(seen)
            score = n / (n + s["support"]) * n / math.sqrt(len(those) * len(searches[query]))
            pairs.append((prefix, query, n, len({visitor_of(row) for row in seen}), score))
        if prefix:
            # Scores equal to nine decimals, as they are written, are ordered by text.
            pairs.sort(key=lambda pair: (-round(pair[4], 9), by_text(pair[1])))
            tables["prefix_query"] += pairs[: s["per_prefix"]]
        pool = {*after, *(query for query in searches if query.startswith(prefix))}
        pool = sorted(pool, key=lambda query: (-len(searches[query]), by_text(query)))
        for rank, query in enumerate(pool[: s["pool_size"]]):
            tables["pools"].append((prefix, query, rank, len(searches[query])))

    visitors, items = {}, {}
    for row in everything:  # the relations are sets, so repeats have no effect
        if row["query"] in searches:
            for owner, relation in [(visitor_of(row), visitors)] + [
                (item, items) for item in row["clicked_items"]
            ]:
                key = owner, row["query"]
                relation[key] = max(relation.get(key, 0), row["timestamp_ms"])
    of_item = pairs_of(
        items, s, s["max_queries_per_item"], s["max_items_per_query"], s["min_common_items"]
    )
    of_visitor = pairs_of(
        visitors,
        s,
        s["max_queries_per_visitor"],
        s["max_visitors_per_query"],
        s["min_common_visitors"],
    )
    for query in searches:
        for source, pairs in (("item", of_item), ("visitor", of_visitor)):
            for other, swing, itemcf, users in pairs[query]:
                tables["query_query"].append((query, other, source, swing, itemcf, users))
    return tables


def pairs_of(relation: dict, s: dict, most_queries: int, most_owners: int, least: int) -> dict:
    """Best related queries of every query: [(other, swing, itemcf, users)]."""
    queries_of = collections.defaultdict(list)
    for (owner, query), last in relation.items():
        queries_of[owner].append((-last, by_text(query), query))
    seen = {owner: -min(those)[0] for owner, those in queries_of.items()}
    last = {
        owner: {query for *_, query in sorted(those)[:most_queries]}
        for owner, those in queries_of.items()
    }
    owners_of = collections.defaultdict(set)
    for owner, queries in last.items():
        for query in queries:
            owners_of[query].add(owner)
    latest = {
        query: set(sorted(owners, key=lambda owner: (-seen[owner], owner))[:most_owners])
        for query, owners in owners_of.items()
    }
    best = collections.defaultdict(list)
    for i, j in itertools.permutations(owners_of, 2):
        common = owners_of[i] & owners_of[j]
        if len(common) < least:
            continue
        itemcf = sum(1 / math.log(1 + len(last[u])) for u in common)
        itemcf /= math.sqrt(len(owners_of[i]) * len(owners_of[j]))
        swing = 0.0
        for u, v in itertools.combinations(latest[i] & latest[j], 2):
            shared = sum(u in latest[query] and v in latest[query] for query in last[u] & last[v])
            weights = 1 / math.sqrt(len(last[u])) / math.sqrt(len(last[v]))
            swing += weights / (s["swing_alpha"] + shared)
        best[i].append((j, swing, itemcf, len(common)))
    for pairs in best.values():
        pairs.sort(key=lambda pair: (-round(pair[1], 8), -round(pair[2], 8), by_text(pair[0])))
        del pairs[s["per_query"] :]
    return best


# ------------------------------------------------------------------ small logs


def make_rows(seed: int, count: int = 300, users: int = 25, items: int = 15) -> list[dict]:
    rng = random.Random(seed)
    texts = sorted({"".join(rng.choices(LETTERS, k=rng.randint(1, 4))) for _ in range(30)})
    rows = []
    for number in range(count):
        query = texts[min(int(rng.expovariate(0.15)), len(texts) - 1)]
        clicked = rng.sample([f"i{n}" for n in range(items)], rng.choice([0, 0, 1, 2]))
        rows.append(
            log_row(
                number,
                query,
                # The same name as user and as session is two different visitors.
                user_id=rng.choice(["", *(f"n{n}" for n in range(users))]),
                session_id=rng.choice(["", "n1", "n2"]),
                # Many at the same time, on two days.
                timestamp_ms=1_700_000_000_000 + rng.randint(0, 60) + rng.choice([0, DAY_MS]),
                prefix=rng.choice(["", query[:1], query[:2], query, rng.choice(LETTERS)]),
                clicked_items=clicked,
                ordered_items=clicked[: rng.choice([0, 0, 1])],
            )
        )
    return rows


def mined(tmp_path, rows: list[dict], **settings) -> dict[str, list[tuple]]:
    mine(write_log(tmp_path / "train.parquet", rows), str(tmp_path / "mined"), **settings)
    return tables_in(tmp_path / "mined")


def tables_in(folder) -> dict[str, list[tuple]]:
    return {
        name: [tuple(row.values()) for row in read_table(str(folder), name).to_pylist()]
        for name in TABLES
    }


def assert_same(found: dict, expected: dict) -> None:
    for name, rows in expected.items():
        assert len(found[name]) == len(rows), name
        for one, other in zip(found[name], rows, strict=True):
            numbers = [x for x in one if isinstance(x, float)]
            assert [x for x in one if not isinstance(x, float)] == [
                x for x in other if not isinstance(x, float)
            ], name
            assert numbers == pytest.approx(
                [x for x in other if isinstance(x, float)], rel=1e-6, abs=2e-9
            ), name


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_users": 3, "support": 0.0, "min_common_visitors": 1},
        {"per_prefix": 2, "per_query": 3, "pool_size": 4, "swing_alpha": 0.0},
        {"max_queries_per_visitor": 4, "max_visitors_per_query": 3, "min_common_items": 2},
        {"max_queries_per_item": 3, "max_items_per_query": 2, "min_common_visitors": 1},
        {"max_repeats": 2, "min_users": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [1, 2])
def test_tables_equal_a_reference_in_plain_python(tmp_path, seed, settings):
    rows = make_rows(seed)
    expected = reference(rows, **settings)
    assert all(expected.values())
    assert any(row[3] > 0 for row in expected["query_query"])
    assert_same(mined(tmp_path, rows, **settings), expected)


def test_a_large_relation_is_joined_in_parts_with_the_same_result(tmp_path, monkeypatch):
    rows = make_rows(1)
    monkeypatch.setattr(engines, "ROWS_A_PART", 40)
    assert_same(mined(tmp_path, rows), reference(rows))


def row(number: int, query: str, prefix: str = "", **changed) -> dict:
    time = 1_700_000_000_000 + number
    given = {"user_id": f"n{number}", "timestamp_ms": time, "prefix": prefix, **changed}
    return log_row(number, query, **given)


def test_swing_and_itemcf_by_hand(tmp_path):
    searches = {"n1": ["tea", "cup"], "n2": ["tea", "cup", "pot"]}
    rows = [
        row(number, query, user_id=user)
        for number, (user, query) in enumerate((u, q) for u, qs in searches.items() for q in qs)
    ]
    found = mined(tmp_path, rows, swing_alpha=2.0)["query_query"]
    # Two people with 2 and 3 queries, 2 in common: 1/sqrt(2) * 1/sqrt(3) / (2 + 2).
    swing = 1 / math.sqrt(6) / 4
    itemcf = (1 / math.log(3) + 1 / math.log(4)) / 2
    assert [pair[:3] for pair in found] == [("cup", "tea", "visitor"), ("tea", "cup", "visitor")]
    for pair in found:
        assert pair[3:] == pytest.approx((swing, itemcf, 2), abs=1e-9)


def test_rare_texts_are_in_no_table(tmp_path):
    # Many searches of one person are one visitor.
    rows = [row(n, "my secret", "my", user_id="one", clicked_items=["i"]) for n in range(9)]
    rows += [row(n, "tea", "te", clicked_items=["i"]) for n in range(10, 13)]
    rows += [row(20, "tea", "tea for", user_id="one"), row(21, "tea", "tea for", user_id="one")]
    settings = {"min_users": 2, "max_repeats": 9}
    report = mine(write_log(tmp_path / "t", rows), str(tmp_path / "mined"), **settings)
    every = repr(tables_in(tmp_path / "mined"))
    assert "secret" not in every and "'my'" not in every and "tea for" not in every
    assert "'tea'" in every
    assert (report.queries, report.queries_left_out, report.query_rows_left_out) == (1, 1, 9)
    assert (report.prefixes, report.prefixes_left_out, report.prefix_rows_left_out) == (1, 2, 11)


@pytest.mark.long
def test_a_robot_cannot_make_a_query_popular(tmp_path):
    """Only the first `max_repeats` of a thousand searches of one visitor count, in all tables."""
    robot = [
        row(n, "ads", "ad" if n < 5 else "a", user_id="robot", clicked_items=["i"] * (n < 4))
        for n in range(1, 1004)
    ]
    people = [row(2000 + n, "apple", "a") for n in range(6)]
    settings = {"max_repeats": 5, "min_users": 1}
    report = mine(write_log(tmp_path / "t", robot + people), str(tmp_path / "mined"), **settings)
    tables = tables_in(tmp_path / "mined")
    assert [found[:5] for found in tables["queries"]] == [
        ("ads", 5, 1, 2, 3),
        ("apple", 6, 6, 6, 0),
    ]
    assert tables["prefixes"] == [("a", 7, 7), ("ad", 4, 1)]
    assert [pool[1] for pool in tables["pools"] if pool[0] == "a"] == ["apple", "ads"]
    assert [(pair[:3]) for pair in tables["prefix_query"] if pair[0] == "a"] == [
        ("a", "apple", 6),
        ("a", "ads", 1),
    ]
    assert (report.rows, report.repeats_left_out, report.query_rows_left_out) == (1009, 998, 0)
    assert mine(str(tmp_path / "t"), str(tmp_path / "all")).repeats_left_out == 1000


def test_nameless_rows_of_a_day_are_one_visitor(tmp_path):
    rows = [row(n, "forged", "f", user_id="") for n in range(50)]
    rows += [
        row(99, "late", user_id="", timestamp_ms=1_700_000_000_000 + n * DAY_MS) for n in (0, 1)
    ]
    tables = mined(tmp_path, rows, min_users=2)
    assert [found[:3] for found in tables["queries"]] == [("late", 2, 2)]


def test_tables_are_empty_if_no_text_has_enough_visitors(tmp_path):
    report = mine(
        write_log(tmp_path / "t", make_rows(3)),
        str(tmp_path / "mined"),
        min_users=999,
        max_repeats=999,
    )
    for name, schema in TABLES.items():
        table = read_table(str(tmp_path / "mined"), name)
        assert table.num_rows == 0 and table.schema.equals(schema)
    assert report.query_rows_left_out == report.prefix_rows_left_out == report.rows == 300


def test_the_order_of_rows_does_not_matter(tmp_path):
    rows = make_rows(4)
    settings = {"max_queries_per_visitor": 3, "max_visitors_per_query": 3, "per_query": 2}
    (tmp_path / "again").mkdir()
    tables = mined(tmp_path, rows, **settings)
    random.Random(0).shuffle(rows)
    assert mined(tmp_path / "again", rows, **settings) == tables


def test_a_simulated_log_and_its_report(tmp_path):
    simulate(str(tmp_path), requests=4000, language="zh", seed=2)
    report = mine(str(tmp_path / "train.parquet"), str(tmp_path / "mined"), min_users=2)
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    tables = tables_in(tmp_path / "mined")
    counted = {query: count for query, count, *_ in tables["queries"]}
    assert report.repeats_left_out > 0
    left_out = report.query_rows_left_out + report.repeats_left_out
    assert report.rows == len(rows) == sum(counted.values()) + left_out
    assert report.visitors == len({row["user_id"] for row in rows})
    for name in ("queries", "prefixes", "prefix_query", "pools"):
        assert getattr(report, name) == len(tables[name]) > 0
    assert report.query_query_item + report.query_query_visitor == len(tables["query_query"])
    assert json.loads((tmp_path / "mined" / "report.json").read_text()) == vars(report)
    for prefix, query, _, count in tables["pools"]:
        assert counted[query] == count and prefix in {p for p, *_ in tables["prefixes"]}


def test_sums_neither_overflow_nor_lose_small_terms():
    largest = 1 / math.log(2)
    assert 10**7 * largest * UNIT < 2**63  # a pair with ten million visitors in common
    # The smallest Swing term of two owners at a generous cap is still exact to a millionth.
    assert 1 / (1000 * 1001) * UNIT > 5e4


def test_other_files_stay_and_a_failed_run_leaves_the_tables_unchanged(tmp_path, monkeypatch):
    out = tmp_path / "mined"
    out.mkdir()
    (out / "_manifest.json").write_text("{}")
    before = mined(tmp_path, make_rows(5))
    files = sorted(path.name for path in out.iterdir())
    assert files == sorted(["_manifest.json", "report.json", *(f"{n}.parquet" for n in TABLES)])

    def fail(*_):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(mining._Mining, "pools", fail)
    with pytest.raises(RuntimeError):
        mined(tmp_path, make_rows(6))
    assert sorted(path.name for path in out.iterdir()) == files
    assert tables_in(out) == before


def test_wrong_logs_are_named(tmp_path):
    out = str(tmp_path / "mined")
    with pytest.raises(UserError, match="nowhere.*Parquet"):
        mine(str(tmp_path / "nowhere"), out)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="text.*Parquet"):
        mine(str(tmp_path / "text"), out)
    with pytest.raises(UserError, match="t: expected rows.*none"):
        mine(write_log(tmp_path / "t", []), out)
    table = pa.Table.from_pylist([row(1, "tea")], LOG_SCHEMA)
    pq.write_table(table.drop_columns(["clicked_items"]), tmp_path / "t")
    with pytest.raises(UserError, match="'clicked_items' is missing.*ingest"):
        mine(str(tmp_path / "t"), out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_users": 0}, "min_users.*at least 1, found 0"),
        ({"max_visitors_per_query": -1}, "max_visitors_per_query"),
        ({"swing_alpha": -0.5}, "swing_alpha.*from 0 up"),
        ({"support": float("nan")}, "support.*nan"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        mined(tmp_path, [row(1, "tea")], **settings)
    assert not list((tmp_path / "mined").glob("*"))


def test_wrong_settings_of_the_engine_are_named():
    with pytest.raises(UserError, match="ENGINE = 'postgres'.*duckdb, spark"):
        engines.LogEngineConfig("postgres")
    with pytest.raises(UserError, match="memory_limit='lots'"):
        engines.LogEngineConfig(memory_limit="lots")


def test_too_little_memory_is_named(tmp_path):
    with pytest.raises(UserError, match="memory_limit = '1MB'.*scratch"):
        mined(tmp_path, make_rows(1), engine=engines.LogEngineConfig(memory_limit="1MB"))
    assert not list((tmp_path / "mined").glob("*"))
