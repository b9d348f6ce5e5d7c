"""Preference lists as arrays: the ids of a request from its example, and the ids of C targets.

`align.preferences` draws the lists, which are numbers of indexed queries; this file looks up their
ids and rewards. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onesug_jax.tasks import layouts
from onesug_jax.tasks.examples import Examples


class ListBatches:
    """Turns lists for the rows of one task into the arrays that `align.rwr` trains on.

    Args:
      examples: the examples of the task.
      example_of: the example of each row of the split; rows without an example are not requested.
      target: query number -> its decoder ids, end token included.
      rewards: `[6, N]`, reward of every query at every level.
      input_length, target_length: most ids of a request and of a target.
      soft_dim: width of the model's soft tokens; 0: it has none.
    """

    def __init__(
        self,
        examples: Examples,
        example_of: np.ndarray,
        target: Callable[[int], Sequence[int] | np.ndarray],
        rewards: np.ndarray,
        *,
        input_length: int,
        target_length: int,
        soft_dim: int,
    ):
        self.examples, self._target, self._rewards = examples, target, rewards
        self._example_of, self._soft_dim = example_of, soft_dim
        longest = examples.meta["longest"]
        self._room = int(longest["targets"])
        self._length = min(-(-int(longest["inputs"]) // 8) * 8, input_length)
        self._target_length = min(-(-self._room // 4) * 4, target_length)

    def __call__(
        self, rows: np.ndarray, numbers: np.ndarray, levels: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The arrays of B lists (`align.preferences.Drawn`); column 0 is the positive.

        Args:
          rows: `[B]`, row numbers in the split.
          numbers: `[B, C]`, query numbers, padded with -1.
          levels: `[B, C]`, behaviour levels.

        Returns:
          `encoder_input_tokens [B, L]`, `list_targets [B, C, T]`, `rewards` and `levels [B, C]`,
          and with soft tokens `encoder_soft [B, 1, E]`.
        """
        example, size = self._example_of[rows], len(rows)
        batch = ([self.examples], np.zeros(size, np.int64), example, np.arange(size))
        requests = layouts.assemble(*batch, (size, self._length, self._room), packed=False)
        targets = np.zeros((*numbers.shape, self._target_length), np.int32)
        for place, number in np.ndenumerate(numbers):
            if number >= 0:
                ids = self._target(int(number))[: self._target_length]
                targets[place][: len(ids)] = ids
        out = {
            "encoder_input_tokens": requests["encoder_input_tokens"],
            "list_targets": targets,
            "rewards": self._rewards[levels.astype(int), np.maximum(numbers, 0)],
            "levels": levels.astype(np.int32),
        }
        if self._soft_dim and self.examples.soft is not None:
            out["encoder_soft"] = layouts.place_soft(*batch, (size, 1))
        elif self._soft_dim:  # no row of this split has a soft token
            out["encoder_soft"] = np.zeros((size, 1, self._soft_dim), np.float32)
        return out
