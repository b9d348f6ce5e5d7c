"""The reward of a query for a request: six behaviour levels -> rewards (PAPER.md section 4).

    r(x, q) = lambda * e^p

lambda is the level's base weight, p the query's log-frequency at that level: how often it was
bought, clicked, or shown without a click. In the authors' sample, rewards lie on both sides of
lambda and close to it, so p is centred within the level and clipped. `align.preferences` draws the
lists.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.logs.schema import Level

POSITIVE = (Level.ORDER, Level.ITEM_CLICK, Level.CLICK)
NEGATIVE = (Level.SHOW, Level.NOT_SHOW, Level.RAND)


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Base weights of the levels, and the influence of frequency.

    Attributes:
      order, item_click, click, show, not_show, rand: lambda of each level, from the paper.
      clip: bound of |p| (about 0.2 in the authors' rows; not in the paper's text).
      smoothing: added to every count before taking the logarithm.

    Raises:
      UserError: a negative's reward could reach a positive's. Weights of pairs are reciprocals of
        the difference.

    Examples:
      >>> from onesug_jax import RewardConfig
      >>> RewardConfig(order=3.0).base.tolist()  # from RAND to ORDER
      [0.0, 0.2, 0.5, 1.0, 1.5, 3.0]
    """

    order: float = 2.0
    item_click: float = 1.5
    click: float = 1.0
    show: float = 0.5
    not_show: float = 0.2
    rand: float = 0.0
    clip: float = 0.2
    smoothing: float = 1.0

    def __post_init__(self) -> None:
        if not self.clip >= 0 or not self.smoothing > 0:
            raise UserError(
                f"RewardConfig: expected clip >= 0 and smoothing > 0, found clip={self.clip}, "
                f"smoothing={self.smoothing}."
            )
        base = self.base
        if base.min() < 0:
            raise UserError(f"RewardConfig: weights must not be negative, found {base.tolist()}.")
        least = min(base[level] for level in POSITIVE) * math.exp(-self.clip)
        most = max(base[level] for level in NEGATIVE) * math.exp(self.clip)
        if not least > most:
            raise UserError(
                f"RewardConfig: with clip={self.clip} a negative's reward can be {most:.3g}, a "
                f"positive's {least:.3g}; every positive needs a larger reward than every "
                "negative. Lower clip, or set weights that differ more."
            )

    @property
    def base(self) -> np.ndarray:
        """Lambda by level number, float64 `[6]`."""
        return np.array([getattr(self, level.name.lower()) for level in Level], np.float64)


def reward_table(counts: np.ndarray, config: RewardConfig) -> np.ndarray:
    """The reward of every query at every level, float32 `[6, N]`.

    Args:
      counts: `[6, N]`, occurrences of each query at each level. p is centred over the queries
        that occur at the level; a query that does not occur gets the lowest p.

    Examples:
      >>> import numpy as np
      >>> from onesug_jax import RewardConfig, reward_table
      >>> counts = np.zeros((6, 2), int)
      >>> counts[5] = 1, 9  # orders of two queries
      >>> table = reward_table(counts, RewardConfig())
      >>> table.shape, bool(table[5, 1] > table[5, 0])
      ((6, 2), True)
    """
    rewards = np.empty(counts.shape, np.float32)
    for level in Level:
        occurs = counts[level] > 0
        logs = np.log(counts[level] + config.smoothing)
        centre = logs[occurs].mean() if occurs.any() else 0.0
        p = np.clip(logs - centre, -config.clip, config.clip)
        rewards[level] = config.base[level] * np.exp(p)
    return rewards
