"""The preference stage: reward-weighted ranking of lists, plus the generation loss.

    loss = list-wise (or pair-wise) preference term + alpha * (-log pi(q_w | x))

PAPER.md section 4, "hybrid ranking framework"; the terms are in `align.losses`. A batch holds B
requests, each with the C = 1 + N targets of its preference list. Policy and reference each encode a
request and compute its cross-attention keys and values once, and score all its targets with them.
The reference is the model that training started from: a frozen copy, or its log-probabilities,
computed in advance and stored.

With candidate tokens, a list is all candidates of a request (`candidate_lists.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onesug_jax.align.candidate_lists import candidate_scores, list_mask, positive_first
from onesug_jax.align.losses import LOSSES, PreferenceLoss
from onesug_jax.align.rewards import NEGATIVE, POSITIVE
from onesug_jax.arrays import ListScores, ListTokens, Logits, TargetTokens
from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write
from onesug_jax.import_path import named
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.items import ItemTables
from onesug_jax.model.scores import Scores
from onesug_jax.model.seq2seq import Seq2Seq, initial
from onesug_jax.progress import Progress
from onesug_jax.train import mesh as meshes
from onesug_jax.train.train_state import Stage

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """The objective.

    Attributes:
      loss: a name in `align.losses.LOSSES`, or the import path of another loss; "sft" has only
        the generation term.
      beta: scale of the implicit reward; a larger one keeps the policy closer to the reference.
      delta: the margin of the losses with a hinge, in units of implicit reward.
      alpha: weight of the generation (SFT) term.

    Examples:
      >>> from onesug_jax import PreferenceConfig
      >>> PreferenceConfig(loss="softmax_dpo", beta=0.1).preference.__name__
      'softmax_dpo'
    """

    loss: str = "rwr_release"
    beta: float = 0.5
    delta: float = 0.5
    alpha: float = 0.4

    def __post_init__(self) -> None:
        named("PreferenceConfig.loss", self.loss, LOSSES)
        if not self.beta > 0 or self.delta < 0 or self.alpha < 0:
            raise UserError(
                "PreferenceConfig: expected beta > 0, delta >= 0 and alpha >= 0; found "
                f"beta={self.beta}, delta={self.delta}, alpha={self.alpha}."
            )
        if self.loss == "sft" and self.alpha == 0:
            raise UserError('PreferenceConfig: loss="sft" with alpha=0 leaves nothing to learn.')

    @property
    def preference(self) -> PreferenceLoss:
        """The preference term."""
        return named("PreferenceConfig.loss", self.loss, LOSSES)


def shift_right(targets: ListTokens) -> ListTokens:
    """The decoder's inputs for `targets`: 0 first, the last token dropped."""
    return jnp.pad(targets, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]


def log_probabilities(scores: Scores, targets: ListTokens) -> ListScores:
    """`log pi(q | x)` of every target, summed over its tokens, float32 `[B, C]`."""
    tokens = scores.log_probabilities(targets.reshape(len(targets), -1)).reshape(targets.shape)
    return jnp.sum(jnp.where(targets > 0, tokens, 0.0), axis=-1)


def list_scores(
    model: Seq2Seq, params: Any, batch: Batch, rngs: Mapping[str, jax.Array] | None = None
) -> Scores:
    """Next-token scores of the C targets of each request (C * T positions); the request is encoded
    once. `batch` as in `rwr_stage`.
    """
    request = batch["encoder_input_tokens"], shift_right(batch["list_targets"])
    scores: Any = model.apply(
        {"params": params},
        *request,
        batch.get("encoder_soft"),
        method="score_lists",
        rngs=dict(rngs or {}),
    )
    return scores


def policy_scores(
    model: Seq2Seq,
    params: Any,
    batch: Batch,
    tables: ItemTables | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
) -> ListScores:
    """`log pi`, `[B, C]`, of every request's `list_targets`, or of all its candidates."""
    if model.config.writes_candidates:
        assert tables is not None, "a model with items reads tables"
        return candidate_scores(model, params, batch, tables, rngs)
    return log_probabilities(list_scores(model, params, batch, rngs), batch["list_targets"])


def rwr_stage(
    config: ModelConfig,
    preference: PreferenceConfig,
    reference: Any = None,
    tables: ItemTables | None = None,
) -> Stage:
    """The stage that the training loop runs.

    A batch holds `encoder_input_tokens [B, L]`, `list_targets [B, C, T]` (the positive first; all 0
    at an empty position), `rewards [B, C]`, `levels [B, C]`, and `encoder_soft [B, 1, E]` if the
    model has soft tokens. Without the argument `reference` it also holds `reference [B, C]`, the
    reference's log-probabilities. With candidate tokens it holds the items and `target_candidate
    [B]` instead of `list_targets`, and C counts the candidates. `weight [B]`, if present,
    multiplies the loss of a row.

    Reported per list: `preference` and `sft`, the two terms; `margin`, the positive's mean lead in
    implicit reward; `accuracy`, the share of negatives it leads, also by pair of levels.

    Args:
      reference: the frozen parameters, laid out on the mesh.
      tables: the item tables.
    """
    model = Seq2Seq(config, deterministic=config.dropout == 0)
    frozen_model = Seq2Seq(config)

    def loss(params, batch, key, frozen=None):
        frozen, item_tables = (frozen, None) if tables is None else frozen
        policy = policy_scores(model, params, batch, item_tables, {"dropout": key})
        if frozen is None:
            old = batch["reference"]
        else:
            old = policy_scores(frozen_model, frozen, batch, item_tables)
        return objective(preference, policy, jax.lax.stop_gradient(old), batch)

    def tokens(batch: Batch) -> int:
        lists = batch["candidates" if config.writes_candidates else "list_targets"]
        return int(np.count_nonzero(batch["encoder_input_tokens"]) + np.count_nonzero(lists))

    frozen = reference if tables is None else (reference, tables)
    init = functools.partial(initial, config)
    return Stage("rwr", init, loss, tokens, frozen=frozen, rows_add_up=True)


def objective(
    preference: PreferenceConfig, policy: ListScores, reference: ListScores, batch: Batch
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The hybrid objective from log-probabilities `[B, C]`: loss, weight and metrics (see `Stage`),
    each summed over the lists.
    """
    rewards, levels = batch["rewards"], batch["levels"]
    if "list_targets" in batch:
        mask = batch["list_targets"][:, :, 0] > 0
    else:
        place = batch["target_candidate"]
        mask = list_mask(batch["candidates"], place)
        lists = (policy, reference, rewards, levels)
        policy, reference, rewards, levels = (positive_first(x, place) for x in lists)
    rows = mask[:, 0].astype(jnp.float32)  # rows that pad a batch have no positive
    if "weight" in batch:
        rows *= batch["weight"]
    implicit = preference.beta * (policy - reference)
    term = preference.preference(implicit, rewards, mask, preference.delta)
    generation = jnp.where(mask[:, 0], -policy[:, 0], 0.0) * rows
    total = jnp.sum(term * rows) + preference.alpha * jnp.sum(generation)
    lead = jax.lax.stop_gradient(implicit[:, :1] - implicit[:, 1:])
    pairs = mask[:, :1] & mask[:, 1:]
    sums = {
        "preference": jnp.sum(term * rows),
        "sft": jnp.sum(generation),
        **_ratio("margin", lead, pairs),
        **_ratio("accuracy", lead > 0, pairs),
    }
    for winner in POSITIVE:
        for loser in NEGATIVE:
            these = pairs & (levels[:, :1] == winner) & (levels[:, 1:] == loser)
            name = f"accuracy/{winner.name.lower()}_{loser.name.lower()}"
            sums |= _ratio(name, lead > 0, these)
    return total, jnp.sum(rows), sums


def _ratio(name: str, values: jax.Array, where: jax.Array) -> dict[str, jax.Array]:
    """Sum and count of `values` at `where`: the report divides one by the other."""
    total = jnp.sum(jnp.where(where, values.astype(jnp.float32), 0.0))
    return {name: total, f"{name}/count": jnp.sum(where).astype(jnp.float32)}


def divergence(
    policy: Logits, reference: Logits, targets: TargetTokens
) -> tuple[jax.Array, jax.Array]:
    """KL(policy || reference) of the next token from logits `[B, T, V]`, in nats: its sum over the
    tokens of `targets [B, T]`, and their number. Exact over the vocabulary.
    """
    new, old = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (policy, reference))
    divergence = jnp.sum(jnp.exp(new) * (new - old), axis=-1)
    return jnp.sum(jnp.where(targets > 0, divergence, 0.0)), jnp.sum(targets > 0)


def make_measure(
    config: ModelConfig, preference: PreferenceConfig, mesh
) -> Callable[[Any, Any, Sequence[Batch]], dict[str, float]]:
    """A function (params, reference, batches) -> {name: mean}: the training metrics of a text model
    and `kl`, the divergence along the positives.
    """
    model = Seq2Seq(config)

    @jax.jit
    def sums(params, reference, batch):
        with meshes.rules_context(mesh):
            targets = batch["list_targets"]
            scores = [list_scores(model, p, batch) for p in (params, reference)]
            policy, old = (log_probabilities(x, targets) for x in scores)
            _, lists, metrics = objective(preference, policy, old, batch)
            positives, length = targets[:, 0], targets.shape[2]
            new, before = (x.vocabulary[:, :length] for x in scores)
            kl, tokens = divergence(new, before, positives)
        per_list = {f"{name}/count": lists for name in ("preference", "sft")}
        return metrics | per_list | {"kl": kl, "kl/count": tokens}

    def measure(params, reference, batches) -> dict[str, float]:
        totals: dict[str, float] = {}
        for batch in batches:
            metrics = sums(params, reference, meshes.global_batch(mesh, dict(batch)))
            for name, value in jax.device_get(metrics).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return {
            name: value / totals[f"{name}/count"]
            for name, value in totals.items()
            if totals.get(f"{name}/count", 0) > 0
        }

    return measure


def stored_reference(
    path: str,
    config: ModelConfig,
    reference: Any,
    batch_at: Callable[[int], Batch],
    steps: int,
    mesh,
    fingerprint: str,
) -> Callable[[int], Batch]:
    """`batch_at` with the log-probabilities of a text model's reference in each batch, so that
    training needs no second model.

    They are computed for all steps into `path` (float32 `[steps, B_local, C]`), and again when the
    stored `fingerprint` (of the reference, the data and the seed) differs.
    """
    model = Seq2Seq(config)

    @functools.partial(jax.jit, out_shardings=meshes.batch_sharding(mesh))
    def score(params, batch):
        with meshes.rules_context(mesh):
            return policy_scores(model, params, batch)

    stored = _stored(path, fingerprint, steps)
    if stored is None:
        scores, batches = [], Progress("rwr: reference", steps, "batches")
        for step in batches.over(range(steps)):
            batch = meshes.global_batch(mesh, dict(batch_at(step)))
            shards = score(reference, batch).addressable_shards
            by_start = {shard.index[0].start or 0: np.asarray(shard.data) for shard in shards}
            scores.append(np.concatenate([by_start[start] for start in sorted(by_start)]))
        stored = np.stack(scores)
        with atomic_write(path) as file:
            np.savez(file, scores=stored, fingerprint=fingerprint)

    return lambda step: {**batch_at(step), "reference": stored[step]}


def _stored(path: str, fingerprint: str, steps: int) -> np.ndarray | None:
    if not os.path.exists(path):
        return None
    with np.load(path) as saved:
        same = str(saved["fingerprint"]) == fingerprint and len(saved["scores"]) >= steps
        return saved["scores"] if same else None
