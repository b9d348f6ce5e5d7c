"""Training rows with items, once as random-access arrays: what each request saw at its moment.

    folder/{task}/{split}/ inputs.npy, input_offsets.npy, targets.npy, target_offsets.npy, meta.json
                           one array a feature of FEATURES, a row each

Text is the prefix, the profile and the searched query as pieces; candidates and history are numbers
into the tables of `retrieval.tables`, with their counts and ages as of the request (`logs.asof`).
The rows come in time order from `logs.asof.walk`; nothing is taken out of them again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq

from onesug_jax.files import read_json, require_files, write_json
from onesug_jax.logs.schema import Level, profile_columns
from onesug_jax.progress import Progress
from onesug_jax.tasks.examples import META_FILE, MIXTURE_FILE
from onesug_jax.tasks.features import Featurizer

TASK = "onesug_query"
FEATURES = {  # name: type on the disk; shapes [N, C], [N, C, K], [N, H], [N, H], [N, 2], [N] ..
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


class Texts:
    """Prefix, query, shown list and profile values of the rows of one split's file."""

    def __init__(self, path: str):
        profile = profile_columns(pq.read_schema(path))
        table = pq.read_table(path, columns=["prefix", "query", "shown", *profile])
        self.prefixes, self.queries = (table[n].to_pylist() for n in ("prefix", "query"))
        self.shown = [texts or () for texts in table["shown"].to_pylist()]
        columns = [[value or "" for value in table[name].to_pylist()] for name in profile]
        self.profiles = list(zip(*columns, strict=True)) if columns else [()] * table.num_rows

    def __len__(self) -> int:
        return len(self.prefixes)


def write(
    folder: str,
    blocks: Iterable[Mapping[str, np.ndarray]],
    splits: Mapping[str, Texts],
    counts: Mapping[str, int],
    featurizer: Featurizer,
    prefix_row: Callable[[str], int],
    number_of: Callable[[str], int],
) -> dict[str, dict]:
    """Writes the rows of all splits from one walk through time.

    Args:
      folder: the examples stage's folder.
      blocks: of `logs.asof.walk`; `file` counts the splits in their order.
      splits: split -> its texts.
      counts: split -> how many rows of it the walk gives.
      featurizer: makes pieces.
      prefix_row: prefix -> its row in the table of prefixes, 0: none.
      number_of: query -> its number, -1: none.

    Returns:
      {split: meta}.
    """
    writers = {name: _Writer(os.path.join(folder, TASK, name), counts[name]) for name in splits}
    names = list(splits)
    with Progress("examples", sum(counts.values()), "rows") as progress:
        for block in blocks:
            for number, name in enumerate(names):
                rows = block["file"] == number
                if rows.any():
                    texts, chosen = splits[name], block["row"][rows].tolist()
                    prefixes = [texts.prefixes[row] for row in chosen]
                    part = {key: block[key][rows] for key in FEATURES if key in block}
                    part["prefix_row"] = np.array([prefix_row(p) for p in prefixes])
                    part["typed"] = np.array([len(p) for p in prefixes])
                    part["candidate_levels"] = levels_of(
                        part, [[number_of(q) for q in texts.shown[row]] for row in chosen]
                    )
                    inputs = [
                        featurizer.item_input(p, texts.profiles[r])
                        for p, r in zip(prefixes, chosen, strict=True)
                    ]
                    targets = [featurizer.target(texts.queries[row]) for row in chosen]
                    writers[name].add(part, inputs, targets)
            progress.add(len(block["file"]))
    lengths = {"inputs": featurizer.spec.input_length, "targets": featurizer.spec.target_length}
    about = {"lengths": lengths, "vocabulary": featurizer.vocabulary.fingerprint}
    metas = {name: writers[name].close({**about, "split": name}) for name in names}
    write_json(
        os.path.join(folder, MIXTURE_FILE),
        {"mixture": "onesug", "tasks": {TASK: 1.0}, "items": True},
    )
    return metas


def levels_of(part: Mapping[str, np.ndarray], shown: Sequence[Sequence[int]]) -> np.ndarray:
    """The behaviour level of every candidate, int8 `[B, C]`: the row's own for what was searched,
    SHOW for what the user saw besides, NOT_SHOW for the rest; RAND where a place is empty.

    Args:
      part: `candidates [B, C]`, `target_candidate [B]`, `level [B]`.
      shown: numbers of the queries that each row's list held.
    """
    candidates = part["candidates"]
    levels = np.where(candidates > 0, Level.NOT_SHOW, Level.RAND).astype(np.int8)
    for row, numbers in enumerate(shown):
        if numbers:
            seen = np.isin(candidates[row], np.array(numbers) + 1) & (candidates[row] > 0)
            levels[row, seen] = Level.SHOW
    hit = np.flatnonzero(part["target_candidate"])
    levels[hit, part["target_candidate"][hit] - 1] = part["level"][hit]
    return levels


class _Writer:
    """The arrays of one split, of a number of rows that is known."""

    def __init__(self, folder: str, count: int):
        os.makedirs(folder, exist_ok=True)
        self._folder, self._count, self._at = folder, count, 0
        self._arrays: dict[str, np.ndarray] = {}
        self._ids: dict[str, list[np.ndarray]] = {"inputs": [], "targets": []}

    def add(self, part: Mapping[str, np.ndarray], inputs: Sequence, targets: Sequence) -> None:
        end = self._at + len(inputs)
        for name, values in part.items():
            if name not in self._arrays:
                path = os.path.join(self._folder, f"{name}.npy")
                shape = (self._count, *values.shape[1:])
                self._arrays[name] = np.lib.format.open_memmap(path, "w+", FEATURES[name], shape)
            self._arrays[name][self._at : end] = values
        self._ids["inputs"] += inputs
        self._ids["targets"] += targets
        self._at = end

    def close(self, about: Mapping[str, object]) -> dict:
        assert self._at == self._count, f"{self._at} rows, expected {self._count}"
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]
        longest, tokens = {}, {}
        for name, rows in self._ids.items():
            sizes = np.array([len(row) for row in rows], np.int64)
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
            flat = np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32)
            np.save(os.path.join(self._folder, f"{name}.npy"), flat)
            np.save(os.path.join(self._folder, f"{name[:-1]}_offsets.npy"), offsets)
            longest[name], tokens[name] = int(sizes.max(initial=0)), int(sizes.sum())
        meta = {**about, "task": TASK, "count": self._count, "longest": longest, "tokens": tokens}
        write_json(os.path.join(self._folder, META_FILE), meta)
        return meta


class ItemExamples:
    """N rows by random access, by memory map.

    Attributes:
      arrays: feature -> `[N, ..]`. meta: count, lengths, fingerprints.

    Raises:
      UserError: there are none, or they are damaged.
    """

    def __init__(self, folder: str, split: str):
        self.folder = os.path.join(folder, TASK, split)
        path = os.path.join(self.folder, META_FILE)
        way_out = "run the examples stage (FeatureSpec.items = True)"
        self.meta = read_json(path, "examples with items", way_out)
        names = [*FEATURES, "inputs", "targets", "input_offsets", "target_offsets"]
        paths = [os.path.join(self.folder, f"{name}.npy") for name in names]
        require_files(paths, "an array of the examples", way_out)
        self.arrays = {
            name: np.load(path, mmap_mode=None if name in _SMALL else "r")
            for name, path in zip(names, paths, strict=True)
        }

    def __len__(self) -> int:
        return self.meta["count"]

    def text(self, side: str, rows: np.ndarray, length: int) -> np.ndarray:
        """`[B, length]` int32 ids of `inputs` or `targets`, 0 behind them."""
        out = np.zeros((len(rows), length), np.int32)
        flat, offsets = self.arrays[side], self.arrays[f"{side[:-1]}_offsets"]
        for place, row in enumerate(rows):
            ids = flat[offsets[row] : offsets[row + 1]][:length]
            out[place, : len(ids)] = ids
        return out


# Read at every step and small: in memory.
_SMALL = ("input_offsets", "target_offsets", "target_candidate", "level", "query", "prefix_row")
