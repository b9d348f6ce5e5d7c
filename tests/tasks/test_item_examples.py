"""Rows with items: the loader gives the rows of the walk, in a seeded order."""

import json
import os
import threading

import grain
import numpy as np
import pyarrow as pa
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.state import AsOf
from onesug_jax.logs.asof.walk import read_events, walk
from onesug_jax.logs.schema import Level
from onesug_jax.tasks import item_examples
from onesug_jax.tasks.features import FeatureSpec, Featurizer
from onesug_jax.tasks.item_loader import ItemLoader
from onesug_jax.tasks.vocabulary import Vocabulary
from tests.log_rows import log_row, write_log

QUERIES = sorted(["red lamp", "red tent", "tent", "tea", "teapot", "table"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Examples of 60 searches of six queries, and their log."""
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        query = QUERIES[rng.integers(len(QUERIES))]
        level = number % 3
        items = {"clicked_items": ["x"] * (level > 0), "ordered_items": ["x"] * (level == 2)}
        about = {"user_id": f"u{number % 5}", "session_id": "s", "shown": QUERIES[:3], **items}
        about |= {"timestamp_ms": 3_600_000 * number, "prefix": query[: 1 + number % 3]}
        rows.append(log_row(number, query, **about, gender="f"))
    path = write_log(folder / "train.parquet", rows, ("gender", pa.string()))
    vocabulary = Vocabulary.train(QUERIES, str(folder / "vocab"), pieces=330, sid_levels=0)
    config = AsOfConfig(candidates=4, history=3, similar=1)
    events = list(read_events([path], profile=["gender"]))
    state = AsOf(QUERIES, config)
    featurizer = Featurizer(vocabulary, FeatureSpec(input_length=24, target_length=8))
    item_examples.write(
        str(folder / "part"),
        walk(state, events, block=16),
        ["train"],
        featurizer,
        lambda prefix: len(prefix),
        state.number,
        shard_bytes=1500,
    )
    item_examples.join(str(folder / "examples"), [str(folder / "part")], ["train"])
    return folder, rows, vocabulary, config, events


def test_the_arrays_are_those_of_the_walk(made):
    folder, rows, _, config, events = made
    examples = item_examples.ItemExamples(str(folder / "examples"), "train")
    again = next(walk(AsOf(QUERIES, config), events, block=60))[0]
    assert len(examples) == 60
    order = np.random.default_rng(0).permutation(60)
    arrays = examples.read(order)
    for name, dtype in item_examples.FEATURES.items():
        if name in again:
            expected = again[name][order].astype(dtype)
            assert arrays[name].dtype == dtype and np.array_equal(arrays[name], expected), name
    assert arrays["prefix_row"].tolist() == [len(rows[row]["prefix"]) for row in order]
    queries = [block["query"] for block in examples.blocks(7, names=["query"])]
    assert np.array_equal(np.concatenate(queries), again["query"][7:])
    for name in ("target_candidate", "level", "row"):
        assert np.array_equal(examples.column(name), again[name]), name
    assert np.array_equal(examples.column("room"), np.count_nonzero(again["candidates"], axis=1))


def test_candidates_have_their_behaviour_levels(made):
    folder, rows, *_ = made
    arrays = item_examples.ItemExamples(str(folder / "examples"), "train").read(range(60))
    for row, numbers, levels in zip(
        rows, arrays["candidates"], arrays["candidate_levels"], strict=True
    ):
        for number, level in zip(numbers, levels, strict=True):
            if not number:
                assert level == Level.RAND
            elif QUERIES[number - 1] == row["query"]:
                assert level >= Level.CLICK
            else:
                shown = QUERIES[number - 1] in row["shown"]
                assert level == (Level.SHOW if shown else Level.NOT_SHOW)


def test_batches_depend_only_on_seed_and_step(made):
    folder, _, vocabulary, *_ = made
    path = str(folder / "examples")
    settings = {"batch_size": 6, "seed": 3, "sizes": (2, 4)}
    loader = ItemLoader(path, vocabulary=vocabulary.fingerprint, **settings)
    batch = loader.batch_at(2)
    size = batch["candidates"].shape[1]
    assert size in (2, 4) and batch["candidate_counts"].shape[:2] == (6, size)
    assert np.array_equal(
        batch["decoder_input_tokens"][:, 1:], batch["decoder_target_tokens"][:, :-1]
    )
    assert (batch["decoder_loss_weights"] == (batch["decoder_target_tokens"] > 0)).all()
    again = ItemLoader(path, **settings).batch_at(2)
    assert all(np.array_equal(batch[name], again[name]) for name in batch)
    part = ItemLoader(path, process_rows=[4, 0, 1], **settings).batch_at(2)
    assert all(np.array_equal(batch[name][[4, 0, 1]], part[name]) for name in batch)
    hit = batch["target_candidate"] > 0
    place = batch["target_candidate"][hit] - 1
    assert (batch["levels"][hit, place] >= Level.CLICK).all()


def test_rows_with_an_order_have_more_weight(made):
    folder, *_ = made
    settings = {"batch_size": 30, "sizes": (4,), "order_weight": 3.0, "settled": 0.0}
    loader = ItemLoader(str(folder / "examples"), **settings)
    batch = loader.batch_at(0)
    assert set(batch["weight"]) == {1.0, 3.0}
    assert "60 rows" in loader.describe()


def test_errors_name_what_was_expected(made, tmp_path):
    folder, *_ = made
    path = str(folder / "examples")
    with pytest.raises(UserError, match="ascending sizes"):
        ItemLoader(path, sizes=(8, 8))
    with pytest.raises(UserError, match="expected examples of vocabulary other"):
        ItemLoader(path, vocabulary="other")
    with pytest.raises(UserError, match="expected examples with items"):
        ItemLoader(str(tmp_path))


def test_batches_are_those_of_plain_arrays(made):
    """Order and arrays of the batches, against all rows in memory."""
    folder, _, _, config, events = made
    again = next(walk(AsOf(QUERIES, config), events, block=60))[0]
    settings = {"batch_size": 5, "seed": 7, "sizes": (2, 4), "settled": 0.0, "order_weight": 2.0}
    loader = ItemLoader(str(folder / "examples"), **settings)
    room = np.count_nonzero(again["candidates"], axis=1)
    streams, seen = {}, dict.fromkeys((2, 4), 0)
    for number, size in enumerate((2, 4)):
        rows = np.flatnonzero((room <= 2) == (size == 2))
        mixed = int(np.random.SeedSequence([7, number]).generate_state(1)[0])
        streams[size] = grain.MapDataset.source(rows).shuffle(seed=mixed).repeat()
    for step in range(40):
        batch = loader.batch_at(step)
        size = batch["candidates"].shape[1]
        first = 5 * seen[size]
        rows = np.array([streams[size][first + n] for n in range(5)])
        seen[size] += 1
        assert np.array_equal(batch["candidates"], again["candidates"][rows][:, :size])
        counts = again["candidate_counts"][rows][:, :size].astype(np.float16)
        assert np.array_equal(batch["candidate_counts"], counts.astype(np.float32))
        for name in ("history", "history_minutes", "clock"):
            assert np.array_equal(batch[name], again[name][rows]), name
        place = again["target_candidate"][rows]
        assert np.array_equal(batch["target_candidate"], np.where(place <= size, place, 0))
        orders = again["level"][rows] == Level.ORDER
        assert np.array_equal(batch["weight"], np.where(orders, 2.0, 1.0))
    assert min(seen.values()) > 5


def test_a_process_opens_only_the_shards_of_its_rows(made):
    folder, *_ = made
    fetched, lock = [], threading.Lock()

    def fetch(path):
        with lock:
            fetched.append(os.path.basename(path))
        return path

    settings = {"batch_size": 2, "process_rows": [1], "sizes": (4,), "settled": 0.0}
    loader = ItemLoader(str(folder / "examples"), fetch=fetch, **settings)
    assert set(fetched) == {"room.npy", "target_candidate.npy"}
    loader.batch_at(0)
    rows = np.concatenate([loader.rows_at(step)[0] for step in range(8)])
    loader.examples.shards._pool.shutdown(wait=True)
    counts = json.loads((folder / "examples/onesug_query/train/counts.json").read_text())
    shards = np.searchsorted(np.cumsum(list(counts.values())), rows, side="right")
    needed = {list(counts)[shard] for shard in shards}
    assert {name for name in fetched if name.startswith("part")} == needed
    assert len(needed) < len(counts)
