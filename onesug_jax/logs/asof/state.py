"""The as-of state: one state machine for training, evaluation and service.

Searches are observed when they happen and become visible `freshness` later; a request sees what is
visible at its time. So a served request and the training row made of it later are equal:

    observe(search) .. observe(search), request(..) -> Items, observe(its outcome), request(..)

`request` finds candidates, which the model then ranks: the completions of the prefix with the most
searches as of the moment; completions of its corrections, if it is mistyped; completions that are
near the user's history; and the queries of a search around the prefix's vector (`Nearby`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onesug_jax.logs.asof.completions import best
from onesug_jax.logs.asof.config import DEFAULT, MINUTE_MS, AsOfConfig
from onesug_jax.logs.asof.items import Items, clock, log_counts
from onesug_jax.logs.asof.nearby import NOTHING, Nearby
from onesug_jax.logs.asof.observed import Observed, mixture
from onesug_jax.logs.asof.pairs import ANY


class AsOf(Observed):
    """Counts, histories and candidates as of a moment that only moves forward.

    Args:
      queries, config, spare: as of `Observed`.
      nearby: queries near prefixes and near one another. A pickled state does not contain them.
    """

    def __init__(
        self,
        queries: Sequence[str],
        config: AsOfConfig = DEFAULT,
        *,
        spare: int = 65_536,
        nearby: Nearby = NOTHING,
    ):
        super().__init__(queries, config, spare=spare)
        self.nearby = nearby

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"nearby": NOTHING}

    def complete(self, prefix: str, k: int, column: int | None = None) -> np.ndarray:
        """Numbers [at most k] of the completions with the most searches as of the moment.

        `column`: the half-life of these counts; None: the mixture `AsOfConfig.weights`.
        """
        weights = self._weights
        if column is not None:
            weights = np.eye(len(weights))[column]
        return self._complete(prefix, k, weights)

    def request(
        self,
        prefix: str,
        user: str,
        time_ms: int,
        history: tuple[Sequence[str], Sequence[float]] | None = None,
    ) -> Items:
        """The features of a request at that time.

        Args:
          prefix: the text in the box, normalised.
          user: the user whose observed history is used; "": none.
          time_ms: its time; the visible events are those of the latest time requested so far.
          history: instead of it, queries, newest first, and their ages in minutes (0 where there
            are fewer ages).
        """
        if history is None:
            self.at(time_ms)  # so that the user's latest searches are in the history
            texts, times = self.histories.of(user)
            history = texts, [(time_ms - time) / MINUTE_MS for time in times]
        return self.requests([(prefix, *history)], time_ms)[0]

    def requests(
        self, inputs: Sequence[tuple[str, Sequence[str], Sequence[float]]], time_ms: int
    ) -> list[Items]:
        """`request` of several (prefix, history, minutes) at one time."""
        if not inputs:
            return []
        self.at(time_ms)
        config, now = self.config, clock(time_ms)
        histories = [self._existing(texts, minutes) for _, texts, minutes in inputs]
        lists = [
            (prefix, self._candidates(prefix, own))
            for (prefix, _, _), (own, _) in zip(inputs, histories, strict=True)
        ]
        logs, end = self._log_counts(lists), 0
        items = []
        for (_, numbers), (own, ages) in zip(lists, histories, strict=True):
            start, end = end, end + len(numbers)
            candidates = np.zeros(config.candidates, np.int32)
            np.add(numbers, 1, out=candidates[: len(numbers)], casting="same_kind")
            counts = np.zeros((config.candidates, config.width), np.float32)
            counts[: len(numbers)] = logs[start:end]
            history = np.zeros(max(config.history, 1), np.int32)
            minutes_ago = np.zeros(max(config.history, 1), np.float32)
            np.add(own, 1, out=history[: len(own)], casting="same_kind")
            minutes_ago[: len(ages)] = ages
            items.append(Items(candidates, counts, history, minutes_ago, now))
        return items

    def _existing(
        self, texts: Sequence[str], minutes: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The numbers and ages [n] of the queries of a history that exist."""
        texts = texts[: self.config.history]
        numbers = np.array([*map(self.completions.number, texts)], np.int64)
        ages = np.zeros(len(texts))
        ages[: len(minutes)] = minutes[: len(texts)]
        exist = np.flatnonzero(self.existence.exists.take(numbers) & (numbers >= 0))
        return numbers.take(exist), ages.take(exist)

    def _log_counts(self, candidates: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
        """The logs of counts `[n, K]` of the candidates of all (prefix, numbers), concatenated."""
        numbers = np.concatenate([numbers for _, numbers in candidates])
        lists = [(prefix, each.tolist()) for prefix, each in candidates]
        columns = [self.searches.at(numbers, self.moment), self.conversions[numbers]]
        if self.config.shown:
            columns.append(self.shown.at(lists, self.completions.number, self.moment))
        columns.append(self.pairs.at(lists, self.moment))
        return log_counts(np.concatenate(columns, axis=1))

    # ------------------------------------------------------------------ candidates

    def _candidates(self, prefix: str, own: np.ndarray) -> np.ndarray:
        """Numbers [at most C], without repeats, of the candidates of a prefix."""
        config = self.config
        numbers = self._complete(prefix, config.candidates, self._weights)
        if len(numbers) < config.few:
            numbers = np.concatenate([numbers, self._corrected(prefix, numbers)])
            numbers = numbers[: config.candidates]
        others = self._similar(prefix, own, cut=len(numbers) == config.candidates)
        if self.nearby.around is not None:
            around = self._established(np.asarray(self.nearby.around(prefix), np.int64))
            others += around[: config.around].tolist()
        if not others:
            return numbers
        turns = _in_turn(numbers, np.array(others, np.int64))
        places = np.sort(np.unique(turns, return_index=True)[1])
        return turns[places[: config.candidates]]

    def _similar(self, prefix: str, own: np.ndarray, cut: bool) -> list[int]:
        """Numbers of the candidates that a user's history `own` gives, latest search first. If the
        completions are `cut`, those nearest to a query of the history follow.
        """
        most = min(self.config.similar, self.config.candidates // 4)
        first, last = self.completions.range(prefix)
        completes = (own >= first) & (own < last)
        for place in np.flatnonzero(own >= self.first).tolist():
            completes[place] = self.text(int(own[place])).startswith(prefix)
        mine = own[completes].tolist()
        if cut and self.nearby.similar is not None:
            rows = own[own < self.first]
            near = self.nearby.similar[rows].T.ravel()  # the nearest of each query first
            near = self._established(near[(near >= first) & (near < last)])
            mine = list(dict.fromkeys((*mine, *near.tolist())))
        return mine[:most]

    def _established(self, numbers: np.ndarray) -> np.ndarray:
        """Those of the numbers `[n]` whose queries exist and are not new."""
        return numbers[self.existence.exists[numbers] & ~self.existence.new[numbers]]

    def _complete(self, prefix: str, k: int, weights: np.ndarray) -> np.ndarray:
        """Numbers [at most k] of existing completions, highest counts first; new queries only with
        the share `AsOfConfig.new_share`.
        """
        index: np.ndarray | slice | None = self._wide.numbers(prefix)
        if index is None:
            index = self.completions.numbers(prefix)
        factors, share = self.searches.factors(self.moment), self.config.new_share
        counts = self.searches.stored[index] @ (weights * factors)
        counts *= self.existence.exists[index]
        new = np.flatnonzero(self.existence.new[index])
        if len(new) and share:
            column, pair_column = self.config.recent
            recent = self.searches.stored[index, column][new] * factors[column]
            typed = self.pairs.at([(prefix, [ANY])], self.moment)[0, pair_column]
            counts[new[recent < share * typed]] = 0.0
        chosen = best(counts, k)
        return chosen + index.start if isinstance(index, slice) else index[chosen]

    def _corrected(self, prefix: str, excluded: np.ndarray) -> np.ndarray:
        """Numbers of the completions of the corrections of a prefix, by likelihood times count,
        without those `excluded`.
        """
        scores: dict[int, float] = {}
        for text, likelihood in self._near(prefix).items():
            numbers = self._complete(text, self.config.candidates, self._weights)
            counts = mixture(self.searches, self._weights, numbers, self.moment).tolist()
            for number, count in zip(numbers.tolist(), counts, strict=True):
                scores[number] = max(scores.get(number, 0.0), likelihood * count)
        for number in excluded.tolist():
            scores.pop(number, None)
        ranked = sorted(scores, key=lambda number: (-scores[number], number))
        return np.array(ranked, np.int64)


def _in_turn(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two lists `[n]` and `[m]` in turn, then the rest of the longer, `[n + m]`."""
    shared = min(len(one), len(other))
    turns = np.stack([one[:shared], other[:shared]], axis=1).ravel()
    return np.concatenate([turns, one[shared:], other[shared:]])
