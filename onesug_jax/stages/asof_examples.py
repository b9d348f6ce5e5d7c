"""The examples of models with items: one walk through the log, with its blocks in parallel.

A large log is split into blocks of equal size. One pass updates the as-of state without making
rows, and pickles it at the start of each block. From there a worker (a process of this machine or a
Spark task) walks the block and writes its rows. The blocks depend only on the number of rows, so
any engine and any number of workers write the same bytes. Finished blocks of a killed run are
reused.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from onesug_jax.logs.asof.config import DAY_MS
from onesug_jax.pipeline.spec import Context
from onesug_jax.progress import Progress
from onesug_jax.serve.heap import long_lived
from onesug_jax.stages import held_state
from onesug_jax.stages.parts import Parts
from onesug_jax.stages.trained_model import SNAPSHOT, before_log

if TYPE_CHECKING:
    from onesug_jax.logs.asof.state import AsOf
    from onesug_jax.logs.asof.walk import Event
    from onesug_jax.logs.engines import LogEngineConfig
    from onesug_jax.tasks.features import FeatureSpec

BLOCKS = 64  # of a large log
LEAST_ROWS = 250_000  # of a block
_PARTS = ".parts"


@dataclasses.dataclass(frozen=True)
class Walk:
    """The inputs that all blocks of a log share.

    Attributes:
      folder: of the examples stage; block `n` writes its rows into folder/.parts/{n}.
      files: the splits of the log, first those named in `splits`, whose events become rows.
      indexed: the number of queries in the state at the start.
      after_ms: events of the first file up to this time only update the counts.
    """

    folder: str
    files: tuple[str, ...]
    splits: tuple[str, ...]
    profile: tuple[str, ...]
    vocabulary: str
    spec: FeatureSpec
    index: str
    indexed: int
    after_ms: float

    def part(self, number: int) -> str:
        """The folder of a block's rows."""
        return os.path.join(self.folder, _PARTS, f"{number:05}")

    def events(self, state: AsOf) -> Iterator[Event]:
        """All events, for a walk from the start that updates `state`."""
        from onesug_jax.logs.asof.walk import read_events

        events = read_events(self.files, profile=self.profile)
        path = os.path.join(self.folder, held_state.FILE)
        return held_state.storing(events, state, self.files, path)

    def finished(self, number: int) -> bool:
        """Whether a block's rows are complete, perhaps from a killed run."""
        from onesug_jax.tasks.shards import META_FILE

        metas = [os.path.join(self.part(number), split, META_FILE) for split in self.splits]
        return all(map(os.path.exists, metas))

    def selects(self, state: AsOf, event: Event) -> bool:
        """Whether an event becomes a row; train events of queries below min_users do not."""
        if event.file >= len(self.splits):
            return False
        if event.file:
            return True
        return event.time_ms > self.after_ms and 0 <= state.number(event.query) < self.indexed


@dataclasses.dataclass(frozen=True)
class Block:
    """One block: its first row in each file, its number of rows, and the file of its state."""

    walk: Walk
    number: int
    first: tuple[int, ...]
    rows: int
    state: str


def examples(
    context: Context,
    parts: Parts,
    spec: FeatureSpec,
    splits: dict[str, str],
    *,
    most: int,
    days: float | None,
) -> None:
    """Writes the rows of train and dev, each as of its own time, and the counts at the end of the
    log, including test, from which a service continues.

    Args:
      splits: split -> file of the log.
      most: the maximum number of candidates in a row.
      days: only the last so many days of train become rows; None: all.
    """
    import pyarrow.parquet as pq

    from onesug_jax.logs.asof import snapshot
    from onesug_jax.logs.schema import profile_columns
    from onesug_jax.tasks import item_examples

    names = [name for name in ("train", "dev") if name in splits]
    files = [splits[name] for name in (*names, *(splits.keys() - names))]
    state = before_log(context, parts, candidates=most)
    walk = Walk(
        folder=context.work.examples,
        files=tuple(files),
        splits=tuple(names),
        profile=tuple(profile_columns(pq.read_schema(files[0]))),
        vocabulary=context.work.vocab,
        spec=spec,
        index=context.work.index,
        indexed=state.first,
        after_ms=-1.0 if days is None else _latest_ms(files[0]) - days * DAY_MS,
    )
    written = write_blocks(walk, state, context.configured("LogEngineConfig")())
    item_examples.join(walk.folder, written, names)
    shutil.rmtree(os.path.join(walk.folder, _PARTS))
    snapshot.save(state, os.path.join(walk.folder, SNAPSHOT), rare=False)


def write_blocks(
    walk: Walk, state: AsOf, engine: LogEngineConfig, *, least_rows: int = LEAST_ROWS
) -> list[str]:
    """Writes all blocks, in workers if there are several, and updates the state to the log's end.

    Returns:
      the folders of the rows, in order of time.
    """
    import pyarrow.parquet as pq

    from onesug_jax.logs.asof.walk import skip
    from onesug_jax.logs.workers import results

    total = sum(pq.read_metadata(path).num_rows for path in walk.files)
    size = max(least_rows, -(-total // BLOCKS))
    with Progress("examples", total, "rows") as progress:
        if total <= size:
            _write(walk, 0, state, walk.events(state), progress)
            return [walk.part(0)]
        scratch = engine.scratch or walk.folder
        os.makedirs(scratch, exist_ok=True)
        events = walk.events(state)
        parts = range(-(-total // size))

        def blocks() -> Iterator[Block]:
            first = [0] * len(walk.files)
            for number in parts:
                rows = min(size, total - number * size)
                if walk.finished(number):
                    progress.add(rows)
                else:
                    yield _begin(walk, number, tuple(first), rows, state)
                passed = _counted(itertools.islice(events, rows), first)
                with long_lived():
                    skip(state, passed, functools.partial(walk.selects, state))

        for rows in results(engine, scratch, write_block, blocks()):
            progress.add(rows)
    return [walk.part(number) for number in parts]


def _begin(walk: Walk, number: int, first: tuple[int, ...], rows: int, state: AsOf) -> Block:
    part = walk.part(number)
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    stored = os.path.join(part, "state")
    with open(stored, "wb") as file:
        pickle.dump(state, file, protocol=pickle.HIGHEST_PROTOCOL)
    return Block(walk, number, first, rows, stored)


def write_block(block: Block) -> int:
    """Writes the rows of a block; returns its number of log rows. Runs in a worker."""
    from onesug_jax.logs.asof.walk import read_events

    with open(block.state, "rb") as file, long_lived():
        state = pickle.load(file)
    events = read_events(block.walk.files, profile=block.walk.profile, first=block.first)
    _write(block.walk, block.number, state, itertools.islice(events, block.rows))
    os.remove(block.state)
    return block.rows


def _write(
    walk: Walk,
    number: int,
    state: AsOf,
    events: Iterable[Event],
    progress: Progress | None = None,
) -> None:
    from onesug_jax.logs.asof.walk import walk as rows_of
    from onesug_jax.retrieval.prefix_index import PrefixIndex
    from onesug_jax.tasks import item_examples
    from onesug_jax.tasks.features import Featurizer
    from onesug_jax.tasks.vocabulary import Vocabulary

    index = PrefixIndex.load(walk.index)
    state.nearby = index.nearby(state.config)
    item_examples.write(
        walk.part(number),
        rows_of(state, events, functools.partial(walk.selects, state)),
        walk.splits,
        Featurizer(Vocabulary.load(walk.vocabulary), walk.spec),
        lambda prefix: index.prefix_number(prefix) + 1,
        state.number,
        progress=progress,
    )


def _counted(events: Iterable[Event], first: list[int]) -> Iterable[Event]:
    """The events; sets `first` to the row after the last event in each file."""
    for event in events:
        first[event.file] = event.row + 1
        yield event


def _latest_ms(path: str) -> float:
    """The time of a file's last row, which is its latest."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        last = file.read_row_group(file.num_row_groups - 1, columns=["timestamp_ms"])
    return last["timestamp_ms"][-1].as_py()
