"""Beam search: the K best queries of a request, best first, in one compiled function.

OneSug decodes with 32 beams, shows 16 queries and ranks by log-probability over `|q|^alpha` with
alpha between 0.6 and 0.8 (PAPER.md section 1); `|q|` counts tokens, the end of sequence included.

It is cheap for five reasons. The request is encoded once, and all beams share its cross-attention
keys and values. The first position runs on a single beam. Reordering beams moves only a small table
of integers, never the caches (`Seq2Seq.decode_step`). With many requests, the first positions use
short caches. The loop ends as soon as no live beam can still enter the list. A constraint
(`trie.py`) decides which continuations exist.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from onesug_jax.arrays import NEG_INF, BeamScores, BeamSequences, InputTokens, SoftTokens
from onesug_jax.decode.reading import ReadRequests, read_requests
from onesug_jax.decode.trie import Constraint
from onesug_jax.errors import UserError
from onesug_jax.model.scores import Scores
from onesug_jax.model.seq2seq import Seq2Seq

_MANY = 1024  # from so many beams in a batch on, reading caches costs more than a longer program


@dataclasses.dataclass(frozen=True)
class BeamConfig:
    """Settings of the search.

    Attributes:
      beams: live hypotheses per request (paper: 32).
      returned: finished queries per request (paper: 16).
      alpha: exponent of the length in the score (paper: 0.6 to 0.8; 0 ranks by probability).
      max_length: maximum number of tokens of a query, end of sequence included.
      eos_id: the token that ends a query.
      unfinished: also return queries without an end after max_length tokens, as T5X and Hugging
        Face do.

    Examples:
      >>> from onesug_jax import BeamConfig
      >>> BeamConfig(beams=8, returned=4).alpha
      0.0
    """

    beams: int = 32
    returned: int = 16
    alpha: float = 0.0
    max_length: int = 16
    eos_id: int = 1
    unfinished: bool = False

    def __post_init__(self):
        if not 1 <= self.returned <= self.beams:
            raise UserError(
                f"BeamConfig.returned = {self.returned} must be between 1 and "
                f"BeamConfig.beams = {self.beams}: a search returns no more queries than beams"
            )


@flax.struct.dataclass
class BeamResult:
    """Finished queries, best first.

    Attributes:
      sequences: `[B, returned, max_length]` tokens, end of sequence included, then 0.
      scores: `[B, returned]` normalised log-probabilities; `NEG_INF` where fewer exist.
      states: `[B, returned]` the constraint's state at the end of each query.
      steps: decoder steps, a scalar; None from a suggester, whose devices each count their own.
    """

    sequences: BeamSequences
    scores: BeamScores
    states: jax.Array
    steps: jax.Array | None


@flax.struct.dataclass
class _Search:
    """The loop's state: K live beams, the best finished queries, and the caches."""

    t: jax.Array  # decoder steps so far
    scores: BeamScores  # [B, K] summed log-probabilities of the live beams
    tokens: BeamSequences  # [B, K, T]
    states: jax.Array  # [B, K]
    ancestry: jax.Array  # [B, K, T]
    cache: tuple[jax.Array, jax.Array]
    done_scores: BeamScores  # [B, R] normalised
    done_tokens: BeamSequences  # [B, R, T]
    done_states: jax.Array  # [B, R]


def _gather(x: jax.Array, index: jax.Array) -> jax.Array:
    """`x[b, index[b, j]]` for every b and j."""
    return jax.vmap(lambda rows, picks: rows[picks])(x, index)


def _advance(
    s: _Search, scores: Scores, constraint: Constraint, config: BeamConfig, first: bool
) -> _Search:
    """Chooses the next live beams, adds ended ones to the results; returns the state at t + 1."""
    beams = s.scores.shape[1]
    live = 1 if first else beams
    # Each beam has one continuation that ends it, so the best 2K include K that do not end.
    best = constraint.best(s.states[:, :live], scores, s.scores[:, :live], 2 * beams, first)
    totals, parent, token, state = best.totals, best.parent, best.token, best.state
    written = _gather(s.tokens, parent).at[:, :, s.t].set(token)
    ended = token == config.eos_id
    ended |= config.unfinished & (s.t + 1 == config.max_length)
    exists = totals > NEG_INF / 2

    length = (s.t + 1).astype(jnp.float32)
    final = jnp.where(ended & exists, totals / length**config.alpha, NEG_INF)
    pool_scores = jnp.concatenate([s.done_scores, final], axis=1)
    done_scores, keep = jax.lax.top_k(pool_scores, s.done_scores.shape[1])
    done_tokens = _gather(jnp.concatenate([s.done_tokens, written], axis=1), keep)
    done_states = _gather(jnp.concatenate([s.done_states, state], axis=1), keep)

    live_scores, keep = jax.lax.top_k(jnp.where(ended | ~exists, NEG_INF, totals), beams)
    return dataclasses.replace(
        s,
        t=s.t + 1,
        scores=live_scores,
        tokens=_gather(written, keep),
        states=_gather(state, keep),
        ancestry=_gather(s.ancestry, jnp.take_along_axis(parent, keep, axis=1)),
        done_scores=done_scores,
        done_tokens=done_tokens,
        done_states=done_states,
    )


def _cache_lengths(length: int, beams: int) -> list[int]:
    """The lengths that the caches have in turn: every step scores every key, written or not."""
    return [length] if beams < _MANY else [-(-length // 2), length]


def _pad_cache(cache: Any, length: int) -> Any:
    """Caches `[.., T, S, head_dim]`, padded to T = `length`."""

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, length - x.shape[-3]), (0, 0), (0, 0)])

    return jax.tree.map(pad, cache)


def _undecided(s: _Search, config: BeamConfig) -> jax.Array:
    """Whether any live beam of any request could still enter its list."""
    # A live beam's total can only decrease, and the divisor is largest at max_length.
    best = s.scores[:, 0] / float(config.max_length) ** config.alpha
    possible = (s.scores[:, 0] > NEG_INF / 2) & (best > s.done_scores[:, -1])
    return (s.t < config.max_length) & jnp.any(possible)


def beam_search(
    model: Seq2Seq,
    params,
    tokens: InputTokens,
    constraint: Constraint,
    config: BeamConfig,
    soft: SoftTokens | None = None,
) -> BeamResult:
    """Encodes the requests (`read_requests`) and runs `search`.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from onesug_jax import BeamConfig, Free, ModelConfig, Seq2Seq, beam_search
      >>> model = Seq2Seq(ModelConfig(vocab_size=64, d_model=16, d_ff=32, encoder_layers=1))
      >>> tokens = jnp.array([[5, 6, 1, 0]])
      >>> params = model.init(jax.random.key(0), tokens, tokens)["params"]
      >>> config = BeamConfig(beams=4, returned=2, max_length=3, unfinished=True)
      >>> found = beam_search(model, params, tokens, Free(), config)
      >>> found.sequences.shape, bool(found.scores[0, 0] >= found.scores[0, 1])
      ((1, 2, 3), True)
    """
    return search(model, params, read_requests(model, params, tokens, soft), constraint, config)


def search(
    model: Seq2Seq, params, read: ReadRequests, constraint: Constraint, config: BeamConfig
) -> BeamResult:
    """Writes the best queries of every request in the batch.

    Args:
      model: the encoder-decoder; params: its parameters (without the "params" level).
      read: the requests, from `read_requests`.
      constraint: which continuations exist (`Free()`, a `Trie` or `Begun`).
      config: widths and lengths; static under jit.

    Returns:
      a `BeamResult`, best first. Scores are log-probabilities over the model's whole vocabulary: a
      constraint removes hypotheses and does not change the scores of the others.
    """
    batch, beams, length = read.tokens.shape[0], config.beams, config.max_length
    variables = {"params": params}
    cache_lengths = _cache_lengths(length, batch * beams)
    s = _Search(
        t=jnp.int32(0),
        scores=jnp.full((batch, beams), NEG_INF).at[:, 0].set(0.0),
        tokens=jnp.zeros((batch, beams, length), jnp.int32),
        states=jnp.broadcast_to(constraint.start(batch), (batch, beams)),
        ancestry=jnp.zeros((batch, beams, length), jnp.int32),
        cache=model.empty_cache(batch, cache_lengths[0], beams),
        done_scores=jnp.full((batch, config.returned), NEG_INF),
        done_tokens=jnp.zeros((batch, config.returned, length), jnp.int32),
        done_states=jnp.zeros((batch, config.returned), jnp.int32),
    )

    def step(s: _Search, previous: jax.Array, first: bool) -> _Search:
        slots = jnp.arange(previous.shape[1])
        ancestry = s.ancestry.at[:, : previous.shape[1], s.t].set(slots)
        cache_length = jax.tree.leaves(s.cache)[0].shape[-3]
        output: Any = model.apply(
            variables,
            previous,
            s.t,
            ancestry[:, : previous.shape[1], :cache_length],
            s.cache,
            read.cross,
            read.tokens,
            read.mass,
            method="decode_step",
        )
        scores, cache = output
        s = dataclasses.replace(s, ancestry=ancestry, cache=cache)
        return _advance(s, scores, constraint, config, first)

    # At the first step there is one beam, the empty output.
    s = step(s, jnp.zeros((batch, 1), jnp.int32), first=True)

    def body(s: _Search) -> _Search:
        previous = jax.lax.dynamic_index_in_dim(s.tokens, s.t - 1, axis=2, keepdims=False)
        return step(s, previous, first=False)

    def unfinished(s: _Search) -> jax.Array:
        return (s.t < jax.tree.leaves(s.cache)[0].shape[-3]) & _undecided(s, config)

    for cache_length in cache_lengths:
        s = dataclasses.replace(s, cache=_pad_cache(s.cache, cache_length))
        s = jax.lax.while_loop(unfinished, body, s)
    return BeamResult(s.done_tokens, s.done_scores, s.done_states, s.t)
