"""Alignment of the text encoder with behaviour, and its gain in recall (PAPER.md section 2).

The encoder, pretrained or from scratch, is trained on the mined pairs by the contrastive loss.
Recall on held-out pairs is measured before and after. `steps=0` saves the encoder without training,
as an ablation. `contrastive.py` has the loss, `pairs.py` the pairs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax
from jax.sharding import Mesh

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint, write_json
from onesug_jax.logs.mined import file_of
from onesug_jax.text_encoder.contrastive import contrastive_stage
from onesug_jax.text_encoder.encoder import EncoderSpec, TextEncoder, find_weights
from onesug_jax.text_encoder.pairs import (
    KINDS,
    TABLES,
    Draw,
    Pairs,
    Texts,
    read_pairs,
    sample,
    split,
)
from onesug_jax.text_encoder.wordpiece import WordPiece, pad
from onesug_jax.train import distributed
from onesug_jax.train import mesh as meshes
from onesug_jax.train.loop import fit
from onesug_jax.train.states import HERE, States

REPORT = "alignment.json"
_AT = 20
_TIE = 1e-6  # smaller differences of cosines are rounding: the same text in two batches
_BLOCK = 16_384
_SAMPLE = 10_000


def align(
    mined: str,
    out: str,
    *,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    seed: int,
    weights: str | None = None,
    spec: EncoderSpec | None = None,
    steps: int = 400,
    batch_size: int = 256,
    temperature: float = 0.05,
    query_share: float = 0.5,
    weighting: str = "sqrt",
    held_out: float = 0.05,
    recall_pairs: int = 1000,
    recall_queries: int = 1_000_000,
    accumulation: int = 1,
    log_every: int = 50,
    checkpoint_every: int = 500,
    profile_steps: tuple[int, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    states: States = HERE,
) -> dict[str, Any]:
    """Make or load an encoder, align it, save it into `out` (Hugging Face layout) and measure it.

    Training resumes from the last checkpoint. The identity of the trained state is the initial
    encoder, its tokenizer and the pairs.

    Args:
      mined: folder with queries.parquet, prefix_query.parquet and query_query.parquet.
      weights: "minilm", or a folder in the Hugging Face layout; None: from scratch.
      spec: sizes of an encoder from scratch; a loaded encoder uses `max_length`, `dropout` and
        `dtype`.
      steps: updates; 0: the encoder is saved without training.
      batch_size: pairs a step, over all devices.
      query_share: share of query pairs in a batch; the others are prefix pairs.
      weighting: weight of a pair by its count: "sqrt", "log", "count" or "uniform".
      held_out: share of texts whose pairs are measured and never trained on.
      recall_pairs: most pairs of a kind for recall.
      recall_queries: most queries to search for recall (the most searched ones).
      profile_steps: (first, last) updates to trace into `out/profile`.
      settings: further JSON values for the history.
      states: where the checkpoints are, if not in `out`.

    Returns:
      the contents of out/alignment.json: pairs, steps, recall@20 before and after by kind of pair
      (None without held-out pairs), dimension and fingerprint of the saved encoder.

    Raises:
      UserError: a table, a folder or a setting is invalid, or `steps` is positive and there are no
        pairs to train on.
    """
    spec = spec or EncoderSpec()
    texts, pairs = read_pairs(mined)
    train, held = split(texts, pairs, held_out)
    if steps:
        _check(mined, texts, train)
    encoder = _start(texts, weights, spec, seed)
    os.makedirs(out, exist_ok=True)
    _say(
        f"contrastive: {texts.queries:,} queries; pairs to train on: "
        + ", ".join(f"{len(train[kind]):,} {kind}" for kind in KINDS)
    )
    measured = {kind: sample(held[kind], recall_pairs) for kind in KINDS}

    def measure(encoder: TextEncoder) -> dict[str, float | None]:
        return recall(encoder, texts, measured, most_queries=recall_queries)

    before = after = measure(encoder)
    if steps:
        length = _length(encoder.tokenizer, texts, spec.max_length)
        draw = Draw(train, batch_size, query_share, weighting, seed)
        result = fit(
            contrastive_stage(encoder.config, temperature),
            batch_at=batches(
                texts, draw, encoder.tokenizer, length, meshes.process_batch_shard(mesh, batch_size)
            ),
            batch_size=batch_size,
            mesh=mesh,
            optimizer=optimizer,
            steps=steps,
            seed=seed,
            folder=out,
            states=states,
            accumulation=accumulation,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            keep=1,
            params_from=encoder.params,
            profile_steps=profile_steps,
            identity=_identity(encoder, weights, texts, train),
            settings={
                "temperature": temperature,
                "query_share": query_share,
                "weighting": weighting,
                "dropout": spec.dropout,
                **(settings or {}),
            },
        )
        encoder = encoder.with_params(meshes.on_host(result.params))
        after = measure(encoder)
    report = {
        "weights": weights,
        "steps": steps,
        "queries": texts.queries,
        "pairs": {
            kind: {"train": len(train[kind]), "measured": len(measured[kind])} for kind in KINDS
        },
        f"recall@{_AT}": {kind: {"before": before[kind], "after": after[kind]} for kind in KINDS},
        "dimension": encoder.dimension,
        "fingerprint": encoder.fingerprint,
    }
    if distributed.is_primary():
        encoder.save(out)
        write_json(os.path.join(out, REPORT), report)
    distributed.barrier()
    _say(format_report(report))
    return report


def _identity(
    encoder: TextEncoder, weights: str | None, texts: Texts, train: Mapping[str, Pairs]
) -> dict[str, Any]:
    """The settings that define an aligned encoder; for one from scratch, without the seed."""
    return {
        "stage": "align",
        "encoder": dataclasses.asdict(encoder.config) | {"dropout": None},
        "weights": encoder.fingerprint if weights else None,
        "tokenizer": fingerprint(encoder.tokenizer.to_str()),
        "texts": fingerprint(texts.hashes),
        "pairs": {kind: train[kind].digest() for kind in KINDS},
    }


def batches(
    texts: Texts, draw: Draw, tokenizer: WordPiece, length: int, rows: np.ndarray
) -> Callable[[int], dict[str, np.ndarray]]:
    """A pure function: step -> this process's rows of the batch, for `contrastive_stage`.

    Args:
      length: tokens of every row, the same for all steps, so that the step is compiled once.
      rows: rows of each batch that this process reads.
    """
    size = len(rows)

    def batch_at(step: int) -> dict[str, np.ndarray]:
        numbers = draw(step)[rows]
        ids = tokenizer.ids(texts.take(numbers.ravel()))
        tokens, lengths = pad(ids, length, tokenizer.pad)
        return {
            "tokens": tokens.reshape(size, 2, length),
            "lengths": lengths.reshape(size, 2),
            "texts": texts.groups[numbers],
        }

    return batch_at


def recall(
    encoder: TextEncoder,
    texts: Texts,
    pairs: Mapping[str, Pairs],
    k: int = _AT,
    most_queries: int = 1_000_000,
) -> dict[str, float | None]:
    """Share of pairs whose other text is among the k queries nearest to the anchor, by kind.

    Nearest by cosine among all indexed queries except the anchor itself; ties count as misses. If
    there are more than `most_queries`, only the most searched and the other texts are compared.
    None for a kind without pairs. Queries are encoded block by block and not stored.
    """
    measured = {kind: part for kind, part in pairs.items() if len(part)}
    if not measured:
        return dict.fromkeys(pairs)
    anchors = np.concatenate([part.anchors for part in measured.values()])
    others = np.concatenate([part.others for part in measured.values()])
    candidates = np.arange(texts.queries)
    if texts.queries > most_queries:
        best = np.argsort(-texts.counts, kind="stable")[:most_queries]
        candidates = np.union1d(best, others)
    # The number of the query with the anchor's text, else -1.
    query_of_group = np.full(int(texts.groups.max()) + 1, -1)
    query_of_group[texts.groups[: texts.queries]] = np.arange(texts.queries)
    anchor_queries = query_of_group[texts.groups[anchors]]
    vectors = encoder.encode(texts.take(anchors))
    own = np.einsum("pd,pd->p", vectors, encoder.encode(texts.take(others)))
    nearer = np.zeros(len(anchors), np.int64)
    for start in range(0, len(candidates), _BLOCK):
        block = candidates[start : start + _BLOCK]
        scores = vectors @ encoder.encode(texts.take(block)).T
        for excluded in (anchor_queries, others):
            columns = np.minimum(np.searchsorted(block, excluded), len(block) - 1)
            rows = np.flatnonzero(block[columns] == excluded)
            scores[rows, columns[rows]] = -np.inf
        nearer += np.count_nonzero(scores >= own[:, None] - _TIE, axis=1)
        if len(candidates) > 4 * _BLOCK:
            _say(f"recall: {start + len(block):,} of {len(candidates):,} queries")
    hits = np.split(nearer < k, np.cumsum([len(part) for part in measured.values()])[:-1])
    shares = {kind: float(np.mean(hit)) for kind, hit in zip(measured, hits, strict=True)}
    return {kind: shares.get(kind) for kind in pairs}


def format_report(report: Mapping[str, Any]) -> str:
    """A report as a small table."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f}"

    lines = [f"{f'recall@{_AT}, %':<14}{'pairs':>8}{'before':>9}{'after':>9}"]
    for kind in KINDS:
        count, shares = report["pairs"][kind]["measured"], report[f"recall@{_AT}"][kind]
        before, after = percent(shares["before"]), percent(shares["after"])
        lines.append(f"{kind + ' pairs':<14}{count:>8,}{before:>9}{after:>9}")
    return "\n".join(lines)


def _check(mined: str, texts: Texts, train: Mapping[str, Pairs]) -> None:
    """UserError unless there are pairs, with at least two different other texts."""
    fix = (
        "Give a log with more searches, lower --gin.mine.min_users, or skip the alignment: "
        "--gin.align.steps=0."
    )
    if not any(len(train[kind]) for kind in KINDS):
        files = " and ".join(os.path.join(mined, file_of(TABLES[kind][0])) for kind in KINDS)
        raise UserError(
            f"{files}: expected pairs of different texts to train the encoder on, found none that "
            f"are not held out. {fix}"
        )
    others = np.concatenate([texts.groups[train[kind].others] for kind in KINDS])
    if len(np.unique(others)) < 2:
        raise UserError(
            f"{os.path.join(mined, file_of(TABLES['prefix'][0]))}: all pairs lead to one query; "
            f"aligning needs at least two different queries. {fix}"
        )


def _start(texts: Texts, weights: str | None, spec: EncoderSpec, seed: int) -> TextEncoder:
    if weights is None:
        return TextEncoder.scratch(texts.sample(1_000_000), spec, seed)
    folder = find_weights(weights)
    return TextEncoder.load(folder, spec.max_length, dropout=spec.dropout, dtype=spec.dtype)


def _length(tokenizer: WordPiece, texts: Texts, most: int) -> int:
    """Tokens of a training row: a multiple of 4, at most `most`; about 99 % of the texts fit."""
    lengths = [*map(len, tokenizer.ids(texts.sample(_SAMPLE)))]
    return min(most, int(-(-np.quantile(lengths, 0.99) // 4) * 4))


def _say(text: str) -> None:
    if distributed.is_primary():
        print(text, flush=True)
