"""Batches of rows with items: a pure function of (seed, step), in a few shapes.

The rows of a batch have similar numbers of candidates, so that the arrays have few shapes: up to 8,
32 or all candidates. Each size is shuffled separately, and sizes alternate in proportion to their
rows. A process reads only its own rows; shards of later batches are fetched in the background.
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

_PREFETCHED = 8  # batches whose shards are fetched in advance


class ItemLoader:
    """Batches of one split.

    Args:
      folder: written by the examples stage.
      batch_size: rows of a batch, over all processes.
      seed: of the order.
      sizes: most candidates of a batch, ascending; a row loses the candidates beyond the last size.
      order_weight: weight of a row that ended in an order; other rows have weight 1.
      settled: share of the rows, the earliest, that are used only if their query was one of two or
        more candidates: a log begins without indexed queries, so nearly all queries are new there.
      rows: numbers of the examples to use; None: all, except as `settled` says.
      process_rows: rows of every batch that this process reads; None: all.
      vocabulary: expected fingerprint of the vocabulary; None: any.
      fetch: path -> path of the same file on a disk, for examples in a bucket.

    Raises:
      UserError: missing examples, another vocabulary, or invalid settings.
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
        # Multiples of 8, so that another version can use the same compiled programs.
        self.input_length, self.target_length = (-(-longest[text] // 8) * 8 for text in TEXTS)
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
                streams.append(process_batches(stream, batch_size, process_rows, _paired(size)))
                weights.append(float(len(own)))
        self.rows = len(rows)
        self._shares = {self.sizes[n]: len(own) / len(rows) for n, own in enumerate(self._rows)}
        mix = grain.MapDataset.mix
        self._batches = streams[0] if len(streams) == 1 else mix(streams, weights)
        self._fetched = 0  # batches whose shards are open or being fetched

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of global batch `step`, see `arrays`."""
        if not self.examples.shards.all_open:
            for later in range(max(step, self._fetched), step + _PREFETCHED):
                self.examples.shards.prefetch(self.rows_at(later)[0])
            self._fetched = step + _PREFETCHED
        return self.arrays(*self.rows_at(step))

    def rows_at(self, step: int) -> tuple[np.ndarray, int]:
        """The rows of `batch_at`, and the number of candidates of each."""
        return self._batches[step]

    def arrays(self, rows: Sequence[int] | np.ndarray, size: int) -> dict[str, np.ndarray]:
        """The arrays of some rows, with room for `size` candidates.

        Returns:
          T5X's `encoder_input_tokens [B, L]`, `decoder_input_tokens`, `decoder_target_tokens` and
          `decoder_loss_weights [B, T]`; the items `candidates [B, size]`, `candidate_counts
          [B, size, K]`, `history`, `history_minutes [B, H]`, `clock [B, 2]`, `prefix_row [B]`,
          `typed [B]`; `target_candidate [B]`, 1 + the target's position, 0: none;
          `levels [B, size]`, behaviour levels of the candidates; `weight [B]`.
        """
        features = self.examples.read(rows)

        def padded(name: str, length: int) -> np.ndarray:
            return np.pad(features[name], ((0, 0), (0, length - features[name].shape[1])))

        inputs = padded("inputs", self.input_length)
        targets = padded("targets", self.target_length)
        place, levels = features["target_candidate"], features["level"].astype(np.int32)
        return {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": targets,
            "decoder_loss_weights": (targets > 0).astype(np.float32),
            "candidates": features["candidates"][:, :size],
            "candidate_counts": features["candidate_counts"][:, :size].astype(np.float32),
            "history": features["history"],
            "history_minutes": features["history_minutes"],
            "clock": features["clock"].astype(np.int32),
            "prefix_row": features["prefix_row"],
            "typed": features["typed"].astype(np.int32),
            "target_candidate": np.where(place <= size, place, 0),
            "levels": features["candidate_levels"][:, :size].astype(np.int32),
            "weight": np.where(levels == Level.ORDER, self.order_weight, 1.0).astype(np.float32),
        }

    def mean_cost(self, cost: Callable[[int, int, int, int], float]) -> float:
        """Mean of `cost(inputs, targets, history, candidates)` over rows."""
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


def _paired(size: int) -> Callable[[Sequence[int]], tuple[np.ndarray, int]]:
    """A function: row numbers -> (row numbers, size)."""
    return lambda rows: (np.asarray(rows), size)
