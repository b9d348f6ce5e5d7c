"""Training rows with items, computed once and stored in shards: features as of each request.

    folder/{task}/{split}/part-*.array_record   one record a row, in time order (`tasks.shards`)
                          counts.json           rows of each shard
                          {column of COLUMNS}.npy, meta.json

A record is a `tf.train.Example` (`tasks.records`) of the features in meta.json. Prefix, profile and
searched query are pieces. Candidates and history are rows of the tables of `retrieval.tables`, with
counts and ages as of the request (`logs.asof`). Padding is not stored. The rows come from
`logs.asof.walk`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onesug_jax.files import write_json
from onesug_jax.logs.asof.walk import Event
from onesug_jax.logs.schema import Level
from onesug_jax.progress import Progress
from onesug_jax.tasks import records, shards
from onesug_jax.tasks.examples import MIXTURE_FILE, TEXTS
from onesug_jax.tasks.features import Featurizer

TASK = "onesug_query"
FEATURES = {  # name: dtype; the shapes of a row are in meta.json
    "candidates": np.int32,
    "candidate_counts": np.float16,
    "history": np.int32,
    "history_minutes": np.float32,
    "clock": np.int8,
    "prefix_row": np.int32,
    "typed": np.int16,
    "target_candidate": np.int32,
    "candidate_levels": np.int8,
    "query": np.int32,
    "level": np.int8,
    "row": np.int64,
}
# Read for all rows at once; `room` is the number of candidates of a row.
COLUMNS = {
    "room": np.int16,
    "target_candidate": np.int16,
    "level": np.int8,
    "row": np.int64,
}
_PADDED = {  # padded feature -> the feature that decides its length
    **dict.fromkeys(("candidates", "candidate_counts", "candidate_levels"), "candidates"),
    **dict.fromkeys(("history", "history_minutes"), "history"),
}
_WAY_OUT = "run the examples stage (FeatureSpec.items = True)"


def write(
    folder: str,
    blocks: Iterable[tuple[Mapping[str, np.ndarray], Sequence[Event]]],
    splits: Sequence[str],
    featurizer: Featurizer,
    prefix_row: Callable[[str], int],
    number_of: Callable[[str], int],
    *,
    shard_bytes: int = shards.SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Writes the rows of all splits from one walk through time.

    Args:
      folder: the rows of a split go to folder/{split}.
      blocks: from `logs.asof.walk`; `file` is the index of the split in `splits`.
      prefix_row: prefix -> its row in the table of prefixes, 0: none.
      number_of: query -> its number, -1: none.
      shard_bytes: see `shards.Writer`.
      progress: counts the written rows.
    """
    writers = {name: Writer(os.path.join(folder, name), shard_bytes) for name in splits}
    for block, all_events in blocks:
        for number, name in enumerate(splits):
            rows = np.flatnonzero(block["file"] == number)
            if not len(rows):
                continue
            events = [all_events[row] for row in rows.tolist()]
            part = {key: block[key][rows] for key in FEATURES if key in block}
            part["prefix_row"] = np.array([prefix_row(event.prefix) for event in events])
            part["typed"] = np.array([len(event.prefix) for event in events])
            shown = [[number_of(query) for query in event.shown] for event in events]
            part["candidate_levels"] = levels_of(part, shown)
            inputs = [featurizer.item_input(event.prefix, event.profile) for event in events]
            targets = [featurizer.target(event.query) for event in events]
            writers[name].add({**part, "inputs": inputs, "targets": targets})
        if progress:
            progress.add(len(all_events))
    lengths = {"inputs": featurizer.spec.input_length, "targets": featurizer.spec.target_length}
    about = {"lengths": lengths, "vocabulary": featurizer.vocabulary.fingerprint}
    for name, writer in writers.items():
        writer.close({**about, "split": name})


def join(folder: str, parts: Sequence[str], splits: Sequence[str]) -> None:
    """Joins the folders `parts` that `write` filled, in their order, as examples in `folder`."""
    for name in splits:
        out, inputs = os.path.join(folder, TASK, name), [os.path.join(p, name) for p in parts]
        metas = [shards.read_meta(path, "examples with items", _WAY_OUT) for path in inputs]
        meta = max(metas, key=lambda m: len(m["features"]))  # an empty part has no shapes
        longest = {text: max(m["longest"][text] for m in metas) for text in TEXTS}
        for text in TEXTS:
            meta["features"][text]["shape"] = [longest[text]]
        tokens = {text: sum(m["tokens"][text] for m in metas) for text in TEXTS}
        meta |= {**shards.join(out, inputs, COLUMNS), "longest": longest, "tokens": tokens}
        write_json(os.path.join(out, shards.META_FILE), meta)
    write_json(
        os.path.join(folder, MIXTURE_FILE),
        {"mixture": "onesug", "tasks": {TASK: 1.0}, "items": True},
    )


def levels_of(part: Mapping[str, np.ndarray], shown: Sequence[Sequence[int]]) -> np.ndarray:
    """The behaviour level of every candidate, int8 `[B, C]`: the row's level for the searched
    query, SHOW for other shown queries, NOT_SHOW for the rest, RAND for padding.

    Args:
      part: `candidates [B, C]`, `target_candidate [B]`, `level [B]`.
      shown: numbers of the queries in the shown list of each row.
    """
    candidates = part["candidates"]
    levels = np.where(candidates > 0, Level.NOT_SHOW, Level.RAND).astype(np.int8)
    rows = np.arange(len(shown))
    shown_numbers = np.array([number + 1 for numbers in shown for number in numbers], np.int64)
    shown_rows = np.repeat(rows, [len(numbers) for numbers in shown])
    keys = rows[:, None] << 32 | candidates  # row and candidate as one integer
    levels[np.isin(keys, shown_rows << 32 | shown_numbers) & (candidates > 0)] = Level.SHOW
    hit = np.flatnonzero(part["target_candidate"])
    levels[hit, part["target_candidate"][hit] - 1] = part["level"][hit]
    return levels


def _flat(part: Mapping[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For every feature the concatenated values of all rows, without padding, and the number of
    values of each row.
    """
    lengths = {name: _lengths(np.asarray(part[name])) for name in ("candidates", "history")}
    out = {}
    for name, dtype in FEATURES.items():
        values = np.asarray(part[name], dtype)
        sizes = np.full(len(values), values[0].size)
        if name in _PADDED:
            length = lengths[_PADDED[name]]
            sizes = length * values[0, 0].size
            values = values[np.arange(values.shape[1]) < length[:, None]]
        out[name] = values.reshape(-1), sizes
    for name in TEXTS:
        sizes = np.array([len(ids) for ids in part[name]], np.int64)
        out[name] = np.concatenate([np.zeros(0, np.int32), *part[name]], dtype=np.int32), sizes
    return out


def _lengths(numbers: np.ndarray) -> np.ndarray:
    """Lengths `[B]` of the rows of `numbers [B, C]`, without the zeros at their end."""
    return np.max(np.where(numbers > 0, np.arange(1, numbers.shape[1] + 1), 0), axis=1)


class Writer:
    """Writes the shards and meta.json of one split."""

    def __init__(self, folder: str, shard_bytes: int = shards.SHARD_BYTES):
        self._folder = folder
        self._shards = shards.Writer(folder, COLUMNS, shard_bytes=shard_bytes)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._longest, self._tokens = dict.fromkeys(TEXTS, 0), dict.fromkeys(TEXTS, 0)

    def add(self, part: Mapping[str, Any]) -> None:
        """Appends B rows: arrays of FEATURES, and lists of ids of TEXTS."""
        block = _flat(part)
        self._shapes = {name: np.shape(part[name])[1:] for name in FEATURES}
        for name in TEXTS:
            self._longest[name] = max(self._longest[name], int(block[name][1].max()))
            self._tokens[name] += len(block[name][0])
        columns: dict[str, Any] = {**part, "room": _lengths(np.asarray(part["candidates"]))}
        self._shards.add(records.encode(block), columns)

    def close(self, about: Mapping[str, object]) -> dict:
        """Closes the files and writes meta.json with the fields of `about`; returns its
        contents.
        """
        written = self._shards.close()
        shapes = {**self._shapes, **{name: (longest,) for name, longest in self._longest.items()}}
        features = {
            name: {"shape": list(shapes[name]), "dtype": np.dtype(dtype).name}
            for name, dtype in {**FEATURES, **dict.fromkeys(TEXTS, np.int32)}.items()
            if name in shapes
        }
        meta = {**about, **written, "task": TASK, "features": features}
        meta |= {"longest": self._longest, "tokens": self._tokens}
        write_json(os.path.join(self._folder, shards.META_FILE), meta)
        return meta


class ItemExamples:
    """N rows by random access.

    Args:
      folder: written by the examples stage.
      fetch: path -> path of the same file on a disk; see `shards.Shards`.

    Attributes:
      shapes: feature -> shape of a row.
      meta: count, lengths, fingerprints.
      shards: the records.

    Raises:
      UserError: the examples are missing or damaged.
    """

    def __init__(self, folder: str, split: str, *, fetch: Callable[[str], str] = shards.local):
        self.folder = os.path.join(folder, TASK, split)
        self.meta = shards.read_meta(self.folder, "examples with items", _WAY_OUT)
        self.shards = shards.Shards(self.folder, fetch=fetch, way_out=_WAY_OUT)
        features = self.meta["features"]
        self.shapes = {name: tuple(about["shape"]) for name, about in features.items()}
        self._dtypes = {name: about["dtype"] for name, about in features.items()}

    def __len__(self) -> int:
        return self.meta["count"]

    def column(self, name: str) -> np.ndarray:
        """One of COLUMNS of all rows, `[N]`; every call reads the file."""
        return self.shards.column(name)

    def read(
        self, rows: Sequence[int] | np.ndarray, names: Iterable[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Features (default: all) of B rows, `[B, *shapes[name]]`, padded with 0."""
        return self._arrays(self.shards.read(rows), names)

    def blocks(
        self, first: int = 0, stop: int | None = None, *, names: Iterable[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Blocks of features of the rows `first : stop` (None: to the end), in order."""
        for block in self.shards.scan(first, len(self) if stop is None else stop):
            yield self._arrays(block, names)

    def _arrays(self, rows: list[bytes], names: Iterable[str] | None) -> dict[str, np.ndarray]:
        out = {}
        for name, (values, sizes) in records.decode(rows, names or self.shapes).items():
            most = int(np.prod(self.shapes[name]))
            array = np.zeros((len(rows), most), self._dtypes[name])
            array[np.arange(most) < sizes[:, None]] = values
            out[name] = array.reshape(len(rows), *self.shapes[name])
        return out
