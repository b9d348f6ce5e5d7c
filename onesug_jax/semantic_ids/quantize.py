"""From embeddings to semantic ids: train a quantiser, compute the ids of all queries, report.

PAPER.md section 2.4. `rqvae_training` and `rq_kmeans` train, `collisions` separates queries that
share an id, `ids` stores the result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import write_json
from onesug_jax.progress import Progress
from onesug_jax.semantic_ids.collisions import resolve_collisions
from onesug_jax.semantic_ids.ids import SemanticIds, level_usage
from onesug_jax.semantic_ids.quantiser import Quantiser
from onesug_jax.train import distributed
from onesug_jax.train.states import HERE, States

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh

    from onesug_jax.semantic_ids.rqvae import RqVaeConfig

REPORT = "ids_report.json"
METHODS = ("rqvae", "rq_kmeans")
_ROWS = 65_536  # embeddings in memory at a time


def quantize(
    embeddings: np.ndarray,
    counts: np.ndarray,
    out: str,
    *,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    seed: int,
    encoder_fingerprint: str,
    method: str = "rqvae",
    config: RqVaeConfig | None = None,
    steps: int = 500,
    batch_size: int = 1024,
    resolve: bool = True,
    quantiser_from: str | None = None,
    log_every: int = 50,
    settings: Mapping[str, Any] | None = None,
    states: States = HERE,
) -> dict[str, Any]:
    """Train a quantiser on all queries, compute their ids, and write both into `out`.

    Args:
      embeddings: [N, D] unit vectors, possibly a memory map; row i is query number i.
      counts: [N], search counts of the queries.
      out: folder for the quantiser, the ids, `ids_report.json` and the files of the training loop.
      encoder_fingerprint: of the text encoder of the embeddings.
      optimizer: for 5,000 to 50,000 queries AdamW at 2e-3 with a cosine decay over 300 to 500 steps
        of 1024 is enough, since codebooks and networks start from the data.
      method: "rqvae", or "rq_kmeans", which ignores mesh, optimizer and steps.
      resolve: whether to separate queries that share an id.
      quantiser_from: folder of a trained quantiser to use instead of training one.
      log_every, settings, states: passed to `train.loop.fit`.

    Returns:
      the report: `levels` (`used` codes, usage and perplexity of each level, before ids are moved),
      `reconstruction_error` (mean squared distance to the embedding), `mean_cosine`,
      `shared_before` and `shared_after` (shares of the queries that share their id), `moved`.

    Raises:
      UserError: embeddings and counts of unequal numbers, embeddings that are not unit vectors, an
        unknown method, or an error of the training loop.
    """
    from onesug_jax.semantic_ids import rq_kmeans, rqvae, rqvae_training

    if method not in METHODS:
        raise UserError(f"method={method!r}: expected one of {', '.join(METHODS)}; choose one.")
    config = config or rqvae.RqVaeConfig()
    counts = np.asarray(counts)
    _check(embeddings, counts)
    n = len(embeddings)
    if n < config.codes:
        print(
            f"semantic ids: {n:,} queries for {config.codes:,} codes a level; at most {n:,} codes "
            "can be used",
            flush=True,
        )
    if quantiser_from is not None:
        quantiser = Quantiser.load(quantiser_from, expect_encoder=encoder_fingerprint)
    elif method == "rqvae":
        quantiser = rqvae_training.train_rqvae(
            embeddings,
            out,
            config=config,
            mesh=mesh,
            optimizer=optimizer,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            encoder=encoder_fingerprint,
            log_every=log_every,
            settings=settings,
            states=states,
        )
    else:
        quantiser = rq_kmeans.train_rq_kmeans(
            rq_kmeans.take_sample(embeddings, config.kmeans_sample * config.codes, seed),
            levels=config.levels,
            codes=config.codes,
            iterations=config.kmeans_iterations,
            seed=seed,
            encoder=encoder_fingerprint,
        )
    ids, error, cosine = _assign(embeddings, quantiser)
    table = SemanticIds.build(ids, counts, config.codes)
    shared_before = shared_after = table.collisions()
    levels = level_usage(ids, config.codes)
    moved = 0
    if resolve and shared_before:
        print(f"semantic ids: separating the {shared_before:.2%} that share an id", flush=True)
        resolved = resolve_collisions(ids, counts, embeddings, quantiser)
        table = SemanticIds.build(resolved, counts, config.codes)
        shared_after, moved = table.collisions(), int((resolved != ids).any(1).sum())
    report = {
        "method": method,
        "queries": n,
        "codes": config.codes,
        "levels": levels,
        "reconstruction_error": error,
        "mean_cosine": cosine,
        "shared_before": shared_before,
        "shared_after": shared_after,
        "moved": moved,
        "distinct_ids": int(np.count_nonzero(np.diff(table.keys))) + 1,
        "encoder": encoder_fingerprint,
        "quantiser": quantiser.fingerprint,
    }
    if distributed.is_primary():
        quantiser.save(out)
        table.save(out)
        write_json(os.path.join(out, REPORT), report, indent=1)
    distributed.barrier()
    print(format_report(report), flush=True)
    return report


def format_report(report: dict[str, Any]) -> str:
    """The report as a small table."""
    lines = [f"semantic ids of {report['queries']:,} queries ({report['method']})"]
    lines.append(f"{'level':>7}  {'codes used':>11}  {'usage':>7}  {'perplexity':>10}")
    for number, row in enumerate(report["levels"], 1):
        used = f"{row['used']}/{report['codes']}"
        lines.append(f"{number:>7}  {used:>11}  {row['usage']:>7.1%}  {row['perplexity']:>10.1f}")
    lines.append(
        f"reconstruction error {report['reconstruction_error']:.4f}, mean cosine "
        f"{report['mean_cosine']:.4f}"
    )
    lines.append(
        f"share an id with another query: {report['shared_before']:.2%}, after moving "
        f"{report['moved']:,} of them {report['shared_after']:.2%}"
    )
    return "\n".join(lines)


def _assign(embeddings: np.ndarray, quantiser: Quantiser) -> tuple[np.ndarray, float, float]:
    """Ids [N, levels] of all queries, mean squared error and mean cosine of the reconstructions."""
    n, errors, cosines = len(embeddings), 0.0, 0.0
    ids = np.empty((n, quantiser.levels), np.uint16)
    progress = Progress("semantic ids", n, "queries")
    for start in range(0, n, _ROWS):
        rows = np.asarray(embeddings[start : start + _ROWS], np.float32)
        ids[start : start + len(rows)] = codes = quantiser.codes(rows)
        decoded = quantiser.decode(quantiser.reconstruct(codes))
        errors += float(np.square(rows - decoded).sum(dtype=np.float64))
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(decoded, axis=1)
        cosines += float((np.einsum("bd,bd->b", rows, decoded) / np.maximum(lengths, 1e-12)).sum())
        progress.add(len(rows))
    progress.close()
    return ids, errors / n, cosines / n


def _check(embeddings: np.ndarray, counts: np.ndarray) -> None:
    if np.ndim(embeddings) != 2 or not len(embeddings) or counts.shape != (len(embeddings),):
        raise UserError(
            f"embeddings {list(np.shape(embeddings))} and counts {list(counts.shape)}: expected "
            "[N, D] and [N] of the same N >= 1 queries; give both for the same queries."
        )
    for start in range(0, len(embeddings), _ROWS):
        lengths = np.linalg.norm(np.asarray(embeddings[start : start + _ROWS], np.float32), axis=1)
        wrong = ~(np.abs(lengths - 1) < 0.01)  # so that NaN counts as wrong
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(
                f"embedding of query {start + row} has length {lengths[row]:.4g}: expected unit "
                "vectors; divide each embedding by its length, or embed the queries again."
            )
