"""Batches of rows with items: a pure function of (seed, step), in a few shapes.

A batch holds rows with about as many candidates, so that its arrays end where the longest does: at
8, 32 or all. Each size shuffles on its own; the sizes take turns in proportion to their rows. A
process reads its own rows alone; the shards of coming batches are fetched in the background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grain
import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs.schema import Level
from onesug_jax.tasks import shards
from onesug_jax.tasks.examples import TEXTS
from onesug_jax.tasks.item_examples import TASK, ItemExamples
from onesug_jax.tasks.process_rows import check_rows, process_batches

_PREFETCHED = 8  # batches whose shards are fetched before they are asked for


class ItemLoader:
    """Batches of one split.

    Args:
      folder: what the examples stage wrote.
      batch_size: rows of a batch, over all processes.
      seed: of the order.
      sizes: most candidates of a batch, ascending; what more a row has is left out of it.
      order_weight: what a row that ended in an order weighs; others weigh 1.
      settled: share of the rows, from the first on, of which only those are taken whose query was
        a candidate: a log begins with no indexed query, so nearly all are new there.
      rows: the examples to take, by number; None: all but those.
      process_rows: which rows of every batch this process reads; None: all.
      vocabulary: expected fingerprint of the vocabulary.
      fetch: path -> path of the same file on a disk, for examples in a bucket.

    Raises:
      UserError: missing examples, another vocabulary, settings that cannot hold.
    """

    def __init__(
        self,
        folder: str,
        *,
        split: str = "train",
        batch_size: int = 64,
        seed: int = 0,
        sizes: Sequence[int] = (8, 32, 64),
        order_weight: float = 1.0,
        settled: float = 0.25,
        rows: np.ndarray | None = None,
        process_rows: Sequence[int] | np.ndarray | None = None,
        vocabulary: str | None = None,
        fetch: Callable[[str], str] = shards.local,
    ):
        process_rows = check_rows(batch_size, process_rows)
        if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 1 or order_weight <= 0:
            raise UserError(
                f"ItemLoader: expected ascending sizes from 1 up and order_weight above 0; found "
                f"sizes={tuple(sizes)}, order_weight={order_weight}."
            )
        self.examples = ItemExamples(folder, split, fetch=fetch)
        found = self.examples.meta["vocabulary"]
        if vocabulary not in (None, found):
            raise UserError(
                f"{self.examples.folder}: expected examples of vocabulary {vocabulary}, found "
                f"{found}; build the examples again."
            )
        if not len(self.examples):
            raise UserError(f"{self.examples.folder}: expected at least one example, found none.")
        self.tasks, self.batch_size = [TASK], batch_size
        self.order_weight = order_weight
        longest = self.examples.meta["longest"]
        # Multiples, so that another version's rows find their programs compiled.
        self.input_length, self.target_length = (-(-longest[one] // 8) * 8 for one in TEXTS)
        most = self.examples.shapes["candidates"][0]
        self.sizes = sorted({min(size, most) for size in sizes})
        room = self.examples.column("room")
        group = np.minimum(np.searchsorted(self.sizes, room), len(self.sizes) - 1)
        if rows is None:
            place = self.examples.column("target_candidate")
            late = np.arange(len(place)) >= settled * len(place)
            rows = np.flatnonzero((place > 0) & (room > 1) | late)
        self._rows = [rows[group[rows] == number] for number in range(len(self.sizes))]
        streams, weights = [], []
        for number, own in enumerate(self._rows):
            if len(own):
                mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
                stream = grain.MapDataset.source(own).shuffle(seed=mixed).repeat()
                size = self.sizes[number]
                streams.append(process_batches(stream, batch_size, process_rows, _with(size)))
                weights.append(float(len(own)))
        self.rows = len(rows)
        self._shares = {self.sizes[n]: len(own) / len(rows) for n, own in enumerate(self._rows)}
        mix = grain.MapDataset.mix
        self._chosen = streams[0] if len(streams) == 1 else mix(streams, weights)
        self._fetched = 0  # batches whose shards are open or on their way

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of global batch `step`, see `arrays`."""
        if not self.examples.shards.all_open:
            for coming in range(max(step, self._fetched), step + _PREFETCHED):
                self.examples.shards.prefetch(self.rows_at(coming)[0])
            self._fetched = step + _PREFETCHED
        return self.arrays(*self.rows_at(step))

    def rows_at(self, step: int) -> tuple[np.ndarray, int]:
        """Which rows `batch_at` gives, and how many candidates of each."""
        return self._chosen[step]

    def arrays(self, rows: Sequence[int] | np.ndarray, size: int) -> dict[str, np.ndarray]:
        """The arrays of some rows, with room for `size` candidates.

        Returns:
          T5X's `encoder_input_tokens [B, L]`, `decoder_input_tokens`, `decoder_target_tokens` and
          `decoder_loss_weights [B, T]`; the items `candidates [B, size]`, `candidate_counts
          [B, size, K]`, `history`, `history_minutes [B, H]`, `clock [B, 2]`, `prefix_row [B]`,
          `typed [B]`;
          `target_candidate [B]`, the target's place + 1; `levels [B, size]`, behaviour levels of
          the candidates; `weight [B]`.
        """
        given = self.examples.read(rows)

        def texts(name: str, length: int) -> np.ndarray:
            return np.pad(given[name], ((0, 0), (0, length - given[name].shape[1])))

        inputs = texts("inputs", self.input_length)
        targets = texts("targets", self.target_length)
        place, levels = given["target_candidate"], given["level"].astype(np.int32)
        return {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": targets,
            "decoder_loss_weights": (targets > 0).astype(np.float32),
            "candidates": given["candidates"][:, :size],
            "candidate_counts": given["candidate_counts"][:, :size].astype(np.float32),
            "history": given["history"],
            "history_minutes": given["history_minutes"],
            "clock": given["clock"].astype(np.int32),
            "prefix_row": given["prefix_row"],
            "typed": given["typed"].astype(np.int32),
            "target_candidate": np.where(place <= size, place, 0),
            "levels": given["candidate_levels"][:, :size].astype(np.int32),
            "weight": np.where(levels == Level.ORDER, self.order_weight, 1.0).astype(np.float32),
        }

    def mean_cost(self, cost: Callable[[int, int, int, int], float]) -> float:
        """`cost(text, targets, history, candidates)` of a row, over the long run."""
        history = self.examples.shapes["history"][0]
        return sum(
            share * cost(self.input_length, self.target_length, history, size)
            for size, share in self._shares.items()
        )

    def describe(self) -> str:
        """One line for logs."""
        shapes = ", ".join(f"{size}: {share:.0%}" for size, share in self._shares.items())
        steps = -(-self.rows // self.batch_size)
        return (
            f"{self.rows:,} rows in batches of {self.batch_size}, epoch {steps:,} steps; "
            f"text {self.input_length}+{self.target_length}, candidates {shapes}"
        )


def _with(size: int) -> Callable[[Sequence[int]], tuple[np.ndarray, int]]:
    """Makes rows a pair of their numbers and `size`."""
    return lambda rows: (np.asarray(rows), size)
