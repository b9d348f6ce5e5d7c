"""A dynamic vocabulary: the candidates of a request are output tokens of that request.

The first softmax of the decoder is over pieces, semantic ids and the request's candidates. A
candidate token stands for a complete query, so there are two ways to write a query:

    p(q | x) = p(candidate token of q | x) + p(first piece of q | x) * prod p(next piece | ...)

Training uses the sum, and beams and candidates have scores of one distribution. In PAPER.md every
query is written by pieces: the model without candidate tokens.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from onesug_jax.arrays import NEG_INF, Encoded, ListScores
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.items import Items, clipped_logs
from onesug_jax.model.layers import logical, scaled_normal


@flax.struct.dataclass
class Opening:
    """The candidates in the first softmax of B requests.

    Attributes:
      log_probabilities: `[B, C]` of the candidate tokens, `NEG_INF` at empty positions.
      mass: `[B]` log of the sum of exp of the candidates' unnormalised scores: their part of the
        partition function.
    """

    log_probabilities: ListScores
    mass: jax.Array


class CandidateHead(nn.Module):
    """Scores candidates as tokens: `x W_q W_k e_i / sqrt(D) + v e_i + w log counts_i + b`."""

    config: ModelConfig

    def setup(self) -> None:
        """Declares the projections."""
        c = self.config
        width, init = c.d_model, logical(scaled_normal(c.d_model), "embed", "kv")
        self.query, self.key = (self.param(n, init, (width, width)) for n in ("query", "key"))
        self.level = self.param("level", logical(scaled_normal(width), "embed"), (width,))
        share = nn.initializers.constant(1 / c.count_columns)
        self.popularity = self.param("popularity", logical(share, "features"), (c.count_columns,))
        self.bias = self.param("bias", logical(nn.initializers.zeros), ())

    def __call__(self, x: jax.Array, encoded: Encoded, items: Items) -> ListScores:
        """Unnormalised scores `[B, C]`, float32, `NEG_INF` at empty positions.

        Args:
          x: `[B, D]`, the decoder's state before the first token.
          encoded: `[B, S, D]`, with the candidates at the end.
        """
        states = encoded[:, encoded.shape[1] - items.candidates.shape[1] :]
        query = (x @ self.query.astype(x.dtype)) @ self.key.astype(x.dtype).T
        query = query * self.config.d_model**-0.5 + self.level.astype(x.dtype)
        scores = jnp.einsum("bcd,bd->bc", states, query, preferred_element_type=jnp.float32)
        scores += clipped_logs(items) @ self.popularity + self.bias
        return jnp.where(items.candidates > 0, scores, NEG_INF)


def either_way(candidates: ListScores, written: jax.Array, place: jax.Array) -> jax.Array:
    """`log p(q | x)` of one query per request, `[B]`: by its candidate token or by its pieces.

    Args:
      candidates: `[B, C]` log-probabilities of candidate tokens.
      written: `[B]` log-probability of the query's pieces, including the end of sequence.
      place: `[B]` index + 1 of the query in the candidates; 0: it is not a candidate.
    """
    own = jnp.take_along_axis(candidates, jnp.maximum(place - 1, 0)[:, None], axis=1)[:, 0]
    return jnp.where(place > 0, jnp.logaddexp(jnp.where(place > 0, own, 0.0), written), written)
