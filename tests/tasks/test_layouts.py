import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesug_jax.tasks import layouts


def part(rng, count, longest=(9, 5)):
    out = {}
    for name, most in zip(("input", "target"), longest, strict=True):
        sizes = rng.integers(1, most + 1, count)
        out[f"{name}s"] = rng.integers(1, 100, sizes.sum()).astype(np.int32)
        out[f"{name}_offsets"] = np.concatenate([[0], np.cumsum(sizes)])
    return SimpleNamespace(**out, texts=lambda rows: texts(SimpleNamespace(**out), rows))


def texts(part, rows):
    """The result of `tasks.examples.Examples.texts`."""
    out = {}
    for name, offsets in (("inputs", part.input_offsets), ("targets", part.target_offsets)):
        ids = [getattr(part, name)[offsets[row] : offsets[row + 1]] for row in rows]
        none = [np.zeros(0, np.int32)]
        out[name] = np.concatenate(none + ids), np.array([len(x) for x in ids], np.int64)
    return out


def slow(parts, source, example, row, shape):
    """A slow reference, element by element, by SeqIO's documentation of the arrays."""
    rows, length, target_length = shape
    names = ("input_tokens", "segment_ids", "positions")
    enc = {f"encoder_{n}": np.zeros((rows, length), np.int32) for n in names}
    names = ("input_tokens", "target_tokens", "segment_ids", "positions")
    dec = {f"decoder_{n}": np.zeros((rows, target_length), np.int32) for n in names}
    at, segment = np.zeros((rows, 2), int), np.zeros(rows, int)
    for s, e, r in zip(source, example, row, strict=True):
        p = parts[s]
        segment[r] += 1
        for i, token in enumerate(p.inputs[p.input_offsets[e] : p.input_offsets[e + 1]]):
            enc["encoder_input_tokens"][r, at[r, 0]] = token
            enc["encoder_segment_ids"][r, at[r, 0]] = segment[r]
            enc["encoder_positions"][r, at[r, 0]] = i
            at[r, 0] += 1
        previous = 0
        for i, token in enumerate(p.targets[p.target_offsets[e] : p.target_offsets[e + 1]]):
            dec["decoder_input_tokens"][r, at[r, 1]] = previous
            dec["decoder_target_tokens"][r, at[r, 1]] = previous = token
            dec["decoder_segment_ids"][r, at[r, 1]] = segment[r]
            dec["decoder_positions"][r, at[r, 1]] = i
            at[r, 1] += 1
    weights = (dec["decoder_segment_ids"] > 0).astype(np.float32)
    return {**enc, **dec, "decoder_loss_weights": weights}


def test_packed_rows_equal_the_slow_reference():
    rng = np.random.default_rng(0)
    parts = [part(rng, 20), part(rng, 7)]
    row = np.sort(rng.integers(0, 6, 15))
    source = rng.integers(0, 2, 15)
    example = rng.integers(0, 7, 15)
    shape = (6, 80, 50)
    got = layouts.assemble(parts, source, example, row, shape, packed=True)
    expected = slow(parts, source, example, row, shape)
    assert set(got) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
        assert got[name].dtype == array.dtype


def test_padded_rows_equal_the_slow_reference_except_for_the_shifted_end_token():
    rng = np.random.default_rng(1)
    parts = [part(rng, 9)]
    shape = (9, 9, 6)
    each = np.arange(9)
    got = layouts.assemble(parts, each * 0, each, each, shape, packed=False)
    expected = slow(parts, each * 0, each, each, shape)
    for name in ("encoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"):
        np.testing.assert_array_equal(got[name], expected[name])
    real = got["decoder_loss_weights"] > 0
    np.testing.assert_array_equal(
        got["decoder_input_tokens"][real], expected["decoder_input_tokens"][real]
    )
    np.testing.assert_array_equal(
        got["decoder_input_tokens"][:, 1:], got["decoder_target_tokens"][:, :-1]
    )


def test_examples_longer_than_their_row_are_refused():
    parts, zeros = [part(np.random.default_rng(2), 3)], np.zeros(3, int)
    with pytest.raises(ValueError, match="in a row of 4"):
        layouts.assemble(parts, zeros, np.arange(3), zeros, (2, 4, 99), packed=True)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(1, 3),
    st.sampled_from([4, 8]),
    st.integers(1, 8),
)
def test_buckets_have_the_least_padding(lengths, count, multiple, smallest):
    lengths = np.array(lengths)
    got = layouts.bucket_lengths(lengths, count, multiple=multiple, limit=40, smallest=smallest)
    assert got == sorted(set(got)) and len(got) <= count and got[-1] >= lengths.max()

    def cost(edges):
        held = np.searchsorted(edges, lengths)
        sizes = np.bincount(held, minlength=len(edges))
        return np.array(edges)[held].sum() if sizes.min() >= smallest else None

    top = -(-lengths.max() // multiple) * multiple
    inner = range(multiple, top, multiple)
    tried = [cost([*c, top]) for n in range(count) for c in itertools.combinations(inner, n)]
    possible = [c for c in tried if c is not None]
    if possible:
        assert cost(got) == min(possible)
    else:
        assert got == [top]


def test_bucket_lengths_stop_at_the_limit():
    got = layouts.bucket_lengths(np.array([3, 20, 20]), 2, multiple=8, limit=20, smallest=1)
    assert got == [8, 20]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(0, 5), st.integers(1, 8))
def test_packing_has_every_example_once_within_the_room(count, seed, open_rows):
    rng = np.random.default_rng(seed)
    ins, outs = rng.integers(1, 30, count), rng.integers(1, 10, count)
    order, offsets = layouts.pack(ins, outs, 50, 16, seed=seed, open_rows=open_rows)
    assert sorted(order) == list(range(count))
    assert offsets[0] == 0 and offsets[-1] == count and (np.diff(offsets) > 0).all()
    for a, b in itertools.pairwise(offsets):
        assert ins[order[a:b]].sum() <= 50 and outs[order[a:b]].sum() <= 16
    again = layouts.pack(ins, outs, 50, 16, seed=seed, open_rows=open_rows)
    np.testing.assert_array_equal(order, again[0])


def test_packing_fills_rows_well():
    rng = np.random.default_rng(0)
    ins, outs = rng.integers(10, 100, 5000), rng.integers(2, 8, 5000)
    _, offsets = layouts.pack(ins, outs, 256, 64)
    assert ins.sum() / (256 * (len(offsets) - 1)) > 0.95


def test_packing_refuses_an_example_longer_than_a_row():
    with pytest.raises(ValueError, match="do not fit rows of 8 and 4"):
        layouts.pack(np.array([9]), np.array([1]), 8, 4)
