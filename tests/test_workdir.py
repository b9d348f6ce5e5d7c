"""A stage is done once, and again exactly when what it was made from has changed."""

import os

import pytest

from onesug_jax import workdir
from onesug_jax.errors import UserError
from onesug_jax.workdir import Manifest, WorkDir, fingerprint, make_ready, stale_reason


def manifest(**changes):
    base = {
        "stage": "pretrain",
        "inputs": {"log/train.parquet": "aa"},
        "config": {"pretrain.steps": 400, "sizes": (1, 2)},
        "code": {"onesug_jax/model/config.py": "cc"},
        "versions": {"jax": "1"},
    }
    return Manifest(**{**base, **changes})


def test_a_finished_stage_is_up_to_date(tmp_path):
    manifest().write(str(tmp_path), finished=True)
    assert stale_reason(str(tmp_path), manifest()) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"config": {"pretrain.steps": 800, "sizes": [1, 2]}},
            "config changed: pretrain.steps 400 -> 800",
        ),
        ({"inputs": {"log/train.parquet": "bb"}}, "inputs changed: log/train.parquet"),
        ({"inputs": {}}, "inputs changed: log/train.parquet (gone)"),
        (
            {"code": {"onesug_jax/model/config.py": "dd"}},
            "code changed: onesug_jax/model/config.py",
        ),
        ({"versions": {"jax": "2"}}, None),
    ],
)
def test_the_reason_names_what_changed(tmp_path, changes, reason):
    manifest().write(str(tmp_path), finished=True)
    assert stale_reason(str(tmp_path), manifest(**changes)) == reason


def test_an_interrupted_stage_is_not_finished_and_may_be_resumed(tmp_path):
    folder = str(tmp_path / "pretrain")
    assert stale_reason(folder, manifest()) == "never run"
    assert make_ready(folder, manifest(), resumable=True) is False
    manifest().write(folder, finished=False)
    (tmp_path / "pretrain" / "checkpoint").write_text("half")
    assert stale_reason(folder, manifest()) == "never finished"
    assert make_ready(folder, manifest(), resumable=True) is True
    assert (tmp_path / "pretrain" / "checkpoint").exists()
    assert make_ready(folder, manifest(), resumable=False) is False
    assert not (tmp_path / "pretrain" / "checkpoint").exists()


def test_results_of_something_else_are_removed(tmp_path):
    folder = str(tmp_path / "pretrain")
    manifest(inputs={}).write(folder, finished=False)
    (tmp_path / "pretrain" / "checkpoint").write_text("of another log")
    assert make_ready(folder, manifest(), resumable=True) is False
    assert not (tmp_path / "pretrain" / "checkpoint").exists()


def test_a_users_own_files_are_never_removed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no stage made"):
        make_ready(str(tmp_path), manifest(), resumable=False)
    assert (tmp_path / "notes.txt").exists()


def test_a_torn_manifest_counts_as_none(tmp_path):
    (tmp_path / "_manifest.json").write_text('{"stage": "pre')
    assert stale_reason(str(tmp_path), manifest()) == "never run"


@pytest.mark.parametrize("size", [100, 5 * 2**20])
def test_fingerprint_sees_a_changed_byte_at_either_end(tmp_path, monkeypatch, size):
    monkeypatch.setattr(workdir, "_WHOLE", 2**20)  # so that the second size counts as large
    path = tmp_path / "file"
    seen = set()
    for position in (None, 0, size - 1):
        content = bytearray(size)
        if position is not None:
            content[position] = 1
        path.write_bytes(bytes(content))
        os.utime(path, ns=(0, 0))
        seen.add(fingerprint(str(path)))
    assert len(seen) == 3


def test_inputs_inside_are_named_from_the_work_directory_and_outside_from_the_log(tmp_path):
    work = WorkDir(str(tmp_path / "w"))
    for path in (
        "w/log/train.parquet",
        "w/log/_manifest.json",
        "w/log/.hidden",
        "shop/dev.parquet",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    assert list(work.expand("log")) == ["log/train.parquet"]
    assert list(work.expand("log/*.parquet")) == ["log/train.parquet"]
    assert list(work.expand(str(tmp_path / "shop"))) == ["shop/dev.parquet"]
    assert work.expand("vocab") == {}
    assert work.folder_of("log/train.parquet") == "log"
    assert work.folder_of(str(tmp_path / "shop")) is None


def test_a_work_directory_has_only_the_folders_it_knows(tmp_path):
    work = WorkDir(str(tmp_path))
    assert work.pretrain == str(tmp_path / "pretrain")
    with pytest.raises(AttributeError, match="pretrian"):
        _ = work.pretrian
