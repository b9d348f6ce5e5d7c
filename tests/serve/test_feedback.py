"""The store: acknowledged events are on the disk once; histories, deletion and export."""

import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs import schema
from onesug_jax.logs.ingest import ingest
from onesug_jax.serve.feedback import Busy, Conflict, Event, FeedbackConfig, FeedbackStore, Unknown
from tests.serve.asking import until

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOW = int(1000 * time.time())


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "feedback" / "events.sqlite")


@pytest.fixture
def store(path):
    made = FeedbackStore(path)
    yield made
    made.close()


def event(number, **more):
    given = {"user_id": "u", "query": f"query {number}", "timestamp_ms": NOW + number}
    return Event(request_id=f"r{number}", **{**given, **more})


def put(store, *events, **more):
    return [store.add(one, **more).result(30) for one in events]


def rows(store, tmp_path, **more):
    target = str(tmp_path / "export.parquet")
    assert store.export(target, **more) == pq.read_metadata(target).num_rows
    return pq.read_table(target).to_pylist()


# ------------------------------------------------------------------ events


def test_the_same_event_twice_is_stored_once(store):
    assert put(store, event(1), event(1), event(2)) == ["new", "same", "new"]
    assert store.count() == 2


def test_items_opened_or_ordered_later_are_added(store, tmp_path):
    first = event(1, shown=["query 1", "b"], clicked_position=0, prefix="q")
    assert put(store, first) == ["new"]
    later = event(1, query="", clicked_items=["i1"])
    ordered = event(1, query="", clicked_items=["i1", "i2"], ordered_items=["i2"])
    assert put(store, later, later, ordered) == ["more", "same", "more"]
    (row,) = rows(store, tmp_path)
    assert (row["clicked_items"], row["ordered_items"]) == (["i1", "i2"], ["i2"])
    assert (row["prefix"], row["shown"], row["clicked_position"]) == ("q", ["query 1", "b"], 0)


def test_contradictions_are_refused(store):
    put(store, event(1))
    with pytest.raises(Conflict) as found:
        put(store, event(1, query="another"))
    assert found.value.field == "query"
    with pytest.raises(Conflict) as found:
        put(store, event(1, user_id="somebody else"))
    assert found.value.field == "user_id"
    with pytest.raises(Unknown):
        put(store, event(9, query="", ordered_items=["i"]))
    assert store.count() == 1


# ------------------------------------------------------------------ histories


def test_a_history_is_newest_first_and_holds_each_query_once(store):
    put(store, *[event(i, query=q) for i, q in enumerate(["a", "b", "a", "c"])])
    put(store, event(9, user_id="other", query="z"), event(10, user_id="", query="nobody's"))
    assert list(store.history("u", 10).items()) == [("c", NOW + 3), ("a", NOW + 2), ("b", NOW + 1)]
    assert list(store.history("u", 2)) == ["c", "a"]
    assert store.history("", 10) == store.history("nobody", 10) == {}


def test_events_of_one_millisecond_keep_their_order(store):
    put(store, *[event(i, query=q, timestamp_ms=NOW) for i, q in enumerate("abc")])
    assert list(store.history("u", 10)) == ["c", "b", "a"]


# ------------------------------------------------------------------ deletion


def test_deleted_text_is_overwritten_on_the_disk(store, path):
    secret = "a very particular secret"
    put(store, event(1, query=secret), event(2, user_id="other"))
    assert store.forget("u").result(30) == 1
    assert not store.history("u", 10) and list(store.history("other", 10)) == ["query 2"]
    assert store.forget("u").result(30) == 0
    for name in os.listdir(os.path.dirname(path)):
        content = pathlib.Path(path).with_name(name).read_bytes()
        assert secret.encode() not in content, name


def test_deleted_text_that_another_process_reads_is_overwritten_later(path, monkeypatch):
    """Another process reads a snapshot during a user's deletion."""
    monkeypatch.setattr("onesug_jax.serve.feedback.BUSY_SECONDS", 0.2)
    store = FeedbackStore(path, FeedbackConfig())
    put(store, event(1, query="a very particular secret"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    assert other.execute("SELECT count(*) FROM events").fetchone() == (1,)
    assert store.forget("u").result(30) == 1
    log = pathlib.Path(f"{path}-wal")
    assert b"very particular secret" in log.read_bytes()
    other.execute("COMMIT")
    other.close()
    until(lambda: b"very particular secret" not in log.read_bytes())
    store.close()


def test_old_events_are_pruned(path):
    old = FeedbackStore(path, FeedbackConfig(keep_days=2))
    day = 86_400_000
    put(old, event(1, timestamp_ms=NOW - 3 * day), event(2, timestamp_ms=NOW - day))
    old.close()
    again = FeedbackStore(path, FeedbackConfig(keep_days=2))  # prunes now, then every hour
    until(lambda: again.count() == 1)
    assert list(again.history("u", 10)) == ["query 2"]
    again.close()


def test_only_the_owner_may_read_the_file(store, path):
    assert os.stat(path).st_mode & 0o077 == 0
    assert os.stat(os.path.dirname(path)).st_mode & 0o077 == 0


# ------------------------------------------------------------------ the disk


def test_every_commit_is_flushed(store):
    assert store._writer.connection.execute("PRAGMA synchronous").fetchone()[0] == 2, "FULL"
    assert store._writer.connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


WRITER = """
import sys
from onesug_jax.serve.feedback import Event, FeedbackStore
name, path, count = sys.argv[1:]
store = FeedbackStore(path)
print("ready", flush=True)
for i in range(int(count)):
    event = Event(f"{name}-{i}", user_id=name, query=f"query {i}", timestamp_ms=2**41 + i)
    assert store.add(event).result(60) == "new"
    print(event.request_id, flush=True)
store.close()
"""


def writer(name, path, count):
    command = [sys.executable, "-c", WRITER, name, path, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_several_processes_share_a_file(store, path):
    writers = [writer(name, path, 40) for name in ("one", "two")]
    mine = [store.add(event(i)) for i in range(40)]
    assert [future.result(60) for future in mine] == ["new"] * 40
    for process in writers:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert store.count() == 120
    assert list(store.history("one", 3)) == ["query 39", "query 38", "query 37"]


def test_a_killed_process_loses_no_acknowledged_event(path):
    process = writer("u", path, 100_000)
    acknowledged = [process.stdout.readline().strip() for _ in range(60)][1:]
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.read().split()
    process.wait(30)
    acknowledged = [line for line in acknowledged if line.startswith("u-")]
    assert len(acknowledged) >= 59
    store = FeedbackStore(path)
    found = store._reading.execute("SELECT request_id FROM events").fetchall()
    store.close()
    assert {name for (name,) in found} >= set(acknowledged)


def test_the_store_works_again_after_a_failing_disk(store, monkeypatch):
    class Failing:
        def __init__(self, connection):
            self.connection = connection

        def execute(self, text, *values):
            if text == "COMMIT":
                raise sqlite3.OperationalError("database or disk is full")
            return self.connection.execute(text, *values)

    working = store._writer.connection
    store._writer.connection = Failing(working)
    with pytest.raises(sqlite3.OperationalError):
        put(store, event(1))
    store._writer.connection = working
    assert put(store, event(1)) == ["new"], "the failed transaction was rolled back"


def test_too_many_waiting_events_are_refused(path, monkeypatch):
    monkeypatch.setattr("onesug_jax.serve.feedback.MOST_WAITING", 2)
    store = FeedbackStore(path, FeedbackConfig())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # like a writing process
    accepted = []
    with pytest.raises(Busy):
        for i in range(100):
            accepted.append(store.add(event(i)))
            time.sleep(0.001)
    other.execute("COMMIT")
    assert [future.result(30) for future in accepted] == ["new"] * len(accepted)
    store.close()
    with pytest.raises(Busy):
        store.add(event(1))


def test_a_file_that_is_not_a_store_is_an_error(tmp_path):
    path = tmp_path / "events.sqlite"
    path.write_bytes(b"something else altogether" * 100)
    with pytest.raises(UserError, match=r"FeedbackConfig\.path"):
        FeedbackStore(str(path))
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 7")
    with pytest.raises(UserError, match="format 7"):
        FeedbackStore(str(path))
    with pytest.raises(UserError, match="keep_days"):
        FeedbackConfig(keep_days=0)


# ------------------------------------------------------------------ the export


def test_ingest_accepts_every_exported_row(store, tmp_path):
    put(
        store,
        event(2, prefix="la", shown=["lamp red", "lamp"], clicked_position=1, query="lamp"),
        event(1, prefix="拖", query="拖鞋", profile={"gender": "f"}, clicked_items=["i"]),
        event(
            3,
            user_id="",
            query="tent",
            history=["old", "new"],
            history_minutes=[90.0, 1.5],
            ordered_items=["i", "j"],
        ),
    )
    found = rows(store, tmp_path, profile=["age", "gender"])
    assert [row["request_id"] for row in found] == ["r1", "r2", "r3"], "oldest first"
    own = (schema.HISTORY, schema.HISTORY_MINUTES)
    assert list(found[0]) == [*schema.REQUIRED, *own, "age", "gender"]
    assert (found[0]["gender"], found[0]["age"], found[1]["gender"]) == ("f", "", "")
    assert [found[2][name] for name in own] == [["old", "new"], [90.0, 1.5]]
    assert found[0]["history"] is None and found[0]["history_minutes"] is None
    out = tmp_path / "log"
    report = ingest(str(tmp_path / "export.parquet"), str(out), dev_share=0.0)
    assert (report.accepted, report.set_aside, report.profile) == (3, 0, ["age", "gender"])
    written = pq.read_table(out / "train.parquet").to_pylist()
    levels = [schema.request_level(r["clicked_items"], r["ordered_items"]).name for r in written]
    assert levels == ["ITEM_CLICK", "CLICK", "ORDER"]
    assert written[1]["shown"] == ["lamp red", "lamp"] and written[1]["clicked_position"] == 1


def test_events_since_a_time_are_exported(store, tmp_path):
    put(store, *[event(i) for i in range(5)])
    assert [row["query"] for row in rows(store, tmp_path, since_ms=NOW + 3)] == [
        "query 3",
        "query 4",
    ]


def test_untrusted_events_are_exported_on_request_only(store, tmp_path):
    put(store, event(1))
    put(store, event(2, ordered_items=["i"]), trusted=False)
    put(store, event(2, query="", clicked_items=["i"]))
    assert [row["request_id"] for row in rows(store, tmp_path)] == ["r1"]
    both = rows(store, tmp_path, untrusted=True)
    assert [row["request_id"] for row in both] == ["r1", "r2"] and "trusted" not in both[0]
    assert list(store.history("u", 10)) == ["query 2", "query 1"]


def test_nothing_to_export_leaves_no_file(store, tmp_path):
    assert store.export(str(tmp_path / "export.parquet")) == 0
    assert not list(tmp_path.glob("export*"))


def test_the_command_exports(tmp_path, capsys):
    from onesug_jax import main

    work, target = tmp_path / "work", tmp_path / "new" / "fresh.parquet"
    store = FeedbackStore(str(work / "feedback" / "events.sqlite"))
    day = 86_400_000
    put(store, event(1), event(2, timestamp_ms=NOW - 3 * day))
    store.close()
    words = ["export_feedback", f"--gin.WORK_DIR={work}"]
    assert main.main([*words, "--to", str(target)]) == 0
    assert "2 events" in capsys.readouterr().out
    assert pq.read_metadata(target).num_rows == 2
    assert main.main([*words, "--to", str(target), "--days", "1"]) == 0
    assert pq.read_metadata(target).num_rows == 1
    assert main.main(words) == 2
    assert "--to FILE" in capsys.readouterr().err
    assert main.main([*words, "--to", str(tmp_path / "x.csv")]) == 2
    assert "ends in .parquet" in capsys.readouterr().err and not (tmp_path / "x.csv").exists()
    assert main.main([*words, "--to", str(target), "--days", "0"]) == 2
    assert "no events" in capsys.readouterr().err
    assert json.dumps(pq.read_table(target).to_pylist()[0]["query"]) == '"query 1"'
    store = FeedbackStore(str(work / "feedback" / "events.sqlite"))
    put(store, event(3), trusted=False)
    store.close()
    assert main.main([*words, "--to", str(target)]) == 0
    out = capsys.readouterr().out
    assert "1 that are not trusted are left out" in out and "2 events" in out
    assert main.main([*words, "--to", str(target), "--all"]) == 0
    assert "3 events" in capsys.readouterr().out
