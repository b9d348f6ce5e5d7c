"""The losses of the aligned model, as pure functions of log-probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from onesug_jax.arrays import Logits, LossWeights, TargetTokens


def sft(logits: Logits, targets: TargetTokens, weights: LossWeights) -> tuple[jax.Array, jax.Array]:
    """Next-token cross-entropy, `-sum_t log pi(q_t | q_<t, x)`: the generation (SFT) loss.

    PAPER.md section 3. Computed in float32.

    Args:
      logits: `[B, T, V]`; targets: `[B, T]`; weights: `[B, T]`, 1 where a target counts.

    Returns:
      the weighted sum in nats, and the sum of weights; divide for nats a token.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.sum(loss * weights), jnp.sum(weights)
