"""How examples of unequal length share arrays of one shape: padded, in buckets of few shapes, or
packed.

Plain numpy over lengths and offsets; it knows no files and no order of training (`tasks.loader`
does). The arrays carry the names and the values that SeqIO's encoder-decoder FeatureConverter
gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

OPEN_ROWS = 64  # rows a packer keeps open; more fill a little better and cost time


def assemble(
    parts: Sequence,
    source: np.ndarray,
    example: np.ndarray,
    row: np.ndarray,
    shape: tuple[int, int, int],
    *,
    packed: bool,
) -> dict[str, np.ndarray]:
    """The model's arrays of S examples put into the rows of a batch.

    Args:
      parts: `tasks.examples.Examples` to take from.
      source: [S] which of `parts`.
      example: [S] which example of it.
      row: [S] the row it goes to, not decreasing; several examples of a row follow one another.
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
    """`Examples.texts` of the examples [S], whichever part each is of."""
    if len(parts) == 1:
        return parts[0].texts(example)
    found = [part.texts(example[source == s]) for s, part in enumerate(parts)]
    out = {}
    for name in ("inputs", "targets"):
        size = np.empty(len(example), np.int64)
        for s, texts in enumerate(found):
            size[source == s] = texts[name][1]
        ids, owner = np.empty(size.sum(), np.int32), np.repeat(source, size)
        for s, texts in enumerate(found):
            ids[owner == s] = texts[name][0]
        out[name] = ids, size
    return out


def _place(
    name: str, ids: np.ndarray, size: np.ndarray, row: np.ndarray, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segment ids and positions [rows, length] of one side."""
    count = len(size)
    first = np.ones(count, bool)
    first[1:] = row[1:] != row[:-1]
    leader = np.maximum.accumulate(
        np.where(first, np.arange(count), 0)
    )  # first example of one's row
    before = np.cumsum(size) - size
    column = before - before[leader]
    if np.any(column + size > length):
        raise ValueError(f"{int(np.max(column + size))} ids of {name} in a row of {length}")
    within = np.arange(size.sum()) - np.repeat(before, size)
    at = np.repeat(row * length + column, size) + within
    tokens, segments, positions = (np.zeros(rows * length, np.int32) for _ in range(3))
    tokens[at] = ids
    segments[at] = np.repeat(np.arange(count) - leader + 1, size)
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
    """Vectors of the soft tokens of the examples that `assemble` puts into rows.

    Args:
      parts: `tasks.examples.Examples`; `soft` [N] numbers each example's vector in `vectors`, 0:
        the example has no soft token.
      source, example, row: [S] as for `assemble`.
      shape: (B, S'): rows, and the most soft tokens of one.

    Returns:
      float32 [B, S', E]; the n-th vector of a row belongs to its n-th soft token.
    """
    rows, room = shape
    out = np.zeros((rows, room, parts[0].vectors.shape[1]), np.float32)
    number = np.zeros(len(example), np.int64)
    for s, part in enumerate(parts):
        mine = source == s
        number[mine] = part.soft[example[mine]]
    held = np.flatnonzero(number)
    places = row[held]
    first = np.searchsorted(places, places)  # rows do not decrease
    out[places, np.arange(len(held)) - first] = parts[0].vectors[number[held]]
    return out


def bucket_lengths(
    lengths: np.ndarray, count: int, *, multiple: int, limit: int, smallest: int
) -> list[int]:
    """At most `count` lengths, ascending, that pad `lengths` with the fewest tokens in all.

    Args:
      lengths: [N] of the examples; each goes to the first bucket it fits.
      count: most buckets.
      multiple: buckets are multiples of this (but never longer than `limit`).
      limit: no length is larger.
      smallest: every bucket holds at least this many examples, if there are so many.
    """
    steps = -(-limit // multiple)
    step = np.minimum(-(-np.maximum(lengths, 1) // multiple), steps)
    # upto[j]: examples of at most j steps.
    upto = np.concatenate([[0], np.cumsum(np.bincount(step, minlength=steps + 1)[1:])])
    last = int(step.max())
    # best[j]: least (cost, boundaries) of the examples of at most j steps, by the buckets so far.
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    final: tuple[int, tuple[int, ...]] | None = None
    for _ in range(count):
        grown: dict[int, tuple[int, tuple[int, ...]]] = {}
        for i, (cost, cuts) in best.items():
            for j in range(i + 1, last + 1):
                held = int(upto[j] - upto[i])
                if held < smallest:
                    continue
                candidate = (cost + held * min(j * multiple, limit), (*cuts, j))
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
    """Puts N examples into rows that hold `input_room` and `target_room` ids; each example exactly
    once.

    The examples come in an order shuffled by `seed`; each goes to the open row it leaves the least
    room in. If none of the open rows takes it, the fullest one is closed for a new one.

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
    far = 1 << 40
    ins, outs = input_lengths[order].tolist(), target_lengths[order].tolist()
    for i, (a, b) in enumerate(zip(ins, outs, strict=True)):
        room = np.where((left_in >= a) & (left_out >= b), left_in, far)
        slot = int(room.argmin())
        if room[slot] == far:
            slot = int(left_in.argmin())  # unused slots have no room left either, and come first
            left_in[slot], left_out[slot], row_of_slot[slot] = input_room, target_room, rows
            rows += 1
        left_in[slot] -= a
        left_out[slot] -= b
        row_of[i] = row_of_slot[slot]
    by_row = np.argsort(row_of, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))])
    return order[by_row].astype(np.int64), offsets.astype(np.int64)
