"""The evaluator: every row, in order, in the right slices; named errors."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.evaluate import evaluator
from onesug_jax.evaluate.evaluator import SliceSpec
from onesug_jax.logs import schema

TEXTS = [f"query {i}" for i in range(30)]
PREFIXES = ["q", "qu", "que", "quer", "query 1", "query 12", ""]

MINUTES = pa.list_(pa.float32())


def make_split(rows: int, seed: int = 0) -> list[pa.RecordBatch]:
    rng = np.random.default_rng(seed)
    table = pa.Table.from_pylist(
        [
            {
                "request_id": f"r{i}",
                "user_id": "u",
                "session_id": "s",
                "timestamp_ms": i,
                "prefix": PREFIXES[rng.integers(7)],
                "shown": [],
                "query": TEXTS[rng.integers(30)],
                "clicked_position": None,
                "clicked_items": ["i"] * int(rng.integers(2)),
                "ordered_items": ["i"] * int(rng.integers(2)),
            }
            for i in range(rows)
        ],
        schema=schema.LOG_SCHEMA,
    )
    recent = [TEXTS[: rng.integers(4)] for _ in range(rows)]
    table = table.append_column("age", pa.array([f"age {i}" for i in range(rows)]))
    table = table.append_column(schema.RECENT, pa.array(recent, pa.list_(pa.string())))
    minutes = pa.array([[2.0 * i for i in range(len(one))] for one in recent], MINUTES)
    table = table.append_column(schema.RECENT_MINUTES, minutes)
    return table.to_batches(max_chunksize=37)


def shuffled(requests):
    """Lists that depend on the request, so that exchanged rows change the ranks."""
    seeds = [len(r.prefix) + 7 * int(r.profile[0][4:]) for r in requests]
    return [np.random.default_rng(seed).permutation(TEXTS)[:20].tolist() for seed in seeds]


COUNTS = {"q": 50, "qu": 10, "que": 9, "quer": 1}


def test_every_row_is_scored_in_order_and_in_its_slices():
    batches = make_split(500)
    seen = []

    def suggest(requests):
        assert 0 < len(requests) <= 64
        seen.extend(requests)
        return shuffled(requests)

    result = evaluator.evaluate(
        batches, {"model": suggest}, prefix_counts=COUNTS, block=64, slices=SliceSpec(frequent=10)
    )
    rows = pa.Table.from_batches(batches).to_pylist()
    assert [r.profile for r in seen] == [(row["age"],) for row in rows]
    assert [list(r.history) for r in seen] == [row["recent"] for row in rows]
    lists = [texts[:16] for texts in shuffled(seen)]
    assert result.rows["request_id"].to_pylist() == [row["request_id"] for row in rows]
    assert result.rows["list_model"].to_pylist() == lists

    members = {
        "all": lambda r: True,
        "order": lambda r: r["ordered_items"],
        "item_click": lambda r: r["clicked_items"] and not r["ordered_items"],
        "click": lambda r: not r["clicked_items"] and not r["ordered_items"],
        "prefix_0": lambda r: r["prefix"] == "",
        "prefix_1": lambda r: len(r["prefix"]) == 1,
        "prefix_2_3": lambda r: 2 <= len(r["prefix"]) <= 3,
        "prefix_4_7": lambda r: 4 <= len(r["prefix"]) <= 7,
        "prefix_8+": lambda r: len(r["prefix"]) >= 8,
        "frequent": lambda r: r["prefix"] in ("q", "qu"),
        "rare": lambda r: r["prefix"] in ("que", "quer"),
        "unseen": lambda r: r["prefix"] in ("query 1", "query 12", ""),
        "with_history": lambda r: r["recent"],
        "no_history": lambda r: not r["recent"],
    }
    assert set(result.metrics["model"]) == set(members)
    for label, member in members.items():
        pairs = [(r["query"], t) for r, t in zip(rows, lists, strict=True) if member(r)]
        scores = result.metrics["model"][label]
        hits = [q in texts for q, texts in pairs]
        reciprocal = [1 / (1 + t.index(q)) if q in t else 0 for q, t in pairs]
        top10 = [q in texts[:10] for q, texts in pairs]
        assert scores["n"] == len(pairs) > 0
        assert scores["hr@16"] == pytest.approx(100 * np.mean(hits))
        assert scores["mrr@16"] == pytest.approx(100 * np.mean(reciprocal))
        assert scores["success@10"] == pytest.approx(100 * np.mean(top10))


def test_blocks_of_any_size_and_any_number_of_processes_give_the_same_table():
    batches = make_split(150)
    suggesters = {"a": shuffled, "b": lambda requests: [[r.prefix] for r in requests]}
    expected = evaluator.score_rows(batches, suggesters, prefix_counts={}, progress=False)
    for processes, block in ((1, 1), (2, 16), (3, 7), (5, 64)):
        parts = [
            evaluator.score_rows(
                batches,
                suggesters,
                prefix_counts={},
                block=block,
                process=(index, processes),
                progress=False,
            )
            for index in range(processes)
        ]
        assert sum(part.num_rows for part in parts) == 150
        assert evaluator.merge_parts(parts[::-1]).equals(expected.combine_chunks())
    for wrong in (parts[1:], [*parts, parts[0]]):
        with pytest.raises(ValueError, match="missing or repeated rows"):
            evaluator.merge_parts(wrong)


def test_a_hit_is_an_exact_match_after_normalisation():
    batch = make_split(1)[0]
    batch = batch.set_column(
        batch.schema.get_field_index("query"), "query", pa.array(["lego star"])
    )
    for text, hit in (("LEGO  Ｓtar ", 100.0), ("lego stars", 0.0), ("legostar", 0.0)):
        suggest = lambda requests, text=text: [["other", text]]  # noqa: E731
        result = evaluator.evaluate([batch], {"model": suggest}, prefix_counts={})
        assert result.metrics["model"]["all"]["hr@16"] == hit
        assert result.metrics["model"]["all"]["mrr@16"] == hit / 2


class Context:
    def related(self, prefixes):
        return [[p + "!"] for p in prefixes]

    def vectors(self, prefixes):
        return np.array([[len(p)] for p in prefixes], np.float32)


def test_all_inputs_of_a_request_reach_the_suggester():
    def suggest(requests):
        assert all(r.related == (r.prefix + "!",) for r in requests)
        assert all(r.vector.tolist() == [len(r.prefix)] for r in requests)
        return [[] for _ in requests]

    batches = make_split(20)
    result = evaluator.evaluate(batches, {"model": suggest}, prefix_counts={}, context=Context())
    assert result.metrics["model"]["all"]["n"] == 20
    assert result.metrics["model"]["all"]["answered"] == 0.0


def test_empty_slices_have_no_scores():
    result = evaluator.evaluate(
        make_split(1), {"model": lambda requests: [[]]}, prefix_counts={}, indexed=4
    )
    for label, scores in result.metrics["model"].items():
        if scores["n"] == 0:
            assert scores["hr@16"] is None and scores["mrr@10"] is None, label
    assert result.metrics["model"]["all"]["coverage"] == 0.0


@pytest.mark.parametrize(
    "suggest, message",
    [
        (lambda requests: [[]] * (len(requests) - 1), "'broken' gave 4 lists for 5"),
        (
            lambda requests: [["a", "b", " A"]] * len(requests),
            "'broken' gave 'a' more than once.*r0",
        ),
    ],
)
def test_a_broken_suggester_is_named(suggest, message):
    with pytest.raises(ValueError, match=message):
        evaluator.evaluate(make_split(5), {"fine": shuffled, "broken": suggest}, prefix_counts={})


def test_a_split_without_rows_or_columns_is_named():
    with pytest.raises(UserError, match="at least one row"):
        evaluator.evaluate(make_split(1)[0:0], {"model": shuffled}, prefix_counts={})
    with pytest.raises(UserError, match="no recent"):
        evaluator.evaluate(
            [make_split(1)[0].drop_columns(["recent"])], {"model": shuffled}, prefix_counts={}
        )


def test_prefix_counts(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"prefix": ["a", "b", "a", "a "] * 40_000}), path)
    assert evaluator.prefix_counts(str(path)) == {"a": 80_000, "b": 40_000, "a ": 40_000}
    with pytest.raises(UserError, match="run ingest"):
        evaluator.prefix_counts(str(tmp_path / "other.parquet"))
