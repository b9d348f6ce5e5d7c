"""Candidates and written queries in one list, ranked by one probability.

    p(q | x) = p(candidate token of q | x) + p(pieces of q | x)        (`model/candidates.py`)

Candidates are scored by one decoder step. Beams cost more, so they run only where the candidates
leave room: there are fewer candidates than the list is long, or another query is likely. If a
written query is also a candidate, the two probabilities are added. The small probability of pieces
of candidates outside the beams is neglected.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from onesug_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class WritingConfig:
    """When beams run in addition to the candidates, and their sizes.

    Attributes:
      least_share: run them if the candidates leave more probability than this to other queries; 1:
        never for this reason.
      fill_share: the same if there are fewer candidates than the list is long.
      beams: number of beams, and so the maximum number of written queries in a list.
      max_length: maximum number of pieces of a written query, its end included.
      longest: maximum number of prefix bytes that a written query must start with.
    """

    least_share: float = 0.1
    fill_share: float = 0.01
    beams: int = 8
    max_length: int = 12
    longest: int = 32

    def __post_init__(self) -> None:
        for name in ("least_share", "fill_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"WritingConfig.{name} = {getattr(self, name)}: expected a probability, 0 to 1"
                )
        if min(self.beams, self.longest) < 1 or self.max_length < 2:
            raise UserError(
                "WritingConfig: expected beams and longest of 1 or more, max_length of 2 or more; "
                f"found beams={self.beams}, longest={self.longest}, max_length={self.max_length}"
            )


def leaves_room(
    log_probabilities: np.ndarray, shown: np.ndarray, listed: int, config: WritingConfig
) -> np.ndarray:
    """Whether to run beams for each of B requests, booleans `[B]`.

    Args:
      log_probabilities: `[B, C]` of candidate tokens, `NEG_INF` at an empty position.
      shown: `[B]` number of candidates that may be shown, counted up to `listed`.
      listed: length of a list.
    """
    mass = np.sum(np.exp(np.minimum(log_probabilities, 0.0)), axis=1)
    few = shown < listed
    return mass < 1 - np.where(few, min(config.fill_share, config.least_share), config.least_share)


def merged(
    candidates: Sequence[tuple[str, float]], written: Mapping[str, float], k: int
) -> list[tuple[str, float, bool]]:
    """The k likeliest queries of one request, as (text, log p, whether no candidate has the text).

    Args:
      candidates: distinct texts and the log-probabilities of their tokens.
      written: text of a finished beam -> log-probability of its pieces.
    """
    scores = {text: (score, False) for text, score in candidates}
    for text, score in written.items():
        if text in scores:
            scores[text] = (float(np.logaddexp(scores[text][0], score)), False)
        else:
            scores[text] = (score, True)
    best = sorted(scores.items(), key=lambda item: -item[1][0])[:k]
    return [(text, score, new) for text, (score, new) in best if score > -math.inf]
