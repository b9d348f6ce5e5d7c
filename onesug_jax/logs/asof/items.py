"""The arrays of one request: candidates with their counts, history, clock.

They are inputs of the model beside the prefix (PAPER.md section 1: H_p, H_u), and of the baselines
that rank by counts. Training, evaluation and service compute them with the same code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onesug_jax.logs.asof.config import DAY_MS, HOUR_MS

LEAST = 1e-12  # lower bound of counts, so that their logarithms are finite

_THURSDAY = 3  # weekday of 1970-01-01; Monday is 0


@dataclass(frozen=True)
class Items:
    """The features of one request at its moment. C candidates, H history queries, K counts.

    Attributes:
      candidates: [C] int32, query number + 1, by popularity, in turn with those near the history;
        0: an empty place.
      candidate_counts: [C, K] float32, log of the decayed counts, as `AsOfConfig.columns`.
      history: [H] int32, query number + 1, newest first, each query once; 0: an empty place.
      history_minutes: [H] float32, the age of each at the time of the request.
      clock: [2] int32, hour of the day and weekday (Monday is 0), UTC.
    """

    candidates: np.ndarray
    candidate_counts: np.ndarray
    history: np.ndarray
    history_minutes: np.ndarray
    clock: np.ndarray

    def target(self, number: int) -> int:
        """Place + 1 of a query among the candidates; 0 if it is absent, or -1."""
        hit = (self.candidates == number + 1) & (number >= 0)
        return int(hit.argmax()) + 1 if hit.any() else 0


def log_counts(counts: np.ndarray) -> np.ndarray:
    """Logarithms in float32 of counts, or of `LEAST` where they are smaller."""
    return np.log(np.maximum(counts, LEAST, dtype=np.float32))


def clock(time_ms: int) -> np.ndarray:
    """[2] int32: hour of the day and weekday (Monday is 0), UTC."""
    hour, day = time_ms % DAY_MS // HOUR_MS, (time_ms // DAY_MS + _THURSDAY) % 7
    return np.array([hour, day], np.int32)
