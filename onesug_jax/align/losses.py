"""The losses of the aligned model, as pure functions: generation (SFT) and preference.

A preference list is one positive and N negatives of a request, in that order along the last axis:
column 0 is the positive. The preference losses read three arrays `[B, 1 + N]`:

  implicit   rhat(q) = beta * (log pi(q | x) - log pi_ref(q | x)), the implicit reward;
             log-probabilities are summed over tokens
  rewards    r(x, q) = lambda * e^p of `align.rewards`, from the observed behaviour
  mask       whether a position holds a query; a list without negatives has loss 0

They differ in two choices: the function of a negative's excess z_l = rhat_l - rhat_w (identity,
the hinge in the paper's formula, or the hinge in its text), and whether the N excesses are combined
pair by pair (pair-wise) or as one list (list-wise). PAPER.md section 4. The losses as printed there
have no gradient where policy and reference agree, which is where training starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from onesug_jax.arrays import NEG_INF, ListMask, ListScores, LossWeights, TokenLogs


def sft(log_probabilities: TokenLogs, weights: LossWeights) -> tuple[jax.Array, jax.Array]:
    """Next-token cross-entropy, `-sum_t log pi(q_t | q_<t, x)`: the generation (SFT) loss.

    PAPER.md section 3. Both arguments are `[B, T]`; weights are 1 where a target counts.

    Returns:
      the weighted sum in nats, and the sum of weights; their ratio is in nats per token.
    """
    return -jnp.sum(log_probabilities * weights), jnp.sum(weights)


def none(implicit: ListScores, rewards: ListScores, mask: ListMask, delta: float) -> jax.Array:
    """No preference, `[B]` zeros: only the SFT term of the hybrid objective remains."""
    return jnp.zeros_like(implicit[:, 0])


def dpo(implicit: ListScores, rewards: ListScores, mask: ListMask, delta: float) -> jax.Array:
    """Pair-wise DPO, `mean_l -log sigma(rhat_w - rhat_l)` (Rafailov et al. 2023, eq. 7), `[B]`."""
    return _pairs(_excess(implicit), mask)


def softmax_dpo(
    implicit: ListScores, rewards: ListScores, mask: ListMask, delta: float
) -> jax.Array:
    """List-wise, unweighted: `-log sigma(-log sum_l e^(rhat_l - rhat_w))` (S-DPO, Chen 2024).

    Equal to the cross-entropy of choosing the positive from the list, `[B]`.
    """
    return _list(_excess(implicit), mask)


def rwr_printed_pair(
    implicit: ListScores, rewards: ListScores, mask: ListMask, delta: float
) -> jax.Array:
    """As the paper prints it: `mean_l -log sigma(rw_l * max(0, rhat_w - rhat_l - delta))`, `[B]`.

    Section 4, pair-wise. No gradient until the positive leads by `delta`, so none at the start.
    """
    lead = jax.nn.relu(-_excess(implicit) - delta)
    return _pairs(-gap_weights(rewards) * lead, mask)


def rwr_printed_list(
    implicit: ListScores, rewards: ListScores, mask: ListMask, delta: float
) -> jax.Array:
    """As the paper prints it, list-wise, `[B]`:

        -log sigma(-log sum_l e^(rw_l * max(0, rhat_l - rhat_w - delta)))

    Section 4. The gradient comes only from negatives that lead the positive by more than `delta`.
    """
    return _list(gap_weights(rewards) * jax.nn.relu(_excess(implicit) - delta), mask)


def rwr_hinge_pair(
    implicit: ListScores, rewards: ListScores, mask: ListMask, delta: float
) -> jax.Array:
    """Pair-wise `rwr_hinge`, `[B]`: `mean_l -log sigma(-rw_l max(0, delta + rhat_l - rhat_w))`."""
    return _pairs(gap_weights(rewards) * jax.nn.relu(_excess(implicit) + delta), mask)


def rwr_hinge(implicit: ListScores, rewards: ListScores, mask: ListMask, delta: float) -> jax.Array:
    """The paper's text instead of its formula: a margin of at least `delta`, list-wise, `[B]`:

        -log sigma(-log sum_l e^(rw_l * max(0, delta + rhat_l - rhat_w)))

    Section 4 with the opposite sign of the margin. A negative has no gradient beyond its margin.
    """
    return _list(gap_weights(rewards) * jax.nn.relu(_excess(implicit) + delta), mask)


def rwr_release(
    implicit: ListScores, rewards: ListScores, mask: ListMask, delta: float
) -> jax.Array:
    """The loss of the authors' later release, without a hinge, list-wise, `[B]`:

    -log sigma(-log sum_l e^(c_l * (rhat_l - rhat_w))),  c_l = (max(r_w, 1) - r_l)^-1.5 + 1

    Examples:
      >>> import jax.numpy as jnp
      >>> from onesug_jax import rwr_loss
      >>> implicit = jnp.zeros((1, 3))  # beta * (log pi - log pi_ref): where training starts
      >>> rewards = jnp.array([[2.0, 0.5, 0.0]])  # ordered; shown; a query from elsewhere
      >>> loss = rwr_loss(implicit, rewards, jnp.ones((1, 3), bool), 0.0)
      >>> round(float(loss[0]), 3)  # -log sigma(-log(e^0 + e^0))
      1.099
    """
    return _list(release_weights(rewards) * _excess(implicit), mask)


def rwr_release_pair(
    implicit: ListScores, rewards: ListScores, mask: ListMask, delta: float
) -> jax.Array:
    """Pair-wise `rwr_release`, `[B]`: `mean_l -log sigma(c_l * (rhat_w - rhat_l))`."""
    return _pairs(release_weights(rewards) * _excess(implicit), mask)


PreferenceLoss = Callable[[ListScores, ListScores, ListMask, float], jax.Array]
LOSSES: Mapping[str, PreferenceLoss] = {
    "sft": none,
    "dpo": dpo,
    "softmax_dpo": softmax_dpo,
    "rwr_printed_pair": rwr_printed_pair,
    "rwr_printed_list": rwr_printed_list,
    "rwr_hinge_pair": rwr_hinge_pair,
    "rwr_hinge": rwr_hinge,
    "rwr_release_pair": rwr_release_pair,
    "rwr_release": rwr_release,
}


def gap_weights(rewards: ListScores) -> jax.Array:
    """`rw_l = 1 / (r_w - r_l)`, `[B, N]`: larger weights for closer rewards (section 4).

    `align.rewards` gives every positive a larger reward than every negative.
    """
    return 1.0 / _positive_gap(rewards[:, :1] - rewards[:, 1:])


def release_weights(rewards: ListScores) -> jax.Array:
    """`c_l = (max(r_w, 1) - r_l)^-1.5 + 1`, `[B, N]`: the weights of the authors' later release."""
    return _positive_gap(jnp.maximum(rewards[:, :1], 1.0) - rewards[:, 1:]) ** -1.5 + 1.0


def _positive_gap(gap: jax.Array) -> jax.Array:
    """Keeps the weights of empty positions finite: their rewards are arbitrary."""
    return jnp.maximum(gap, 1e-2)


def _excess(implicit: ListScores) -> jax.Array:
    """`rhat_l - rhat_w`, `[B, N]`: the lead of each negative over the positive."""
    return implicit[:, 1:] - implicit[:, :1]


def _pairs(excess: jax.Array, mask: ListMask) -> jax.Array:
    """`mean_l -log sigma(-x_l)` over the real negatives, `[B]`."""
    real = mask[:, 1:] & mask[:, :1]
    loss = jnp.where(real, jax.nn.softplus(jnp.where(real, excess, 0.0)), 0.0)
    return jnp.sum(loss, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)


def _list(excess: jax.Array, mask: ListMask) -> jax.Array:
    """`-log sigma(-log sum_l e^x_l)` over the real negatives, `[B]`."""
    real = mask[:, 1:] & mask[:, :1]
    total = jax.nn.logsumexp(jnp.where(real, excess, NEG_INF), axis=1)
    return jnp.where(jnp.any(real, axis=1), jax.nn.softplus(total), 0.0)
