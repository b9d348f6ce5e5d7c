"""The search of the prefix index compared with exact search and faiss: recall@20 and time.

  python launch/bench_index.py                                48,000 synthetic vectors of 384
  python launch/bench_index.py --queries 1000000 --dimension 128
  python launch/bench_index.py --queries 10000000 --dimension 128 --lookups 100   13 GB, ten minutes
  python launch/bench_index.py --embeddings e.npy --asked p.npy

Synthetic vectors are topics, subtopics and noise; the looked-up vectors are indexed ones with more
noise. Ids are a residual k-means, 4 x 512. Look-ups run one at a time in one thread. Needs faiss
(`pip install faiss-cpu`).
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import sys
import time

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy is loaded
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import faiss  # noqa: E402
import numpy as np  # noqa: E402

from onesug_jax.retrieval.id_tree import IdTree, expected_codewords  # noqa: E402
from onesug_jax.retrieval.tree_search import (  # noqa: E402
    PAPER,
    SearchConfig,
    StoredVectors,
    TreeSearch,
)
from onesug_jax.semantic_ids.rq_kmeans import take_sample, train_rq_kmeans  # noqa: E402

K = 20
LEVELS = 4


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def draw(queries: int, dimension: int, asked: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors to index [queries, dimension] and vectors to look up [asked, dimension]."""
    rng = np.random.default_rng(seed)

    def noise(n: int) -> np.ndarray:
        return rng.standard_normal((n, dimension), np.float32) / np.float32(np.sqrt(dimension))

    finer = max(queries // 40, 1)
    topics = noise(200)[rng.integers(0, 200, finer)] + noise(finer)
    indexed = np.empty((queries, dimension), np.float32)
    for begin in range(0, queries, 65_536):
        part = slice(begin, min(begin + 65_536, queries))
        many = part.stop - begin
        indexed[part] = unit(topics[rng.integers(0, finer, many)] + 0.9 * noise(many))
    return indexed, unit(indexed[rng.integers(0, queries, asked)] + 0.6 * noise(asked))


def row(name: str, look_up, asked: np.ndarray, exact: np.ndarray, size: float) -> str:
    """One line: recall@K, median and 99th percentile of milliseconds, bytes per query."""
    for vector in asked[:20]:
        look_up(vector)
    spent, hits = [], 0
    for vector, best in zip(asked, exact, strict=True):
        began = time.perf_counter()
        found = look_up(vector)
        spent.append(1000 * (time.perf_counter() - began))
        hits += len(np.intersect1d(found, best))
    median, tail = np.percentile(spent, [50, 99])
    return f"  {name:<46} {hits / exact.size:>9.3f} {median:>9.3f} {tail:>9.3f} {size:>8.0f}"


def ours(indexed: np.ndarray, codes: int, sample: int, seed: int):
    """Yields (name, look-up, bytes per query) of each configuration of our search."""
    began = time.perf_counter()
    quantiser = train_rq_kmeans(
        take_sample(indexed, sample, seed), levels=LEVELS, codes=codes, iterations=8, seed=seed
    )
    print(f"  residual k-means {time.perf_counter() - began:.1f} s", flush=True)
    began = time.perf_counter()
    ids = quantiser.codes(indexed)
    print(f"  ids {time.perf_counter() - began:.1f} s", flush=True)
    began = time.perf_counter()
    words = expected_codewords(ids, indexed, LEVELS, codes)
    tree = IdTree.build(ids, words)
    latent_tree = IdTree.build(ids, quantiser.codebooks)
    print(f"  two trees {time.perf_counter() - began:.1f} s, nodes {tree.nodes()}", flush=True)
    default = SearchConfig()
    half = SearchConfig(tuple(max(probe // 2, 1) for probe in default.probes), default.candidates)
    ways = (
        ("paper: one path, finer buckets first", PAPER, "int8"),
        ("one path, best of 256 candidates", SearchConfig((1,) * LEVELS, 256), "int8"),
        ("default beam, by latent distance", SearchConfig(measure="latent"), "int8"),
        ("half the default's probes", half, "int8"),
        ("default", default, "int8"),
        ("default, float16", default, "float16"),
    )
    stored: dict[str, StoredVectors] = {}
    for name, config, kind in ways:
        if kind not in stored:
            stored = {kind: in_blocks(indexed, tree.rows, kind)}
        latent = config.measure == "latent"
        search = TreeSearch(
            latent_tree if latent else tree,
            stored[kind],
            quantiser.codebooks if latent else words,
            config,
            quantiser.latents if latent else None,
        )
        arrays = [*tree.arrays().values(), stored[kind].rows, stored[kind].scales]
        size = sum(array.nbytes for array in arrays) / len(indexed)
        yield f"{name} {config.probes}", lambda v, search=search: search.search(v, K)[0], size


def in_blocks(indexed: np.ndarray, rows: np.ndarray, kind: str) -> StoredVectors:
    """StoredVectors of indexed[rows], without a copy of all of them."""
    parts = [
        StoredVectors.of(indexed[rows[begin : begin + 65_536]], kind)
        for begin in range(0, len(rows), 65_536)
    ]
    rows, scales = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("rows", "scales")
    )
    return StoredVectors(rows, scales)


def theirs(indexed: np.ndarray, sample: int, seed: int):
    """Yields the same for faiss."""
    dimension = indexed.shape[1]
    flat = faiss.IndexFlatIP(dimension)
    flat.add(indexed)
    yield "faiss flat (exact)", lambda v: flat.search(v[None], K)[1], 4 * dimension
    lists = int(min(2 ** np.round(np.log2(4 * np.sqrt(len(indexed)))), max(len(indexed) // 39, 1)))
    parts = max(part for part in range(1, dimension // 8 + 1) if dimension % part == 0)
    coarse = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFPQ(coarse, dimension, lists, parts, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed
    index.train(take_sample(indexed, sample, seed))
    index.add(indexed)
    for probes in (8, 32, 128):
        if probes <= lists:
            name = f"faiss IVF{lists},PQ{parts}, {probes} probes"

            def look_up(vector, probes=probes):
                index.nprobe = probes
                return index.search(vector[None], K)[1]

            yield name, look_up, parts + 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=48_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--embeddings", help="vectors to index, .npy [N, D]; else synthetic ones")
    parser.add_argument("--asked", help="vectors to look up, .npy [B, D]; else indexed ones")
    parser.add_argument("--lookups", type=int, default=500)
    parser.add_argument("--codes", type=int, default=512)
    parser.add_argument("--sample", type=int, default=50_000, help="vectors for training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if options.embeddings:
        indexed = unit(np.load(options.embeddings).astype(np.float32))
        rows = np.random.default_rng(options.seed).permutation(len(indexed))
        asked = np.load(options.asked) if options.asked else indexed[rows]
        asked = unit(asked[: options.lookups].astype(np.float32))
    else:
        indexed, asked = draw(options.queries, options.dimension, options.lookups, options.seed)
    print(
        f"{len(indexed):,} vectors of {indexed.shape[1]}, {len(asked)} look-ups, one thread, load "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, numpy {np.__version__}, faiss "
        f"{faiss.__version__}, Python {platform.python_version()}"
    )
    exact = faiss.knn(asked, indexed, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    heading = f"  {'':<46} {f'recall@{K}':>9} {'median ms':>9} {'p99 ms':>9} {'bytes/q':>8}"
    ways = [ours(indexed, options.codes, options.sample, options.seed)]
    ways.append(theirs(indexed, options.sample, options.seed))
    for way in ways:
        for number, (name, look_up, size) in enumerate(way):
            if not number:
                print(heading)
            print(row(name, look_up, asked, exact, size), flush=True)


if __name__ == "__main__":
    main()
