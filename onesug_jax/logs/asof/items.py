"""The arrays of one request: candidates with their counts, history, clock.

They are what the model reads beside the prefix (PAPER.md section 1: H_p, H_u), and what the rivals
that count searches rank by. Training, evaluation and service make them with the same code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onesug_jax.logs.asof.config import DAY_MS, HOUR_MS

LEAST = 1e-12  # counts below it are taken for it, so that a logarithm exists

_THURSDAY = 3  # the first day of 1970; Monday is 0


@dataclass(frozen=True)
class Items:
    """The features of one request at its moment. C candidates, H history queries, K counts.

    Attributes:
      candidates: [C] int32, query number + 1, in no order that a model could learn from but that of
        popularity; 0: an empty place.
      candidate_counts: [C, K] float32, log of the decayed counts, as `AsOfConfig.columns`.
      history: [H] int32, query number + 1, newest first, each query once; 0: an empty place.
      history_minutes: [H] float32, how long before the request each was searched.
      clock: [2] int32, hour of the day and weekday (Monday is 0), UTC.
    """

    candidates: np.ndarray
    candidate_counts: np.ndarray
    history: np.ndarray
    history_minutes: np.ndarray
    clock: np.ndarray

    def target(self, number: int) -> int:
        """Place + 1 of a query among the candidates; 0: it is not there, or is -1."""
        here = (self.candidates == number + 1) & (number >= 0)
        return int(here.argmax()) + 1 if here.any() else 0


def log_counts(counts: np.ndarray) -> np.ndarray:
    """Logarithms of counts in float32, of `LEAST` where they are less."""
    return np.log(np.maximum(counts, LEAST, dtype=np.float32))


def clock(time_ms: int) -> np.ndarray:
    """[2] int32: hour of the day and weekday (Monday is 0), UTC."""
    hour, day = time_ms % DAY_MS // HOUR_MS, (time_ms // DAY_MS + _THURSDAY) % 7
    return np.array([hour, day], np.int32)
