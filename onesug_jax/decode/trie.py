"""Constraints of the beam search: any token, or only sequences of a closed set.

From the states and next-token scores of the live beams, a constraint computes the best existing
continuations and their states. `Free` allows the whole vocabulary. `Trie` allows a closed set of
token sequences (the indexed queries, or their semantic ids), as four integer arrays on the device:

* Nodes are numbered breadth first, so the children of node n are the consecutive nodes
  `first_child[n] : first_child[n + 1]`; `token[n]` is the token that leads to n. A node takes
  fourteen bytes, or sixteen if tokens need more than two.
* Sequences are ranked by their text, and `low[n] : high[n]` spans the ranks below node n. All texts
  that start with the prefix form one interval of ranks, so the test "the text starts with the
  prefix" is an overlap of two intervals, without text on the device: `Trie.between`. The overlap is
  exact at the end of a sequence. Before the end it may admit a beam that cannot finish, which
  wastes a beam but never gives a wrong suggestion.
* `Trie.showing` hides sequences: a node without any shown sequence gets a `low` beyond every rank,
  so a new filter replaces one array.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.arrays import NEG_INF, BeamScores
from onesug_jax.decode.top import group_max_and_logsumexp, group_size, largest
from onesug_jax.errors import UserError
from onesug_jax.model.scores import Scores

_WIDTHS = (16, 64, 256, 1024)  # numbers of children read per beam, if no node has more


@flax.struct.dataclass
class Continuations:
    """The W best continuations of a request's beams, best first.

    Attributes:
      totals: `[B, W]` summed log-probabilities; `NEG_INF` where fewer exist.
      parent: `[B, W]` the beam that each continues; token: `[B, W]` its next token; state: `[B, W]`
        its next state.
    """

    totals: BeamScores
    parent: jax.Array
    token: jax.Array
    state: jax.Array


class Constraint(Protocol):
    """The interface of constraints; implementations are pytrees of arrays.

    Attributes:
      BY_ROW: names of the arrays that have one row per request.
    """

    BY_ROW: ClassVar[tuple[str, ...]]

    def start(self, batch: int) -> jax.Array:
        """States `[B, 1]` of an empty output."""

    def best(
        self, state: jax.Array, scores: Scores, before: BeamScores, k: int, first: bool
    ) -> Continuations:
        """The best `k` continuations of beams in states `[B, K]`.

        `scores` are of the next tokens; `before [B, K]` are the summed log-probabilities of the
        beams. Next tokens are normalised over the whole vocabulary, allowed or not. `first`:
        whether the states are those of `start`.
        """


@flax.struct.dataclass
class Free:
    """Every allowed token may follow every other; the state is always 0.

    Attributes:
      allowed: `[V]` booleans, the tokens a text may contain; None: all.

    Examples:
      >>> from onesug_jax import Free
      >>> Free().start(2).shape
      (2, 1)
    """

    allowed: jax.Array | None = None

    BY_ROW: ClassVar[tuple[str, ...]] = ()

    def start(self, batch: int) -> jax.Array:
        """See `Constraint.start`."""
        return jnp.zeros((batch, 1), jnp.int32)

    def best(self, state, scores, before, k, first):
        """See `Constraint.best`."""
        del first
        logits = scores.vocabulary
        batch, beams, words = logits.shape
        size = group_size(beams * words, k)
        count = max(-(-words // size), -(-k // (beams * size)))
        padding = ((0, 0), (0, 0), (0, count * size - words))
        logits = jnp.pad(logits, padding, constant_values=NEG_INF)
        groups = logits.reshape(batch, beams, count, size)
        allowed = jnp.ones(words, bool) if self.allowed is None else self.allowed
        allowed = jnp.pad(allowed, (0, count * size - words)).reshape(count, size)

        highest, log_partition = group_max_and_logsumexp(groups, allowed)
        if scores.mass is not None:
            log_partition = jnp.logaddexp(log_partition, scores.mass)
        before = before - log_partition
        highest = (highest + before[..., None]).reshape(batch, -1)
        _, chosen = largest(highest, min(k, beams * count))
        beam, group = chosen // count, chosen % count
        within = jnp.take_along_axis(groups.reshape(batch, -1, size), chosen[..., None], axis=1)
        within = within + jnp.take_along_axis(before, beam, axis=1)[..., None]
        within = jnp.where(allowed[group], within, NEG_INF)
        totals, at = largest(within.reshape(batch, -1), k)
        pick = functools.partial(jnp.take_along_axis, indices=at // size, axis=1)
        parent, token = pick(beam), jnp.minimum(pick(group) * size + at % size, words - 1)
        return Continuations(totals, parent, token, jnp.take_along_axis(state, parent, axis=1))


def _best_of(totals: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest of `[B, K, C]` with their two indices, `[B, k]` each."""
    batch, beams, width = totals.shape
    flat = totals.reshape(batch, beams * width)
    if flat.shape[1] < k:
        flat = jnp.pad(flat, ((0, 0), (0, k - flat.shape[1])), constant_values=NEG_INF)
    best, index = largest(flat, k)
    index = jnp.minimum(index, beams * width - 1)
    return best, index // width, index % width


@flax.struct.dataclass
class Trie:
    """A closed set of token sequences; `between` narrows it for each request.

    Attributes:
      first_child: `[N + 1]` int32; token: `[N]` uint16 or int32; low, high: `[N]` int32 (see the
        module docstring).
      interval: `[B, 2]` ranks `low <= rank < high` allowed for each request, or None for all.
      root_width: number of children of the root; width: maximum number of any other node.
    """

    first_child: jax.Array
    token: jax.Array
    low: jax.Array
    high: jax.Array
    interval: jax.Array | None = None
    root_width: int = flax.struct.field(pytree_node=False, default=1)
    width: int = flax.struct.field(pytree_node=False, default=1)

    BY_ROW: ClassVar[tuple[str, ...]] = ("interval",)

    def between(self, intervals: jax.Array | np.ndarray) -> Trie:
        """The same trie, with request b limited to sequences of ranks `intervals[b]` (`[B, 2]`)."""
        return dataclasses.replace(self, interval=jnp.asarray(intervals, jnp.int32))

    def showing(self, shown: np.ndarray, rank_of_node: np.ndarray) -> Trie:
        """The trie without the sequences of ranks r where `shown[r]` is False. Call it on the
        complete trie; its result needs `between`.
        """
        leaf = np.flatnonzero(rank_of_node >= 0)
        first_child = np.asarray(self.first_child)
        parent = np.repeat(np.arange(len(first_child) - 1), np.diff(first_child))
        parent = np.concatenate([[0], parent])  # the root is its own parent
        visible = np.zeros(len(parent), bool)
        nodes = leaf[shown[rank_of_node[leaf]]]
        while nodes.size:
            visible[nodes] = True
            nodes = np.unique(parent[nodes])
            nodes = nodes[~visible[nodes]]
        low = np.where(visible, np.asarray(self.low), np.iinfo(np.int32).max)
        return dataclasses.replace(self, low=jnp.asarray(low, jnp.int32))

    def start(self, batch: int) -> jax.Array:
        """See `Constraint.start`: the root."""
        return jnp.zeros((batch, 1), jnp.int32)

    def best(self, state, scores, before, k, first):
        """See `Constraint.best`. The number of children read is that of the widest node of a beam,
        rounded up to one of a few numbers.
        """
        begin, end = self.first_child[state], self.first_child[state + 1]
        alive = before > NEG_INF / 2
        before = before - scores.log_partition()

        def best_of_children(width: int) -> Continuations:
            child = begin[..., None] + jnp.arange(width)
            exists = (child < end[..., None]) & alive[..., None]
            child = jnp.where(exists, child, 0)
            if self.interval is not None:
                low, high = self.interval[:, 0, None, None], self.interval[:, 1, None, None]
                exists &= (self.low[child] < high) & (low < self.high[child])
            tokens = self.token[child].astype(jnp.int32)
            totals = jnp.take_along_axis(scores.vocabulary, tokens, axis=-1) + before[..., None]
            totals, parent, choice = _best_of(jnp.where(exists, totals, NEG_INF), k)
            child = jnp.take_along_axis(begin, parent, axis=1) + choice
            child = jnp.where(totals > NEG_INF / 2, child, 0)
            return Continuations(totals, parent, self.token[child].astype(jnp.int32), child)

        if first:
            return best_of_children(self.root_width)
        widths = [width for width in _WIDTHS if width < self.width] + [self.width]
        if len(widths) == 1:
            return best_of_children(self.width)
        widest = jnp.max(jnp.where(alive, end - begin, 0))
        branch = sum((widest > width).astype(jnp.int32) for width in widths[:-1])
        return jax.lax.switch(branch, [functools.partial(best_of_children, w) for w in widths])


def build_trie(sequences: Sequence[Sequence[int]] | np.ndarray) -> tuple[Trie, np.ndarray]:
    """Builds the trie of `sequences`, whose ranks are their indices.

    Args:
      sequences: distinct token sequences, each with an end that no other sequence continues (end of
        sequence); or `[N, T]`, padded with 0. `starting_with` requires the order of their texts.

    Returns:
      the trie, and `[N]` the rank of the sequence that ends at a node, or -1.

    Raises:
      UserError: there are no sequences.
      ValueError: a sequence is empty, repeated, or the beginning of another.
    """
    if not len(sequences):
        raise UserError("the set of allowed queries is empty: no list would have a query")
    if isinstance(sequences, np.ndarray):
        lengths = np.count_nonzero(sequences, axis=1).astype(np.int32)
        table = np.where(np.arange(sequences.shape[1]) < lengths[:, None], sequences, -1)
    else:
        lengths = np.array([len(s) for s in sequences], np.int32)
        table = np.full((len(sequences), lengths.max()), -1, np.int32)
        table[np.arange(table.shape[1]) < lengths[:, None]] = np.concatenate(
            [np.asarray(s, np.int32) for s in sequences]
        )
    if lengths.min() == 0:
        raise ValueError(f"sequence {int(lengths.argmin())} is empty")
    rank = np.lexsort(table.T[::-1]).astype(np.int32)  # by first token, then second, ...
    table, lengths = table[rank], lengths[rank]

    # Level by level: a row starts a new node where it differs from the row above it.
    tokens, parents = [np.array([-1], np.int32)], [np.array([-1], np.int64)]
    lows, highs = [np.array([0], np.int32)], [np.array([len(table)], np.int32)]
    ends = [np.array([-1], np.int32)]
    node = np.zeros(len(table), np.int64)  # the node of every row at the current level
    alive, nodes = np.arange(len(table)), 1
    for depth in range(table.shape[1]):
        alive = alive[lengths[alive] > depth]
        if not alive.size:
            break
        level_tokens = table[alive, depth]
        is_new = np.ones(alive.size, bool)
        is_new[1:] = node[alive][1:] != node[alive][:-1]
        is_new[1:] |= level_tokens[1:] != level_tokens[:-1]
        starts = np.flatnonzero(is_new)
        tokens.append(level_tokens[starts])
        parents.append(node[alive][starts])
        lows.append(np.minimum.reduceat(rank[alive], starts))
        highs.append(np.maximum.reduceat(rank[alive], starts) + 1)
        sizes = np.diff(np.append(starts, alive.size))
        ending = np.add.reduceat((lengths[alive] == depth + 1).astype(np.int32), starts)
        if np.any((ending > 0) & (sizes > 1)):
            row = alive[starts[np.argmax((ending > 0) & (sizes > 1))]]
            raise ValueError(f"sequence {rank[row]} is repeated or the beginning of another")
        ends.append(np.where(ending > 0, rank[alive][starts], -1).astype(np.int32))
        node[alive] = nodes + np.cumsum(is_new) - 1
        nodes += starts.size

    parent = np.concatenate(parents)
    children = np.bincount(parent[1:], minlength=nodes)
    first_child = np.concatenate([[1], 1 + np.cumsum(children)]).astype(np.int32)
    token = np.maximum(np.concatenate(tokens), 0)
    small = np.uint16 if token.max() <= np.iinfo(np.uint16).max else np.int32
    trie = Trie(
        first_child=jnp.asarray(first_child),
        token=jnp.asarray(token.astype(small)),
        low=jnp.asarray(np.concatenate(lows)),
        high=jnp.asarray(np.concatenate(highs)),
        root_width=int(children[0]),
        width=int(children[1:].max()) if nodes > 1 else 1,
    )
    return trie, np.concatenate(ends)


def starting_with(sorted_texts: Sequence[str], prefix: str) -> tuple[int, int]:
    """Ranks `low <= rank < high` of the texts that start with `prefix`; none: `low == high`.

    `sorted_texts` are sorted by code point, in the order of `build_trie`; for `Trie.between`.
    """
    low = bisect.bisect_left(sorted_texts, prefix)
    return low, bisect.bisect_right(
        sorted_texts, prefix, lo=low, key=lambda text: text[: len(prefix)]
    )
