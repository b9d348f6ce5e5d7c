"""Pairs from mined tables, recall against brute force, alignment and its saved encoder."""

import dataclasses
import json
import os
from collections import Counter

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.text_encoder import alignment, pairs
from onesug_jax.text_encoder.alignment import align, batches, recall
from onesug_jax.text_encoder.encoder import EncoderSpec, TextEncoder
from onesug_jax.train.history import read_history
from onesug_jax.train.mesh import make_mesh
from onesug_jax.train.optimizer import make_optimizer

SPEC = EncoderSpec(
    vocab_size=150, min_count=2, d_model=16, layers=1, heads=2, d_ff=32, max_length=12, dropout=0.0
)
COLOURS = ["red", "blue", "green", "black", "white", "grey", "pink", "brown", "gold", "silver"]
THINGS = ["shoes", "lamp", "table", "phone case", "手机壳", "coat", "shirt", "sofa", "bag", "watch"]
THINGS += ["socks", "pillow", "desk", "mug", "belt", "ring"]
QUERIES = sorted(f"{colour} {thing}" for colour in COLOURS for thing in THINGS)


def write(folder, queries, prefix_query, query_query):
    """Mined tables with rows (query, count), (prefix, query, count) and (query, other, users)."""
    os.makedirs(folder, exist_ok=True)
    for name, columns, rows in (
        ("queries", ("query", "count"), queries),
        ("prefix_query", ("prefix", "query", "count"), prefix_query),
        ("query_query", ("query", "other", "users"), query_query),
    ):
        *texts, count = columns
        schema = pa.schema({**dict.fromkeys(texts, pa.string()), count: pa.int64()})
        table = [dict(zip(columns, row, strict=True)) for row in sorted(rows)]
        pq.write_table(pa.Table.from_pylist(table, schema), f"{folder}/{name}.parquet")
    return str(folder)


def all_rows():
    prefix_query, query_query = [], []
    for number, query in enumerate(QUERIES):
        for length in range(2, len(query) + 1):
            prefix_query.append((query[:length], query, 1 + number % 5))
        for other in QUERIES:
            if other != query and other.split()[0] == query.split()[0]:
                query_query.append((query, other, 2))
    return [(query, 10) for query in QUERIES], sorted(set(prefix_query)), query_query


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mined"), *all_rows())


@pytest.fixture(scope="module")
def read(mined):
    return pairs.read_pairs(mined)


def run(mined, out, steps, **more):
    return align(
        mined,
        str(out),
        mesh=make_mesh(devices=jax.devices()[:1]),
        optimizer=make_optimizer("adamw", 1e-2, 0, "none"),
        seed=3,
        spec=SPEC,
        steps=steps,
        **{"batch_size": 32, "held_out": 0.15, **more},
    )


# ------------------------------------------------------------------ pairs


def test_pairs_are_the_rows_of_the_tables_whose_texts_differ(read):
    texts, found = read
    _, prefix_query, query_query = all_rows()
    for kind, rows in (("prefix", prefix_query), ("query", query_query)):
        drawn = zip(
            texts.take(found[kind].anchors),
            texts.take(found[kind].others),
            found[kind].counts.tolist(),
            strict=True,
        )
        assert Counter(drawn) == Counter(row for row in rows if row[0].rstrip() != row[1])
    assert texts.queries == len(QUERIES)
    assert any(p.endswith(" ") for p in texts.take(np.arange(len(QUERIES), len(texts))))


def test_groups_join_texts_that_differ_by_spaces_at_the_end(tmp_path):
    folder = write(
        tmp_path,
        [("nike", 1), ("nike shoes", 1)],
        [("nike", "nike shoes", 1), ("nike ", "nike", 2), ("nike ", "nike shoes", 3)],
        [],
    )
    texts, found = pairs.read_pairs(folder)
    assert texts.take(np.arange(4)) == ["nike", "nike shoes", "nike", "nike "]
    assert texts.groups[0] == texts.groups[2] == texts.groups[3] != texts.groups[1]
    assert len(found["prefix"]) == 2  # without "nike " -> "nike"
    assert len(found["query"]) == 0


def test_held_out_texts_are_not_trained_on(read):
    texts, found = read
    train, dev = pairs.split(texts, found, 0.2)
    held = {texts.groups[n] for kind in pairs.KINDS for n in dev[kind].anchors}
    assert held and not held & {texts.groups[n] for k in pairs.KINDS for n in train[k].anchors}
    assert not held & {texts.groups[n] for n in train["query"].others}
    assert len(train["prefix"]) + len(dev["prefix"]) == len(found["prefix"])
    assert 0.05 < len(held) / len(set(texts.groups.tolist())) < 0.4
    none, nothing = pairs.split(texts, found, 0.0)
    assert len(none["query"]) == len(found["query"]) and len(nothing["query"]) == 0
    with pytest.raises(UserError, match="held_out=1"):
        pairs.split(texts, found, 1.0)


def test_a_sample_is_a_fixed_part_of_the_pairs(read):
    _, found = read
    few = pairs.sample(found["query"], 50)
    assert few.digest() == pairs.sample(found["query"], 50).digest()
    rows = set(zip(found["query"].anchors, found["query"].others, strict=True))
    chosen = list(zip(few.anchors, few.others, strict=True))
    assert len(set(chosen)) == 50 and set(chosen) <= rows
    assert pairs.sample(found["query"], 10**6) is found["query"]


def test_draws_are_a_function_of_seed_and_step(read):
    texts, found = read
    draw = pairs.Draw(found, 40, 0.25, "sqrt", seed=1)
    np.testing.assert_array_equal(draw(5), pairs.Draw(found, 40, 0.25, "sqrt", seed=1)(5))
    assert not np.array_equal(draw(5), draw(6))
    assert not np.array_equal(draw(5), pairs.Draw(found, 40, 0.25, "sqrt", seed=2)(5))
    for step in range(5):
        drawn = draw(step)
        assert drawn.shape == (40, 2)
        assert np.sum(drawn[:, 0] < texts.queries) == 10  # anchors that are queries
    only = pairs.Draw({**found, "query": found["query"].take([])}, 40, 0.25, "sqrt", seed=1)
    assert (only(0)[:, 0] >= texts.queries).all()


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("uniform", [1, 1, 1]), ("sqrt", [1, 2, 10]), ("count", [1, 4, 100])],
)
def test_pairs_are_drawn_by_weight(weighting, expected):
    found = pairs.Pairs(
        np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int32), np.array([1.0, 4.0, 100.0])
    )
    draw = pairs.Draw({"prefix": found}, 3000, 0.5, weighting, seed=0)
    shares = np.bincount(np.concatenate([draw(t)[:, 0] for t in range(10)])) / 30_000
    # Five standard deviations of a share over 30,000 draws are at most 0.015.
    np.testing.assert_allclose(shares, np.array(expected) / sum(expected), atol=0.015)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_share": 1.5}, "query_share=1.5"),
        ({"weighting": "cube"}, "weighting='cube'.*count, log, sqrt, uniform"),
        ({"batch_size": 1}, "batch_size=1"),
    ],
)
def test_settings_of_the_draw_are_checked(read, change, message):
    settings = {"batch_size": 8, "query_share": 0.5, "weighting": "sqrt", "seed": 0}
    with pytest.raises(UserError, match=message):
        pairs.Draw(read[1], **{**settings, **change})


def test_batches_have_the_drawn_texts_and_processes_share_them(read):
    texts, found = read
    encoder = TextEncoder.scratch(texts.sample(1000), SPEC)
    draw = pairs.Draw(found, 16, 0.5, "sqrt", seed=0)
    batch = batches(texts, draw, encoder.tokenizer, 8, np.arange(16))(3)
    rows = np.array([2, 3, 10])
    part = batches(texts, draw, encoder.tokenizer, 8, rows)(3)
    for name, array in batch.items():
        np.testing.assert_array_equal(part[name], array[rows])
    assert batch["tokens"].shape == (16, 2, 8)
    for row, numbers in enumerate(draw(3)):
        for side, text in enumerate(texts.take(numbers)):
            ids = encoder.tokenizer.ids([text])[0]
            ids = ids if len(ids) <= 8 else ids[:7] + ids[-1:]
            assert batch["tokens"][row, side, : batch["lengths"][row, side]].tolist() == ids


# ------------------------------------------------------------------ recall


class FakeEncoder:
    """Vectors from a dictionary of texts."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts):
        return np.stack([self.vectors[text] for text in texts])


@pytest.mark.parametrize("most", [10**6, 20])
def test_recall_is_that_of_a_full_ranking(read, monkeypatch, most):
    texts, found = read
    monkeypatch.setattr(alignment, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    vectors = {}
    for text in texts.take(np.arange(len(texts))):
        x = np.round(rng.normal(size=3), 1)  # few different vectors: there are ties
        vectors[text] = (x / np.linalg.norm(x)).astype(np.float32)
    few = {kind: pairs.sample(found[kind], 40) for kind in pairs.KINDS}
    if most < texts.queries:
        counts = rng.permutation(texts.queries)
        monkeypatch.setattr(texts, "counts", counts)
        others = {n for kind in pairs.KINDS for n in few[kind].others.tolist()}
        compared = sorted(others | set(np.argsort(-counts)[:most].tolist()))
    else:
        compared = list(range(texts.queries))
    shares = recall(FakeEncoder(vectors), texts, few, k=12, most_queries=most)
    for kind in pairs.KINDS:
        hits = []
        for anchor, other in zip(few[kind].anchors, few[kind].others, strict=True):
            text = texts.take([anchor])[0]
            own = vectors[text] @ vectors[QUERIES[other]]
            nearer = sum(
                number != other
                and QUERIES[number] != text.rstrip()
                and vectors[text] @ vectors[QUERIES[number]] >= own - 1e-6
                for number in compared
            )
            hits.append(nearer < 12)
        assert shares[kind] == pytest.approx(np.mean(hits))
        assert 0 < shares[kind] < 1


def test_recall_without_pairs_is_none(read):
    texts, found = read
    empty = dict.fromkeys(pairs.KINDS, found["query"].take([]))
    assert recall(FakeEncoder({}), texts, empty) == {"prefix": None, "query": None}


# ------------------------------------------------------------------ the stage


@pytest.fixture(scope="module")
def aligned(mined, tmp_path_factory):
    out = tmp_path_factory.mktemp("aligned")
    return out, run(mined, out, 60)


@pytest.mark.long
def test_alignment_raises_recall_on_held_out_pairs(mined, aligned):
    out, report = aligned
    for kind in pairs.KINDS:
        shares = report["recall@20"][kind]
        assert shares["after"] > shares["before"] + 0.1, report
    assert json.loads((out / "alignment.json").read_text()) == report
    saved = TextEncoder.load(str(out))
    assert saved.fingerprint == report["fingerprint"]
    assert saved.dimension == report["dimension"] == 16
    texts, found = pairs.read_pairs(mined)
    _, dev = pairs.split(texts, found, 0.15)
    assert report["pairs"]["prefix"]["measured"] == len(dev["prefix"])
    after = {kind: shares["after"] for kind, shares in report["recall@20"].items()}
    assert recall(saved, texts, dev) == after
    table = alignment.format_report(report)
    assert "prefix pairs" in table and "before" in table


@pytest.mark.long
def test_a_resumed_run_gives_the_same_encoder(mined, aligned, tmp_path):
    run(mined, tmp_path, 12)
    assert run(mined, tmp_path, 60) == aligned[1]
    run(mined, tmp_path, 61, temperature=0.1)
    assert read_history(tmp_path)[-1]["changes"] == {"steps": [60, 61], "temperature": [0.05, 0.1]}
    with pytest.raises(UserError, match=r"pairs.prefix '.*pairs.query"):
        run(mined, tmp_path, 62, held_out=0.1)


@pytest.mark.long
def test_without_steps_the_encoder_is_saved_unchanged(mined, aligned, tmp_path):
    report = run(mined, tmp_path / "copy", 0, weights=str(aligned[0]))
    assert report["fingerprint"] == aligned[1]["fingerprint"]
    for kind in pairs.KINDS:
        shares = report["recall@20"][kind]
        assert shares["before"] == shares["after"] == aligned[1]["recall@20"][kind]["after"]
    assert not (tmp_path / "copy" / "checkpoints").exists()
    scratch = run(mined, tmp_path / "scratch", 0)
    texts, _ = pairs.read_pairs(mined)
    start = TextEncoder.scratch(texts.sample(10**6), SPEC, seed=3)
    assert scratch["fingerprint"] == start.fingerprint


@pytest.mark.long
def test_a_loaded_encoder_gets_the_configured_length(mined, aligned, tmp_path):
    report = align(
        mined,
        str(tmp_path),
        mesh=make_mesh(devices=jax.devices()[:1]),
        optimizer=make_optimizer("adamw", 1e-3, 0, "none"),
        seed=0,
        weights=str(aligned[0]),
        spec=dataclasses.replace(SPEC, max_length=6),
        steps=1,
        batch_size=8,
    )
    assert TextEncoder.load(str(tmp_path)).config.max_length == 6
    assert report["fingerprint"] != aligned[1]["fingerprint"]


def test_one_query_is_enough_without_steps(tmp_path):
    folder = write(tmp_path / "mined", [("lamp", 3)], [("l", "lamp", 3)], [])
    report = run(folder, tmp_path / "out", 0, held_out=0.0)
    assert report["queries"] == 1
    assert report["recall@20"]["prefix"] == {"before": None, "after": None}
    assert "-" in alignment.format_report(report)
    with pytest.raises(UserError, match=r"prefix_query.parquet: all pairs lead to one.*steps=0"):
        run(folder, tmp_path / "more", 1, held_out=0.0)


def test_without_pairs_the_tables_are_named(tmp_path):
    folder = write(tmp_path, [("lamp", 3), ("table", 1)], [("lamp", "lamp", 1)], [])
    with pytest.raises(UserError, match=r"prefix_query.parquet and .*query_query.*steps=0"):
        run(folder, tmp_path / "out", 1)
    assert run(folder, tmp_path / "out", 0)["pairs"]["prefix"]["train"] == 0


def test_tables_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(UserError, match=r"queries.parquet: .*no such file; run mine"):
        pairs.read_pairs(str(tmp_path))
    write(tmp_path, [], [], [])
    with pytest.raises(UserError, match=r"queries.parquet: expected at least one query"):
        pairs.read_pairs(str(tmp_path))
    write(tmp_path, [("lamp", 1)], [("l", "lamp", 1), ("t", "table", 1)], [])
    with pytest.raises(UserError, match=r"prefix_query.parquet: row 1: the query 'table'"):
        pairs.read_pairs(str(tmp_path))
    pq.write_table(pa.table({"query": ["lamp"]}), tmp_path / "query_query.parquet")
    with pytest.raises(UserError, match=r"query_query.parquet: expected the columns query, other"):
        pairs.read_pairs(str(tmp_path))
    (tmp_path / "queries.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"queries.parquet: expected the columns query, count"):
        pairs.read_pairs(str(tmp_path))
