"""Replay: each request is answered from the state of its moment and then updates the state."""

import collections
import dataclasses
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.evaluate import baselines, evaluator
from onesug_jax.evaluate.replay import replay, settings_at
from onesug_jax.logs.asof.config import DAY_MS, AsOfConfig
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.asof.walk import read_events, skip
from onesug_jax.logs.schema import LOG_SCHEMA
from onesug_jax.stages import held_state

START = 1_700_000_000_000
HOUR = 3_600_000
WORDS = ["lace", "lamp", "lantern", "lap", "table", "tablet"]


@pytest.fixture
def log(tmp_path):
    """Train and dev files; one query of dev is not in train."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(240):
        query = WORDS[rng.integers(0, 6)] if n < 160 else [*WORDS, "lute"][rng.integers(0, 7)]
        row = dict.fromkeys(LOG_SCHEMA.names)
        row |= {"request_id": f"r{n}", "user_id": f"u{rng.integers(9)}", "query": query}
        row |= {"timestamp_ms": START + n * HOUR // 3, "prefix": query[: rng.integers(3)]}
        rows.append(row | {"ordered_items": ["i"] * int(rng.integers(2))})
    dev = rows[160:]
    for name, part in (("train", rows[:160]), ("dev", dev)):
        table = pa.Table.from_pylist(part, LOG_SCHEMA)
        pq.write_table(
            table.append_column("age", pa.array([row["user_id"] for row in part])),
            tmp_path / f"{name}.parquet",
        )
    return rows, dev, [str(tmp_path / f"{name}.parquet") for name in ("train", "dev")]


def replayed(files, freshness="1m", **options):
    config, frozen = settings_at(AsOfConfig(few=0, new_share=0), freshness)
    state = AsOf(WORDS, config)
    rivals = baselines.as_of(state.text, config)
    options = {"suggesters": rivals, "progress": False, "block": 16} | options
    return replay(state, files, files[1], frozen=frozen, **options)


@pytest.mark.parametrize("freshness, delay", [("1m", 60_000), ("12h", 12 * HOUR), ("inf", None)])
def test_lists_are_the_most_searched_before_each_request(log, freshness, delay):
    rows, dev, files = log
    table = replayed(files, freshness).to_pylist()
    assert [one["request_id"] for one in table] == [row["request_id"] for row in dev]
    cut = rows[160]["timestamp_ms"]
    for one, row in zip(table, dev, strict=True):
        time = row["timestamp_ms"]
        seen = [r for r in rows if r["timestamp_ms"] < (cut if delay is None else time - delay)]
        of_day = collections.Counter(
            (r["query"], r["user_id"], r["timestamp_ms"] // DAY_MS) for r in seen
        )
        counts = collections.Counter()
        for (query, *_), times in of_day.items():
            counts[query] += min(times, AsOfConfig().max_repeats)
        found = one[f"list_{baselines.NOW}"]
        assert set(found) == {q for q in counts if q.startswith(row["prefix"])}
        searched = [counts[q] for q in found]
        assert searched == sorted(searched, reverse=True)
        assert one["new"] == (row["query"] not in counts)
        assert one["candidate"] == (row["query"] in found)
        past = [r for r in rows if r["user_id"] == row["user_id"] and r["timestamp_ms"] < time]
        assert one["history"] == len({r["query"] for r in past} & set(counts))
    scores = evaluator.summarise(pa.Table.from_pylist(table))
    news = [one["rank_searches_3d"] for one in table if one["new"]]
    assert scores["searches_3d"]["new_query"]["n"] == len(news) > 0 == max(news)
    assert scores["searches_3d"]["new_query"]["recall"] == 0
    recalled = np.mean([one["candidate"] for one in table])
    assert scores["searches_3d"]["all"]["recall"] == 100 * recalled > 0


def test_batches_and_processes_change_nothing(log):
    _, _, files = log
    whole = replayed(files)
    assert whole.equals(replayed(files, block=7))
    parts = [replayed(files, process=(number, 3)) for number in range(3)]
    assert all(0 < part.num_rows < whole.num_rows for part in parts)
    assert evaluator.merge_parts(parts).equals(whole)
    some = whole.take(list(range(0, whole.num_rows, 3)))
    assert replayed(files, sample=30).equals(some), "80 rows: every third"


@pytest.mark.parametrize("changed", ["", "freshness", "queries", "log", "train", "damaged"])
def test_a_stored_state_gives_the_lists_of_a_replay_from_the_start(log, tmp_path, changed):
    _, _, files = log
    config, _ = settings_at(AsOfConfig(few=0, new_share=0), "1m")
    path = str(tmp_path / "stored")
    walked = AsOf(WORDS, dataclasses.replace(config, candidates=3))
    skip(walked, held_state.storing(read_events(files), walked, files, path), lambda event: True)
    if changed == "freshness":
        config, _ = settings_at(config, "2m")
    if changed == "log":
        pq.write_table(pq.read_table(files[1]).slice(1), files[1])
    if changed == "damaged":
        with open(path, "r+b") as stored:
            stored.truncate(os.path.getsize(path) - 9)
    state = AsOf(WORDS[1:] if changed == "queries" else WORDS, config)
    first = held_state.restore(state, path, files, files[changed != "train"])
    if changed:
        assert first is None and state.latest_ms == 0
        return
    assert first == [160, 0] and state.config == config
    rivals = baselines.as_of(state.text, config)
    found = replay(state, files, files[1], rivals, first=first, progress=False)
    assert found.equals(replayed(files))


def test_requests_hold_the_as_of_items_and_the_profile(log):
    _, dev, files = log
    seen = []
    options = {"suggesters": {"none": lambda requests: [seen.append(r) or [] for r in requests]}}
    assert replayed(files, **options).num_rows == len(dev)
    by_time = sorted(dev, key=lambda row: row["timestamp_ms"])
    assert [request.profile for request in seen] == [(row["user_id"],) for row in by_time]
    assert all(request.items.candidates.any() for request in seen)
    assert any(request.history for request in seen)


def test_precomputed_lists_are_a_rival_and_must_be_complete(log):
    _, dev, files = log
    lists = {row["request_id"]: [row["query"]] for row in dev}
    table = replayed(files, listed={"best possible": lists})
    assert set(table["rank_best possible"].to_pylist()) == {1}
    orders = {row["request_id"]: ["lace", row["query"]] for row in dev}
    orders |= {row["request_id"]: ["lamp", "lace"] for row in dev if row["query"] == "lace"}
    both = replayed(files, listed={"best possible": lists, "best possible_order": orders})
    scores = evaluator.summarise(both)
    assert list(scores)[-1] == "best possible", "the lists for orders are not a suggester"
    assert scores["best possible"]["all"]["mrr@16"] == 100.0
    assert scores["best possible"]["order"]["mrr@16"] == 50.0
    assert evaluator.headline(both, ["best possible"])["best possible"][3][0] == 50.0
    del lists[dev[5]["request_id"]]
    with pytest.raises(UserError, match=dev[5]["request_id"]):
        replayed(files, listed={"best possible": lists})


@dataclasses.dataclass
class Written:
    text: str
    score: float
    written: bool


def test_queries_that_the_model_wrote_are_counted(log):
    _, dev, files = log

    def suggest(requests):
        ours = [("lace", False), ("", True)]
        return [
            [
                Written(t or f"lace {r.profile[0]}", 0, own and r.profile[0] < "u4")
                for t, own in ours
            ]
            for r in requests
        ]

    table = replayed(files, suggesters={"model": suggest, "plain": lambda rs: [["a"] for _ in rs]})
    scores = evaluator.summarise(table, plausible=lambda query: query != "lace u0")
    few = [row["user_id"] for row in dev if row["user_id"] < "u4"]
    own = scores["model"]["all"]
    assert own["written"] == pytest.approx(100 * len(few) / len(dev))
    assert own["written_plausible"] == pytest.approx(100 * np.mean([user != "u0" for user in few]))
    assert "written" not in scores["plain"]["all"]


def test_the_best_half_life_is_the_one_with_the_highest_metric():
    scores = {"searches_3d": 3.0, "searches_14d": 4.0, "most_popular_now": 9.0, "model": 9.0}
    metrics = {name: {"all": {"mrr@16": value}} for name, value in scores.items()}
    assert baselines.best_decayed(metrics) == "searches_14d"
    assert baselines.best_decayed({"model": metrics["model"]}) is None


def test_a_split_that_is_not_of_the_log_or_empty_is_an_error(log, tmp_path):
    _, _, files = log
    with pytest.raises(UserError, match="one of the log files"):
        replay(AsOf([]), files[:1], files[1], {})
    empty = str(tmp_path / "empty.parquet")
    pq.write_table(pq.read_table(files[1]).slice(0, 0), empty)
    with pytest.raises(UserError, match="at least one row"):
        replay(AsOf([]), [files[0], empty], empty, {})


@pytest.mark.parametrize("name, expected", [("shoplog_live", 67.27), ("shoplog_en_small", 65.26)])
def test_figures_of_the_optional_logs(shared_data, name, expected):
    files = [str(shared_data / name / f"{split}.parquet") for split in ("train", "dev")]
    config = AsOfConfig()
    queries = set(pq.read_table(files[0], columns=["query"])["query"].to_pylist())
    state = AsOf(sorted(query.strip().lower() for query in queries), config)
    suggest = baselines.most_counted(state.text, config.columns.index("searches_3d"))
    rows = replay(state, files, files[1], {"searches_3d": suggest}, progress=False)
    scores = evaluator.summarise(rows)["searches_3d"]["all"]
    assert scores["mrr@16"] == pytest.approx(expected, abs=0.1)
