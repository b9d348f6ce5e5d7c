"""Examples of the text model, made once and stored in shards.

Training needs random access to examples, so that their order is a function of (seed, step). A task
is a kind of example (`tasks.kinds`) over the log. Its examples are computed once, block by block,
into

    folder/{task}/{split}/ part-*.array_record, counts.json   `inputs`, `targets`, and `soft`, the
                           row of vectors.npy if the example has a soft token (`tasks.shards`)
                           input_lengths.npy, target_lengths.npy, soft.npy, meta.json
    folder/mixture.json    the name of the mixture and the rates of its tasks
    folder/vectors.npy     [P + 1, E] float16, the enhanced prefixes; row 0 means none

`tasks.seqio_shards` lets SeqIO read these shards, and writes shards of other SeqIO tasks.

Related queries and e_p* come from the whole train split, including a row's own search
(`retrieval.related`). Rows with items (`tasks.item_examples`) use earlier searches only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import atomic_write, open_parquet, replace_folder, write_json
from onesug_jax.logs.history import with_history
from onesug_jax.logs.schema import RECENT, SPLITS, profile_columns
from onesug_jax.progress import Progress
from onesug_jax.retrieval.related import RelatedQueries
from onesug_jax.tasks import records
from onesug_jax.tasks.features import FeatureSpec, Featurizer, Request
from onesug_jax.tasks.kinds import ANY_PREFIX, KINDS, Kind
from onesug_jax.tasks.prefixes import PrefixDraw
from onesug_jax.tasks.shards import META_FILE, SHARD_BYTES, Shards, Writer, local, read_meta
from onesug_jax.tasks.vocabulary import Vocabulary

MIXTURE_FILE = "mixture.json"
VECTORS_FILE = "vectors.npy"
TEXTS = ("inputs", "targets")
_WAY_OUT = "build the examples first, by the stage examples"

_ROWS_A_BLOCK = 4096
_PRESENT = np.zeros(0)  # stands for a vector: the ids depend only on whether there is one


@dataclass(frozen=True)
class Examples:
    """N examples by random access.

    Attributes:
      folder: their folder.
      shards: their records.
      input_lengths, target_lengths: int32 [N], number of ids.
      meta: count, lengths, fingerprints.
      soft: int32 [N], the row of `vectors` for the soft token; 0: the example has none.
      vectors: float16 [P + 1, E] by memory map; None if no example has a soft token.
    """

    folder: str
    shards: Shards
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    meta: dict
    soft: np.ndarray | None = None
    vectors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_lengths)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs [L_i] and targets [T_i] of example i."""
        texts = self.texts([i])
        return texts["inputs"][0], texts["targets"][0]

    def texts(self, rows: Sequence[int] | np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """`inputs` and `targets` of some examples: concatenated ids, int32, and the number of ids
        of each example.
        """
        features = records.decode(self.shards.read(rows), TEXTS)
        return {name: (ids.astype(np.int32), sizes) for name, (ids, sizes) in features.items()}

    @classmethod
    def load(
        cls, folder: str, task: str, split: str, *, fetch: Callable[[str], str] = local
    ) -> Examples:
        """Opens folder/task/split. Raises UserError if it is missing or damaged.

        Args:
          fetch: path -> path of the same file on a disk; see `shards.Shards`.
        """
        path = os.path.join(folder, task, split)
        meta = read_meta(path, f"examples of task {task!r}, split {split!r}", _WAY_OUT)
        shards = Shards(path, fetch=fetch, way_out=_WAY_OUT)
        soft = vectors = None
        if meta["soft"]:
            soft = shards.column("soft")
            try:
                vectors = np.load(fetch(os.path.join(folder, VECTORS_FILE)), mmap_mode="r")
            except (OSError, ValueError) as e:
                check_refused(folder, e)
                raise UserError(
                    f"{folder}: the vectors of soft tokens cannot be read ({e}); {_WAY_OUT}"
                ) from e
        inputs, targets = shards.column("input_lengths"), shards.column("target_lengths")
        return cls(path, shards, inputs, targets, meta, soft, vectors)


def build_examples(
    folder: str,
    *,
    splits: Mapping[str, str],
    vocabulary: Vocabulary,
    spec: FeatureSpec,
    context: RelatedQueries | None = None,
    indexed: Callable[[str], bool] | None = None,
    tasks: Mapping[str, float] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    mixture: str = "onesug",
) -> dict[str, dict[str, dict]]:
    """Makes the examples of all tasks and splits, in `folder`; a task is named `{mixture}_{kind}`.

    Args:
      splits: split name -> Parquet file in the log schema.
      spec: the inputs of the model and their lengths.
      context: gives related queries and enhanced prefixes (`retrieval.related`); None: neither.
      indexed: whether a query is indexed; training rows with other queries are left out.
      tasks: kind -> rate; default {"query": 1.0}.
      kinds: further kinds beside `KINDS`, by name.

    Returns:
      {task: {split: meta}}.

    Raises:
      UserError: an unknown kind, a rate that is not positive, a missing log file, or a task without
        an example in "train".
    """
    tasks = {"query": 1.0} if tasks is None else dict(tasks)
    all_kinds = {**KINDS, **(kinds or {})}
    for kind, rate in tasks.items():
        if kind not in all_kinds:
            raise UserError(
                f"tasks: expected kinds out of {', '.join(sorted(all_kinds))}; found {kind!r}."
            )
        if not rate > 0:
            raise UserError(
                f"tasks: expected a rate above 0 for {kind!r}, found {rate}; leave it out instead."
            )
    for split, path in splits.items():
        if not os.path.isfile(path):
            raise UserError(f"{path}: the log of split {split!r} is missing; run the ingest stage.")
    redraw = PrefixDraw.from_log(splits["train"]) if ANY_PREFIX in tasks else None
    soft: dict[str, int] = {}
    if context is not None and spec.soft:
        soft = write_vectors(folder, splits, context, redraw)
    featurizer = Featurizer(vocabulary, spec)
    about = {
        "lengths": {"inputs": spec.input_length, "targets": spec.target_length},
        "vocabulary": vocabulary.fingerprint,
    }
    metas: dict[str, dict[str, dict]] = {}
    for kind in tasks:
        own_draw = redraw if kind == ANY_PREFIX else None
        metas[name := f"{mixture}_{kind}"] = {}
        for split, path in splits.items():
            rows = _rows(split, splits, spec, context, soft, indexed, own_draw)
            blocks = _blocks(rows, all_kinds[kind], featurizer)
            total = pq.read_metadata(path).num_rows
            metas[name][split] = write_examples(folder, name, split, blocks, about, total=total)
    write_mixture(folder, mixture, {f"{mixture}_{kind}": tasks[kind] for kind in tasks}, metas)
    return metas


def write_mixture(
    folder: str,
    mixture: str,
    rates: Mapping[str, float],
    metas: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> None:
    """Writes the rates of the tasks in `folder`; UserError if a task has no training example."""
    for task, splits in metas.items():
        if "train" in splits and not splits["train"]["count"]:
            raise UserError(
                f"task {task!r} gave no example of split 'train'; its log has no usable row."
            )
    write_json(os.path.join(folder, MIXTURE_FILE), {"mixture": mixture, "tasks": dict(rates)})


def _rows(
    split: str,
    splits: Mapping[str, str],
    spec: FeatureSpec,
    context: RelatedQueries | None,
    soft: Mapping[str, int],
    indexed: Callable[[str], bool] | None,
    redraw: PrefixDraw | None,
) -> Iterator[list[tuple[Request, str, int]]]:
    """Blocks of (request, query, number of the soft token's vector) of a split, in file order.

    Args:
      soft: prefix -> number of its vector, from 1; other prefixes have no soft token.
      redraw: replaces the prefixes of training rows; other splits then have no rows.
    """
    if redraw is not None and split != "train":
        return
    # History comes from the split's own file and the splits before it.
    files = [splits[name] for name in SPLITS[: 1 + SPLITS.index(split)] if name in splits]
    profile = profile_columns(pq.read_schema(splits[split]))
    for batch in with_history(files, keep=splits[split], history=spec.history):
        for start in range(0, batch.num_rows, _ROWS_A_BLOCK):
            rows = batch.slice(start, _ROWS_A_BLOCK)
            if indexed is not None and split == "train":
                rows = rows.filter(pa.array(map(indexed, rows["query"].to_pylist()), pa.bool_()))
            prefixes, queries = rows["prefix"].to_pylist(), rows["query"].to_pylist()
            if redraw is not None:
                prefixes = redraw(rows["request_id"].to_pylist(), prefixes, queries)
            related: Sequence[Sequence[str]] = [()] * rows.num_rows
            if context is not None and spec.related:
                related = [texts[: spec.related] for texts in context.related(prefixes)]
            columns = [rows[name].cast(pa.string()).to_pylist() for name in profile]
            profiles = zip(*columns, strict=True) if columns else [()] * rows.num_rows
            block = []
            lists = zip(rows[RECENT].to_pylist(), related, profiles, strict=True)
            for prefix, query, texts in zip(prefixes, queries, lists, strict=True):
                number = soft.get(prefix, 0)
                history, near, profile_values = ([text for text in row if text] for row in texts)
                vector = _PRESENT if number else None
                request = Request(prefix, history, near, profile_values, vector)
                block.append((request, query, number))
            yield block


def _blocks(
    rows: Iterable[list[tuple[Request, str, int]]], kind: Kind, featurizer: Featurizer
) -> Iterator[tuple[np.ndarray, ...]]:
    """The examples of a kind, as blocks for `write_examples`."""
    soft_id = featurizer.vocabulary.soft_id
    for block in rows:
        examples, soft = [], []
        for request, query, number in block:
            if (example := kind(featurizer, request, query)) is not None:
                examples.append(example)
                soft.append(number if soft_id in example[0] else 0)
        if examples:
            sides = [[example[side] for example in examples] for side in (0, 1)]
            sizes = [np.array([*map(len, ids)], np.int64) for ids in sides]
            ids = [np.concatenate(ids) for ids in sides]
            yield ids[0], sizes[0], ids[1], sizes[1], np.array(soft, np.int64)


def write_vectors(
    folder: str,
    splits: Mapping[str, str],
    context: RelatedQueries,
    redraw: PrefixDraw | None = None,
) -> dict[str, int]:
    """Writes folder/vectors.npy: the enhanced prefixes of all distinct prefixes of the splits, and
    of those that `redraw` gives training rows.

    Returns:
      prefix -> row of the table, from 1; empty if `context` has no vectors.
    """
    distinct: set[str] = set()
    for split, path in splits.items():
        with open_parquet(path) as file:
            for batch in file.iter_batches(columns=["prefix", "query", "request_id"]):
                prefixes, queries, ids = (column.to_pylist() for column in batch.columns)
                distinct |= set(prefixes)
                if redraw is not None and split == "train":
                    distinct |= set(redraw(ids, prefixes, queries))
    ordered = sorted(distinct)
    blocks = []
    for start in range(0, len(ordered), _ROWS_A_BLOCK):
        vectors = context.vectors(ordered[start : start + _ROWS_A_BLOCK])
        if vectors is None:
            return {}
        blocks.append(vectors.astype(np.float16))
    if not blocks:
        return {}
    table = np.concatenate([np.zeros((1, blocks[0].shape[1]), np.float16), *blocks])
    with atomic_write(os.path.join(folder, VECTORS_FILE)) as file:
        np.save(file, table)
    return {prefix: number for number, prefix in enumerate(ordered, 1)}


def write_examples(
    folder: str,
    task: str,
    split: str,
    blocks: Iterable[tuple[np.ndarray, ...]],
    extra: Mapping[str, object],
    *,
    total: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict:
    """Writes folder/task/split from blocks of flat arrays: inputs, input lengths, targets, target
    lengths, and if examples have soft tokens the numbers [n] of their vectors.

    One block at a time is in memory; the finished folder replaces an earlier one.

    Returns:
      the contents of meta.json: `extra`, count, token counts, longest, and the number of examples
      that fill their length.
    """
    path = os.path.join(folder, task, split)
    part = path + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    names = ("input_lengths", "target_lengths", "soft")
    writer = Writer(part, dict.fromkeys(names, np.int32), shard_bytes=shard_bytes)
    longest, totals, filled = (dict.fromkeys(TEXTS, 0) for _ in range(3))
    limits: Any = extra.get("lengths", {})
    progress = Progress(f"examples: {task}/{split}", total, "examples")
    soft_tokens = 0
    for inputs, input_lengths, targets, target_lengths, *soft in blocks:
        numbers = soft[0] if soft else np.zeros(len(input_lengths), np.int32)
        has_soft = numbers > 0
        soft_tokens += int(has_soft.sum())
        block = {"inputs": (inputs, input_lengths), "targets": (targets, target_lengths)}
        for name, (ids, sizes) in block.items():
            totals[name] += len(ids)
            longest[name] = max(longest[name], int(sizes.max(initial=0)))
            filled[name] += int((sizes >= limits.get(name, np.inf)).sum())
        block["soft"] = numbers[has_soft], has_soft.astype(int)
        columns = (input_lengths, target_lengths, numbers)
        writer.add(records.encode(block), dict(zip(names, columns, strict=True)))
        progress.add(len(input_lengths))
    progress.close()
    shapes = {**longest, "soft": 1}
    meta = {**extra, **writer.close(), "task": task, "split": split, "soft": soft_tokens}
    meta |= {"tokens": totals, "longest": longest, "at_full_length": filled}
    meta["features"] = {
        name: {"shape": [most], "dtype": "int32"}
        for name, most in shapes.items()
        if name in TEXTS or soft_tokens
    }
    write_json(os.path.join(part, META_FILE), meta)
    replace_folder(part, path)
    return meta
