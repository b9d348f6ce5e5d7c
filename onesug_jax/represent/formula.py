"""How related queries are chosen: the settings, and the formula that needs no training.

    popularity * log(count) + taste * max_j decay^j * like(q, h_j) + latest * like(q, h_0)
      + visit * max_j v_j * like(q, h_j)
    like(q, h) = cos(e_q, e_h) + words * (words in common / words in either) - repeat * [q = h]

with h_0, h_1, .. the user's latest queries, newest first, and v_j how much each counts as one of
this visit (`logs.ages`): what the shop searches, drawn towards what this user searches. People
refine a query more often than they repeat it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs.ages import of_visit


@dataclass(frozen=True)
class RelatedConfig:
    """How related queries are chosen.

    Attributes:
      history: how many of the user's newest queries tell of taste; the model itself reads
        `FeatureSpec.history` of them.
      pool: how many of the prefix's completions are looked at; 0: none, the paper's search alone.
        Behind one letter this user's query is seldom among the hundred most searched.
      shortlist: how many of the pool are ranked.
      neighbours: places kept for the search around e_p*, if the pool could fill them.
      popularity, taste: weights of a query's log-count and of its likeness to the history.
      latest: weight of its likeness to the newest query alone, once more.
      visit: weight of its likeness to the queries of this visit.
      decay: how much less each older query of the history counts.
      words, repeat: what shared words add to the likeness by the encoder, and what being the very
        same query takes from it.
      ages: whether it matters how long ago they were searched.
      typos: where no known query starts with the prefix, take those that start with what may have
        been meant (`logs/typos.py`), a count worth less the less likely the slip.
    """

    history: int = 40
    pool: int = 4096
    shortlist: int = 256
    neighbours: int = 2
    popularity: float = 0.7
    taste: float = 7.0
    latest: float = 1.0
    visit: float = 5.0
    decay: float = 0.95
    words: float = 0.5
    repeat: float = 0.5
    ages: bool = True
    typos: bool = True

    def __post_init__(self):
        wrong = min(self.history, self.pool, self.neighbours) < 0 or self.shortlist < 1
        if wrong or not 0 < self.decay <= 1:
            raise UserError(
                "RelatedConfig: expected history, pool and neighbours of at least 0, a shortlist "
                f"of at least 1, a decay above 0 and up to 1; found {self}."
            )


def likeness(
    config: RelatedConfig, cosines: np.ndarray, overlaps: np.ndarray, same: np.ndarray
) -> np.ndarray:
    """like(q, h) of n queries and H of the history, all `[n, H]`; `same`: whether they are one."""
    return cosines + config.words * overlaps - config.repeat * same


def scores(
    config: RelatedConfig, counts: np.ndarray, alike: np.ndarray, minutes: np.ndarray
) -> np.ndarray:
    """The formula, `[n]`, of counts `[n]` and likenesses `[n, H]`, newest query first, to queries
    searched `minutes [H]` ago.
    """
    score = config.popularity * np.log(counts)
    if alike.shape[1]:
        decayed = alike * config.decay ** np.arange(alike.shape[1])
        score = score + config.latest * alike[:, 0]
        score = score + config.taste * decayed.max(axis=1, initial=-np.inf)
        score = score + config.visit * (alike * of_visit(minutes)).max(axis=1, initial=-np.inf)
    return score
