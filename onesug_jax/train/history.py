"""`history.jsonl` of a stage's folder: the settings with which its parameters were trained.

A setting may change between runs. Each line records the changes from a step on:
{"step", "time", "changes": {name: [old, new]}}, and optionally "note". The first line, of step 0,
contains all settings. Lines that a killed run wrote after its last checkpoint are dropped, as in
`metrics.jsonl`.
"""

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from onesug_jax.files import atomic_write
from onesug_jax.train import distributed
from onesug_jax.train.sink import writing

HISTORY = "history.jsonl"
Changes = dict[str, list[Any]]


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"mesh": {"data": 2}} -> {"mesh.data": 2}, with values as JSON reads them back."""
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(dict(values), default=str)).items():
        inner = flatten(value) if isinstance(value, dict) else None
        flat |= {f"{name}.{key}": x for key, x in inner.items()} if inner else {name: value}
    return flat


def find_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    """{name: [old value, new value]} of two flat mappings; a missing name counts as None."""
    names = [*new, *(name for name in old if name not in new)]
    pairs = {name: [old.get(name), new.get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def record(
    folder: str | os.PathLike, step: int, settings: Mapping[str, Any], note: str = ""
) -> dict[str, Any] | None:
    """Append the changes of the settings from `step` on.

    Args:
      folder: the stage's folder.
      step: updates completed with the previous settings.
      settings: the new settings, JSON values, nested or not.
      note: any other change.

    Returns:
      the line; None if nothing changed.

    Raises:
      UserError: the file could not be written.
    """
    return distributed.run_on_primary_and_broadcast(lambda: _record(folder, step, settings, note))


def _record(folder, step, settings, note) -> dict[str, Any] | None:
    entries = read_history(folder)
    current = [entry for entry in entries if entry["step"] < step]
    before: dict[str, Any] = {}
    for entry in current:
        before |= {name: new for name, (_, new) in entry["changes"].items()}
    changes = find_changes(before, flatten(settings))
    entry = {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    entry |= {"changes": changes} | ({"note": note} if note else {})
    new = [entry] if changes or note else []
    if [_content(old) for old in entries[len(current) :]] != [_content(entry) for entry in new]:
        text = "".join(json.dumps(line) + "\n" for line in [*current, *new])
        with writing(folder), atomic_write(os.path.join(folder, HISTORY)) as file:
            file.write(text.encode())
    return entry if new else None


def read_history(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a stage's history, oldest first; [] if the stage has not trained."""
    path = pathlib.Path(folder, HISTORY)
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            entries.append({**entry, "step": int(entry["step"]), "changes": entry["changes"]})
        except (ValueError, KeyError, TypeError):  # a damaged history must not stop training
            continue
    return entries


def format_history(folder: str | os.PathLike) -> list[str]:
    """One line for each change: "from step 400 on (2026-01-31T12:00:00Z): steps 400 -> 800"."""
    return [describe(entry, entry.get("time", "")) for entry in read_history(folder)]


def describe(entry: Mapping[str, Any], when: str = "") -> str:
    """A line of the history as text."""
    parts = [
        f"{name} {_shown(new)}" if not entry["step"] else f"{name} {_shown(old)} -> {_shown(new)}"
        for name, (old, new) in entry["changes"].items()
    ]
    text = "; ".join(part for part in (", ".join(parts), entry.get("note")) if part)
    return f"from step {entry['step']} on{f' ({when})' if when else ''}: {text}"


def _content(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["step"], entry["changes"], entry.get("note", "")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
