"""Layouts of examples of unequal lengths in arrays of one shape: padded, bucketed or packed.

Plain numpy over lengths and offsets; `tasks.loader` reads the files and chooses the order. The
arrays have the names and values of SeqIO's encoder-decoder FeatureConverter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

OPEN_ROWS = 64  # rows open while packing; more rows fill slightly better and take longer


def assemble(
    parts: Sequence,
    source: np.ndarray,
    example: np.ndarray,
    row: np.ndarray,
    shape: tuple[int, int, int],
    *,
    packed: bool,
) -> dict[str, np.ndarray]:
    """The model's arrays of a batch of S examples.

    Args:
      parts: list of `tasks.examples.Examples`.
      source: [S] index in `parts`.
      example: [S] number of the example in its part.
      row: [S] row of the batch, not decreasing; the examples of a row follow one another.
      shape: (B, L, T): rows, encoder length, decoder length.
      packed: whether to add segment ids (from 1) and positions (from 0 in every segment).

    Returns:
      encoder_input_tokens [B, L], decoder_input_tokens, decoder_target_tokens [B, T] int32,
      decoder_loss_weights [B, T] float32 (1 on real targets), and if packed encoder_segment_ids,
      encoder_positions [B, L], decoder_segment_ids, decoder_positions [B, T] int32.

    Raises:
      ValueError: the examples of a row are longer than the row.
    """
    rows, *lengths = shape
    texts = _texts(parts, source, example)
    enc = _place("inputs", *texts["inputs"], row, rows, lengths[0])
    dec = _place("targets", *texts["targets"], row, rows, lengths[1])
    targets, segments, _ = dec
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = targets[:, :-1]
    if packed:
        shifted[:, 1:] *= segments[:, 1:] == segments[:, :-1]
    out = {
        "encoder_input_tokens": enc[0],
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets != 0).astype(np.float32),
    }
    if packed:
        out["encoder_segment_ids"], out["encoder_positions"] = enc[1:]
        out["decoder_segment_ids"], out["decoder_positions"] = dec[1:]
    return out


def _texts(
    parts: Sequence, source: np.ndarray, example: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`Examples.texts` of examples [S] from several parts."""
    if len(parts) == 1:
        return parts[0].texts(example)
    texts_of_parts = [part.texts(example[source == s]) for s, part in enumerate(parts)]
    out = {}
    for name in ("inputs", "targets"):
        size = np.empty(len(example), np.int64)
        for s, texts in enumerate(texts_of_parts):
            size[source == s] = texts[name][1]
        ids, owner = np.empty(size.sum(), np.int32), np.repeat(source, size)
        for s, texts in enumerate(texts_of_parts):
            ids[owner == s] = texts[name][0]
        out[name] = ids, size
    return out


def _place(
    name: str, ids: np.ndarray, size: np.ndarray, row: np.ndarray, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segment ids and positions [rows, length] of inputs or targets."""
    count = len(size)
    first_of_row = np.searchsorted(row, row)  # rows do not decrease
    before = np.cumsum(size) - size
    column = before - before[first_of_row]
    if np.any(column + size > length):
        raise ValueError(f"{int(np.max(column + size))} ids of {name} in a row of {length}")
    within = np.arange(size.sum()) - np.repeat(before, size)
    at = np.repeat(row * length + column, size) + within
    tokens, segments, positions = (np.zeros(rows * length, np.int32) for _ in range(3))
    tokens[at] = ids
    segments[at] = np.repeat(np.arange(count) - first_of_row + 1, size)
    positions[at] = within
    shape = (rows, length)
    return tokens.reshape(shape), segments.reshape(shape), positions.reshape(shape)


def place_soft(
    parts: Sequence,
    source: np.ndarray,
    example: np.ndarray,
    row: np.ndarray,
    shape: tuple[int, int],
) -> np.ndarray:
    """Vectors of the soft tokens of a batch.

    Args:
      parts, source, example, row: as for `assemble`.
      shape: (B, S'): rows, and the most soft tokens of a row.

    Returns:
      float32 [B, S', E]; the n-th vector of a row belongs to its n-th soft token.
    """
    rows, room = shape
    out = np.zeros((rows, room, parts[0].vectors.shape[1]), np.float32)
    number = np.zeros(len(example), np.int64)
    for s, part in enumerate(parts):
        mask = source == s
        number[mask] = part.soft[example[mask]]
    with_soft = np.flatnonzero(number)
    soft_rows = row[with_soft]
    first = np.searchsorted(soft_rows, soft_rows)  # rows do not decrease
    out[soft_rows, np.arange(len(with_soft)) - first] = parts[0].vectors[number[with_soft]]
    return out


def bucket_lengths(
    lengths: np.ndarray, count: int, *, multiple: int, limit: int, smallest: int
) -> list[int]:
    """At most `count` bucket lengths, ascending, that need the least padding in total.

    Args:
      lengths: [N] of the examples; an example goes to the first bucket that fits.
      count: most buckets.
      multiple: bucket lengths are multiples of this, or `limit`.
      limit: largest bucket length; no example is longer.
      smallest: least examples of a bucket, if there are enough examples.
    """
    steps = -(-limit // multiple)
    step = np.minimum(-(-np.maximum(lengths, 1) // multiple), steps)
    # upto[j]: examples of at most j steps.
    upto = np.concatenate([[0], np.cumsum(np.bincount(step, minlength=steps + 1)[1:])])
    last = int(step.max())
    # best[j]: least (cost, boundaries) for the examples of at most j steps with so many buckets.
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    final: tuple[int, tuple[int, ...]] | None = None
    for _ in range(count):
        grown: dict[int, tuple[int, tuple[int, ...]]] = {}
        for i, (cost, cuts) in best.items():
            for j in range(i + 1, last + 1):
                examples = int(upto[j] - upto[i])
                if examples < smallest:
                    continue
                candidate = (cost + examples * min(j * multiple, limit), (*cuts, j))
                if j not in grown or candidate < grown[j]:
                    grown[j] = candidate
        best = grown
        if last in best and (final is None or best[last] < final):
            final = best[last]
    cuts = final[1] if final else (last,)
    return [min(j * multiple, limit) for j in cuts]


def pack(
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    input_room: int,
    target_room: int,
    *,
    seed: int = 0,
    open_rows: int = OPEN_ROWS,
) -> tuple[np.ndarray, np.ndarray]:
    """Packs N examples into rows of `input_room` and `target_room` ids, each example exactly once.

    The examples are shuffled by `seed`. Each goes to the open row in which it leaves the least
    room. If it fits in no open row, a new row replaces the fullest one.

    Returns:
      order int64 [N]: the examples, row by row; offsets int64 [R + 1]: row r is
      order[offsets[r]:offsets[r + 1]].

    Raises:
      ValueError: an example is longer than a row.
    """
    if np.any(input_lengths > input_room) or np.any(target_lengths > target_room):
        raise ValueError(
            f"examples of up to {input_lengths.max(initial=0)} inputs and "
            f"{target_lengths.max(initial=0)} targets "
            f"do not fit rows of {input_room} and {target_room}"
        )
    order = np.random.default_rng(seed).permutation(len(input_lengths))
    left_in, left_out = np.zeros(open_rows, np.int64), np.zeros(open_rows, np.int64)
    row_of_slot = np.full(open_rows, -1)
    row_of = np.empty(len(order), np.int64)
    rows = 0
    no_room = 1 << 40
    ins, outs = input_lengths[order].tolist(), target_lengths[order].tolist()
    for i, (inputs, targets) in enumerate(zip(ins, outs, strict=True)):
        room = np.where((left_in >= inputs) & (left_out >= targets), left_in, no_room)
        slot = int(room.argmin())
        if room[slot] == no_room:
            slot = int(left_in.argmin())  # unused slots have 0 left, so they come first
            left_in[slot], left_out[slot], row_of_slot[slot] = input_room, target_room, rows
            rows += 1
        left_in[slot] -= inputs
        left_out[slot] -= targets
        row_of[i] = row_of_slot[slot]
    by_row = np.argsort(row_of, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))])
    return order[by_row].astype(np.int64), offsets.astype(np.int64)
