"""Next-token scores of decoder states, unnormalised, and what a softmax makes of them.

The first softmax of an output also runs over the request's candidates (`candidates.py`), which add
the logarithm of a sum to what the vocabulary's scores are normalised by.
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
      candidates: `[B, C]`, float32, of the request's candidates as first tokens; None where the
        model has no such tokens.
      mass: `[B, Q]`, the log of the sum of exp of the candidates' scores, very negative but for
        first tokens; None where the model has no such tokens.
    """

    vocabulary: jax.Array
    candidates: ListScores | None = None
    mass: jax.Array | None = None

    def log_partition(self) -> jax.Array:
        """What a state's scores exceed its log-probabilities by, `[B, Q]`."""
        total = jax.nn.logsumexp(self.vocabulary, axis=-1)
        return total if self.mass is None else jnp.logaddexp(total, self.mass)

    def log_probabilities(self, targets: TargetTokens) -> TokenLogs:
        """`log pi` of one token a state, `[B, Q]`: nothing as wide as the vocabulary is copied."""
        return self._of(targets) - self.log_partition()

    def ranked_first(self, targets: TargetTokens) -> jax.Array:
        """Whether no other token of the vocabulary scores higher, `[B, Q]` booleans."""
        return self._of(targets) >= jnp.max(self.vocabulary, axis=-1)

    def _of(self, targets: TargetTokens) -> jax.Array:
        """The score of one token a state, `[B, Q]`."""
        return jnp.take_along_axis(self.vocabulary, targets[..., None], axis=-1)[..., 0]
