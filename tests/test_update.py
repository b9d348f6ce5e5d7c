"""The loop M_t -> M_{t+1} on a small shop: published, refused, interrupted, rolled back."""

import dataclasses
import json
import re
import shutil
import sqlite3
import types

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from onesug_jax import main
from onesug_jax.errors import UserError
from onesug_jax.logs.engines import LogEngineConfig
from onesug_jax.pipeline import versions, workdir
from onesug_jax.serve.feedback import Event, FeedbackConfig, FeedbackStore
from onesug_jax.stages import held_state, update_log
from onesug_jax.stages import update as loop
from tests.pipeline.holder import held
from tests.pipeline.shop import tree
from tests.test_pipeline import SMALL

DAY_MS = 86_400_000
LATE = "item_of_a_late_order"


@pytest.fixture(scope="module")
def shop(small_run, tmp_path_factory):
    """A WORK_DIR filled by `run`, and two days of later feedback."""
    folder = tmp_path_factory.mktemp("shop")
    work = shutil.copytree(small_run, folder / "work")
    dev = pq.read_table(work / "log" / "dev.parquet")
    fresh = dev.set_column(
        dev.column_names.index("request_id"),
        "request_id",
        pc.binary_join_element_wise(dev["request_id"], pa.scalar("fresh"), "-"),
    )
    later = pc.add(fresh["timestamp_ms"], pa.scalar(2 * DAY_MS))
    fresh = fresh.set_column(fresh.column_names.index("timestamp_ms"), "timestamp_ms", later)
    # A search of the old log with a later order, and one of the held-out rows.
    train = pq.read_table(work / "log" / "train.parquet")
    old = train.slice(train.num_rows - 1)
    judge = dev.slice(dev.num_rows - 1)
    place = old.column_names.index("ordered_items")
    old = old.set_column(
        place, old.schema.field(place), pa.array([[LATE]], old["ordered_items"].type)
    )
    pq.write_table(pa.concat_tables([old, judge, fresh]), folder / "fresh.parquet")
    return folder


@pytest.fixture
def work(shop, tmp_path):
    """A copy to update."""
    return shutil.copytree(shop / "work", tmp_path / "work")


def update(shop, work, *more):
    flags = [f"--gin.WORK_DIR={work}", f"--gin.LOG={shop / 'fresh.parquet'}"]
    return main.main(["update", *flags, "--gin.update.steps=4", *more])


def listed(work, capsys):
    capsys.readouterr()
    assert main.main(["suggest", f"--gin.WORK_DIR={work}", "--prefix", "s", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["suggestions"]


@pytest.mark.long
def test_a_version_that_is_not_worse_is_published_and_can_be_rolled_back(
    shop, work, capsys, monkeypatch
):
    before = listed(work, capsys)
    restore, firsts = held_state.restore, []
    monkeypatch.setattr(
        held_state, "restore", lambda *given: firsts.append(restore(*given)) or firsts[-1]
    )
    assert update(shop, work, "--gin.update.tolerance=100.0") == 0
    assert firsts[0][0] > 0, "both models are scored from the state that the examples stored"
    out = capsys.readouterr().out
    assert re.search(r"update: [\d.]+ CPU seconds: start [\d.]+, ingest .*, judge ", out)
    new = work / "versions" / "0001"
    assert workdir.published(str(work)) == str(new)
    record = json.loads((new / "update.json").read_text())
    assert set(record["scores"]) == {"M_t", "M_t+1"} and record["base"] == "."
    assert versions.published(str(work)) == {"0000": "", "0001": record["log"]}
    assert (work / "config.gin").read_bytes() == (shop / "work" / "config.gin").read_bytes()
    assert not (new / "fresh").exists(), "it holds rows of users who asked to be deleted"
    train, dev = (pq.read_table(new / "log" / f"{split}.parquet") for split in ("train", "dev"))
    fresh = pq.read_table(shop / "fresh.parquet")
    assert dev["timestamp_ms"].to_numpy().min() > train["timestamp_ms"].to_numpy().max()
    judge = pq.read_table(new / "log" / "test.parquet")
    held = pq.read_table(work / "log" / "dev.parquet")
    assert judge["request_id"].to_pylist() == held["request_id"].to_pylist()
    assert judge["timestamp_ms"].to_numpy().max() < dev["timestamp_ms"].to_numpy().min()
    assert not {*judge["request_id"].to_pylist()} & {*train["request_id"].to_pylist()}
    assert "queries are new in the most searched completions" in out
    for one in record["entered"]:
        assert one["query"].startswith(one["prefix"]) and 1 <= one["place"] <= 10
        assert one["searches"] >= one["visitors"] >= 1
    seen = {name for rows in (train, dev, judge) for name in rows["request_id"].to_pylist()}
    assert set(fresh["request_id"].to_pylist()) <= seen
    ids = train["request_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    late = fresh["request_id"][0].as_py()
    assert train["ordered_items"][ids.index(late)].as_py() == [LATE]
    new_from = train["timestamp_ms"].to_numpy()[[0, -1]] @ [0.25, 0.75]
    settings = json.loads((new / "examples" / "asof" / "asof_settings.json").read_text())
    assert settings["config"]["new_from_ms"] == pytest.approx(new_from), "the newest quarter"
    assert listed(work, capsys) != before
    capsys.readouterr()
    moved = shutil.copy(shop / "fresh.parquet", work.parent / "fresh.parquet")
    assert update(shop, work, f"--gin.LOG={moved}") == 0  # the same log again
    assert "already in version 0001" in capsys.readouterr().out
    assert main.main(["update", f"--gin.WORK_DIR={work}", "--rollback"]) == 0
    assert workdir.published(str(work)) == str(work)
    assert listed(work, capsys) == before
    assert main.main(["update", f"--gin.WORK_DIR={work}", "--rollback"]) == 2
    assert "no version before it" in capsys.readouterr().err
    assert update(shop, work) == 0
    assert "already in version 0001" in capsys.readouterr().out, "also after it was rolled back"


@pytest.mark.long
def test_an_update_encodes_new_texts_alone_and_equals_a_full_rebuild(shop, work, tmp_path, capsys):
    """Vectors of the version in use are reused for its queries and prefixes; no file differs."""
    row = pq.read_table(shop / "fresh.parquet").slice(5, 1).to_pylist()[0]
    new = [
        {**row, "request_id": f"new{n}", "query": f"never seen {n}", "prefix": "never"}
        for n in range(3)
    ]
    log = pa.concat_tables(
        [
            pq.read_table(shop / "fresh.parquet"),
            pa.Table.from_pylist(new, pq.read_schema(shop / "fresh.parquet")),
        ]
    )
    pq.write_table(log, tmp_path / "log.parquet")
    flags = [f"--gin.LOG={tmp_path / 'log.parquet'}", "--gin.update.tolerance=100.0"]
    assert update(shop, work, *flags) == 0
    said = re.findall(r"(queries|prefixes): ([\d,]+) of ([\d,]+) are new", capsys.readouterr().out)
    assert [what for what, *_ in said] == ["queries", "prefixes"]
    for _, some, every in said:
        assert 0 < int(some) < 0.2 * int(every.replace(",", ""))
    made = work / "versions" / "0001"
    rebuilt = shutil.copytree(made, tmp_path / "rebuilt")
    for folder in ("semantic_ids", "index"):
        shutil.rmtree(rebuilt / folder)
    flags = [f"--gin.WORK_DIR={rebuilt}", f"--gin.quantize.quantiser_from={work / 'semantic_ids'}"]
    assert main.main(["run", "--from=quantize", "--until=index", *SMALL, *flags]) == 0
    for folder in ("semantic_ids", "index"):
        found, expected = tree(made / folder), tree(rebuilt / folder)
        assert found.keys() == expected.keys()
        differ = {name for name in found if found[name] != expected[name]}
        assert differ <= {"config.gin", "_manifest.json"}, differ


@pytest.mark.long
@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--gin.mine.min_users=2", "with mine.min_users = 2, and"),
        ("--gin.FeatureSpec.target_length=12", "with FeatureSpec.target_length = 12, and"),
    ],
)
def test_changed_settings_of_a_version_are_refused(shop, work, capsys, flag, said):
    assert update(shop, work, flag) == 2
    error = capsys.readouterr().err
    assert said in error and "gin files and flags" in error
    assert workdir.published(str(work)) == str(work)


@pytest.mark.long
def test_a_worse_version_is_refused_and_stays_on_disk(shop, work, capsys):
    assert update(shop, work, "--gin.update.tolerance=-200.0") == loop.NOT_BETTER
    out = capsys.readouterr().out
    assert "is worse than what it would replace" in out and "update.tolerance" in out
    assert "only if LOG names them again" in out
    assert (work / "versions" / "0001.refused" / "update.json").exists()
    assert workdir.published(str(work)) == str(work)


@pytest.mark.long
def test_an_interrupted_update_changes_nothing_and_continues(shop, work, capsys, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_judge", killed)
        assert update(shop, work) == 130
    assert workdir.published(str(work)) == str(work)
    assert not (work / "current.json").exists()
    assert listed(work, capsys)
    capsys.readouterr()
    assert update(shop, work, "--gin.update.tolerance=100.0") == 0
    out = capsys.readouterr().out
    assert out.count("up to date, skipped") == len(loop._STAGES)
    assert workdir.published(str(work)) == str(work / "versions" / "0001")


@pytest.mark.long
@pytest.mark.parametrize("where", ["replace", "publish"])
def test_an_update_killed_at_its_end_is_published_once(shop, work, capsys, monkeypatch, where):
    """After the scores are written, or after the folder is renamed."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "replace":
            replace = loop.os.replace
            patch.setattr(
                loop.os,
                "replace",
                lambda a, b: killed() if str(b).endswith("0001") else replace(a, b),
            )
        else:
            patch.setattr(versions, "publish", killed)
        assert update(shop, work, "--gin.update.tolerance=100.0") == 130
    assert workdir.published(str(work)) == str(work)
    capsys.readouterr()
    assert update(shop, work, "--gin.update.tolerance=100.0") == 0
    out = capsys.readouterr().out
    assert "] running" not in out and out.count("version 0001 is now in use") == 1
    assert ("already in version 0001; nothing to do" in out) == (where == "publish")
    assert workdir.published(str(work)) == str(work / "versions" / "0001")
    assert [path.name for path in (work / "versions").iterdir()] == ["0001"]
    assert json.loads((work / "versions" / "0001" / "update.json").read_text())["scores"]
    assert list(versions.published(str(work))) == ["0000", "0001"]


@pytest.mark.parametrize("brings", ["old", "fresh"])
def test_histories_of_one_log_and_a_column_that_the_other_lacks(tmp_path, capsys, brings):
    row = {
        "user_id": "u",
        "session_id": "s",
        "prefix": "te",
        "shown": [],
        "query": "tent",
        "clicked_position": None,
        "clicked_items": [],
        "ordered_items": [],
    }
    more = {"history": ["lamp"], "history_minutes": [3.0]}
    old = [{"request_id": f"o{n}", "timestamp_ms": n, **row, "gender": "f"} for n in range(3)]
    fresh = [{"request_id": f"f{n}", "timestamp_ms": 10 + n, **row} for n in range(4)]
    for log_row in old if brings == "old" else fresh:
        log_row.update(more)
    new = tmp_path / "new"
    for folder, rows in (("work/log", old), ("new/fresh", fresh)):
        (tmp_path / folder).mkdir(parents=True)
        table = pa.Table.from_pylist(rows)
        place = table.column_names.index("clicked_position")
        table = table.set_column(
            place, "clicked_position", table["clicked_position"].cast(pa.int32())
        )
        if folder == "work/log":
            pq.write_table(table.slice(0, 1), tmp_path / folder / "dev.parquet")
            table = table.slice(1)
        pq.write_table(table, tmp_path / folder / "train.parquet")
    base = types.SimpleNamespace(
        work=workdir.WorkDir(str(tmp_path / "work")),
        configured=lambda name: LogEngineConfig,
        log="fresh.parquet",
    )
    counts = update_log.join(base, str(new), 28.0, 0.25)
    assert counts == {"fresh": 4, "again": 0, "learnt": 3, "train": 5, "held": 1, "judged": 1}
    assert "no column 'gender'" in capsys.readouterr().out
    splits = ("test", "train", "dev")
    rows = [row for s in splits for row in pq.read_table(new / "log" / f"{s}.parquet").to_pylist()]
    assert [row["gender"] for row in rows] == ["f"] * 3 + [""] * 4
    histories = [(row["history"], row["history_minutes"]) for row in rows]
    full, empty = (["lamp"], [3.0]), (None, None)
    assert histories == ([full] * 3 + [empty] * 4 if brings == "old" else [empty] * 3 + [full] * 4)


def test_rows_of_users_who_were_deleted_are_left_out(tmp_path):
    """Rows before the deletion, of the version in use and of the fresh log."""
    path = tmp_path / "work" / "feedback" / "events.sqlite"
    store = FeedbackStore(str(path))
    for user in ("ann", "\u00e9 b", "nobody"):
        store.forget(user).result(30)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE forgotten SET at_ms = 15")
        stored = "".join(map(str, connection.execute("SELECT * FROM forgotten")))
        assert "ann" not in stored
    rows = [
        {"request_id": f"{user}{at}", "user_id": user, "timestamp_ms": at, "query": "tent"}
        for user in ("ann", "\u00e9 b", "cid", "")
        for at in (10, 15, 20)
    ]
    judge = [{**rows[0], "request_id": "held-ann"}, {**rows[-1], "request_id": "held-cid"}]
    for folder, name, part in (
        ("work/log", "train", rows[::2]),
        ("work/log", "dev", judge),
        ("new/fresh", "train", rows[1::2]),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(part), tmp_path / folder / f"{name}.parquet")
    base = types.SimpleNamespace(
        work=workdir.WorkDir(str(tmp_path / "work")),
        configured=lambda name: LogEngineConfig,
        log="fresh.parquet",
    )
    context = types.SimpleNamespace(
        configured=lambda name: FeedbackConfig, macros={"WORK_DIR": str(tmp_path / "work")}
    )
    update_log.join(base, str(tmp_path / "new"), 28.0, 0.5, loop._forgotten(context))
    log = tmp_path / "new" / "log"
    seen = [pq.read_table(log / f"{split}.parquet")["request_id"] for split in ("train", "dev")]
    expected = {one["request_id"] for one in rows}
    expected -= {f"{user}{at}" for user in ("ann", "\u00e9 b") for at in (10, 15)}
    assert {one for column in seen for one in column.to_pylist()} == expected
    assert pq.read_table(log / "test.parquet")["request_id"].to_pylist() == ["held-cid"]
    path.write_bytes(b"damaged" * 1000)
    with pytest.raises(UserError, match="lists the deleted users"):
        loop._forgotten(context)
    path.unlink()
    assert loop._forgotten(context) is None


def test_mistakes_have_a_message_and_change_nothing(shop, work, tmp_path, capsys):
    (work / "log" / "dev.parquet").rename(tmp_path / "dev.parquet")
    assert update(shop, work) == 2
    assert "ingest.dev_share" in capsys.readouterr().err
    (tmp_path / "dev.parquet").rename(work / "log" / "dev.parquet")
    before = tree(tmp_path)
    assert main.main(["update", f"--gin.WORK_DIR={work}"]) == 2
    assert "--gin.LOG=PATH" in capsys.readouterr().err
    missing = tmp_path / "nothing.parquet"
    assert main.main(["update", f"--gin.WORK_DIR={work}", f"--gin.LOG={missing}"]) == 2
    assert "no such file" in capsys.readouterr().err
    for flag, said in (
        ("--gin.update.holdout=1.0", "holdout=1.0"),
        ("--gin.update.versions_retained=1", "expected at least 2"),
        ("--gin.update.window_days=1.0", "window_days=1.0"),
    ):
        assert update(shop, work, flag) == 2
        assert said in capsys.readouterr().err
    seen = work / "log" / "dev.parquet"
    assert main.main(["update", f"--gin.WORK_DIR={tmp_path / 'empty'}", f"--gin.LOG={seen}"]) == 2
    assert "no trained model here" in capsys.readouterr().err
    assert tree(tmp_path) == before
    with held(work) as process:
        assert update(shop, work) == 2
        assert f"process {process}" in capsys.readouterr().err
    assert main.main(["update", f"--gin.WORK_DIR={work}", f"--gin.LOG={seen}"]) == 2
    assert "does not hold yet" in capsys.readouterr().err


@pytest.mark.long
def test_an_update_from_the_feedback_store(shop, work, tmp_path, capsys):
    """Feedback in the store -> export -> the next version."""
    fresh = pq.read_table(shop / "fresh.parquet").to_pylist()
    store = FeedbackStore(str(work / "feedback" / "events.sqlite"), FeedbackConfig(keep_days=1e6))
    names = [field.name for field in dataclasses.fields(Event)]
    for row in fresh:
        fields = {name: row[name] for name in names if name in row}
        profile = {name: row[name] for name in ("age", "gender")}
        store.add(Event(**fields, profile=profile)).result(30)
    store.close()
    log = tmp_path / "stored.parquet"
    flags = [f"--gin.WORK_DIR={work}", "--gin.FeedbackConfig.keep_days=1.0"]
    for _ in range(2):  # an export does not change the store
        assert main.main(["export_feedback", *flags, "--to", str(log)]) == 0
        assert pq.read_metadata(log).num_rows == len(fresh)
    assert update(shop, work, f"--gin.LOG={log}", "--gin.update.tolerance=100.0") == 0
    new = work / "versions" / "0001"
    assert workdir.published(str(work)) == str(new)
    parts = [pq.read_table(new / "log" / f"{name}.parquet") for name in ("train", "dev", "test")]
    seen = {one for part in parts for one in part["request_id"].to_pylist()}
    assert {row["request_id"] for row in fresh} <= seen
    assert {"age", "gender"} <= set(parts[0].column_names)
