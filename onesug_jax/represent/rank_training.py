"""Training the ranker of candidates on the newest searches of the train split.

    loss = -log softmax(scores over the prefix's candidates)[the query that was searched]

ListNet's cross-entropy (Cao et al. 2007) with one relevant query a list. Each row is left out of
the counts that describe its own candidates, as in the model's examples. A row whose query nobody
else searched is not in its own pool and teaches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from onesug_jax.progress import Progress
from onesug_jax.represent.ranking import FEATURES, Ranker

REPORT = "report.json"
_HELD_OUT = 0.1
_LEAST = 50  # lists to learn from


class Search(NamedTuple):
    """One row of the log; the history newest first, each of it so many `minutes` ago."""

    prefix: str
    query: str
    history: Sequence[str]
    profile: Sequence[str]
    minutes: Sequence[float] = ()


class Pools(Protocol):
    """What is asked of `represent.related.RelatedQueries`."""

    def candidates(
        self,
        prefix: str,
        history: Sequence[str],
        profile: Sequence[str],
        own: str | None,
        minutes: Sequence[float] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `[n]` of a prefix's candidates in the formula's order, features `[n, F]`."""

    def number_of(self, query: str) -> int:
        """The number of a known query, else -1."""


def train_ranker(
    searches: Iterable[Search],
    pools: Pools,
    *,
    encoder_fingerprint: str,
    seed: int,
    steps: int = 1500,
    batch_size: int = 256,
    hidden: int = 64,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-3,
    rows: int = 20_000,
) -> tuple[Ranker | None, dict[str, Any]]:
    """Learns to rank from the last `rows` of `searches`, which come in the order of time.

    Lists of a single candidate are left out: any order of them is right.

    Args:
      steps: updates of AdamW, its rate falling to 0 along a cosine; 0: none, the formula ranks.
      batch_size: lists a step; hidden: width of the network.

    Returns:
      the ranker (None without steps, or with too few lists to learn from), and a report: lists
      learnt from and held out (the newest tenth), MRR@16 on those by the formula and by the ranker.
    """
    report: dict[str, Any] = {"steps": steps, "lists": 0, "held_out": 0}
    if not steps:
        return None, report
    features, mask, answer = _lists(searches, pools, rows)
    held = max(int(len(answer) * _HELD_OUT), 1)
    report |= {"lists": max(len(answer) - held, 0), "held_out": held}
    if report["lists"] < _LEAST:
        print(
            f"rank: {report['lists']} lists to learn from, {_LEAST} are needed; the formula ranks",
            flush=True,
        )
        return None, report
    learnt = [part[:-held] for part in (features, mask, answer)]
    real = learnt[0][learnt[1]].astype(np.float32)
    mean, scale = real.mean(axis=0), real.std(axis=0) + 1e-3
    network = _fit(
        learnt, mean, scale, seed, steps, batch_size, hidden, learning_rate, weight_decay
    )
    ranker = Ranker(mean, scale, **network, encoder=encoder_fingerprint)
    kept = [part[-held:] for part in (features, mask, answer)]
    report["mrr@16"] = {
        "formula": _mrr(-np.arange(mask.shape[1]), *kept[1:]),  # they come in its order
        "ranker": _mrr(ranker(kept[0].astype(np.float32)), *kept[1:]),
    }
    print(
        f"rank: {report['lists']:,} lists; MRR@16 of {held:,} newer ones "
        f"{report['mrr@16']['formula']:.2f} by the formula, {report['mrr@16']['ranker']:.2f} by "
        "the ranker",
        flush=True,
    )
    return ranker, report


def _lists(
    searches: Iterable[Search], pools: Pools, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features float16 `[R, P, F]`, which places are filled `[R, P]`, the searched one's `[R]`."""
    newest = list(searches)[-rows:]
    found = []
    for search in Progress("rank", len(newest)).over(newest):
        numbers, features = pools.candidates(
            search.prefix, search.history, search.profile, search.query, search.minutes
        )
        here = np.flatnonzero(numbers == pools.number_of(search.query))
        if len(here) and len(numbers) > 1:
            found.append((features.astype(np.float16), int(here[0])))
    most = max((len(features) for features, _ in found), default=1)
    table = np.zeros((len(found), most, len(FEATURES)), np.float16)
    mask = np.zeros((len(found), most), bool)
    for row, (features, _) in enumerate(found):
        table[row, : len(features)] = features
        mask[row, : len(features)] = True
    return table, mask, np.array([place for _, place in found], np.int32)


def _fit(
    learnt, mean, scale, seed: int, steps: int, batch_size: int, hidden: int, rate: float, decay
) -> dict[str, np.ndarray]:
    """The network's weights after `steps` updates."""
    features, mask, answer = map(jnp.asarray, learnt)
    optimizer = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=decay)
    init, draw = jax.random.split(jax.random.key(seed))
    one, two = jax.random.split(init)
    width = features.shape[-1]
    params = {
        "first": jax.random.normal(one, (width, hidden)) * width**-0.5,
        "bias": jnp.zeros(hidden),
        "last": jax.random.normal(two, (hidden,)) * hidden**-0.5,
    }

    def loss(params, chosen):
        z = (features[chosen].astype(jnp.float32) - mean) / scale
        scores = jax.nn.silu(z @ params["first"] + params["bias"]) @ params["last"]
        scores = jnp.where(mask[chosen], scores, -1e9)
        return optax.softmax_cross_entropy_with_integer_labels(scores, answer[chosen]).mean()

    def update(carry, key):
        params, state = carry
        chosen = jax.random.randint(key, (batch_size,), 0, len(answer))
        updates, state = optimizer.update(jax.grad(loss)(params, chosen), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry, keys: jax.lax.scan(update, carry, keys)[0])
    carry = (params, optimizer.init(params))
    for keys in jnp.array_split(jax.random.split(draw, steps), max(1, steps // 500)):
        carry = run(carry, keys)
    return jax.tree.map(np.asarray, carry[0])


def _mrr(scores: np.ndarray, mask: np.ndarray, answer: np.ndarray) -> float:
    """MRR@16 in per cent of lists ordered by `scores [#R, P]`."""
    scores = np.where(mask, scores, -np.inf)
    own = np.take_along_axis(scores, answer[:, None], axis=1)
    rank = 1 + np.sum(scores > own, axis=1)
    return float(100 * np.mean(np.where(rank <= 16, 1 / rank, 0.0)))
