"""Batches for training: batch `step` is a pure function of (seed, step), which is all that resuming
needs.

It reads the examples of `tasks.examples` by random access. grain shuffles, repeats, mixes tasks and
batches. The shape of a batch is one of three layouts (`tasks.layouts`):

    padded    every row is one example, padded to the longest length allowed
    bucketed  every batch has one of a few shapes chosen from the data; buckets are shuffled
              separately; all processes use the same bucket at a step, in proportion to its examples
    packed    several examples share a row, separated by segment ids; packed once, rows shuffled

Every epoch has another order. This file does not import TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import grain
import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write, read_json
from onesug_jax.tasks import layouts
from onesug_jax.tasks.examples import MIXTURE_FILE, Examples
from onesug_jax.tasks.process_rows import check_rows, process_batches
from onesug_jax.tasks.shards import local

LAYOUTS = ("bucketed", "padded", "packed")


@dataclass(frozen=True)
class _Cell:
    """The units (examples, or packed rows) of one task for batches of one shape."""

    source: int
    units: np.ndarray
    weight: float  # examples a step, relative to the other cells


class Loader:
    """Batches of a mixture of tasks.

    Args:
      folder: written by `examples.build_examples`.
      mixture: task -> rate, the relative number of examples; None: the rates in mixture.json.
      batch_size: rows of a batch, over all processes.
      seed: of the order.
      layout: "bucketed", "padded" or "packed".
      buckets: most encoder lengths and most decoder lengths (bucketed).
      multiple: bucket lengths are multiples of this.
      pack_input_length, pack_target_length: lengths of a packed row; default: twice the longest
        input, and a proportional number of target ids.
      process_rows: rows of every batch that this process reads; None: all.
      vocabulary: expected fingerprint of the vocabulary; None: any.
      fetch: path -> path of the same file on a disk, for examples in a bucket.

    Raises:
      UserError: missing or empty examples, another vocabulary, or an invalid setting.
    """

    def __init__(
        self,
        folder: str,
        *,
        mixture: Mapping[str, float] | None = None,
        split: str = "train",
        batch_size: int = 64,
        seed: int = 0,
        layout: str = "bucketed",
        buckets: tuple[int, int] = (3, 2),
        multiple: int = 8,
        pack_input_length: int | None = None,
        pack_target_length: int | None = None,
        process_rows: Sequence[int] | np.ndarray | None = None,
        vocabulary: str | None = None,
        fetch: Callable[[str], str] = local,
    ):
        if layout not in LAYOUTS:
            raise UserError(f"layout: expected one of {', '.join(LAYOUTS)}; found {layout!r}.")
        self._rows = check_rows(batch_size, process_rows)
        if multiple < 1 or min(buckets) < 1:
            raise UserError(
                f"buckets, multiple: expected 1 or more, found buckets={buckets}, "
                f"multiple={multiple}."
            )
        mixture = _read_mixture(folder) if mixture is None else dict(mixture)
        if not mixture or not all(rate > 0 for rate in mixture.values()):
            raise UserError(f"mixture: expected tasks with rates above 0, found {mixture}.")
        self.tasks = sorted(mixture)
        self.split, self.layout, self.seed, self.batch_size = split, layout, seed, batch_size
        self._parts = [Examples.load(folder, task, split, fetch=fetch) for task in self.tasks]
        _check(self._parts, vocabulary)
        with_vectors = [part for part in self._parts if part.vectors is not None]
        widths = [part.vectors.shape[1] for part in self._parts if part.vectors is not None]
        self.soft_dim = widths[0] if widths else 0
        self._parts = [_with_soft(part, with_vectors) for part in self._parts]
        self._rates = [mixture[task] for task in self.tasks]
        self._longest = tuple(
            max(p.meta["longest"][n] for p in self._parts) for n in ("inputs", "targets")
        )
        self._limits = tuple(
            max(p.meta["lengths"][n] for p in self._parts) for n in ("inputs", "targets")
        )
        self.examples = sum(len(p) for p in self._parts)
        self._most_soft = 1  # soft tokens of one row
        if layout == "bucketed":
            groups = self._bucketed(buckets, multiple)
        elif layout == "packed":
            groups = self._packed(pack_input_length, pack_target_length)
        else:
            groups = [(self._limits, self._cells([np.arange(len(p)) for p in self._parts]))]
        self.shapes: list[tuple[int, int, int]] = [(batch_size, *lengths) for lengths, _ in groups]
        weights = [sum(cell.weight for cell in cells) for _, cells in groups]
        self._shares = [w / sum(weights) for w in weights]
        units = sum(len(cell.units) for _, cells in groups for cell in cells)
        self.epoch_steps = -(-units // batch_size)
        # Weights count units, rates count examples; a packed row has several examples.
        self.examples_per_step = batch_size * sum(self._rates) / sum(weights)
        streams = [self._stream(i, lengths, cells) for i, (lengths, cells) in enumerate(groups)]
        self._batches = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights)

    def _assemble(
        self, source: np.ndarray, example: np.ndarray, row: np.ndarray, shape: tuple[int, int, int]
    ) -> dict[str, np.ndarray]:
        """`layouts.assemble`, and the vectors of the soft tokens if there are any."""
        packed = self.layout == "packed"
        batch = layouts.assemble(self._parts, source, example, row, shape, packed=packed)
        if self.soft_dim:
            room = (shape[0], self._most_soft)
            batch["encoder_soft"] = layouts.place_soft(self._parts, source, example, row, room)
        return batch

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of global batch `step` (from 0); see `layouts.assemble` for the
        arrays.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative")
        return self._batches[step]

    @property
    def fill(self) -> float:
        """Mean share of the encoder and decoder positions that are not padding."""
        real = [sum(p.meta["tokens"].values()) / len(p) for p in self._parts]
        rate = np.average(real, weights=self._rates) * self.examples_per_step
        room = sum(
            share * b * (enc + dec)
            for share, (b, enc, dec) in zip(self._shares, self.shapes, strict=True)
        )
        return float(rate / room)

    def mean_cost(self, cost: Callable[[int, int], float]) -> float:
        """Mean of `cost(encoder length, decoder length)` of the padded rows, per example."""
        rows = zip(self._shares, self.shapes, strict=True)
        step = sum(share * b * cost(enc, dec) for share, (b, enc, dec) in rows)
        return step / self.examples_per_step

    def describe(self) -> str:
        """One line for logs: layout, shapes, examples, epoch, fill."""
        shapes = ", ".join(f"{e}+{d}" for _, e, d in self.shapes)
        return (
            f"{self.split}: {self.examples:,} examples of {', '.join(self.tasks)}; "
            f"{self.layout} ({shapes}), batch {self.batch_size}, "
            f"{self.examples_per_step:,.0f} examples a step, epoch {self.epoch_steps:,} steps, "
            f"{self.fill:.0%} of the positions filled"
        )

    def _cells(self, chosen: list[np.ndarray]) -> list[_Cell]:
        """One cell a task, of the chosen examples; its weight is its share of the task's rate."""
        return [
            _Cell(s, units, self._rates[s] * len(units) / len(self._parts[s]))
            for s, units in enumerate(chosen)
            if len(units)
        ]

    def _bucketed(self, buckets: tuple[int, int], multiple: int):
        sizes = [(p.input_lengths, p.target_lengths) for p in self._parts]
        edges = [
            layouts.bucket_lengths(
                np.concatenate([s[side] for s in sizes]),
                buckets[side],
                multiple=multiple,
                limit=self._limits[side],
                smallest=self.batch_size,
            )
            for side in (0, 1)
        ]
        place = [[np.searchsorted(edges[side], s[side]) for side in (0, 1)] for s in sizes]
        groups = []
        for e, enc in enumerate(edges[0]):
            for d, dec in enumerate(edges[1]):
                cells = self._cells([np.flatnonzero((i == e) & (o == d)) for i, o in place])
                if cells:
                    groups.append(((enc, dec), cells))
        return groups

    def _packed(self, input_length: int | None, target_length: int | None):
        tokens = [sum(p.meta["tokens"][n] for p in self._parts) for n in ("inputs", "targets")]
        fitting = min(-(-self._longest[0] // 8) * 8, self._limits[0])
        input_length = input_length or 2 * fitting
        if target_length is None:
            target_length = max(int(1.1 * input_length * tokens[1] / tokens[0]), self._longest[1])
            target_length = -(-target_length // 8) * 8
        if input_length < self._longest[0] or target_length < self._longest[1]:
            raise UserError(
                "pack_input_length, pack_target_length: expected at least the longest example's "
                f"{self._longest[0]} and {self._longest[1]}, found {input_length} and "
                f"{target_length}."
            )
        self._packings = [_packing(p, input_length, target_length) for p in self._parts]
        self._most_soft = max(int(np.diff(offsets).max()) for _, offsets in self._packings)
        cells = []
        for s, (part, (_, offsets)) in enumerate(zip(self._parts, self._packings, strict=True)):
            rows = len(offsets) - 1
            cells.append(_Cell(s, np.arange(rows), self._rates[s] * rows / len(part)))
        return [((input_length, target_length), cells)]

    def _stream(
        self, number: int, lengths: tuple[int, int], cells: list[_Cell]
    ) -> grain.MapDataset:
        """This process's rows of the batches of one shape, an endless stream."""
        source = np.repeat([c.source for c in cells], [len(c.units) for c in cells])
        units = np.concatenate([c.units for c in cells])
        shape = (len(self._rows), *lengths)

        def batch(chosen) -> dict[str, np.ndarray]:
            chosen = np.asarray(chosen)
            if self.layout != "packed":
                rows = np.arange(len(chosen))
                return self._assemble(source[chosen], units[chosen], rows, shape)
            members = []
            for c in chosen:
                order, offsets = self._packings[source[c]]
                members.append(order[offsets[units[c]] : offsets[units[c] + 1]])
            counts = [len(m) for m in members]
            rows = np.repeat(np.arange(len(chosen)), counts)
            owner = np.repeat(source[chosen], counts)
            return self._assemble(owner, np.concatenate(members), rows, shape)

        streams, start = [], 0
        for cell in cells:
            # Seeds are hashed: grain adds the epoch, so neighbouring seeds would share epochs.
            mixed = np.random.SeedSequence([self.seed, number, cell.source])
            seed = int(mixed.generate_state(1)[0])
            stop = start + len(cell.units)
            streams.append(grain.MapDataset.range(start, stop).shuffle(seed=seed).repeat())
            start = stop
        weights = [cell.weight for cell in cells]
        stream = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights)
        return process_batches(stream, self.batch_size, self._rows, batch)


def count(batch: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Numbers of examples and of tokens without padding (encoder and decoder) in a batch."""
    tokens = int(
        (batch["encoder_input_tokens"] != 0).sum() + (batch["decoder_target_tokens"] != 0).sum()
    )
    if "decoder_segment_ids" in batch:
        return int(batch["decoder_segment_ids"].max(axis=1).sum()), tokens
    return int((batch["decoder_target_tokens"][:, 0] != 0).sum()), tokens


def _with_soft(part: Examples, with_vectors: list[Examples]) -> Examples:
    """The part, with an all-zero `soft` if it has no soft tokens but other parts do."""
    if part.soft is not None or not with_vectors:
        return part
    none = np.zeros(len(part), np.int32)
    return dataclasses.replace(part, soft=none, vectors=with_vectors[0].vectors)


def _read_mixture(folder: str) -> dict[str, float]:
    path = os.path.join(folder, MIXTURE_FILE)
    way_out = "build the examples first, or name the tasks by `mixture`."
    return read_json(path, "a mixture of examples", way_out)["tasks"]


def _check(parts: list[Examples], vocabulary: str | None) -> None:
    expected = vocabulary or parts[0].meta["vocabulary"]
    for part in parts:
        if not len(part):
            raise UserError(
                f"{part.folder}: expected at least one example, found none; the split's log has "
                "no usable row."
            )
        if part.meta["vocabulary"] != expected:
            raise UserError(
                f"{part.folder}: expected examples of vocabulary {expected}, found "
                f"{part.meta['vocabulary']}; build the examples again."
            )


def _packing(
    part: Examples, input_length: int, target_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `part` packed into these lengths, read from its folder or computed."""
    path = os.path.join(part.folder, f"packing-{input_length}x{target_length}.npz")
    if os.path.isfile(path):
        with np.load(path) as saved:
            return saved["order"], saved["offsets"]
    sizes = part.input_lengths, part.target_lengths
    order, offsets = layouts.pack(*sizes, input_length, target_length)
    # Several processes may write the same packing. A read-only folder is packed at every start.
    with contextlib.suppress(OSError), atomic_write(path) as f:
        np.savez(f, order=order, offsets=offsets)
    return order, offsets
