"""What SeqIO tasks yield, kept once as random-access arrays: the bridge to seeded loading.

SeqIO reads in order; training wants example i at once, so that the order can be a function of
(seed, step). So every task of a mixture is run through once, in blocks (never the whole log in
memory), into

    folder/{task}/{split}/ inputs.npy [sum of lengths] int32, input_offsets.npy [N + 1] int64,
                           targets.npy, target_offsets.npy, meta.json
    folder/mixture.json    the mixture's name and its tasks' rates

and read back by memory map. TensorFlow is imported to write, never to read.

Training rows take their related queries with `without=query`: every training query is in the
counts that rank the completions of its own prefix, so a row would find its answer among its inputs
even if nobody else ever searched it. A dev row has no such luck. Leaving the row itself out makes
both alike.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.tasks.features import FeatureSpec
from onesug_jax.tasks.vocabulary import Vocabulary

META_FILE = "meta.json"
MIXTURE_FILE = "mixture.json"

_ROWS_A_BLOCK = 4096
_SECONDS_A_LINE = 10.0


@dataclass(frozen=True)
class Examples:
    """N examples by random access.

    Attributes:
      folder: where they lie.
      inputs, targets: all ids end to end, int32, by memory map.
      input_offsets, target_offsets: int64 [N + 1]; example i is ids[offsets[i]:offsets[i + 1]].
      meta: count, lengths, fingerprints.
    """

    folder: str
    inputs: np.ndarray
    input_offsets: np.ndarray
    targets: np.ndarray
    target_offsets: np.ndarray
    meta: dict

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
        if not os.path.isfile(os.path.join(where, META_FILE)):
            raise UserError(
                f"{where}: no examples of task {task!r}, split {split!r} here; build the "
                "examples first."
            )
        with open(os.path.join(where, META_FILE), encoding="utf-8") as f:
            meta = json.load(f)
        try:
            ids = {n: _open(os.path.join(where, n + ".npy")) for n in ("inputs", "targets")}
            # Offsets are read at every step and small beside the ids: kept in memory.
            offsets = {
                n: np.load(os.path.join(where, n + ".npy"))
                for n in ("input_offsets", "target_offsets")
            }
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
        )


def _open(path: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:  # an empty file cannot be mapped
        return np.load(path)


def completions(index, k: int):
    """Related queries until PRE has its index: the `k` most popular completions of the prefix.

    Args:
      index: a `logs.completion.CompletionIndex`.
      k: how many.

    Returns:
      related(prefixes, queries or None) -> lists, best first; a row's own query is left out of the
      counts once.
    """

    def related(prefixes: Sequence[str], queries: Sequence[str] | None) -> list[list[str]]:
        if queries is None:
            return [index.complete(prefix, k) for prefix in prefixes]
        return [index.complete(p, k, without=q) for p, q in zip(prefixes, queries, strict=True)]

    return related


def build_examples(
    folder: str,
    *,
    splits: Mapping[str, str],
    vocabulary: Vocabulary,
    spec: FeatureSpec,
    related=None,
    tasks: Mapping[str, float] | None = None,
    kinds=None,
    mixture: str = "onesug",
    fingerprint: str = "",
) -> dict[str, dict[str, dict]]:
    """Registers the mixture (see `seqio_tasks.register`) and caches all its tasks and splits in
    `folder`.

    Returns:
      {task: {split: meta}}.
    """
    from onesug_jax.tasks import seqio_tasks

    seqio_tasks.register(
        mixture, splits, vocabulary, spec, related=related, tasks=tasks, kinds=kinds
    )
    return cache_mixture(
        mixture,
        folder,
        splits=tuple(splits),
        lengths={"inputs": spec.input_length, "targets": spec.target_length},
        vocabulary=vocabulary,
        fingerprint=fingerprint,
    )


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
            blocks = _seqio_blocks(task, split, lengths)
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
    with open(os.path.join(folder, MIXTURE_FILE), "w", encoding="utf-8") as f:
        json.dump({"mixture": name, "tasks": rates}, f, indent=2)
    return metas


def _seqio_blocks(task, split: str, lengths: Mapping[str, int]) -> Iterable[tuple[np.ndarray, ...]]:
    """(inputs, input lengths, targets, target lengths) of a task's examples, in its order, block
    by block.
    """
    rows = task.get_dataset(
        sequence_length=lengths, split=split, shuffle=False, try_in_mem_cache=False
    )
    rows = rows.map(lambda row: {"inputs": row["inputs"], "targets": row["targets"]})
    for block in rows.ragged_batch(_ROWS_A_BLOCK):
        inputs, targets = block["inputs"], block["targets"]
        yield (
            inputs.flat_values.numpy(),
            inputs.row_lengths().numpy(),
            targets.flat_values.numpy(),
            targets.row_lengths().numpy(),
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
    flat arrays.

    A block at a time is in memory; the folder appears whole or not at all.

    Returns:
      the meta written: `extra`, count, token counts, longest, and how many examples fill their
        length.
    """
    where = os.path.join(folder, task, split)
    part = where + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    names = ("inputs", "input_offsets", "targets", "target_offsets")
    files = {
        n: _Appender(os.path.join(part, n + ".npy"), np.int64 if "off" in n else np.int32)
        for n in names
    }
    count, longest, totals = 0, {"inputs": 0, "targets": 0}, {"inputs": 0, "targets": 0}
    filled = {"inputs": 0, "targets": 0}
    limits = extra.get("lengths", {})
    for n in ("input_offsets", "target_offsets"):
        files[n].append(np.zeros(1, np.int64))
    started = said = time.monotonic()
    for inputs, input_lengths, targets, target_lengths in blocks:
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
        if time.monotonic() - said > _SECONDS_A_LINE:
            said = time.monotonic()
            of = f" of about {total:,}" if total else ""
            print(
                f"examples: {task}/{split} {count:,}{of}, {count / (said - started):,.0f}/s",
                flush=True,
            )
    for file in files.values():
        file.close()
    meta = {**extra, "task": task, "split": split, "count": count}
    meta |= {"tokens": totals, "longest": longest, "at_full_length": filled}
    with open(os.path.join(part, META_FILE), "w", encoding="utf-8") as f:
        json.dump(meta, f, indent=2)
    shutil.rmtree(where, ignore_errors=True)
    os.replace(part, where)
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
