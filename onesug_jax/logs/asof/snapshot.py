"""The as-of state on disk, from which a service continues to count.

Histories are left out: they are personal, and a service has its own. Visitors of queries that do
not exist yet are hashes. A state that leaves the machine must be saved without `rare` texts.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import atomic_write, require_files, write_json
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.existence import Waited
from onesug_jax.logs.asof.nearby import NOTHING, Nearby
from onesug_jax.logs.asof.pairs import ANY
from onesug_jax.logs.asof.state import AsOf

FORMAT = 4  # of the files of `save`, and of the attributes of a pickled state
_TEXTS, _ARRAYS, _ABOUT = "asof.json", "asof.npz", "asof_settings.json"


def save(state: AsOf, folder: str, *, rare: bool = True) -> None:
    """Write the counts to `folder`; all observed events are made visible first.

    Args:
      state: the state, which is settled.
      folder: created if missing.
      rare: whether to write private data too: texts of too few visitors to exist, prefixes that no
        existing query starts with, and hashes of the searches of the last day. Without them such a
        query needs `min_users` new visitors, and the repeats of the last day count anew.
    """
    state.settle()
    os.makedirs(folder, exist_ok=True)
    size = len(state)
    prefixes, pairs = state.pairs.to_arrays()
    lists = dict(state.shown.items())
    arrays: dict[str, Any] = {
        **pairs,
        "stored": state.searches.stored[:size],
        "reference": np.array(state.searches.reference),
        "conversions": state.conversions[:size],
        "exists": state.existence.exists[:size],
        "new": state.existence.new[:size],
    }
    existence = state.existence
    if not rare:
        allowed = np.array([_public(state, text) for text in prefixes], bool)
        prefixes = [text if ok else "" for text, ok in zip(prefixes, allowed, strict=True)]
        lists = {
            prefix: (time, [text for text in texts if state.exists(state.number(text))])
            for prefix, (time, texts) in lists.items()
            if _public(state, prefix)
        }
        public = allowed[pairs["pair_prefix"]]
        public &= existence.exists[pairs["pair_query"]] | (pairs["pair_query"] == ANY)
        for name in ("pair_prefix", "pair_query", "pair_stored"):
            arrays[name] = pairs[name][public]
    texts = {
        "queries": list(state.completions),
        "prefixes": prefixes,
        "shown": lists,
        "repeats": [repeats.to_json() for repeats in state.repeats] if rare else [],
        "visitors": {str(number): list(seen) for number, seen in existence.visitors.items()},
        "waiting": {
            text: [list(waited.visitors), waited.searches, waited.conversions]
            for text, waited in existence.waiting.items()
            if rare
        },
    }
    with atomic_write(os.path.join(folder, _ARRAYS)) as file:
        np.savez(file, allow_pickle=False, **arrays)
    write_json(os.path.join(folder, _TEXTS), texts, indent=0)
    about = {
        "format": FORMAT,
        "latest_ms": state.latest_ms,
        "named": state.named,
        "first": state.first,
        "config": dataclasses.asdict(state.config),
    }
    write_json(os.path.join(folder, _ABOUT), about)


def _public(state: AsOf, prefix: str) -> bool:
    """Whether a query that exists starts with a text."""
    return bool(state.existence.exists[state.completions.numbers(prefix)].any())


def load(
    folder: str,
    config: AsOfConfig | None = None,
    *,
    spare: int = 65_536,
    nearby: Nearby = NOTHING,
) -> AsOf:
    """The state that `save` wrote.

    Args:
      folder: the folder of `save`.
      config: settings, which may differ in all but half-lives and `shown`; None: the saved ones.
      spare: most queries that get a number from now on.
      nearby: as of `AsOf`.

    Raises:
      UserError: files are missing or damaged, or were counted with other settings.
    """
    counted = settings(folder)
    config = config or counted
    try:
        about, texts = (_read_json(os.path.join(folder, name)) for name in (_ABOUT, _TEXTS))
        for name in ("half_lives_days", "pair_half_lives_days", "shown"):
            if getattr(counted, name) != getattr(config, name):
                raise UserError(
                    f"{folder}: counted at {name}={getattr(counted, name)}, but "
                    f"AsOfConfig.{name}={getattr(config, name)}; set these, or count again"
                )
        with np.load(os.path.join(folder, _ARRAYS), allow_pickle=False) as file:
            arrays = dict(file)
        queries, first = texts["queries"], about["first"]
        size = len(queries)
        state = AsOf(queries[:first], config, spare=size - first + spare, nearby=nearby)
        state.append_all(queries[first:])
        for target, name in (
            (state.searches.stored, "stored"),
            (state.conversions, "conversions"),
            (state.existence.exists, "exists"),
            (state.existence.new, "new"),
        ):
            if len(arrays[name]) != size:
                raise ValueError(f"{len(arrays[name])} rows of {name} for {size} queries")
            target[:size] = arrays[name]
        state.searches.reference = float(arrays["reference"])
        state.pairs.from_arrays(texts["prefixes"], arrays)
        for prefix, (time, shown) in texts["shown"].items():
            state.shown.add(prefix, shown, time)
        visitors = {int(number): tuple(seen) for number, seen in texts["visitors"].items()}
        state.existence.visitors = visitors
        for text, (seen, searches, conversions) in texts["waiting"].items():
            waited = Waited(set(seen), [(t, p) for t, p in searches], conversions)
            state.existence.waiting[text] = waited
        for repeats, stored in zip(state.repeats, texts.get("repeats", ()), strict=False):
            repeats.from_json(stored)
        state.latest_ms, state.named = about["latest_ms"], about.get("named", True)
        state.make_wide()
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise _damaged(folder, error) from error
    return state


def settings(folder: str) -> AsOfConfig:
    """The settings of a saved state; raises UserError as `load`."""
    paths = [os.path.join(folder, name) for name in (_ABOUT, _TEXTS, _ARRAYS)]
    require_files(paths, "saved as-of counts", "run the examples stage again, and train anew")
    try:
        about = _read_json(paths[0])
        if about["format"] != FORMAT:
            raise UserError(
                f"{folder}: another release saved these as-of counts (format {about['format']}, "
                f"expected {FORMAT}); run the examples stage again (--restart=examples)"
            )
        return AsOfConfig(**about["config"])
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: str, error: Exception) -> UserError:
    check_refused(folder, error)
    return UserError(f"{folder}: the as-of counts are damaged ({error}); make them again")


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)
