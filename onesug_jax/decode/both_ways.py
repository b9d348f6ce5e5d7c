"""One list of candidates and of written queries, by the one probability that both have.

    p(q | x) = p(candidate token of q | x) + p(pieces of q | x)        (`model/candidates.py`)

Candidates have their scores from the request's encoding and one step of the decoder. Beams cost
more, so they are opened only where the candidates leave room: they are fewer than the list is long,
or another query is likely. A written query that is a candidate adds to it; what it does not add is
the little that the pieces of candidates outside the beams have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from onesug_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class WritingConfig:
    """When beams are opened beside candidates.

    Attributes:
      least_share: open them where candidates leave more probability than this to other queries; 1
        opens none for that reason.
      fill_share: the same where candidates are fewer than the list is long.
      beams: how many; at most so many queries of a list are written.
      max_length: most pieces of a written query, its end included.
      longest: most bytes of a prefix that a written query is held to.
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
    """Whether to open beams for each of B requests, booleans `[B]`.

    Args:
      log_probabilities: `[B, C]` of candidate tokens, very negative where a place is empty.
      shown: `[B]` how many of the candidates may be shown, counted up to `listed`.
      listed: queries of a list.
    """
    there = log_probabilities > -1e8
    mass = np.sum(np.where(there, np.exp(np.minimum(log_probabilities, 0.0)), 0.0), axis=1)
    few = shown < listed
    return mass < 1 - np.where(few, min(config.fill_share, config.least_share), config.least_share)


def merged(
    candidates: Sequence[tuple[str, float]], written: Mapping[str, float], k: int
) -> list[tuple[str, float, bool]]:
    """The k likeliest queries of one request, as (text, log p, whether it was only written).

    Args:
      candidates: texts and log-probabilities of candidate tokens, no text twice.
      written: text -> log-probability of its pieces, of finished beams.
    """
    scores = {text: (score, False) for text, score in candidates}
    for text, score in written.items():
        if text in scores:
            scores[text] = (float(np.logaddexp(scores[text][0], score)), False)
        else:
            scores[text] = (score, True)
    best = sorted(scores.items(), key=lambda item: -item[1][0])[:k]
    return [(text, score, new) for text, (score, new) in best if score > -math.inf]
