"""What SeqIO tasks yield, stored once in shards: the bridge to seeded loading of the text model.

SeqIO reads in order; training wants example i at once, so that the order can be a function of
(seed, step). So every task of a mixture is run through once, in blocks (never the whole log in
memory), into

    folder/{task}/{split}/ part-*.array_record, counts.json   `inputs`, `targets`, and `soft`, whose
                           vector the example's soft token has, if it has one (`tasks.shards`)
                           input_lengths.npy, target_lengths.npy, soft.npy, meta.json
    folder/mixture.json    the mixture's name and its tasks' rates
    folder/vectors.npy     [P + 1, E] float16, the enhanced prefixes that `soft` counts from 1

TensorFlow is imported to write, never to read. Others read the shards by `tasks.seqio_shards`.

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

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import atomic_write, replace_folder, write_json
from onesug_jax.progress import Progress
from onesug_jax.tasks import records
from onesug_jax.tasks.features import Context, FeatureSpec
from onesug_jax.tasks.kinds import ANY_PREFIX
from onesug_jax.tasks.prefixes import PrefixDraw
from onesug_jax.tasks.shards import META_FILE, SHARD_BYTES, Shards, Writer, local, read_meta
from onesug_jax.tasks.vocabulary import Vocabulary

MIXTURE_FILE = "mixture.json"
VECTORS_FILE = "vectors.npy"
TEXTS = ("inputs", "targets")
_WAY_OUT = "build the examples first, by the stage examples"

_ROWS_A_BLOCK = 4096


@dataclass(frozen=True)
class Examples:
    """N examples by random access.

    Attributes:
      folder: where they lie.
      shards: their records.
      input_lengths, target_lengths: int32 [N], how many ids each has.
      meta: count, lengths, fingerprints.
      soft: int32 [N], the row of `vectors` behind example i's soft token, 0: it has none.
      vectors: float16 [P + 1, E] by memory map; None where no example has a soft token.
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
        found = self.texts([i])
        return found["inputs"][0], found["targets"][0]

    def texts(self, rows: Sequence[int] | np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """`inputs` and `targets` of some examples: all ids end to end, int32, and how many each
        example has.
        """
        found = records.decode(self.shards.read(rows), TEXTS)
        return {name: (ids.astype(np.int32), sizes) for name, (ids, sizes) in found.items()}

    @classmethod
    def load(
        cls, folder: str, task: str, split: str, *, fetch: Callable[[str], str] = local
    ) -> Examples:
        """Opens folder/task/split. Raises UserError if it is missing or broken.

        Args:
          fetch: path -> path of the same file on a disk; see `shards.Shards`.
        """
        where = os.path.join(folder, task, split)
        meta = read_meta(where, f"examples of task {task!r}, split {split!r}", _WAY_OUT)
        shards = Shards(where, fetch=fetch, way_out=_WAY_OUT)
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
        ins, outs = shards.column("input_lengths"), shards.column("target_lengths")
        return cls(where, shards, ins, outs, meta, soft, vectors)


def build_examples(
    folder: str,
    *,
    splits: Mapping[str, str],
    vocabulary: Vocabulary,
    spec: FeatureSpec,
    context: Context | None = None,
    indexed: Callable[[str], bool] | None = None,
    tasks: Mapping[str, float] | None = None,
    kinds=None,
    mixture: str = "onesug",
) -> dict[str, dict[str, dict]]:
    """Registers the mixture (see `seqio_tasks.register`) and caches all its tasks and splits in
    `folder`.

    Args:
      context: gives related queries and enhanced prefixes (`retrieval.related`); None: neither.
      indexed, tasks, kinds: see `seqio_tasks.register`.

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
        indexed=indexed,
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
) -> dict[str, dict[str, dict]]:
    """Caches every task of the registered SeqIO Mixture (or Task) `name`, whoever registered it.

    Args:
      name: a name in SeqIO's registries.
      folder: the cache.
      splits: which splits; a task that lacks one is skipped for it.
      lengths: most "inputs" and "targets" ids.
      vocabulary: whose fingerprint is recorded.

    Returns:
      {task: {split: meta}}.

    Raises:
      UserError: no such name, or a task yields nothing in "train".
    """
    from onesug_jax.tasks.seqio_tasks import seqio

    try:
        provider = seqio.get_mixture_or_task(name)
    except ValueError as e:
        choices = sorted({*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()})
        raise UserError(f"mixture: expected one of {', '.join(choices)}; found {name!r}.") from e
    metas: dict[str, dict[str, dict]] = {}
    rates: dict[str, float] = {}
    for task in seqio.get_subtasks(provider):
        rates[task.name] = provider.get_rate(task) if isinstance(provider, seqio.Mixture) else 1.0
        metas[task.name] = {}
        for split in splits:
            if split not in task.splits:
                continue
            blocks = _seqio_blocks(task, split, dict(lengths))
            extra = {"lengths": dict(lengths), "vocabulary": vocabulary.fingerprint}
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
    shard_bytes: int = SHARD_BYTES,
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
    names = ("input_lengths", "target_lengths", "soft")
    writer = Writer(part, dict.fromkeys(names, np.int32), shard_bytes=shard_bytes)
    longest, totals, filled = (dict.fromkeys(TEXTS, 0) for _ in range(3))
    limits: Any = extra.get("lengths", {})
    progress = Progress(f"examples: {task}/{split}", total, "examples")
    soft_tokens = 0
    for inputs, input_lengths, targets, target_lengths, *soft in blocks:
        numbers = soft[0] if soft else np.zeros(len(input_lengths), np.int32)
        has = numbers > 0
        soft_tokens += int(has.sum())
        block = {"inputs": (inputs, input_lengths), "targets": (targets, target_lengths)}
        for name, (ids, sizes) in block.items():
            totals[name] += len(ids)
            longest[name] = max(longest[name], int(sizes.max(initial=0)))
            filled[name] += int((sizes >= limits.get(name, np.inf)).sum())
        block["soft"] = numbers[has], has.astype(int)
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
    replace_folder(part, where)
    return meta
