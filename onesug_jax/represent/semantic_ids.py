"""Semantic ids of all known queries: made once, kept as arrays, looked up by id or beginning of id.

PAPER.md section 2.4: every query is filed under its full id. Queries that fall on the same full id
may be told apart by `resolve`, which moves the less searched to the nearest free code of the last
level. `quantize` trains, assigns, resolves and reports. Finding related queries from here is the
prefix index's work. Looking up needs numpy alone; JAX is loaded only to train.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.represent.quantiser import Quantiser

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh

    from onesug_jax.represent.rqvae import RqVaeConfig

IDS, ORDER, KEYS, ABOUT, REPORT = (
    "ids.npy",
    "order.npy",
    "keys.npy",
    "ids.json",
    "ids_report.json",
)
METHODS = ("rqvae", "rq_kmeans")
_ROWS = 65_536  # embeddings in memory at a time
_MOVERS = 8192  # queries whose distances to the last codes are in memory at a time


class SemanticIds:
    """The ids of N queries, query number i in byte order.

    Attributes:
      ids: [N, levels] uint16.
      order: [N] uint32, query numbers by id, most searched first inside an id.
      keys: [N] uint64, the ids in that order, each packed into one number.
      codes: how many codes a level has.
    """

    def __init__(self, ids: np.ndarray, order: np.ndarray, keys: np.ndarray, codes: int):
        self.ids, self.order, self.keys, self.codes = ids, order, keys, codes
        self._bits = _bits(codes, ids.shape[1])

    @classmethod
    def build(cls, ids: np.ndarray, counts: np.ndarray, codes: int) -> SemanticIds:
        """From ids [N, levels] and how often each query was searched [N]; ties by number.

        Raises:
          UserError: unequal lengths, codes out of range, or ids that do not fit 64 bits.
        """
        ids = np.ascontiguousarray(ids, np.uint16)
        if ids.ndim != 2 or len(ids) != len(counts):
            raise UserError(
                f"ids {list(ids.shape)} and {len(counts)} counts: expected [N, levels] and N "
                "counts; give both for the same queries."
            )
        if ids.size and ids.max() >= codes:
            row = int(np.argmax(ids.max(1) >= codes))
            raise UserError(
                f"id of query {row} is {ids[row].tolist()}: expected codes below {codes}; make "
                "the ids again with this quantiser."
            )
        keys = _pack(ids, codes)
        order = np.lexsort((-np.asarray(counts, np.int64), keys)).astype(np.uint32)
        return cls(ids, order, keys[order], codes)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def levels(self) -> int:
        """How many codes an id has."""
        return self.ids.shape[1]

    def of(self, number: int) -> tuple[int, ...]:
        """The id of query `number`."""
        return tuple(self.ids[number].tolist())

    def numbers(self, beginning: Sequence[int]) -> np.ndarray:
        """Numbers of the queries whose ids begin so [n]: all of them for (), one bucket for all.

        In the order of ids, and most searched first inside an id.

        Raises:
          UserError: more codes than levels, or a code out of range.
        """
        beginning = [int(code) for code in beginning]
        if len(beginning) > self.levels or any(not 0 <= c < self.codes for c in beginning):
            raise UserError(
                f"id {tuple(beginning)}: expected at most {self.levels} codes from 0 to "
                f"{self.codes - 1}; ask with an id of this quantiser."
            )
        first = 0
        for code in beginning:
            first = first << self._bits | code
        rest = self._bits * (self.levels - len(beginning))
        first <<= rest
        last = first | ((1 << rest) - 1)
        start = np.searchsorted(self.keys, np.uint64(first), side="left")
        stop = np.searchsorted(self.keys, np.uint64(last), side="right")
        return self.order[start:stop]

    def collisions(self) -> float:
        """Share of the queries whose full id another query has too."""
        if not len(self):
            return 0.0
        same = np.asarray(self.keys[1:] == self.keys[:-1])
        shared = np.zeros(len(self), bool)
        shared[1:] |= same
        shared[:-1] |= same
        return float(shared.mean())

    def save(self, folder: str) -> None:
        """Write the three arrays and their meaning into `folder`."""
        os.makedirs(folder, exist_ok=True)
        for name, array in ((IDS, self.ids), (ORDER, self.order), (KEYS, self.keys)):
            np.save(os.path.join(folder, name), array)
        about = {"queries": len(self), "levels": self.levels, "codes": self.codes}
        _write_json(os.path.join(folder, ABOUT), about)

    @classmethod
    def load(cls, folder: str) -> SemanticIds:
        """Open saved ids by memory map. Raises UserError where files are missing or disagree."""
        paths = [os.path.join(folder, name) for name in (IDS, ORDER, KEYS, ABOUT)]
        for path in paths:
            if not os.path.isfile(path):
                raise UserError(
                    f"{path}: expected saved semantic ids, found no such file; make them again"
                )
        try:
            with open(paths[3], encoding="utf-8") as file:
                about = json.load(file)
            arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths[:3]]
            n, levels, codes = about["queries"], about["levels"], about["codes"]
            found = [array.shape for array in arrays]
            if found != [(n, levels), (n,), (n,)]:
                raise ValueError(f"{ABOUT} says {n} queries, the arrays are {found}")
        except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
            raise UserError(
                f"{folder}: the semantic ids are damaged ({error}); make them again"
            ) from error
        return cls(*arrays, codes)


def resolve_collisions(
    ids: np.ndarray, counts: np.ndarray, embeddings: np.ndarray, quantiser: Quantiser
) -> np.ndarray:
    """Ids [N, levels] in which queries keep a full id to themselves where there is room.

    The most searched query of an id keeps it (ties: the smaller number). The others, most searched
    first, take the nearest code of the last level that no query has under the same first levels;
    where none is free they go on sharing.
    """
    codes, levels = quantiser.size, quantiser.levels
    bits = np.uint64(_bits(codes, levels))
    keys = _pack(ids, codes)
    counts = np.asarray(counts, np.int64)
    order = np.lexsort((-counts, keys))
    later = order[1:][keys[order[1:]] == keys[order[:-1]]]  # not the first of their id
    taken_keys = np.unique(keys)
    parents = keys[later] >> bits
    later = later[np.lexsort((later, -counts[later], parents))]
    new = np.array(ids, np.uint16)
    parent, free = None, None
    for start in range(0, len(later), _MOVERS):
        block = later[start : start + _MOVERS]
        movers = np.sort(block)  # so that a memory map is read in order
        latents = quantiser.latents(embeddings[movers])
        residuals = latents - quantiser.reconstruct(ids[movers, :-1])
        last = quantiser.codebooks[-1]
        distances = np.square(last).sum(1) - 2 * residuals @ last.T
        for query, at in zip(block, np.searchsorted(movers, block), strict=True):
            own = keys[query] >> bits
            if own != parent:
                parent = own
                low, high = (own << bits), (own << bits) | np.uint64((1 << int(bits)) - 1)
                begin = np.searchsorted(taken_keys, low, side="left")
                end = np.searchsorted(taken_keys, high, side="right")
                free = np.ones(codes, bool)
                free[(taken_keys[begin:end] - low).astype(np.int64)] = False
                room = codes - int(end - begin)
            if room:
                row = np.where(free, distances[at], np.inf)
                code = int(row.argmin())
                new[query, -1], free[code], room = code, False, room - 1
    return new


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
    log_every: int = 50,
    on_mismatch: str = "raise",
) -> dict[str, Any]:
    """Train a quantiser on all queries and give each its id; everything is written into `out`.

    Args:
      embeddings: [N, D] unit vectors, a memory map if need be; row i is query number i.
      counts: [N], how often each was searched.
      out: gets the quantiser, the ids, `ids_report.json`, and what the training loop writes.
      encoder_fingerprint: of the text encoder that made the embeddings.
      optimizer: AdamW at 2e-3 with a cosine decay has served 5 thousand to 50 thousand queries; 300
        to 500 steps of 1024, since codebooks and networks start from the data.
      method: "rqvae", or "rq_kmeans", which needs no mesh, optimizer or steps.
      resolve: whether to tell apart queries that fall on one id.
      log_every, on_mismatch: go to `train.loop.fit`.

    Returns:
      the report: `levels` (usage and perplexity of each, `used` codes), `reconstruction_error`
      (mean squared distance to the embedding), `mean_cosine`, `shared_before` and `shared_after`
      (shares of queries whose id is not theirs alone), `moved`.

    Raises:
      UserError: embeddings and counts that do not fit or are not unit vectors, an unknown method,
        or what the training loop raises.
    """
    from onesug_jax.represent import rq_kmeans, rqvae

    if method not in METHODS:
        raise UserError(f"method={method!r}: expected one of {', '.join(METHODS)}; choose one.")
    config = config or rqvae.RqVaeConfig()
    counts = np.asarray(counts)
    _check(embeddings, counts)
    n = len(embeddings)
    if n < config.codes:
        print(
            f"semantic ids: {n:,} queries for {config.codes:,} codes a level; at most {n:,} of "
            "them can be used",
            flush=True,
        )
    if method == "rqvae":
        quantiser = rqvae.train_rqvae(
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
            on_mismatch=on_mismatch,
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
    found = SemanticIds.build(ids, counts, config.codes)
    shared_before = shared_after = found.collisions()
    moved = 0
    if resolve and shared_before:
        print(f"semantic ids: telling apart the {shared_before:.2%} that share an id", flush=True)
        plain, ids = ids, resolve_collisions(ids, counts, embeddings, quantiser)
        found = SemanticIds.build(ids, counts, config.codes)
        shared_after, moved = found.collisions(), int((ids != plain).any(1).sum())
    report = {
        "method": method,
        "queries": n,
        "codes": config.codes,
        "levels": level_usage(ids, config.codes),
        "reconstruction_error": error,
        "mean_cosine": cosine,
        "shared_before": shared_before,
        "shared_after": shared_after,
        "moved": moved,
        "distinct_ids": int(np.count_nonzero(np.diff(found.keys))) + 1,
        "encoder": encoder_fingerprint,
        "quantiser": quantiser.fingerprint,
    }
    quantiser.save(out)
    found.save(out)
    _write_json(os.path.join(out, REPORT), report)
    print(format_report(report), flush=True)
    return report


def level_usage(ids: np.ndarray, codes: int) -> list[dict[str, float]]:
    """For each level of ids [N, levels]: codes used, their share, and the perplexity of the use."""
    rows = []
    for level in range(ids.shape[1]):
        counts = np.bincount(ids[:, level], minlength=codes)
        share = counts[counts > 0] / len(ids)
        perplexity = float(np.exp(-(share * np.log(share)).sum()))
        rows.append({"used": len(share), "usage": len(share) / codes, "perplexity": perplexity})
    return rows


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
    """Ids [N, levels] of all queries, mean squared error and mean cosine of what comes back."""
    n, errors, cosines = len(embeddings), 0.0, 0.0
    ids = np.empty((n, quantiser.levels), np.uint16)
    began = told = time.monotonic()
    for start in range(0, n, _ROWS):
        rows = np.asarray(embeddings[start : start + _ROWS], np.float32)
        ids[start : start + len(rows)] = here = quantiser.codes(rows)
        back = quantiser.decode(quantiser.reconstruct(here))
        errors += float(np.square(rows - back).sum(dtype=np.float64))
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(back, axis=1)
        cosines += float((np.einsum("bd,bd->b", rows, back) / np.maximum(lengths, 1e-12)).sum())
        done, now = start + len(rows), time.monotonic()
        if done == n or now - told > 5:
            told = now
            print(
                f"semantic ids: {done:,} of {n:,} queries assigned, "
                f"{done / max(now - began, 1e-9):,.0f} queries/s",
                flush=True,
            )
    return ids, errors / n, cosines / n


def _check(embeddings: np.ndarray, counts: np.ndarray) -> None:
    if np.ndim(embeddings) != 2 or not len(embeddings) or counts.shape != (len(embeddings),):
        raise UserError(
            f"embeddings {list(np.shape(embeddings))} and counts {list(counts.shape)}: expected "
            "[N, D] and [N] of the same N >= 1 queries; embed the queries that were counted."
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


def _bits(codes: int, levels: int) -> int:
    """Bits of a packed code."""
    bits = max(1, int(codes - 1).bit_length())
    if bits * levels > 64:
        raise UserError(
            f"{levels} levels of {codes} codes need {bits * levels} bits: an id must fit 64; "
            "choose fewer levels or codes."
        )
    return bits


def _pack(ids: np.ndarray, codes: int) -> np.ndarray:
    """Ids [N, levels] -> [N] uint64 in the same order, the first level in front."""
    keys, bits = np.zeros(len(ids), np.uint64), np.uint64(_bits(codes, ids.shape[1]))
    for level in range(ids.shape[1]):
        keys = keys << bits | ids[:, level].astype(np.uint64)
    return keys


def _write_json(path: str, content: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
