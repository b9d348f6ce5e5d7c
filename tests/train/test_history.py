"""The history records the changes of settings, and drops those of lost steps."""

import json

import pytest

from onesug_jax.errors import UserError
from onesug_jax.train.history import flatten, format_history, read_history, record

FIRST = {"steps": 400, "optimizer": {"rate": 0.001, "clip": None}, "mesh": {"data": 1}}


def changes(folder):
    return [(entry["step"], entry["changes"]) for entry in read_history(folder)]


def test_settings_are_flat_json_values():
    assert flatten({"a": {"b": {"c": (1, 2)}, "d": {}}, "e": None}) == {
        "a.b.c": [1, 2],
        "a.d": {},
        "e": None,
    }


def test_each_line_contains_the_changes_since_the_previous_ones(tmp_path):
    assert record(tmp_path, 0, FIRST)["step"] == 0
    assert record(tmp_path, 100, FIRST) is None
    second = {**FIRST, "steps": 800, "optimizer": {"rate": 0.0005, "clip": 1.0}}
    record(tmp_path, 400, second)
    third = {**second, "mesh": {"data": 2}, "note": "a"}
    assert record(tmp_path, 500, third, "the state is new")["note"] == "the state is new"
    assert changes(tmp_path) == [
        (0, {"steps": [None, 400], "optimizer.rate": [None, 0.001], "mesh.data": [None, 1]}),
        (
            400,
            {"steps": [400, 800], "optimizer.rate": [0.001, 0.0005], "optimizer.clip": [None, 1.0]},
        ),
        (500, {"mesh.data": [1, 2], "note": [None, "a"]}),
    ]
    assert record(tmp_path, 600, second) is not None
    assert changes(tmp_path)[-1] == (600, {"mesh.data": [2, 1], "note": ["a", None]})
    first, other, *_ = format_history(tmp_path)
    time = read_history(tmp_path)[0]["time"]
    assert first == f"from step 0 on ({time}): steps 400, optimizer.rate 0.001, mesh.data 1"
    assert other.endswith(
        "): steps 400 -> 800, optimizer.rate 0.001 -> 0.0005, optimizer.clip none -> 1.0"
    )


def test_lines_of_lost_steps_are_dropped(tmp_path):
    record(tmp_path, 0, FIRST)
    record(tmp_path, 400, {**FIRST, "steps": 800})
    record(tmp_path, 600, {**FIRST, "steps": 900})
    # The run from step 600 was killed before its first checkpoint; the next has other settings.
    record(tmp_path, 600, {**FIRST, "steps": 1000})
    assert changes(tmp_path)[1:] == [(400, {"steps": [400, 800]}), (600, {"steps": [800, 1000]})]
    record(tmp_path, 600, {**FIRST, "steps": 800})
    assert changes(tmp_path)[1:] == [(400, {"steps": [400, 800]})]
    record(tmp_path, 0, {"steps": 7})
    assert changes(tmp_path) == [(0, {"steps": [None, 7]})]


def test_repeating_a_command_does_not_write_the_file(tmp_path):
    record(tmp_path, 0, FIRST)
    record(tmp_path, 400, {**FIRST, "steps": 800}, "a note")
    path = tmp_path / "history.jsonl"
    before = path.read_bytes(), path.stat().st_mtime_ns
    record(tmp_path, 400, {**FIRST, "steps": 800}, "a note")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_damaged_line_is_skipped(tmp_path):
    assert read_history(tmp_path) == format_history(tmp_path) == []
    record(tmp_path, 0, FIRST)
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write('{"step": 4\n[]\n' + json.dumps({"step": 5}) + "\n")
    assert [step for step, _ in changes(tmp_path)] == [0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file.*could not be written"):
        record(tmp_path / "file", 0, FIRST)
