"""The work directory: expansion of inputs, comparison of manifests, and the model in use."""

import json
import os

import pytest

from onesug_jax.errors import UserError
from onesug_jax.pipeline.workdir import FOLDERS, Manifest, WorkDir, model_in_use, published


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


# ------------------------------------------------------------------ paths


def test_every_folder_is_an_attribute_and_the_one_being_written_lies_beside(tmp_path):
    work = WorkDir(str(tmp_path), "mined")
    assert {getattr(work, name) for name in FOLDERS if name != "mined"} == {
        str(tmp_path / name) for name in FOLDERS if name != "mined"
    }
    assert work.mined == str(tmp_path / "mined.new")
    with pytest.raises(AttributeError, match="no folder 'minned'.*mined"):
        work.minned  # noqa: B018


def test_a_path_is_made_absolute_and_a_url_has_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert WorkDir("work").path == str(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert WorkDir("~/work").log == str(tmp_path / "work" / "log")
    monkeypatch.setenv("ONESUG_MIRROR", str(tmp_path / "disk"))
    home = WorkDir("gs://bucket/a/work/").path
    assert home == str(tmp_path / "disk" / "work" / "gs" / "bucket" / "a" / "work")
    assert WorkDir("gs://bucket/a/work/rwr").path == WorkDir("gs://bucket/a/work").rwr
    for wrong in ("gs://", "gs://b/../c"):
        with pytest.raises(UserError, match="expected SCHEME://BUCKET/PATH"):
            WorkDir(wrong)


def test_the_folder_of_an_input(tmp_path):
    work = WorkDir(str(tmp_path / "work"))
    assert work.folder_of("mined/*") == "mined"
    assert work.folder_of("log/train.parquet") == "log"
    assert work.folder_of(str(tmp_path / "work" / "log" / "dev.parquet")) == "log"
    assert work.folder_of(str(tmp_path / "elsewhere" / "log.csv")) is None


def test_a_pattern_matches_neither_hidden_files_nor_manifests_and_settings(tmp_path):
    fill(tmp_path, "mined/a.npy", "mined/deep/b.npy", "mined/_manifest.json", "mined/config.gin")
    fill(tmp_path, "mined/.hidden", "mined/.cache/c.npy", "other/a.npy")
    work = WorkDir(str(tmp_path))
    both = {name: str(tmp_path / name) for name in ("mined/a.npy", "mined/deep/b.npy")}
    assert work.expand("mined") == work.expand("mined/*") == both
    assert list(work.expand("mined/*.npy")) == ["mined/a.npy"]
    assert list(work.expand("mined/a.npy")) == ["mined/a.npy"]
    assert work.expand("mined/nothing*") == work.expand("nowhere/file") == {}


def test_a_log_outside_has_the_same_name_when_it_moves(tmp_path):
    work = WorkDir(str(tmp_path / "work"))
    fill(tmp_path, "one/logs/a.csv", "one/logs/b.csv", "two/logs/a.csv", "two/logs/b.csv")
    names = [list(work.expand(str(tmp_path / place / "logs"))) for place in ("one", "two")]
    assert names == [["logs/a.csv", "logs/b.csv"]] * 2
    assert list(work.expand(f"{tmp_path / 'one' / 'logs'}{os.sep}")) == names[0]
    assert list(work.expand(str(tmp_path / "one" / "logs" / "*.csv"))) == ["a.csv", "b.csv"]
    assert list(work.expand(str(tmp_path / "two" / "logs" / "b.csv"))) == ["b.csv"]


# ------------------------------------------------------------------ manifests


def manifest(format=1, inputs=None, **settings):
    return Manifest("align", format, {"mined/a": "1"} if inputs is None else inputs, settings)


def differences(old, new, *counts):
    return [(change.kind, change.name, str(change)) for change in old.differences(new, *counts)]


def test_differences_are_named_with_both_values():
    old = manifest(steps=3, gone=1, same=[1, 2])
    new = manifest(2, {"mined/a": "2", "mined/b": "1"}, steps=4, fresh=None, same=(1, 2))
    assert differences(old, new) == [
        ("format", "", "align writes format 2 now, not 1"),
        ("inputs", "mined/a", "mined/a is another"),
        ("inputs", "mined/b", "mined/b (new)"),
        ("settings", "fresh", "fresh (new)"),
        ("settings", "gone", "gone (gone)"),
        ("settings", "steps", "steps 3 -> 4"),
    ]
    assert differences(new, new) == []
    assert differences(old, manifest(inputs={}, steps=3, gone=1, same=[1, 2])) == [
        ("inputs", "mined/a", "mined/a (gone)")
    ]


def test_settings_are_compared_by_choice_inputs_and_format_always():
    old, new = manifest(steps=3, width=1), manifest(2, {}, steps=4, width=2)
    kinds = [kind for kind, _, _ in differences(old, new, lambda name: name != "steps")]
    assert kinds == ["format", "inputs", "settings"]
    assert differences(old, manifest(steps=4, width=1), lambda name: name != "steps") == []


def test_the_program_that_made_a_result_is_recorded_and_not_compared(tmp_path):
    one = Manifest("align", 1, {}, {}, {"jax": "1"})
    two = Manifest("align", 1, {}, {}, {"jax": "2"})
    assert one.differences(two) == []
    one.write(str(tmp_path), finished=True)
    assert Manifest.read(str(tmp_path)).provenance == {"jax": "1"}


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    first = manifest(steps=(1, 2), text="手机").write(str(tmp_path), finished=False)
    assert first.started and first.finished is None
    last = Manifest.read(str(tmp_path)).write(str(tmp_path), finished=True)
    again = Manifest.read(str(tmp_path))
    assert again.started == first.started and again.finished == last.finished
    assert again.differences(manifest(steps=[1, 2], text="手机")) == []


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"stage": "align"}', '{"code": {}}'])
def test_an_invalid_manifest_is_read_as_none(tmp_path, text):
    if text is not None:
        (tmp_path / "_manifest.json").write_text(text)
    assert Manifest.read(str(tmp_path)) is None


# ------------------------------------------------------------------ the model in use


def test_the_aligned_model_is_in_use_where_there_is_one(tmp_path):
    with pytest.raises(UserError, match=f"no trained model here.*WORK_DIR={tmp_path}"):
        model_in_use(str(tmp_path))
    (tmp_path / "pretrain" / "bundle").mkdir(parents=True)
    assert model_in_use(str(tmp_path)) == str(tmp_path / "pretrain" / "bundle")
    (tmp_path / "rwr").mkdir()
    assert model_in_use(str(tmp_path)) == str(tmp_path / "pretrain" / "bundle")
    (tmp_path / "rwr.new" / "bundle").mkdir(parents=True)
    assert model_in_use(str(tmp_path)) == str(tmp_path / "pretrain" / "bundle"), "unfinished"
    (tmp_path / "rwr" / "bundle").mkdir()
    assert model_in_use(str(tmp_path)) == str(tmp_path / "rwr" / "bundle")


def test_a_published_version_is_in_use(tmp_path):
    (tmp_path / "rwr" / "bundle").mkdir(parents=True)
    assert published(str(tmp_path)) == str(tmp_path)
    version = tmp_path / "versions" / "0003"
    (version / "pretrain" / "bundle").mkdir(parents=True)
    pointer = tmp_path / "current.json"
    pointer.write_text(json.dumps({"version": "0003", "published": {"0000": "", "0003": "x"}}))
    assert published(str(tmp_path)) == str(version)
    assert model_in_use(str(tmp_path)) == str(version / "pretrain" / "bundle")
    pointer.write_text(json.dumps({"version": "0000", "published": {"0000": ""}}))
    assert published(str(tmp_path)) == str(tmp_path)
    pointer.write_text("{")
    with pytest.raises(UserError, match="current.json.*which version is in use"):
        published(str(tmp_path))
