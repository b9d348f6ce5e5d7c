"""Rows with items: what the walk saw is what the loader gives, whole, in a seeded order."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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

QUERIES = sorted(["red lamp", "red tent", "tent", "tea", "teapot", "table"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Examples of 60 searches of six queries, and the log they came from."""
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        query = QUERIES[rng.integers(len(QUERIES))]
        level = number % 3
        rows.append(
            {
                "request_id": f"r{number:03}",
                "user_id": f"u{number % 5}",
                "session_id": "s",
                "timestamp_ms": 3_600_000 * number,
                "prefix": query[: 1 + number % 3],
                "shown": QUERIES[:3],
                "query": query,
                "clicked_position": None,
                "clicked_items": ["x"] if level else [],
                "ordered_items": ["x"] if level == 2 else [],
                "gender": "f",
            }
        )
    table = pa.Table.from_pylist(rows)
    path = str(folder / "train.parquet")
    pq.write_table(table, path)
    vocabulary = Vocabulary.train(QUERIES, str(folder / "vocab"), pieces=330, sid_levels=0)
    config = AsOfConfig(candidates=4, history=3, own=1, around=0)
    events = read_events([path])
    state = AsOf(QUERIES, config)
    featurizer = Featurizer(vocabulary, FeatureSpec(input_length=24, target_length=8))
    item_examples.write(
        str(folder / "examples"),
        walk(state, events, [True] * len(events), block=16),
        {"train": item_examples.Texts(path)},
        {"train": len(events)},
        featurizer,
        lambda prefix: len(prefix),
        state.number,
    )
    return folder, rows, vocabulary, config, events


def test_the_arrays_are_those_of_the_walk(made):
    folder, rows, _, config, events = made
    examples = item_examples.ItemExamples(str(folder / "examples"), "train")
    again = next(iter(walk(AsOf(QUERIES, config), events, [True] * 60, block=60)))
    assert len(examples) == 60
    for name in ("candidates", "history", "target_candidate", "query", "level", "row"):
        assert np.array_equal(examples.arrays[name], again[name]), name
    assert np.allclose(examples.arrays["candidate_counts"], again["candidate_counts"], atol=0.02)
    assert examples.arrays["prefix_row"].tolist() == [len(row["prefix"]) for row in rows]


def test_levels_say_what_became_of_each_candidate(made):
    folder, rows, *_ = made
    arrays = item_examples.ItemExamples(str(folder / "examples"), "train").arrays
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


def test_batches_hold_every_row_once_an_epoch_and_depend_on_seed_and_step_alone(made):
    folder, _, vocabulary, *_ = made
    where = str(folder / "examples")
    settings = {"batch_size": 6, "seed": 3, "sizes": (2, 4)}
    loader = ItemLoader(where, vocabulary=vocabulary.fingerprint, **settings)
    batch = loader.batch_at(2)
    size = batch["candidates"].shape[1]
    assert size in (2, 4) and batch["candidate_counts"].shape[:2] == (6, size)
    assert np.array_equal(
        batch["decoder_input_tokens"][:, 1:], batch["decoder_target_tokens"][:, :-1]
    )
    assert (batch["decoder_loss_weights"] == (batch["decoder_target_tokens"] > 0)).all()
    again = ItemLoader(where, **settings).batch_at(2)
    assert all(np.array_equal(batch[name], again[name]) for name in batch)
    some = ItemLoader(where, process_rows=[4, 0, 1], **settings).batch_at(2)
    assert all(np.array_equal(batch[name][[4, 0, 1]], some[name]) for name in batch)
    hit = batch["target_candidate"] > 0
    place = batch["target_candidate"][hit] - 1
    assert (batch["levels"][hit, place] >= Level.CLICK).all()


def test_rows_with_an_order_weigh_more(made):
    folder, *_ = made
    settings = {"batch_size": 30, "sizes": (4,), "order_weight": 3.0, "settled": 0.0}
    loader = ItemLoader(str(folder / "examples"), **settings)
    batch = loader.batch_at(0)
    assert set(batch["weight"]) == {1.0, 3.0}
    assert "60 rows" in loader.describe()


def test_mistakes_name_what_was_expected(made, tmp_path):
    folder, *_ = made
    where = str(folder / "examples")
    with pytest.raises(UserError, match="ascending sizes"):
        ItemLoader(where, sizes=(8, 8))
    with pytest.raises(UserError, match="expected examples of vocabulary other"):
        ItemLoader(where, vocabulary="other")
    with pytest.raises(UserError, match="expected examples with items"):
        ItemLoader(str(tmp_path))
