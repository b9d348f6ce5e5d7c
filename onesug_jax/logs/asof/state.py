"""The as-of state: one state machine for training, evaluation and service.

Searches are observed as they happen and become visible `freshness` later; a request sees what is
visible at its time. So a served request and the training row made of it later are equal:

    observe(search) .. observe(search), request(..) -> Items, observe(what came of it), request(..)

`request` finds candidates without ranking them: completions of the prefix, the most searched as of
the moment; what a mistyped prefix may have meant; the user's own queries; and what a search around
the prefix's vector finds (`around`, from outside). Choosing among them is the model's work.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onesug_jax.logs.asof.completions import best
from onesug_jax.logs.asof.config import DEFAULT, MINUTE_MS, AsOfConfig
from onesug_jax.logs.asof.items import Items, clock, log_counts
from onesug_jax.logs.asof.observed import Observed
from onesug_jax.logs.asof.pairs import ANY


class AsOf(Observed):
    """Counts, histories and candidates as of a moment that only moves forward.

    Args:
      queries, config, spare: as of `Observed`.
      around: prefix -> numbers of queries near it; those that exist become candidates. A pickled
        state is without it.
    """

    def __init__(
        self,
        queries: Sequence[str],
        config: AsOfConfig = DEFAULT,
        *,
        spare: int = 65_536,
        around: Callable[[str], Sequence[int]] | None = None,
    ):
        super().__init__(queries, config, spare=spare)
        self.around = around

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"around": None}

    def complete(self, prefix: str, k: int, column: int | None = None) -> np.ndarray:
        """Numbers [at most k] of the completions that are searched most as of the moment.

        `column`: by which of the half-lives; None: by the mixture `AsOfConfig.weights`.
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
          prefix: what stands in the box, normalised.
          user: whose history is used; "": nobody's.
          time_ms: when; a time before one that was asked already sees what that one saw.
          history: queries, newest first, and how many minutes ago each was searched; None: what was
            observed of the user. Ages of 0 where there are fewer.
        """
        if history is None:
            self.at(time_ms)  # what the user searched last is seen
            texts, times = self.histories.of(user)
            history = texts, [(time_ms - time) / MINUTE_MS for time in times]
        return self.requests([(prefix, *history)], time_ms)[0]

    def requests(
        self, asked: Sequence[tuple[str, Sequence[str], Sequence[float]]], time_ms: int
    ) -> list[Items]:
        """`request` of several at one time: (prefix, history, minutes) each."""
        if not asked:
            return []
        self.at(time_ms)
        config, now = self.config, clock(time_ms)
        own = [self._past(texts, minutes) for _, texts, minutes in asked]
        found = [
            (prefix, self._candidates(prefix, numbers))
            for (prefix, _, _), (numbers, _) in zip(asked, own, strict=True)
        ]
        logs, end = self._logs(found), 0
        items = []
        for (_, numbers), (past, ages) in zip(found, own, strict=True):
            start, end = end, end + len(numbers)
            candidates = np.zeros(config.candidates, np.int32)
            np.add(numbers, 1, out=candidates[: len(numbers)], casting="same_kind")
            counts = np.zeros((config.candidates, config.width), np.float32)
            counts[: len(numbers)] = logs[start:end]
            history = np.zeros(max(config.history, 1), np.int32)
            minutes_ago = np.zeros(max(config.history, 1), np.float32)
            if past:
                history[: len(past)] = past
                history[: len(past)] += 1
                minutes_ago[: len(ages)] = ages
            items.append(Items(candidates, counts, history, minutes_ago, now))
        return items

    def _past(
        self, texts: Sequence[str], minutes: Sequence[float]
    ) -> tuple[list[int], list[float]]:
        """Of a history, the numbers and ages of the queries that exist."""
        number_of, is_there = self.completions.number, self.existence.is_there
        own: list[int] = []
        own_ages: list[float] = []
        all_ages = itertools.chain(minutes, itertools.repeat(0.0))
        for text, age in zip(texts[: self.config.history], all_ages, strict=False):
            number = number_of(text)
            if is_there(number):
                own.append(number)
                own_ages.append(age)
        return own, own_ages

    def _logs(self, asked: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
        """The logs of counts `[n, K]` of the candidates of each (prefix, numbers), one after
        another.
        """
        numbers = np.concatenate([numbers for _, numbers in asked])
        lists = [(prefix, each.tolist()) for prefix, each in asked]
        found = [self.searches.at(numbers, self.moment), self.conversions[numbers]]
        if self.config.shown:
            found.append(self.shown.at(lists, self.completions.number, self.moment))
        found.append(self.pairs.at(lists, self.moment))
        return log_counts(np.concatenate(found, axis=1))

    # ------------------------------------------------------------------ candidates

    def _candidates(self, prefix: str, own: Sequence[int]) -> np.ndarray:
        """Numbers [at most C], without repeats, of the candidates of a prefix."""
        config = self.config
        numbers = self._complete(prefix, config.candidates, self._weights)
        if len(numbers) < config.few:
            numbers = np.concatenate([numbers, self._mistyped(prefix, numbers)])
            numbers = numbers[: config.candidates]
        exists, new = self.existence.exists, self.existence.new
        more = [n for n in own if self.text(n).startswith(prefix)][: config.own]
        if self.around is not None:
            around = (int(n) for n in self.around(prefix) if exists[n] and not new[n])
            more += itertools.islice(around, config.around)
        if not more:
            return numbers
        best_first = numbers.tolist()
        head = best_first[: max(config.candidates - config.own - config.around, 0)]
        if all(n in head for n in more):
            return numbers
        chosen = dict.fromkeys((*head, *more, *best_first))
        return np.array(list(chosen)[: config.candidates], np.int64)

    def _complete(self, prefix: str, k: int, weights: np.ndarray) -> np.ndarray:
        """Numbers [at most k] of existing completions, most counted first, the new ones among them
        only where they have their share (`AsOfConfig.new_share`).
        """
        index: np.ndarray | slice | None = self._wide.numbers(prefix)
        if index is None:
            index = self.completions.numbers(prefix)
        factors, share = self.searches.factors(self.moment), self.config.new_share
        counts = self.searches.stored[index] @ (weights * factors)
        counts *= self.existence.exists[index]
        new = np.flatnonzero(self.existence.new[index])
        if len(new) and share:
            column, of_pairs = self.config.recent
            recent = self.searches.stored[index, column][new] * factors[column]
            typed = self.pairs.at([(prefix, [ANY])], self.moment)[0, of_pairs]
            counts[new[recent < share * typed]] = 0.0
        chosen = best(counts, k)
        return chosen + index.start if isinstance(index, slice) else index[chosen]

    def _mistyped(self, prefix: str, taken: np.ndarray) -> np.ndarray:
        """Numbers of what starts with what may have been meant, likely slips of frequent queries
        first, without those that are `taken`.
        """
        scores: dict[int, float] = {}
        for meant, share in self._meant(prefix).items():
            numbers = self._complete(meant, self.config.candidates, self._weights)
            counts = self._mixture(numbers, self.moment).tolist()
            for number, score in zip(numbers.tolist(), counts, strict=True):
                scores[number] = max(scores.get(number, 0.0), share * score)
        for number in taken.tolist():
            scores.pop(number, None)
        ranked = sorted(scores, key=lambda number: (-scores[number], number))
        return np.array(ranked, np.int64)
