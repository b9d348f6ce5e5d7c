"""A version of a model that reads items: lists as of now, new queries, shapes, blocked terms."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from onesug_jax.decode import item_suggester as decoding
from onesug_jax.decode.beam import BeamResult
from onesug_jax.decode.both_ways import WritingConfig
from onesug_jax.decode.closed_set import Filter
from onesug_jax.logs.asof import snapshot
from onesug_jax.serve.config import EngineConfig
from onesug_jax.serve.feedback import Event, FeedbackStore
from onesug_jax.serve.levels import Pace
from onesug_jax.serve.requests import SuggestRequest
from onesug_jax.tasks.features import Request
from tests.serve.item_shop import CONFIG, QUERIES, lists_of, make_shop, open_shop, searches

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOW = int(1000 * time.time())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("shop")
    make_shop(made, NOW)
    return made


@pytest.fixture
def store(tmp_path):
    made = FeedbackStore(str(tmp_path / "events.sqlite"))
    yield made
    made.close()


@pytest.fixture
def version(folder, store):
    made = open_shop(folder, store, NOW)
    yield made
    made.close()


def send(store, query, *users, prefix="la"):
    for user in users:
        name = f"{query} {user}".replace(" ", "-")
        store.add(Event(name, user, timestamp_ms=NOW - 1000, prefix=prefix, query=query)).result(30)


def full(version, prefix, *history, minutes=()):
    (found,) = version.results([SuggestRequest(prefix, history, minutes=minutes)], "full")
    return found


def compiled_programs():
    return decoding._open._cache_size() + decoding._with_rows._cache_size()


def test_a_list_is_the_candidates_by_their_probability(version):
    found = full(version, "la", "mug red", minutes=(5.0,))
    assert set(found.texts) == {query for query in QUERIES if query.startswith("la")}
    assert list(found.scores) == sorted(found.scores, reverse=True)
    items = version.live.request("la", "", history=(["mug red"], [5.0]))
    (expected,) = version.suggester.suggest([Request("la", items=items)])
    assert [one.text for one in expected] == list(found.texts)
    assert found.items.history_minutes[0] == 5.0
    assert full(version, "la", minutes=()).scores != found.scores, "a history changes the list"


WRITTEN = ["zebra", "mug", "lamp", "lamp blue", "lamp red blue"]
SHAPES = []  # of the batches that were completed by beams


@pytest.fixture
def writer(folder, store, monkeypatch):
    """A version that completes lists of fewer than three candidates from WRITTEN; a fake beam
    search returns these texts for every prefix.
    """
    writing = WritingConfig(least_share=1.0, beams=len(WRITTEN), max_length=30)
    made = open_shop(folder, store, NOW, writing=writing, returned=3)
    vocabulary = made.suggester.featurizer.vocabulary
    sequences = np.zeros((len(WRITTEN), 30), np.int32)
    for row, text in zip(sequences, WRITTEN, strict=True):
        pieces = [*vocabulary.encode(text), vocabulary.eos_id]
        row[: len(pieces)] = pieces

    def search(model, config, mesh, params, tokens, items, tables, constraint):
        SHAPES.append((tokens.shape, items.candidates.shape, constraint.allowed.shape))
        scores = np.tile(-1.0 - np.arange(len(WRITTEN)), (len(tokens), 1))
        return BeamResult(np.tile(sequences, (len(tokens), 1, 1)), scores, None, None)

    monkeypatch.setattr(decoding, "_search_open", search)
    SHAPES.clear()
    yield made
    made.close()


def test_short_lists_are_completed_by_writing_and_come_last(writer, store):
    requests = [SuggestRequest("lamp"), SuggestRequest("la")]
    (one, full_list), (two, completed) = writer.answers(requests, "full")
    assert (one, two) == (1, 0), "the full list does not wait for beams"
    assert full_list.written == (False,) * 3
    listed = dict(zip(completed.texts, completed.written, strict=True))
    assert listed.pop("lamp blue") is False, "candidates may be written too"
    assert listed == {"mug": True, "lamp": True}, "the likeliest of the shop's words"
    alone, _ = writer.results(requests, "candidates")
    assert set(alone.texts) == {"lamp red", "lamp blue"} and not any(alone.written)
    send(store, "lamp", "a")
    writer.refresh()
    assert "lamp" not in full(writer, "lamp").texts, "searched, but by one visitor only"
    send(store, "lamp", "b")
    writer.refresh()
    again = full(writer, "lamp")
    assert not dict(zip(again.texts, again.written, strict=True))["lamp"], "a candidate now"


def test_blocked_queries_are_not_written(writer):
    writer._show(Filter(blocked=("red", "mug")))
    assert set(full(writer, "lamp").texts) == {"lamp", "lamp blue"}


@pytest.mark.long
def test_beams_are_opened_in_shapes_that_are_compiled(writer):
    config = EngineConfig(max_batch=4)
    assert writer.levels(config) == ("full", "candidates", "popular")
    for _ in writer.warmup(config, Pace((1, 4)), lambda: False):
        pass
    compiled = set(SHAPES)
    for prefix in ("lamp", "lan", "mug", "x" * 64):
        for count in (1, 3, 7):
            requests = [SuggestRequest(prefix, (f"{n}",), ("f", "18")) for n in range(count)]
            assert len(writer.results(requests, "full")) == count
    assert set(SHAPES) == compiled and len(compiled) == 2


@pytest.mark.long
def test_no_request_waits_for_a_compiler(version):
    assert version.levels(EngineConfig()) == ("full", "popular"), "it writes nothing"
    pace = Pace((1, 4))
    steps = version.warmup(EngineConfig(max_batch=4), pace, lambda: False)
    next(steps)
    made = version.suggester
    assert [made.batch_sizes, made.lengths, made.pasts] == [(4,), (40,), ()]
    for _ in steps:
        pass
    assert [made.batch_sizes, made.lengths, made.pasts] == [(1, 4), (24, 40), (1,)]
    assert all(pace.of("full", size) > 0 for size in (1, 4))
    before = compiled_programs()
    for prefix in ("", "la", "t", "x" * 64, "xq"):
        for history in ((), ("mug red",), tuple(QUERIES)):
            for count in (1, 3, 4, 7):
                requests = [SuggestRequest(prefix, history, ("f", "18"), k=n) for n in range(count)]
                assert len(version.results(requests, "full")) == count
    assert compiled_programs() == before


def test_a_new_query_is_listed_once_enough_visitors_have_searched_it(version, store):
    full(version, "la")
    version.suggester.refresh(vars(version.tables), 1, 2)  # compiles
    before = compiled_programs()
    send(store, "lava lamp", "a")
    version.refresh()
    assert "lava lamp" not in full(version, "la").texts
    send(store, "lava lamp", "b")
    version.refresh()
    assert "lava lamp" in full(version, "la").texts
    row = version.live.number("lava lamp") + 1
    on_device = version.suggester.tables.every
    assert np.linalg.norm(on_device.vectors[row]) == pytest.approx(1)
    assert on_device.words[row].any() and compiled_programs() == before


def test_tables_without_room_do_not_stop_the_service(folder, store):
    small = open_shop(folder, store, NOW, spare=1)
    for query in ("lava one", "lava two", "lava three"):
        send(store, query, "a", "b")
    small.refresh()
    assert sum(text.startswith("lava") for text in full(small, "la").texts) == 1
    small.close()


def test_the_most_popular_are_those_of_now(version, store):
    assert version.popular("la").texts[0] == "laptop red"
    send(store, "lamp blue", *(f"v{n}" for n in range(60)))
    version.refresh()
    found = version.popular("la")
    assert found.texts[0] == "lamp blue" and set(found.scores) == {None}


def test_a_search_is_in_its_users_history_at_once(version):
    version.live.remember("u", "mug red", NOW - 120_000)
    version.live.remember("u", "mat red", NOW)
    assert version.live.history("u") == (("mat red", "mug red"), (0.0, 2.0))
    version.live.forget("u")
    assert version.live.history("u") == ((), ())


@pytest.mark.parametrize("level", ["full", "popular"])
def test_blocked_terms_are_shown_at_no_level_and_may_change(folder, store, tmp_path, level):
    path = tmp_path / "blocked.txt"
    path.write_text("red\n", encoding="utf-8")
    version = open_shop(folder, store, NOW, blocked=str(path))

    def texts(prefix):
        (found,) = version.results([SuggestRequest(prefix)], level)
        return set(found.texts)

    assert texts("la") == {"lamp blue", "lantern blue", "laptop blue"}
    path.write_text("lamp\nleast_count = 22\n", encoding="utf-8")
    assert [version.read_terms() for _ in range(3)] == [False, True, False]
    often = {query for number, query in enumerate(QUERIES) if searches(number) >= 22}
    assert texts("la") == {q for q in often if q.startswith("la") and "lamp" not in q}
    version.close()


@pytest.mark.long
def test_killed_and_started_again_it_gives_the_same_lists(folder, tmp_path):
    """Counts, the new query's vector and histories come back from the snapshot and the store."""
    os.symlink(folder / "vocab", tmp_path / "vocab")
    os.symlink(folder / "asof", tmp_path / "asof")
    done = subprocess.run(
        [sys.executable, "-m", "tests.serve.item_shop", str(tmp_path), str(NOW)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=dict(os.environ),
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = json.loads(done.stdout)
    assert "lava lamp" in before[0][0][0] and "lamp red" in before[1][0]
    store = FeedbackStore(str(tmp_path / "events.sqlite"))
    version = open_shop(tmp_path, store, NOW)
    assert json.loads(json.dumps(lists_of(version))) == before
    version.close()
    store.close()


def test_an_old_log_is_moved_in_time(folder):
    state, moved = (snapshot.load(f"{folder}/asof") for _ in range(2))
    moved.postpone(5_000_000)
    before = state.request("la", "", NOW + 1000).candidate_counts
    after = moved.request("la", "", NOW + 5_001_000).candidate_counts
    np.testing.assert_allclose(before, after, atol=1e-5)
    assert len(CONFIG.columns) == after.shape[1]
