"""What SeqIO tasks yield, kept once as random-access arrays: the bridge to seeded loading.

SeqIO reads in order; training wants example i at once, so that the order can be a function of
(seed, step). So every task of a mixture is run through once, in blocks (never the whole log in
memory), into

    folder/{task}/{split}/ inputs.npy [sum of lengths] int32, input_offsets.npy [N + 1] int64,
                           targets.npy, target_offsets.npy, meta.json
                           soft.npy [N] int32 where examples have a soft token: whose vector
    folder/mixture.json    the mixture's name and its tasks' rates
    folder/vectors.npy     [P + 1, E] float16, the enhanced prefixes that soft.npy counts from 1

and read back by memory map. TensorFlow is imported to write, never to read.

Related queries and e_p* are of the whole train split, a row's own search among them
(`retrieval.related`); rows with items (`tasks.item_examples`) see what was there before them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write, read_json, replace_folder, write_json
from onesug_jax.progress import Progress
from onesug_jax.tasks.features import Context, FeatureSpec
from onesug_jax.tasks.kinds import ANY_PREFIX
from onesug_jax.tasks.prefixes import PrefixDraw
from onesug_jax.tasks.vocabulary import Vocabulary

META_FILE = "meta.json"
MIXTURE_FILE = "mixture.json"
VECTORS_FILE = "vectors.npy"

_ROWS_A_BLOCK = 4096


@dataclass(frozen=True)
class Examples:
    """N examples by random access.

    Attributes:
      folder: where they lie.
      inputs, targets: all ids end to end, int32, by memory map.
      input_offsets, target_offsets: int64 [N + 1]; example i is ids[offsets[i]:offsets[i + 1]].
      meta: count, lengths, fingerprints.
      soft: int32 [N], the row of `vectors` behind example i's soft token, 0: it has none.
      vectors: float16 [P + 1, E] by memory map; None where no example has a soft token.
    """

    folder: str
    inputs: np.ndarray
    input_offsets: np.ndarray
    targets: np.ndarray
    target_offsets: np.ndarray
    meta: dict
    soft: np.ndarray | None = None
    vectors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_offsets) - 1

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs [L_i] and targets [T_i] of example i."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        a, b = self.input_offsets[i : i + 2]
        c, d = self.target_offsets[i : i + 2]
        return self.inputs[a:b], self.targets[c:d]

    @classmethod
    def load(cls, folder: str, task: str, split: str) -> Examples:
        """Opens folder/task/split. Raises UserError if it is missing or broken."""
        where = os.path.join(folder, task, split)
        what = f"examples of task {task!r}, split {split!r}"
        meta = read_json(os.path.join(where, META_FILE), what, "build the examples first.")
        try:
            ids = {n: _open(os.path.join(where, n + ".npy")) for n in ("inputs", "targets")}
            # Offsets are read at every step and small beside the ids: kept in memory.
            offsets = {
                n: np.load(os.path.join(where, n + ".npy"))
                for n in ("input_offsets", "target_offsets")
            }
            soft = vectors = None
            if meta.get("soft"):
                soft = np.load(os.path.join(where, "soft.npy"))
                vectors = _open(os.path.join(folder, VECTORS_FILE))
        except (OSError, ValueError) as e:
            raise UserError(
                f"{where}: the examples cannot be read ({e}); delete the folder and build them "
                "again."
            ) from e
        n = meta["count"]
        if any(len(o) != n + 1 for o in offsets.values()):
            raise UserError(
                f"{where}: {META_FILE} says {n} examples, found "
                f"{len(offsets['input_offsets']) - 1}; "
                "delete the folder and build them again."
            )
        return cls(
            where,
            ids["inputs"],
            offsets["input_offsets"],
            ids["targets"],
            offsets["target_offsets"],
            meta,
            soft,
            vectors,
        )


def _open(path: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:  # an empty file cannot be mapped
        return np.load(path)


def build_examples(
    folder: str,
    *,
    splits: Mapping[str, str],
    vocabulary: Vocabulary,
    spec: FeatureSpec,
    context: Context | None = None,
    known: Callable[[str], bool] | None = None,
    tasks: Mapping[str, float] | None = None,
    kinds=None,
    mixture: str = "onesug",
    fingerprint: str = "",
) -> dict[str, dict[str, dict]]:
    """Registers the mixture (see `seqio_tasks.register`) and caches all its tasks and splits in
    `folder`.

    Args:
      context: gives related queries and enhanced prefixes (`retrieval.related`); None: neither.
      known, tasks, kinds: see `seqio_tasks.register`.

    Returns:
      {task: {split: meta}}.
    """
    from onesug_jax.tasks import seqio_tasks

    redraw = None
    if ANY_PREFIX in (tasks or ()):
        redraw = PrefixDraw.from_log(splits["train"])
    soft = {}
    if context is not None and spec.soft:
        soft = write_vectors(folder, splits, context, redraw)
    seqio_tasks.register(
        mixture,
        splits,
        vocabulary,
        spec,
        context=context,
        soft=soft,
        known=known,
        redraw=redraw,
        tasks=tasks,
        kinds=kinds,
    )
    return cache_mixture(
        mixture,
        folder,
        splits=tuple(splits),
        lengths={"inputs": spec.input_length, "targets": spec.target_length},
        vocabulary=vocabulary,
        fingerprint=fingerprint,
    )


def write_vectors(
    folder: str,
    splits: Mapping[str, str],
    context: Context,
    redraw: PrefixDraw | None = None,
) -> dict[str, int]:
    """The enhanced prefix of every distinct prefix of the splits, into folder/vectors.npy.

    With `redraw` also of those that it gives training rows.

    Returns:
      prefix -> row of the table, from 1 (row 0 is no prefix's); empty where `context` has no
      vectors.
    """
    import pyarrow.parquet as pq

    wanted: set[str] = set()
    for split, path in splits.items():
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["prefix", "query", "request_id"]):
                prefixes, queries, ids = (column.to_pylist() for column in batch.columns)
                wanted |= set(prefixes)
                if redraw is not None and split == "train":
                    wanted |= set(redraw(ids, prefixes, queries))
    ordered = sorted(wanted)
    blocks = []
    for start in range(0, len(ordered), _ROWS_A_BLOCK):
        found = context.vectors(ordered[start : start + _ROWS_A_BLOCK])
        if found is None:
            return {}
        blocks.append(found.astype(np.float16))
    if not blocks:
        return {}
    table = np.concatenate([np.zeros((1, blocks[0].shape[1]), np.float16), *blocks])
    with atomic_write(os.path.join(folder, VECTORS_FILE)) as file:
        np.save(file, table)
    return {prefix: number for number, prefix in enumerate(ordered, 1)}


def cache_mixture(
    name: str,
    folder: str,
    *,
    splits: Sequence[str],
    lengths: Mapping[str, int],
    vocabulary: Vocabulary,
    fingerprint: str = "",
) -> dict[str, dict[str, dict]]:
    """Caches every task of the registered SeqIO Mixture (or Task) `name`, whoever registered it.

    Args:
      name: a name in SeqIO's registries.
      folder: the cache.
      splits: which splits; a task that lacks one is skipped for it.
      lengths: most "inputs" and "targets" ids.
      vocabulary: whose fingerprint is recorded.
      fingerprint: of whatever else the examples depend on, recorded.

    Returns:
      {task: {split: meta}}.

    Raises:
      UserError: no such name, or a task yields nothing in "train".
    """
    from onesug_jax.tasks.seqio_tasks import seqio

    try:
        provider = seqio.get_mixture_or_task(name)
    except ValueError as e:
        known = sorted({*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()})
        raise UserError(f"mixture: expected one of {', '.join(known)}; found {name!r}.") from e
    metas: dict[str, dict[str, dict]] = {}
    rates: dict[str, float] = {}
    for task in seqio.get_subtasks(provider):
        rates[task.name] = provider.get_rate(task) if isinstance(provider, seqio.Mixture) else 1.0
        metas[task.name] = {}
        for split in splits:
            if split not in task.splits:
                continue
            blocks = _seqio_blocks(task, split, dict(lengths))
            extra = {
                "lengths": dict(lengths),
                "vocabulary": vocabulary.fingerprint,
                "fingerprint": fingerprint,
            }
            meta = write_examples(
                folder, task.name, split, blocks, extra, total=task.num_input_examples(split)
            )
            if split == "train" and not meta["count"]:
                raise UserError(
                    f"task {task.name!r} gave no example of split 'train'; its log has no row it "
                    "can use."
                )
            metas[task.name][split] = meta
    write_json(os.path.join(folder, MIXTURE_FILE), {"mixture": name, "tasks": rates})
    return metas


def _seqio_blocks(task, split: str, lengths: dict[str, int]) -> Iterable[tuple[np.ndarray, ...]]:
    """(inputs, input lengths, targets, target lengths, and soft [n] where the task has it) of a
    task's examples, in its order, block by block.
    """
    soft = "soft" in task.output_features
    lengths |= {"soft": 1} if soft else {}
    rows = task.get_dataset(
        sequence_length=lengths, split=split, shuffle=False, try_in_mem_cache=False
    )
    names = ("inputs", "targets", "soft") if soft else ("inputs", "targets")
    rows = rows.map(lambda row: {name: row[name] for name in names})
    for block in rows.ragged_batch(_ROWS_A_BLOCK):
        inputs, targets = block["inputs"], block["targets"]
        yield (
            inputs.flat_values.numpy(),
            inputs.row_lengths().numpy(),
            targets.flat_values.numpy(),
            targets.row_lengths().numpy(),
            *([block["soft"].to_tensor(shape=[None, 1]).numpy()[:, 0]] if soft else ()),
        )


def write_examples(
    folder: str,
    task: str,
    split: str,
    blocks: Iterable[tuple[np.ndarray, ...]],
    extra: Mapping[str, object],
    *,
    total: int | None = None,
) -> dict:
    """Writes folder/task/split from blocks of (inputs, input lengths, targets, target lengths),
    flat arrays, and where examples have soft tokens their numbers [n].

    A block at a time is in memory; the finished folder takes the place of an earlier one.

    Returns:
      the meta written: `extra`, count, token counts, longest, and how many examples fill their
        length.
    """
    where = os.path.join(folder, task, split)
    part = where + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    names = ("inputs", "input_offsets", "targets", "target_offsets", "soft")
    files = {
        n: _Appender(os.path.join(part, n + ".npy"), np.int64 if "off" in n else np.int32)
        for n in names
    }
    count, longest, totals = 0, {"inputs": 0, "targets": 0}, {"inputs": 0, "targets": 0}
    filled = {"inputs": 0, "targets": 0}
    limits: Any = extra.get("lengths", {})
    for n in ("input_offsets", "target_offsets"):
        files[n].append(np.zeros(1, np.int64))
    progress = Progress(f"examples: {task}/{split}", total, "examples")
    soft_tokens = 0
    for inputs, input_lengths, targets, target_lengths, *soft in blocks:
        if soft:
            files["soft"].append(soft[0])
            soft_tokens += int(np.count_nonzero(soft[0]))
        for name, ids, sizes in (
            ("inputs", inputs, input_lengths),
            ("targets", targets, target_lengths),
        ):
            files[name].append(ids)
            files[name[:-1] + "_offsets"].append(totals[name] + np.cumsum(sizes))
            totals[name] += len(ids)
            longest[name] = max(longest[name], int(sizes.max(initial=0)))
            filled[name] += int((sizes >= limits.get(name, np.inf)).sum())
        count += len(input_lengths)
        progress.add(len(input_lengths))
    progress.close()
    for file in files.values():
        file.close()
    meta = {**extra, "task": task, "split": split, "count": count, "soft": soft_tokens}
    meta |= {"tokens": totals, "longest": longest, "at_full_length": filled}
    write_json(os.path.join(part, META_FILE), meta)
    replace_folder(part, where)
    return meta


class _Appender:
    """A one-dimensional .npy file of a length known only at its end."""

    def __init__(self, path: str, dtype):
        self._dtype, self._count = np.dtype(dtype), 0
        self._file = open(path, "wb")
        self._header()
        self._start = self._file.tell()

    def _header(self) -> None:
        # NumPy pads this header so that its first number may grow in place.
        fields = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count,),
        }
        np.lib.format.write_array_header_1_0(self._file, fields)

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self._count += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        if self._file.tell() != self._start:
            raise RuntimeError("the .npy header changed its size")
        self._file.close()
