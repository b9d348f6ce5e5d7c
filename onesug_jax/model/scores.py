"""Unnormalised next-token scores of decoder states, and their log-probabilities.

The first softmax of an output is over the vocabulary and the request's candidates
(`candidates.py`); the latter are part of its partition function.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from onesug_jax.arrays import ListScores, TargetTokens, TokenLogs


@flax.struct.dataclass
class Scores:
    """Scores of Q decoder states.

    Attributes:
      vocabulary: `[B, Q, V]`, float32.
      candidates: `[B, C]`, float32, of the request's candidates as first tokens; None if the model
        has no candidate tokens.
      mass: `[B, Q]`, the log of the sum of exp of the candidates' scores; `NEG_INF` except for
        first tokens; None if the model has no candidate tokens.
    """

    vocabulary: jax.Array
    candidates: ListScores | None = None
    mass: jax.Array | None = None

    def log_partition(self) -> jax.Array:
        """The log of the partition function: scores minus log-probabilities, `[B, Q]`."""
        total = jax.nn.logsumexp(self.vocabulary, axis=-1)
        return total if self.mass is None else jnp.logaddexp(total, self.mass)

    def log_probabilities(self, targets: TargetTokens) -> TokenLogs:
        """`log pi` of one token per state, `[B, Q]`, without an array `[B, Q, V]`."""
        return self._of(targets) - self.log_partition()

    def ranked_first(self, targets: TargetTokens) -> jax.Array:
        """Whether no other token of the vocabulary scores higher, `[B, Q]` booleans."""
        return self._of(targets) >= jnp.max(self.vocabulary, axis=-1)

    def _of(self, targets: TargetTokens) -> jax.Array:
        """The score of one token per state, `[B, Q]`."""
        return jnp.take_along_axis(self.vocabulary, targets[..., None], axis=-1)[..., 0]
